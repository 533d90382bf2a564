"""Categories, sources, and the prepared cache: changed files, two processes at once, a killed process, a full disk."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import fake_layouts as layouts
import numpy as np
import pytest

from jaxad import config as configs
from jaxad.data import catalog, images, prepared
from jaxad.errors import UserError
from jaxad.types import Record


def make_config(root, cache, dataset="folder", category=""):
    config = configs.default("patchcore")
    config.data.dataset, config.data.root, config.data.category = dataset, str(root), category
    config.data.cache_dir = str(cache)
    return config


def preparations(cache):
    """Every finished preparation in the cache."""
    return sorted(path.name for path in pathlib.Path(cache).glob("prepared/*/*/*") if path.is_dir())


def everything(source):
    return {
        (split, i): (record, *source.load(split, i))
        for split in ("train", "test")
        for i, record in enumerate(source.records(split))
    }


def assert_equals_files(source, root):
    """Every record's pixels and mask are those of the files."""
    for record, image, mask in everything(source).values():
        path = pathlib.Path(root) / record.path
        np.testing.assert_array_equal(image, images.decode(path))
        assert mask.shape == image.shape[:2] and mask.dtype == bool and mask.any() == record.label
        if record.label:
            truth = path.parents[2] / "ground_truth" / record.defect / f"{path.stem}_mask.png"
            np.testing.assert_array_equal(mask, images.decode_mask(truth))


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_source_serves_the_files_by_index(tmp_path, monkeypatch, file_format):
    monkeypatch.setattr(prepared, "file_format", lambda: file_format)
    layouts.mvtec(tmp_path / "data")
    config = make_config(tmp_path / "data", tmp_path / "cache", category="screw")
    assert catalog.categories(config) == ("screw",)
    source = catalog.open_source(config, "screw")
    assert [len(source.records(split)) for split in ("train", "test", "nothing")] == [4, 7, 0]
    assert source.name == "screw" and source.root == str(tmp_path / "data") and source.has_masks and not source.notes
    assert source.records("test")[0] == Record("screw/test/crack/000.png", True, "crack")
    assert_equals_files(source, tmp_path / "data")


def test_every_image_mode_survives_preparation(tmp_path):
    from PIL import Image

    base = tmp_path / "data" / "parts" / "train" / "good"
    rgb = layouts.pixels(0)
    saved = {"a.png": rgb, "b.jpg": rgb, "c.bmp": rgb, "d.tif": rgb, "e.png": rgb[..., 0]}
    for name, array in saved.items():
        layouts.save(base / name, array)
    layouts.save(base / "f.png", rgb[..., 0].astype(np.uint16) * 200)
    for name, mode in (("g.png", "RGBA"), ("h.png", "P"), ("i.png", "1"), ("j.jpg", "CMYK"), ("k.WEBP", "RGB")):
        Image.fromarray(rgb).convert(mode).save(base / name)
    config = make_config(tmp_path / "data", tmp_path / "cache", category="parts")
    source = catalog.open_source(config, "parts")
    assert len(source.records("train")) == 11 and source.records("test") == () and not source.has_masks
    assert_equals_files(source, tmp_path / "data")


def test_empty_category_is_the_root_itself(tmp_path):
    layouts.mvtec(tmp_path, "bolts")
    config = make_config(tmp_path / "bolts", tmp_path / "cache")
    assert catalog.categories(config) == ("bolts",)
    source = catalog.open_source(config, "bolts")
    assert source.records("train")[0].path == "train/good/000.png" and source.root == str(tmp_path / "bolts")
    for name in ("all", "bolts"):
        config.data.category = name
        assert catalog.categories(config) == ("bolts",)
        assert catalog.open_source(config, "bolts").records("test") == source.records("test")


