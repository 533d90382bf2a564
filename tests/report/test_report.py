"""What a run leaves behind, from predictions to files."""

from __future__ import annotations

import csv
import dataclasses
import json
import os

import numpy as np
import pytest
from PIL import Image

from jaxad import decision, evaluate, metrics, report
from jaxad.report import curves, files
from jaxad.types import DataSpec, Predictions, Record, UserError

CONFIG = {
    "method": "patchcore",
    "seed": 3,
    "threshold": {"rule": "quantile", "quantile": 0.9},
    "eval": {"metrics": "exact", "without_drawn": 0, "visa202": False},
    "data": {"n_anomalies": 0},
    "report": {"overlays": 4, "curves": True},
}


class Opened:
    """A category whose test images are plain grey."""

    notes = ()

    def __init__(self, name="screw", n_holdout=10):
        self.spec = DataSpec("set", name, 32, 50, n_holdout, 6, 6, True)

    def image(self, split, row):
        assert split == "test"
        return np.full((32, 32, 3), row, np.uint8)


def predictions(labels, seed=0, masks=True, name="screw"):
    rng = np.random.default_rng(seed)
    labels = np.array(labels, bool)
    maps = rng.gamma(1, 1, (len(labels), 32, 32)).astype(np.float32)
    truth = np.zeros(maps.shape, bool)
    maps[labels, 5:15, 8:12] += 3
    truth[labels, 6:16, 8:12] = masks
    records = tuple(
        Record(f"{name}/test/{'a, b' if label else 'good'}/é {row}.png", bool(label), "a, b" if label else "good")
        for row, label in enumerate(labels)
    )
    return Predictions(records, maps.max(axis=(1, 2)), maps, truth, 4.0)


PLAIN = {**CONFIG, "report": {"overlays": 0, "curves": False}}
NORMALS = predictions([0] * 10, seed=1)


def write(workdir, labels=(0, 1, 0, 1, 1, 0), config=CONFIG, names=("screw",), **changes):
    entries = {}
    for place, name in enumerate(names):
        test = predictions(labels, seed=place, name=name, **changes)
        entries[name] = report.category(workdir, config, Opened(name), NORMALS, test, fit_seconds=2.0)
    return report.write(workdir, config, entries, "abc123")


def tree(folder):
    return {
        os.path.relpath(os.path.join(where, name), folder): open(os.path.join(where, name), "rb").read()
        for where, _, names in os.walk(folder)
        for name in names
    }


def test_every_promised_file_is_there_and_nothing_else(tmp_path):
    write(tmp_path)
    names = set(tree(tmp_path))
    assert {name for name in names if not name.startswith("overlays")} == {
        "results.json",
        "predictions.csv",
        "sheets/screw.png",
        "maps/screw.npz",
        "curves/screw_scores.png",
        *(f"curves/screw_{kind}.{end}" for kind in ("roc", "pr", "pro", "iou") for end in ("png", "csv")),
        "curves/iou.png",
        "curves/iou.csv",
    }
    assert sum(name.startswith("overlays") for name in names) == 4
    for name in names:
        if name.endswith(".png"):
            Image.open(tmp_path / name).verify()


def test_results_json_has_the_contracts_schema(tmp_path):
    returned = write(tmp_path, config=PLAIN, names=("screw", "tile"))

    def refuse(constant):
        raise AssertionError(f"{constant} in results.json")

    results = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert results == json.loads(json.dumps(returned))
    assert list(results) == ["method", "commit", "seed", "categories", "mean"]
    assert (results["method"], results["commit"], results["seed"]) == ("patchcore", "abc123", 3)
    assert list(results["categories"]) == ["screw", "tile"]
    for result in results["categories"].values():
        assert {*evaluate.METRICS, "n_train", "n_test_normal", "n_test_anomalous", "fit_seconds"} <= set(result)
        assert result["predict_ms_per_image"] == 4.0 and result["fit_seconds"] == 2.0 and result["n_train"] == 50
        assert result["threshold"]["source"] == "holdout" and result["threshold"]["n_images"] == 10
    both = [result["aupro_0.3"] for result in results["categories"].values()]
    assert results["mean"]["aupro_0.3"] == np.mean(both)


