"""Several runs in one figure."""

from __future__ import annotations

import csv
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxad import report
from jaxad.metrics import IouSteps
from jaxad.report import __main__ as command
from jaxad.report import compare, files, iou

ROOT = pathlib.Path(__file__).parents[2]
PLACES = np.arange(10_000) / 9_999


def steps(curve):
    return IouSteps(PLACES, curve, curve, curve, float(curve[5000]))


def plateau(height, left, right):
    """`height` from `left` to `right`, rising to it and falling from it in straight lines."""
    return height * np.clip(np.minimum(PLACES / left, (1 - PLACES) / (1 - right)), 0, 1)


FLAT = {"a": plateau(0.8, 0.2, 0.8), "b": plateau(0.6, 0.2, 0.8), "own": plateau(0.9, 0.5, 0.6)}
SHARP = {"a": plateau(0.5, 0.1, 0.101), "b": plateau(0.4, 0.1, 0.101), "other": plateau(1.0, 0.5, 0.6)}


def finished(folder, curves, method="patchcore", drawn=True):
    """A run as `report.write` leaves it."""
    config = {"method": method, "seed": 0, "data": {"source": "x.zip"}, "report": {"curves": drawn}}
    entries = {name: report.Entry({"image_auroc": 1.0}, [], steps(curve)) for name, curve in curves.items()}
    report.write(folder, config, entries, "abc")
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def read(*runs):
    return {run: iou.read(run) for run in runs}


def test_the_mean_of_a_comparison_is_over_the_categories_that_all_have(tmp_path):
    flat, sharp = finished(tmp_path / "flat", FLAT), finished(tmp_path / "sharp", SHARP)
    shared = compare.means(read(flat, sharp))
    assert shared.categories == ("a", "b")
    np.testing.assert_allclose(shared.iou[flat], np.interp(shared.threshold, PLACES, plateau(0.7, 0.2, 0.8)), atol=1e-4)
    assert shared.iou[flat].max() == pytest.approx(0.7, abs=1e-12)
    assert shared.iou[sharp].max() == pytest.approx(0.45, abs=1e-3)


def test_the_span_is_where_the_mean_stays_above_the_others_best(tmp_path):
    flat, sharp = finished(tmp_path / "flat", FLAT), finished(tmp_path / "sharp", SHARP)
    shared = compare.means(read(flat, sharp))
    best = shared.iou[sharp].max()
    left, right = compare.span(shared, flat)
    # the plateau's sides: 0.7 t / 0.2 above `best`, to a step of the CSV
    assert left == pytest.approx(0.2 * best / 0.7, abs=1.1e-3) and right == pytest.approx(1 - left, abs=1.1e-3)
    assert left > 0.2 * best / 0.7 - 1e-9 and right < 1 - 0.2 * best / 0.7 + 1e-9
    assert compare.span(shared, sharp) is None
    lines = compare.claims(shared)
    assert f"from {left:.4f} to {right:.4f} above every other run's best, {best:.4f} ({sharp})" in lines[0]
    assert "nowhere above every other run's best, 0.7000" in lines[1] and "over 2 categories" in lines[1]


def test_the_span_ends_where_the_curve_dips_and_at_the_ends_of_the_scale():
    grid = np.linspace(0, 1, 6)
    values = {"x": np.array([0.9, 0.2, 0.6, 0.7, 0.6, 0.6]), "y": np.full(6, 0.5)}
    assert compare.span(compare.Means(("a", "b"), grid, values), "x") == (0.0, 0.0)
    values["x"][0] = 0.55
    assert compare.span(compare.Means(("a", "b"), grid, values), "x") == (0.4, 1.0)
    values["y"][0] = 0.7  # as good is not above
    assert compare.span(compare.Means(("a", "b"), grid, values), "x") is None


def test_one_run_claims_nothing_and_no_shared_category_has_no_mean(tmp_path):
    flat = finished(tmp_path / "flat", FLAT)
    line = compare.claims(compare.means(read(flat)))[0]
    assert "over 3 categories" in line and "above" not in line
    apart = finished(tmp_path / "apart", {"z": FLAT["a"]})
    curves = read(flat, apart)
    said = compare.write(str(tmp_path / "f.png"), curves, dict.fromkeys(curves, "m"))
    assert said[0] == "IoU: no category is in every run: no mean"
    assert {row[1] for row in compare.rows(curves, compare.means(curves))} == {"a", "b", "own", "z"}