def test_categories_take_a_list_or_all(tmp_path):
    for name in ("screw", "nut", "bolt"):
        layouts.mvtec(tmp_path, name)
    (tmp_path / "papers").mkdir()
    config = make_config(tmp_path, tmp_path / "cache", category=" screw,bolt ,screw")
    assert catalog.categories(config) == ("screw", "bolt")
    config.data.category = "all"
    assert catalog.categories(config) == ("bolt", "nut", "screw")
    config.data.dataset = "mvtec_ad"
    assert catalog.categories(config) == ("screw",)
    config.data.dataset, config.data.category = "demo", ""
    assert catalog.categories(config) == ("weave", "washer")


def test_visa_all_is_the_one_class_protocol_and_two_class_is_asked_for_by_name(tmp_path):
    layouts.visa(tmp_path / "data")
    config = make_config(tmp_path / "data", tmp_path / "cache", "visa", "all")
    assert catalog.categories(config) == ("candle", "cashew")
    config.data.category = "candle_2cls_fewshot"
    source = catalog.open_source(config, *catalog.categories(config))
    assert [record.label for record in source.records("train")] == [True, False, False]
    assert source.load("train", 0)[1].any()


def refusal(config, category=None):
    with pytest.raises(UserError) as error:
        names = catalog.categories(config)
        catalog.open_source(config, category or names[0])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_mistakes_in_names_and_folders_are_one_line_with_the_fix(tmp_path):
    layouts.mvtec(tmp_path / "data", "screw")
    layouts.mvtec(tmp_path / "data", "cable")
    cache = tmp_path / "cache"
    assert "nearest: screw" in refusal(make_config(tmp_path / "data", cache, category="scew"))
    assert "found: cable, screw" in refusal(make_config(tmp_path / "data", cache, category="zzz"))
    assert "nearest: mvtec_ad" in refusal(make_config(tmp_path / "data", cache, "mvtec-ad", "screw"))
    assert "is not a folder" in refusal(make_config(tmp_path / "nowhere", cache))
    assert "config.data.root is empty" in refusal(make_config("", cache))
    (tmp_path / "void").mkdir()
    assert "is an empty folder" in refusal(make_config(tmp_path / "void", cache))
    assert "set config.data.category to 'all' or some of cable, screw" in refusal(make_config(tmp_path / "data", cache))
    assert "'all' or some of cable, screw" in refusal(make_config(tmp_path / "data", cache, "mvtec_ad"))
    message = refusal(make_config(tmp_path / "data" / "screw", cache, "mvtec_ad", "screw"))
    assert f"use config.data.root={tmp_path / 'data'} and config.data.category=screw" in message
    assert f"did you mean config.data.root={tmp_path / 'data'}?" in refusal(
        make_config(tmp_path, cache, "mvtec_ad", "all")
    )
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("no image")
    assert "holds no images" in refusal(make_config(tmp_path / "text", cache))
    assert not preparations(cache)


def test_unreadable_image_leaves_nothing_behind(tmp_path):
    base = layouts.mvtec(tmp_path / "data")
    image = base / "train" / "good" / "002.png"
    image.write_bytes(image.read_bytes()[:-30])
    config = make_config(tmp_path / "data", tmp_path / "cache", category="screw")
    assert "train/good/002.png is truncated or unreadable" in refusal(config)
    home = next((tmp_path / "cache" / "prepared" / "folder").iterdir())
    assert [path.name for path in home.iterdir()] in ([], ["lock"])
    layouts.save(image, layouts.pixels(5, grey=True))
    assert_equals_files(catalog.open_source(config, "screw"), tmp_path / "data")


