"""Several runs' maps in one picture: which images runs keep, what the colours mean, and what the command says."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxad import report
from jaxad.decision import Threshold
from jaxad.report import __main__ as command
from jaxad.report import drawing, figure, files
from jaxad.types import Predictions, Record

ROOT = pathlib.Path(__file__).parents[2]
LIMIT = Threshold(5.0, 2.0, 1.0, "quantile", 0.995, "holdout", 400)
LEFT, TOP, STEP = 16, 66, figure.CELL + 8  # of the first tile, and from one column to the next


def predictions(names, size=32, peak=6.0, seed=0):
    """An image per name 'defect/stem'; anomalies have a square mask in the upper left and a map that peaks in it."""
    rng = np.random.default_rng(seed)
    labels = np.array([not name.startswith("good") for name in names])
    maps = rng.random((len(names), size, size)).astype(np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[labels, 4 : size // 2, 2 : size // 2] = True
    maps[masks] = peak
    records = tuple(
        Record(f"cat/test/{name}.png", bool(label), name.split("/")[0])
        for name, label in zip(names, labels, strict=True)
    )
    return Predictions(records, maps.max(axis=(1, 2)), maps, masks, 1.0)


def names(found, rows):
    return [found.records[row].path.removeprefix("cat/test/").removesuffix(".png") for row in rows]


def colour(row):
    return np.full((32, 32, 3), (200, 40 + row, 30), np.uint8)


def finished(folder, found, category="cat", method="patchcore", image_of=colour):
    """A run, as far as the command reads it."""
    figure.keep(folder, category, found, LIMIT, image_of)
    config = {"method": method, "seed": 0, "data": {"source": "x.zip"}, "report": {"curves": False}}
    report.write(folder, config, {category: report.Entry({"image_auroc": 0.5}, [])}, "abc")
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def read(*runs, categories=("cat",)):
    return {run: figure.read(run, categories) for run in runs}


MANY = [f"{defect}/{n:03}" for defect in ("crack", "dent", "good") for n in range(20)]


def test_defect_types_take_turns_and_normal_images_are_left_out():
    found = predictions(MANY + ["scratch/000"])
    chosen = names(found, figure.choose(found, 4))
    assert len(chosen) == 4 and chosen == sorted(chosen)
    assert [name.split("/")[0] for name in chosen] == ["crack", "crack", "dent", "scratch"]
    assert figure.choose(predictions(["good/1", "good/2"]), 4) == []
    assert names(found, figure.choose(predictions(["crack/1", "good/1"]), 4)) == ["crack/000"]


def test_another_protocols_test_set_keeps_the_same_images_as_far_as_it_has_them():
    whole = predictions(MANY)
    wanted = set(names(whole, figure.choose(whole, 4)))
    met = []
    for seed in range(20):  # a fifth of the anomalies trains, and the order of what is left is another
        rng = np.random.default_rng(seed)
        left = [name for name in MANY if name.startswith("good") or rng.random() < 0.8]
        part = predictions([left[n] for n in rng.permutation(len(left))])
        kept = set(names(part, figure.choose(part, 4)))
        assert kept >= wanted & set(left)
        met.append(len(kept & wanted))
    assert min(met) >= 1 and np.mean(met) > 2.5


def test_what_is_kept_reads_back_as_it_was(tmp_path):
    found = predictions(["good/1", "crack/2", "crack/1"])
    figure.keep(tmp_path, "cat", found, LIMIT, colour)
    of = figure.read(tmp_path, ["cat", "another"])["cat"]
    assert of.paths == ("cat/test/crack/1.png", "cat/test/crack/2.png")
    for place, row in enumerate((2, 1)):
        np.testing.assert_array_equal(of.images[place], colour(row))
        np.testing.assert_array_equal(of.masks[place], found.masks[row])
        np.testing.assert_allclose(of.maps[place], found.maps[row], rtol=2**-11, atol=0)
    assert (of.low, of.high) == (LIMIT.pixel, found.maps.max())
    assert (of.images.dtype, of.masks.dtype, of.maps.dtype) == (np.uint8, bool, np.float32)
    first = (tmp_path / "maps/cat.npz").read_bytes()
    figure.keep(tmp_path, "cat", found, LIMIT, colour)
    assert (tmp_path / "maps/cat.npz").read_bytes() == first


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1.0, 1e9, -1e3])
def test_maps_of_any_size_keep_their_digits(tmp_path, factor):
    found = predictions(["crack/1"])
    found.maps[:] *= factor
    figure.keep(tmp_path, "cat", found, LIMIT, colour)
    of = figure.read(tmp_path, ["cat"])["cat"]
    np.testing.assert_allclose(of.maps, found.maps, rtol=2**-11, atol=0)
    assert (of.maps != found.maps).any()


def test_large_images_are_kept_small_and_oblong_ones_oblong(tmp_path):
    found = predictions(["crack/1", "dent/1", "dent/2", "dent/3", "dent/4"], size=600)
    found.masks[:] = False
    found.masks[:, 300, 40] = True  # one pixel
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3)).astype(np.uint8)
    figure.keep(tmp_path, "cat", found, LIMIT, lambda row: noise)
    of = figure.read(tmp_path, ["cat"])["cat"]
    assert of.images.shape == (4, 256, 256, 3) and of.maps.shape == of.masks.shape == (4, 256, 256)
    assert of.masks.any(axis=(1, 2)).all()
    assert (tmp_path / "maps/cat.npz").stat().st_size < 2**21  # noise, which nothing compresses
    oblong = Predictions(found.records, found.scores, found.maps[:, :300], found.masks[:, :300], 1.0)
    figure.keep(tmp_path, "cat", oblong, LIMIT, lambda row: noise[:300])
    assert figure.read(tmp_path, ["cat"])["cat"].images.shape == (4, 128, 256, 3)


def test_without_anomalies_or_pictures_an_earlier_file_goes(tmp_path):
    for found, count in ((predictions(["good/1"]), figure.MOST), (predictions(["crack/1"]), 0)):
        figure.keep(tmp_path, "cat", predictions(["crack/1"]), LIMIT, colour)
        figure.keep(tmp_path, "cat", found, LIMIT, colour, count)
        assert not (tmp_path / "maps/cat.npz").exists()


def test_heat_begins_at_the_threshold_and_is_brightest_at_the_runs_largest_value():
    image, values = np.full((8, 8, 3), (200, 100, 0), np.uint8), np.full((8, 8), 2.0, np.float32)
    grey = int(np.asarray(Image.fromarray(image).convert("L"))[0, 0])
    below = np.asarray(figure.heat(image, values, 2.0, 10.0, (8, 8)))
    assert (below == grey).all()  # at the threshold: the image alone
    lightness = [
        float(np.asarray(figure.heat(image, np.full_like(values, v), 2.0, 10.0, (8, 8))).mean()) for v in (4, 7, 10)
    ]
    assert lightness == sorted(lightness)
    top = np.asarray(figure.heat(image, np.full_like(values, 10.0), 2.0, 10.0, (8, 8)))[0, 0]
    wanted = (1 - figure.OPAQUE) * grey + figure.OPAQUE * drawing.palette()[255]
    np.testing.assert_allclose(top, wanted, atol=1)
    more = np.asarray(figure.heat(image, np.full_like(values, 99.0), 2.0, 10.0, (8, 8)))[0, 0]
    np.testing.assert_array_equal(more, top)
    flat = figure.heat(image, values, 2.0, 2.0, (8, 8))  # nothing is above anything
    assert (np.asarray(flat) == grey).all()


def test_the_picture_has_a_row_per_shared_image_and_a_column_per_run(tmp_path):
    one = predictions(["crack/1", "crack/2", "dent/1"])
    two = predictions(["dent/1", "crack/2"], peak=1.5)  # below the threshold
    a, b = finished(tmp_path / "x/run", one), finished(tmp_path / "y/run", two)
    kept = read(a, b)
    rows = figure.shared(kept)
    assert rows == [("cat", "cat/test/crack/2.png"), ("cat", "cat/test/dent/1.png")]
    pixels = np.asarray(figure.picture(kept, rows, {a: "patchcore", b: "padim"}))
    assert pixels.shape[1] == 2 * 16 + 4 * STEP - 8

    def tile(column, row=0):
        top = TOP + row * (figure.CELL + 22 + 8)
        return pixels[top : top + figure.CELL, LEFT + column * STEP :][:, : figure.CELL].astype(int)

    inside, outside = (slice(60, 80), slice(40, 70)), (slice(150, 180), slice(150, 180))
    assert (tile(0)[inside] == colour(1)[0, 0]).all()  # the image of the first run: row 1 there is crack/2
    assert (tile(0, row=1)[inside] == colour(2)[0, 0]).all()
    assert (tile(1) == drawing.TRUTH).all(axis=-1).any() and not (tile(0) == drawing.TRUTH).all(axis=-1).any()
    np.testing.assert_array_equal(tile(1)[outside], tile(0)[outside])
    assert np.ptp(tile(2)[inside], axis=-1).min() > 30  # coloured, where its map is largest
    assert np.ptp(tile(2)[outside], axis=-1).max() == 0  # grey
    assert np.ptp(tile(3), axis=-1).max() == 0


def test_an_image_without_a_mask_is_told(tmp_path, monkeypatch):
    found = predictions(["crack/1"])
    found.masks[:] = False
    run, said = finished(tmp_path / "run", found), []
    shorten = drawing.shorten
    monkeypatch.setattr(drawing, "shorten", lambda text, *rest: said.append(text) or shorten(text, *rest))
    kept = read(run)
    figure.picture(kept, figure.shared(kept), {run: "patchcore"})
    assert "no mask" in said and "cat · crack/1" in said and f"largest 6 (2 to {found.maps.max():.3g})" in said
    assert {"run", "patchcore"} <= set(said)


def call(*argv):
    # jax out of reach: the command must not need it
    script = "import sys, runpy; sys.modules['jax'] = None; runpy.run_module('jaxad.report', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, cwd=ROOT)


def test_the_command_draws_the_figure_without_jax(tmp_path):
    a = finished(tmp_path / "a", predictions(["crack/1", "dent/1"]))
    b = finished(tmp_path / "b", predictions(["crack/1"]))
    path = tmp_path / "new/figure.png"
    done = call(a, f"--figure={path}", b)
    assert done.returncode == 0, done.stderr
    assert f"{a}: patchcore, seed 0, commit abc\n" in done.stdout  # as without --figure
    assert done.stdout.endswith(
        f"wrote {path}: 1 of cat; colours from each run's pixel threshold to the largest value of its test maps\n"
    )
    Image.open(path).verify()
    first = path.read_bytes()
    assert command.main(["report", a, b, f"--figure={path}"]) == 0 and path.read_bytes() == first


@pytest.mark.parametrize(
    "argv, said",
    [
        (["{}/a", "--figure={}/f.jpg"], "f.jpg' does not end in .png: --figure=FILE.png"),
        (["{}/a", "--figure"], "--figure='' does not end in .png"),
        (["--figure={}/f.png"], "no run given"),
        (["{}/a", "{}/bare", "--figure={}/f.png"], "bare' has no maps/CATEGORY.npz"),
        (["{}/a", "{}/apart", "--figure={}/f.png"], "no anomalous test image is in the maps of all the runs"),
        (["{}/a", "{}/other", "--figure={}/f.png"], "no anomalous test image is in the maps of all the runs"),
        (["{}/a", "{}/broken", "--figure={}/f.png"], "broken/maps/cat.npz is not readable"),
        (["{}/a", "--figures={}/f.png"], "unknown flag '--figures="),
    ],
)
def test_what_cannot_be_drawn_is_one_line_exit_code_2_and_no_file(tmp_path, capsys, argv, said):
    finished(tmp_path / "a", predictions(["crack/1"]))
    finished(tmp_path / "apart", predictions(["crack/2"]))
    finished(tmp_path / "other", predictions(["crack/1"]), category="another")
    finished(tmp_path / "bare", predictions(["good/1"]))
    finished(tmp_path / "broken", predictions(["crack/1"]))
    whole = (tmp_path / "broken/maps/cat.npz").read_bytes()
    (tmp_path / "broken/maps/cat.npz").write_bytes(whole[: len(whole) // 2])
    assert command.main(["report", *(word.format(tmp_path) for word in argv)]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
    assert not list(tmp_path.glob("f.*"))


def test_pickles_are_not_read(tmp_path):
    run = finished(tmp_path / "run", predictions(["crack/1"]))
    with np.load(tmp_path / "run/maps/cat.npz") as found:
        arrays = dict(found)
    np.savez(tmp_path / "run/maps/cat.npz", **{**arrays, "paths": np.array([{"a": 1}], object)})
    with pytest.raises(figure.UserError, match="not readable"):
        figure.read(run, ["cat"])


def test_a_full_disk_leaves_no_part_of_the_maps(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(figure.UserError, match="No space left"):
        figure.keep(tmp_path, "cat", predictions(["crack/1"]), LIMIT, colour)
    assert not list((tmp_path / "maps").iterdir())