def test_there_is_a_panel_per_category_of_any_run_and_a_colour_per_run(tmp_path):
    flat, sharp = finished(tmp_path / "x/run", FLAT), finished(tmp_path / "y/run", SHARP, "my.method")
    curves = read(flat, sharp)
    figure = compare.picture(curves, compare.means(curves), {flat: "patchcore", sharp: "my.method"})
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["a", "b", "own", "other", "mean over the 2 categories\nthat all the runs have"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 1, 1, 2]
    colours = [axes.lines[0].get_color() for axes in figure.axes]
    assert colours[0] == colours[2] == colours[4] != colours[3]  # own is of the first run, other of the second
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0] == f"patchcore · {flat}, oracle IoU of the mean 0.7000"  # both folders are named 'run'
    assert legend[1].startswith(f"my.method · {sharp}, ")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["0.8000", "0.5000"]


def call(*argv):
    # jax out of reach: the command must not need it
    script = "import sys, runpy; sys.modules['jax'] = None; runpy.run_module('jaxad.report', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, cwd=ROOT)


def test_the_command_draws_the_figure_and_its_table_without_jax(tmp_path):
    flat, sharp = finished(tmp_path / "flat", FLAT), finished(tmp_path / "sharp", SHARP)
    path = tmp_path / "new/figure.png"
    done = call(flat, f"--iou={path}", sharp)
    assert done.returncode == 0, done.stderr
    assert f"{flat}: patchcore, seed 0, commit abc\n" in done.stdout  # as without --iou
    assert f"{flat}: mean IoU over 2 categories: at most 0.7000" in done.stdout
    assert done.stdout.endswith(f"wrote {path} and {path.with_suffix('.csv')}\n")
    Image.open(path).verify()
    with open(path.with_suffix(".csv"), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == ("run", "category", "threshold", "iou")
    assert list(dict.fromkeys((row["run"], row["category"]) for row in rows)) == [
        *((flat, name) for name in ("a", "b", "own", "mean")),
        *((sharp, name) for name in ("a", "b", "other", "mean")),
    ]
    wanted = [(float(row["threshold"]), float(row["iou"])) for row in rows if row["category"] == "other"]
    np.testing.assert_array_equal(np.array(wanted).T, iou.read(sharp)["other"])
    first = path.read_bytes(), path.with_suffix(".csv").read_bytes()
    assert command.main(["report", flat, sharp, f"--iou={path}"]) == 0
    assert (path.read_bytes(), path.with_suffix(".csv").read_bytes()) == first


def test_help_shows_the_flag(capsys):
    assert command.main(["report", "--help"]) == 0
    assert "--iou=FILE.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, said",
    [
        (["{}/flat", "--iou={}/f.jpg"], "f.jpg' does not end in .png: --iou=FILE.png"),
        (["{}/flat", "--iou"], "--iou='' does not end in .png"),
        (["--iou={}/f.png"], "no run given"),
        (["{}/flat", "{}/bare", "--iou={}/f.png"], "bare' has no curves/iou.csv"),
        (["{}/flat", "--iuo={}/f.png"], "unknown flag '--iuo="),
    ],
)
def test_what_cannot_be_drawn_is_one_line_exit_code_2_and_no_file(tmp_path, capsys, argv, said):
    finished(tmp_path / "flat", FLAT)
    finished(tmp_path / "bare", FLAT, drawn=False)
    assert command.main(["report", *(word.format(tmp_path) for word in argv)]) == 2
    out, error = capsys.readouterr()
    assert said in error and len(error.strip().splitlines()) == 1 and not out
    assert {path.name for path in tmp_path.iterdir()} == {"flat", "bare"}


def test_a_full_disk_leaves_no_part_of_the_figure(tmp_path, monkeypatch, capsys):
    flat = finished(tmp_path / "flat", FLAT)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert command.main(["report", flat, f"--iou={tmp_path}/f.png"]) == 2
    assert "No space left" in capsys.readouterr().err and {path.name for path in tmp_path.iterdir()} == {"flat"}