def test_second_opening_prepares_nothing_and_changed_files_prepare_anew(tmp_path, monkeypatch):
    base = layouts.mvtec(tmp_path / "data")
    config = make_config(tmp_path / "data", tmp_path / "cache", category="screw")
    runs = []
    real = prepared._prepare
    monkeypatch.setattr(prepared, "_prepare", lambda *arguments: (runs.append(1), real(*arguments)))
    old = catalog.open_source(config, "screw")
    catalog.open_source(config, "screw")
    first = preparations(tmp_path / "cache")
    assert len(runs) == 1 and len(first) == 1

    changed = base / "test" / "crack" / "001.png"
    before = old.load("test", 1)[0]
    layouts.save(changed, 255 - layouts.pixels((3, 0, 1), grey=True))
    os.utime(changed, ns=(1, 1))
    new = catalog.open_source(config, "screw")
    assert len(runs) == 2
    np.testing.assert_array_equal(new.load("test", 1)[0], images.decode(changed))
    np.testing.assert_array_equal(old.load("test", 1)[0], before)  # who has it open keeps it
    second = preparations(tmp_path / "cache")
    assert len(second) == 1 and second != first  # the old one is gone

    (base / "train" / "good" / "003.png").unlink()
    assert len(catalog.open_source(config, "screw").records("train")) == 3
    (base / "test" / "scratch" / "001.png").rename(base / "test" / "scratch" / "009.png")
    (base / "ground_truth" / "scratch" / "001_mask.png").rename(base / "ground_truth" / "scratch" / "009_mask.png")
    assert catalog.open_source(config, "screw").records("test")[-1].path == "screw/test/scratch/009.png"
    layouts.save(base / "ground_truth" / "crack" / "000_mask.png", layouts.blob(at=(0, 0, 3, 3)))
    assert catalog.open_source(config, "screw").load("test", 0)[1].sum() == 9
    assert len(runs) == 5 and len(preparations(tmp_path / "cache")) == 1


def test_categories_and_roots_do_not_share_a_preparation(tmp_path):
    for root in ("a", "b"):
        layouts.mvtec(tmp_path / root, "screw", train=3 + len(root))
        config = make_config(tmp_path / root, tmp_path / "cache", category="screw")
        assert_equals_files(catalog.open_source(config, "screw"), tmp_path / root)
    assert len(preparations(tmp_path / "cache")) == 2