def test_visas_own_metrics_and_their_mean_are_there_where_asked_for(tmp_path):
    asked = {**PLAIN, "eval": {**PLAIN["eval"], "visa202": True}}
    assert "visa202" not in write(tmp_path / "plain", config=PLAIN)["mean"]
    entries = {}
    for place, (name, masks) in enumerate((("screw", True), ("tile", True), ("bare", False))):
        test = predictions((0, 1, 0, 1), seed=place, name=name, masks=masks)
        entries[name] = report.category(tmp_path, asked, Opened(name), NORMALS, test, fit_seconds=2.0)
    results = report.write(tmp_path, asked, entries, "abc123")
    assert results == json.loads((tmp_path / "results.json").read_text())
    screw, tile, bare = (result["visa202"] for result in results["categories"].values())
    assert set(screw) == {"pixel_auroc", "pixel_aupr", "image_auroc", "image_aupr"}
    assert screw["pixel_auroc"] != tile["pixel_auroc"] and bare["pixel_aupr"] is None
    mean = results["mean"]["visa202"]
    assert mean["pixel_auroc"] == (screw["pixel_auroc"] + tile["pixel_auroc"]) / 2
    assert mean["image_aupr"] == pytest.approx(sum(x["image_aupr"] for x in (screw, tile, bare)) / 3, abs=1e-12)
    assert results["categories"]["bare"]["notes"]["visa202"] == "no masks"


def test_missing_metrics_are_null_with_a_reason(tmp_path):
    results = write(tmp_path, masks=False)
    on_disk = json.loads((tmp_path / "results.json").read_text())["categories"]["screw"]
    assert on_disk["pixel_ap"] is None and on_disk["notes"]["pixel_ap"] == "no masks"
    assert results["mean"]["pixel_ap"] is None and results["mean"]["notes"]["pixel_ap"] == "in no category"
    assert not (tmp_path / "curves/screw_pro.png").exists() and (tmp_path / "curves/screw_roc.png").exists()


def test_normals_alone_are_reported_too(tmp_path):
    results = write(tmp_path, labels=(0, 0, 0))
    assert all(results["categories"]["screw"][name] is None for name in evaluate.METRICS)
    assert {os.path.basename(name) for name in tree(tmp_path / "curves")} == {"screw_scores.png"}


def test_training_normals_as_source_are_noted(tmp_path):
    test = predictions((0, 1))
    entry = report.category(tmp_path, PLAIN, Opened(n_holdout=0), NORMALS, test, fit_seconds=0)
    assert "optimistic; set data.holdout" in entry.result["notes"]["threshold"]


def test_predictions_csv_reads_back_to_the_same_numbers_and_decisions(tmp_path):
    results = write(tmp_path, config=PLAIN, names=("screw", "tile"))
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == ("category", "path", "defect", "label", "score", "threshold", "decision")
    for place, name in enumerate(("screw", "tile")):
        part = [row for row in rows if row["category"] == name]
        found = predictions((0, 1, 0, 1, 1, 0), seed=place, name=name)
        assert [row["path"] for row in part] == [record.path for record in found.records]
        np.testing.assert_array_equal(np.float32([row["score"] for row in part]), found.scores)
        assert [row["label"] for row in part] == ["anomalous" if label else "normal" for label in found.labels]
        # deciding again from the text, in float64, gives the decisions
        assert all((row["decision"] == "anomalous") == (float(row["score"]) > float(row["threshold"])) for row in part)
        again = metrics.image_metrics([float(row["score"]) for row in part], found.labels)["image_auroc"]
        assert again == results["categories"][name]["image_auroc"]


