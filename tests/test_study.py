"""Studies over a grid: whose numbers stand in study.csv, what study.png shows, and what is refused before a run."""

import csv

import numpy as np
import pytest
from fake_grid import cell, place_in

from jaxad import evaluate, grid
from jaxad.errors import UserError
from jaxad.grid import Cell, Study, study
from jaxad.grid.folder import Grid

BY_N = Study("n", "texture", ("image_auroc", "pixel_auroc"), xlabel="patches per side", title="Patches", oracle="n")


@pytest.fixture
def place(tmp_path, monkeypatch):
    return place_in(tmp_path, monkeypatch)


def finished(folder, plan, *entries):
    """A grid whose cells are done. entries: (labels, seed, {category: values})."""
    cells = [Cell(f"cell/{i}", "configs/patchcore.py", {}, labels=labels) for i, (labels, *_) in enumerate(entries)]
    results = {
        one.name: {"seed": seed, "categories": values, "mean": {"image_auroc": 0.0}}
        for one, (_, seed, values) in zip(cells, entries, strict=True)
    }
    return Grid(cells, str(folder), plan, finished=results)


def patches(folder, values, plan=BY_N):
    """One line per (texture, n, seed, image AUROC)."""
    entries = [
        ({"texture": texture, "n": n}, seed, {texture: {"image_auroc": auroc, "pixel_auroc": 1 - auroc}})
        for texture, n, seed, auroc in values
    ]
    return finished(folder, plan, *entries)


CURVES = [
    ("wood", 5, 0, 0.75),
    ("wood", 5, 1, 0.25),
    ("wood", 4, 0, 0.5),
    ("wood", 4, 1, 0.625),
    ("tile", 4, 0, 0.75),
    ("tile", 5, 0, 0.875),
]


def test_after_each_cell_the_files_hold_what_is_finished(place, capsys):
    plan = Study("n", "texture", ("facts/measure/nmse", "image_auroc", "pixel_auroc"))
    labels = [{"texture": "carpet", "n": 4}, {"n": 5, "texture": "carpet", "run": "b"}]
    place.cells(cell("a/1", 1, "weave,washer", labels=labels[0]), cell("a/2", 2, labels=labels[1]), study=plan)
    assert place("--study") == 0
    assert f"0 of 2 cells finished; {place.workdir / 'study.csv'}\n" == capsys.readouterr().out
    assert place.csv("study.csv") == [] and not (place.workdir / "study.png").exists() and place.calls() == []
    assert place("--only=a/1") == 0
    assert len(place.csv("study.csv")) == 2
    early = (place.workdir / "study.png").read_bytes()
    assert place() == 0
    with open(place.workdir / "study.csv", newline="") as file:
        lines = list(csv.reader(file))
    assert lines == [
        "texture n run image_auroc pixel_auroc measure/nmse seed category".split(),
        ["carpet", "4", "", "0.51", "", "0.125", "1", "weave"],
        ["carpet", "4", "", "0.61", "", "0.125", "1", "washer"],
        ["carpet", "5", "b", "0.54", "", "0.25", "2", "weave"],
    ]
    written = [(place.workdir / name).read_bytes() for name in ("study.csv", "study.png")]
    assert written[1].startswith(b"\x89PNG") and written[1] != early
    for name in ("study.csv", "study.png"):
        (place.workdir / name).unlink()
    capsys.readouterr()
    assert place("--study") == 0 and place.calls() == ["a/1", "a/2"]  # runs nothing
    assert "2 of 2 cells finished; " in capsys.readouterr().out
    assert written == [(place.workdir / name).read_bytes() for name in ("study.csv", "study.png")]
    place.cells(cell("a/1", 1, "weave,washer", labels=labels[0]), cell("a/2", 2, labels=labels[1]))
    assert place("--study") == 2 and "has no study; --study needs study = Study(" in capsys.readouterr().err
    assert place("--list") == 0


def test_the_oracle_takes_the_best_mean_over_seeds_in_each_series(tmp_path):
    found = study.rows(patches(tmp_path, CURVES), BY_N)
    best = {(row["texture"], row["n"]): row["oracle_best"] for row in found}
    # wood at n=5 has the best single seed, and the worse mean
    assert best == {("wood", 5): False, ("wood", 4): True, ("tile", 4): False, ("tile", 5): True}
    lower_is_no_better = BY_N._replace(metrics=("pixel_auroc", "image_auroc"))
    found = study.rows(patches(tmp_path, CURVES, lower_is_no_better), lower_is_no_better)
    assert {(row["texture"], row["n"]) for row in found if row["oracle_best"]} == {("wood", 5), ("tile", 4)}
    assert "oracle_best" not in study.rows(patches(tmp_path, CURVES), BY_N._replace(oracle=""))[0]


def test_an_oracle_without_a_number_marks_nothing(tmp_path):
    made = finished(tmp_path, BY_N, ({"texture": "wood", "n": 4}, 0, {"wood": {"image_auroc": None}}))
    assert [row["oracle_best"] for row in study.rows(made, BY_N)] == [False]
    study.write(made, BY_N)
    assert (tmp_path / "study.csv").read_text().splitlines()[1] == "wood,4,,,0,wood,False"