def test_cache_is_chosen_by_config_then_environment_then_home(tmp_path, monkeypatch):
    config = make_config(tmp_path, tmp_path / "mine")
    monkeypatch.setenv("JAXAD_CACHE", str(tmp_path / "theirs"))
    assert catalog.cache_folder(config) == tmp_path / "mine"
    config.data.cache_dir = ""
    assert catalog.cache_folder(config) == tmp_path / "theirs"
    monkeypatch.delenv("JAXAD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert catalog.cache_folder(config) == tmp_path / "home" / ".cache" / "jaxad"


def test_source_is_thread_safe(tmp_path):
    layouts.mvtec(tmp_path / "data", train=12)
    source = catalog.open_source(make_config(tmp_path / "data", tmp_path / "cache", category="screw"), "screw")
    expected = everything(source)
    with ThreadPoolExecutor(8) as pool:
        keys = list(expected) * 20
        for (split, i), (image, mask) in zip(keys, pool.map(lambda key: source.load(*key), keys), strict=True):
            np.testing.assert_array_equal(image, expected[split, i][1])
            np.testing.assert_array_equal(mask, expected[split, i][2])


def test_full_disk_and_read_only_cache_are_one_line(tmp_path, monkeypatch):
    layouts.mvtec(tmp_path / "data")
    config = make_config(tmp_path / "data", tmp_path / "cache", category="screw")
    as_array_record = RuntimeError("Failed to finalize: write() failed: No space left on device; at byte 3145728")
    no_space, no_access = (OSError(code, os.strerror(code)) for code in (errno.ENOSPC, errno.EACCES))
    errors = ((no_space, "the disk is full"), (no_access, "cannot be used"), (as_array_record, "the disk is full"))
    for error, words in errors:

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(prepared, "_prepare", fail)
        assert words in refusal(config) and str(tmp_path / "cache") in refusal(config)
    (tmp_path / "file").write_text("")
    monkeypatch.undo()
    assert "cannot be used" in refusal(make_config(tmp_path / "data", tmp_path / "file", category="screw"))


def test_preparing_prints_nothing_and_runs_no_tensorflow(tmp_path):
    layouts.mvtec(tmp_path / "data")
    done = _process(tmp_path, "print('tensorflow' in sys.modules)")
    out, err = done.communicate(timeout=120)
    assert (done.returncode, out.strip(), err) == (0, "False", "")


_OPEN = """
import sys, time
from jaxad import config as configs
from jaxad.data import catalog, images
config = configs.default("patchcore")
config.data.dataset, config.data.category = "folder", "screw"
config.data.root, config.data.cache_dir = sys.argv[1:3]
BEFORE
source = catalog.open_source(config, "screw")
print(len(source.records("train")), source.load("test", 0)[1].sum()) if not 'AFTER' else None
AFTER
"""


def _process(tmp_path, after="", before=""):
    """Another Python that opens tmp_path/data in tmp_path/cache."""
    code = _OPEN.replace("BEFORE", before).replace("'AFTER'", repr(after)).replace("AFTER", after)
    root = pathlib.Path(catalog.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "data"), str(tmp_path / "cache")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


_SLOWLY = """
whole = images.storable
def slow(*arguments):
    time.sleep(0.15)
    return whole(*arguments)
images.storable = slow
"""


def test_two_processes_that_start_at_once_prepare_once(tmp_path):
    layouts.mvtec(tmp_path / "data")
    both = [_process(tmp_path, before=_SLOWLY) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert results[0] == results[1] and results[0][0].startswith("4 ")
    assert len(preparations(tmp_path / "cache")) == 1


def test_killed_preparation_is_repeated_and_leaves_no_trace(tmp_path):
    layouts.mvtec(tmp_path / "data")
    process = _process(tmp_path, before=_SLOWLY)
    scratch = "prepared/folder/*/scratch*"
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cache").glob(scratch)) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.4)  # some images in
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list((tmp_path / "cache").glob(scratch)) and process.returncode == -signal.SIGKILL
    source = catalog.open_source(make_config(tmp_path / "data", tmp_path / "cache", category="screw"), "screw")
    assert_equals_files(source, tmp_path / "data")
    assert not list((tmp_path / "cache").glob(scratch)) and len(preparations(tmp_path / "cache")) == 1


def test_anomalous_images_without_masks_have_empty_ones_and_say_so(tmp_path):
    base = layouts.mvtec(tmp_path / "data")
    (base / "ground_truth" / "crack" / "001_mask.png").unlink()
    source = catalog.open_source(make_config(tmp_path / "data", tmp_path / "cache", category="screw"), "screw")
    assert not source.has_masks and "1 of 5 anomalous test images have no mask" in source.notes[0]
    assert source.records("test")[1].label and not source.load("test", 1)[1].any()


@pytest.mark.slow
def test_real_screw_is_prepared_in_seconds_and_served_unchanged(real_data, tmp_path):
    config = make_config(real_data / "mvtec_ad", tmp_path / "cache", "mvtec_ad", "screw")
    before = time.process_time()
    source = catalog.open_source(config, "screw")
    assert time.process_time() - before < 10
    for split, i in (("train", 17), ("test", 40), ("test", 159)):
        image, _ = source.load(split, i)
        path = real_data / "mvtec_ad" / source.records(split)[i].path
        np.testing.assert_array_equal(image, images.decode(path))


def test_sets_larger_than_one_shard_and_than_tfds_memory_keep_their_order(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import shuffle

    layouts.mvtec(tmp_path / "data", train=13)
    plain = tfds.download.DownloadConfig
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 2000)
    monkeypatch.setattr(tfds.download, "DownloadConfig", lambda **options: plain(num_shards=3, **options))
    source = catalog.open_source(make_config(tmp_path / "data", tmp_path / "cache", category="screw"), "screw")
    assert len(list((tmp_path / "cache").rglob("*train.array_record-*"))) == 3
    for path in (tmp_path / "cache").rglob("*.array_record-*"):
        path.unlink()  # all are open already
    assert_equals_files(source, tmp_path / "data")