def test_predictions_csv_has_a_column_per_extra_score(tmp_path):
    entries = {}
    for place, name in enumerate(("screw", "tile")):
        test = predictions((0, 1, 0), seed=place, name=name)
        pictures = np.zeros((3, 4, 4, 3), np.uint8)
        test = dataclasses.replace(test, extras={"half": test.scores / 2, "look": pictures, "a": test.scores / 3})
        entries[name] = report.category(tmp_path, PLAIN, Opened(name), NORMALS, test, fit_seconds=2.0)
    results = report.write(tmp_path, PLAIN, entries, "abc123")
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == (*report.COLUMNS, "half", "a") and len(rows) == 6
    for row in rows:
        assert np.float32(row["half"]) == np.float32(row["score"]) / 2
        assert np.float32(row["a"]) == np.float32(row["score"]) / np.float32(3)
    assert list(results["categories"]["tile"]["scores"]) == ["half", "a"]


def test_maps_on_a_scale_and_pictures_have_a_sheet_unless_pictures_are_off(tmp_path):
    plain = predictions((0, 1, 1))
    ranged = dataclasses.replace(plain, map_range=(0.0, 9.0))
    pictured = dataclasses.replace(plain, extras={"look": np.zeros((3, 4, 4, 3), np.uint8)})
    scored = dataclasses.replace(plain, extras={"half": plain.scores})
    none = {**CONFIG, "report": {"overlays": 0, "curves": False}}
    some = {**CONFIG, "report": {"overlays": 1, "curves": False}}
    for name, test, config, expected in (
        ("ranged", ranged, some, True),
        ("pictured", pictured, some, True),
        ("scored", scored, some, False),
        ("off", ranged, none, False),
    ):
        report.category(tmp_path / name, config, Opened(), NORMALS, test, fit_seconds=0)
        assert (tmp_path / name / "sheets/screw_maps.png").exists() == expected


def test_running_again_rewrites_the_same_bytes(tmp_path):
    write(tmp_path)
    first = tree(tmp_path)
    write(tmp_path)
    assert tree(tmp_path) == first


def test_fewer_overlays_than_before_leave_none_behind(tmp_path):
    write(tmp_path, config={**CONFIG, "report": {"overlays": 4, "curves": False}})
    write(tmp_path, config={**CONFIG, "report": {"overlays": 2, "curves": False}})
    assert len(os.listdir(tmp_path / "overlays")) == 2


def test_nothing_is_drawn_where_nothing_was_asked_for(tmp_path):
    write(tmp_path, config=PLAIN)
    assert set(os.listdir(tmp_path)) - {"overlays"} == {"results.json", "predictions.csv"}


@pytest.mark.parametrize("fails_at", [0, 5, 14, 17])
def test_a_disk_that_fills_up_leaves_whole_files_only_and_no_results(tmp_path, monkeypatch, fails_at):
    whole, count, fsync = tmp_path / "whole", [0], os.fsync
    write(whole)

    def fills_up(descriptor):
        count[0] += 1
        if count[0] > fails_at:
            raise OSError(28, "No space left on device")
        return fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", fills_up)
    with pytest.raises(UserError, match="No space left"):
        write(tmp_path / "full")
    expected, left = tree(whole), tree(tmp_path / "full")
    assert len(left) == fails_at and "results.json" not in left
    assert all(expected[name] == content for name, content in left.items())


def test_curves_as_csv_are_thinned_and_keep_the_area(tmp_path):
    rng = np.random.default_rng(0)
    found = predictions([0, 1] * 20)
    found = dataclasses.replace(found, maps=found.maps + rng.normal(size=found.maps.shape).astype(np.float32))
    limit = decision.threshold(NORMALS, source="holdout")
    result = evaluate.category_result(found, limit, n_train=1, fit_seconds=0)
    curves.write(tmp_path, "cat", found, limit, result)
    with open(tmp_path / "cat_roc.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["curve"] == "pixel"]
    assert len(rows) <= curves.POINTS
    x, y = (np.array([float(row[key]) for row in rows]) for key in ("false_positive_rate", "true_positive_rate"))
    assert np.trapezoid(y, x) == pytest.approx(result["pixel_auroc"], abs=1e-3)
    with open(tmp_path / "cat_iou.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert max(float(row["iou"]) for row in rows) == pytest.approx(result["iou_max"], abs=1e-3)
