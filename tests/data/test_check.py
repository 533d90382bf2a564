"""The check command: what it counts, what it finds, and how it ends."""

import fake_layouts as layouts
import numpy as np
import pytest

from jaxad.data import check


def run(capsys, *arguments):
    """(exit code, standard output, standard error)."""
    code = check.main(["check", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_clean_folder_prints_counts_and_ends_with_0(tmp_path, capsys):
    layouts.mvtec(tmp_path)
    code, out, err = run(capsys, f"--root={tmp_path}", "--category=screw")
    assert code == 0 and err == ""
    rows = [line.split() for line in out.splitlines()]
    assert ["train", "good", "4", "0", "24", "x", "20", "grey", "8-bit"] in rows
    assert ["test", "crack", "3", "3", "24", "x", "20", "grey", "8-bit"] in rows
    assert "problem" not in out


def test_every_kind_of_damage_is_found_in_one_run(tmp_path, capsys):
    base = layouts.mvtec(tmp_path)
    truncated = base / "train" / "good" / "001.png"
    truncated.write_bytes(truncated.read_bytes()[:-40])
    layouts.save(base / "ground_truth" / "crack" / "000_mask.png", layouts.blob(size=(30, 20)))
    layouts.save(base / "ground_truth" / "crack" / "001_mask.png", layouts.blob(0))
    layouts.save(base / "ground_truth" / "crack" / "050_mask.png", layouts.blob())
    (base / "ground_truth" / "scratch" / "000_mask.png").unlink()
    code, out, err = run(capsys, f"--root={tmp_path}", "--dataset=mvtec_ad")
    assert code == 2 and err == "jaxad: 5 problems found, listed above; repair or remove them\n"
    problems = [line for line in out.splitlines() if "problem:" in line]
    for words in (
        "001.png is truncated or unreadable",
        "000_mask.png is 30x20 but its image",
        "001_mask.png is empty but its image",
        "050_mask.png is a mask without an image",
        "scratch/000.png has no mask",
    ):
        assert sum(words in line for line in problems) == 1, words


def test_mixed_channels_depths_sizes_and_copies_are_noted(tmp_path, capsys):
    base = layouts.mvtec(tmp_path)
    layouts.save(base / "train" / "good" / "010.png", layouts.pixels(3, grey=True).astype(np.uint16) * 257)
    layouts.save(base / "train" / "good" / "011.png", layouts.pixels(4, size=(50, 40)))
    layouts.save(base / "train" / "good" / "012.png", layouts.pixels(4, size=(60, 40)))
    (base / "test" / "good" / "005.png").write_bytes((base / "train" / "good" / "000.png").read_bytes())
    layouts.save(base / "test" / "crack" / "deeper" / "0.png", layouts.pixels(4))
    code, out, _ = run(capsys, f"--root={base}")
    assert code == 0
    assert "channels differ between images (RGB 8-bit, grey 16-bit, grey 8-bit)" in out
    assert "24..60 x 20..40 (3 sizes)" in out
    assert "1 test images are training images, byte for byte, such as test/good/005.png and train/good/000.png" in out
    assert "1 image files are not read, such as test/crack/deeper/0.png" in out


def test_other_layouts_are_checked_through_their_builders(tmp_path, capsys):
    layouts.btad(tmp_path / "btad")
    layouts.visa(tmp_path / "visa")
    layouts.mvtec_3d(tmp_path / "3d")
    for dataset, folder in (("btad", "btad"), ("visa", "visa"), ("mvtec_3d_ad", "3d")):
        assert run(capsys, f"--dataset={dataset}", f"--root={tmp_path / folder}")[0] == 0, dataset
    xyz = tmp_path / "3d" / "bagel" / "validation" / "good" / "xyz" / "001.tiff"
    xyz.write_bytes(xyz.read_bytes()[:100])
    code, out, _ = run(capsys, "--dataset=mvtec_3d_ad", f"--root={tmp_path / '3d'}")
    assert code == 2 and "001.tiff is truncated or not a readable xyz image" in out


def test_demo_is_counted(capsys):
    code, out, _ = run(capsys, "--dataset=demo", "--category=washer")
    assert code == 0 and "scratch" in out and "weave" not in out


def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys):
    layouts.mvtec(tmp_path)
    for arguments, words in (
        (["--root=/nowhere/at/all"], "is not a folder"),
        ([f"--root={tmp_path}", "--category=scrw"], "nearest: screw"),
        (["--rot=x"], "root"),
        ([str(tmp_path)], f"--root={tmp_path}"),
        ([], "root is empty"),
    ):
        code, out, err = run(capsys, *arguments)
        assert code == 2 and words in err and err.count("\n") == 1, arguments


def test_config_file_names_the_data_too(tmp_path, capsys):
    layouts.mvtec(tmp_path / "data")
    file = tmp_path / "mine.py"
    file.write_text("from jaxad.config import default\n\n\ndef get_config():\n    return default('patchcore')\n")
    arguments = [f"--config={file}", "--config.data.dataset=folder", f"--config.data.root={tmp_path / 'data'}"]
    code, out, err = run(capsys, *arguments, "--config.data.category=screw")
    assert code == 0, err
    assert "thread" not in out and "scratch" in out


def test_help_lists_the_flags(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0 and "--root" in out and "--category" in out


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["mvtec_ad", "magnetic_tile/magnetic_tile", "piped"])
def test_the_real_sets_are_clean(real_data, capsys, folder):
    code, out, err = run(capsys, f"--root={real_data / folder}")
    assert code == 0, out + err