def test_lines_go_through_means_over_seeds_with_their_extremes_and_a_ring_at_the_oracles_choice(tmp_path):
    made = patches(tmp_path, CURVES)
    image, pixel = study._draw(BY_N, study.rows(made, BY_N)).axes
    assert [axes.get_ylabel() for axes in (image, pixel)] == ["image AUROC", "pixel AUROC"]
    assert image.get_xlabel() == "patches per side"
    wood, tile, rings = image.get_lines()
    assert (wood.get_label(), tile.get_label()) == ("wood", "tile") and wood.get_color() != tile.get_color()
    for line, values in ((wood, [0.5625, 0.5]), (tile, [0.75, 0.875])):
        np.testing.assert_allclose(line.get_xdata(), [4, 5], atol=0.1)  # in order, though 5 was run first
        np.testing.assert_allclose(line.get_ydata(), values)
    np.testing.assert_allclose(sorted(zip(*rings.get_data(), strict=True)), [(4, 0.5625), (5, 0.875)], atol=0.1)
    assert "oracle" in rings.get_label() and "test labels" in rings.get_label()
    spans = [[segment[:, 1].tolist() for segment in part.get_segments()] for part in image.collections]
    assert spans == [[[0.5, 0.625], [0.25, 0.75]], [[0.75, 0.75], [0.875, 0.875]]]
    np.testing.assert_allclose(pixel.get_lines()[1].get_ydata(), [0.25, 0.125])


def test_words_along_x_make_grouped_bars_over_categories_and_the_labels_not_shown(tmp_path):
    plan = Study("train", "category", ("image_auroc", "facts/measure/nmse"))
    entries = [
        ({"train": name, "other": other}, seed, {"wood": {"image_auroc": value}, "tile": {"image_auroc": 1.0}})
        for name, other, seed, value in (
            ("b", 0, 0, 0.125),
            ("b", 1, 0, 0.375),  # the same seed: one value with the line above
            ("b", 0, 1, 0.75),
            ("a", 0, 0, 0.5),
        )
    ]
    made = finished(tmp_path, plan, *entries)
    axes, _ = study._draw(plan, study.rows(made, plan)).axes
    wood, tile = axes.containers
    assert [bar.get_height() for bar in wood] == [0.5, 0.5] and [bar.get_height() for bar in tile] == [1.0, 1.0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["b", "a"]
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in [*wood, *tile])
    assert all(before[1] < after[0] for before, after in zip(edges, edges[1:], strict=False))  # none covers another


def test_equal_seeds_and_many_series_are_drawn(tmp_path):
    values = [(f"texture {i}", n, seed, 0.1) for i in range(11) for n in (4, 5) for seed in range(3)]
    axes = study._draw(BY_N, study.rows(patches(tmp_path, values), BY_N)).axes[0]
    looks = {(line.get_color(), line.get_marker()) for line in axes.get_lines()[:11]}
    assert len(looks) == 11


@pytest.mark.parametrize(
    "plan, labels, said",
    [
        (BY_N, {"n": 4}, "cell 'a/1' lacks the study's label 'texture'; give it labels={'texture': ...}"),
        (BY_N._replace(oracle="m"), {"n": 4, "texture": "wood"}, "lacks the study's label 'm'"),
        (BY_N._replace(metrics=("image_auroc", "pixel_aurok")), {}, "unknown metric 'pixel_aurok'; the nearest is"),
        (BY_N._replace(metrics=("facts/measure",)), {}, "unknown metric 'facts/measure'"),
        (BY_N._replace(metrics=("facts/measure/nmse",)), {}, "an oracle chooses by a metric of the test set"),
        (BY_N._replace(metrics="image_auroc"), {}, "metrics='image_auroc' are not a tuple of names"),
        (BY_N._replace(series="n"), {}, "series 'n' cannot be its x or its oracle, too"),
        (BY_N, {"n": [4], "texture": "wood"}, "label 'n' of cell 'a/1' is neither a number nor a word"),
        (("n", "texture"), {"n": 4, "texture": "wood"}, "study is not a Study(x=..., series=...)"),
    ],
)
def test_a_mistake_in_a_study_is_one_line_and_nothing_runs(place, capsys, plan, labels, said):
    place.cells(cell("a/1", labels=labels), study=plan)
    assert place() == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1 and str(place.file) in error
    assert place.calls() == [] and not place.workdir.exists()


def test_cells_of_the_older_form_load_and_labels_are_the_sixth(tmp_path):
    path = tmp_path / "grid.py"
    forms = [("a", "c", {}), ("b", "c", {}, "row"), ("d", "c", {}, "row", "note"), ("e", "c", {}, "", "", {"n": 4})]
    path.write_text(f"def cells(data, weights):\n    return {forms!r}\n")
    cells = grid.load(str(path))
    assert [one.labels for one in cells] == [{}, {}, {}, {"n": 4}] and cells[2].note == "note"
    assert study.load(str(path), cells) is None
    for wrong in ("'', '', {}, 1", "'', '', 4"):
        path.write_text(f"def cells(data, weights):\n    return [('a', 'c', {{}}, {wrong})]\n")
        with pytest.raises(UserError, match="is not a Cell"):
            grid.load(str(path))


def test_every_metric_that_a_run_reports_can_be_asked_for():
    assert set(evaluate.METRICS) <= set(study.METRICS)
