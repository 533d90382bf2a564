"""IoU of all categories of a run: the mean, the CSV and the picture."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from jaxad import metrics, report
from jaxad.metrics import IouSteps
from jaxad.report import iou
from jaxad.types import UserError

PLACES = np.arange(10_000) / 9_999


def bump(height, middle, low=0.0, high=1.0):
    """A curve with its peak at a place that is not among the 1,001."""
    curve = height * np.exp(-(((PLACES - PLACES[middle]) / 0.1) ** 2))
    return IouSteps(low + (high - low) * PLACES, curve, curve, curve, float(curve[5000]))


def entry(steps):
    """As `report.category` returns it, as far as IoU goes."""
    best = dict(oracle_max=float(steps.pooled.max()), at_half=steps.at_half) if steps else {}
    best |= dict(oracle_max_defect_only=0.5, oracle_max_per_image=0.25) if steps else {}
    return report.Entry({"image_auroc": 1.0, "iou": best or None}, [], steps)


CONFIG = {"method": "patchcore", "seed": 0, "report": {"curves": True}}
STEPS = {"b": bump(0.5, 3333), "a": bump(0.9, 4444), "c": bump(0.3, 3888)}


def write(folder, steps=STEPS, config=CONFIG):
    return report.write(folder, config, {name: entry(of) for name, of in steps.items()}, "abc")


def rows(folder):
    with open(folder / "curves/iou.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_mean_is_at_equal_places_of_the_scales(tmp_path):
    apart = {"b": bump(0.5, 3333, 0, 40), "a": bump(0.9, 4444), "none": None}
    found = write(tmp_path, apart)["mean"]
    curve = (apart["a"].pooled + apart["b"].pooled) / 2
    assert found["iou"]["oracle_max_of_mean"] == curve.max() < found["iou"]["oracle_max"]
    assert found["iou"]["oracle_threshold_of_mean"] == PLACES[np.argmax(curve)]
    assert found["iou"]["oracle_max"] == (apart["a"].pooled.max() + apart["b"].pooled.max()) / 2
    assert found["iou"]["oracle_max_per_image"] == 0.25
    assert found["notes"]["iou"] == "mean of 2 of 3 categories; without none"


def test_the_csv_has_all_categories_in_order_then_the_mean_at_the_same_thresholds(tmp_path):
    write(tmp_path)
    found = rows(tmp_path)
    assert tuple(found[0]) == ("category", "threshold", "raw_threshold", "iou")
    assert list(dict.fromkeys(row["category"] for row in found)) == ["b", "a", "c", "mean"]
    of = {name: [row for row in found if row["category"] == name] for name in ("b", "a", "c", "mean")}
    assert len({tuple(row["threshold"] for row in part) for part in of.values()}) == 1
    assert 1001 <= len(of["b"]) <= 1001 + 4
    assert (of["b"][0]["threshold"], of["b"][-1]["threshold"]) == ("0", "1")
    values = np.array([[float(row["iou"]) for row in part] for part in of.values()])
    np.testing.assert_allclose(values[3], values[:3].mean(axis=0), rtol=1e-12)


def test_the_csv_holds_the_maxima_of_results_json_to_the_last_digit(tmp_path):
    write(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    for name, wanted in (
        *((name, of["iou"]["oracle_max"]) for name, of in results["categories"].items()),
        ("mean", results["mean"]["iou"]["oracle_max_of_mean"]),
    ):
        assert max(float(row["iou"]) for row in rows(tmp_path) if row["category"] == name) == wanted


def test_raw_thresholds_are_the_maps_own_and_the_mean_has_them_where_all_are_on_one_scale(tmp_path):
    write(tmp_path / "one")
    assert all(row["raw_threshold"] == row["threshold"] for row in rows(tmp_path / "one"))
    write(tmp_path / "two", {"b": bump(0.5, 3333, 2, 12), "a": bump(0.9, 4444)})
    for row in rows(tmp_path / "two"):
        if row["category"] == "b":
            assert float(row["raw_threshold"]) == pytest.approx(2 + 10 * float(row["threshold"]), rel=1e-8)
        assert (row["raw_threshold"] == "") == (row["category"] == "mean")


def test_fifteen_categories_stay_under_a_megabyte_and_have_a_picture(tmp_path):
    write(tmp_path, {f"category_{n:02}": bump(0.9, 1000 + 500 * n, 0.1 * n, 7.77 + n) for n in range(15)})
    assert (tmp_path / "curves/iou.csv").stat().st_size < 1e6
    Image.open(tmp_path / "curves/iou.png").verify()


def test_no_curves_no_files_and_without_masks_none_of_an_earlier_run(tmp_path):
    write(tmp_path / "off", config={**CONFIG, "report": {"curves": False}})
    assert not (tmp_path / "off/curves").exists()
    write(tmp_path)
    results = write(tmp_path, {"a": None})
    assert results["mean"]["iou"] is None and results["mean"]["notes"]["iou"] == "in no category"
    assert not any((tmp_path / "curves").iterdir())


def test_curves_read_back_as_written_and_what_is_none_is_one_line(tmp_path):
    write(tmp_path)
    curves = iou.read(tmp_path)
    assert list(curves) == ["b", "a", "c", "mean"]
    at, values = curves["a"]
    np.testing.assert_allclose(values, np.interp(at, PLACES, STEPS["a"].pooled), atol=1e-6)
    with pytest.raises(UserError, match=r"none' has no curves/iou.csv.*--config.report.curves=True") as error:
        iou.read(str(tmp_path / "none"))
    assert "\n" not in str(error.value)
    for content in (
        "",
        "category,threshold\nmean,0\n",
        "category,threshold,iou\nmean,0,x\n",
        "category,threshold,iou\na,0,1\n",
    ):
        (tmp_path / "curves/iou.csv").write_text(content)
        with pytest.raises(UserError, match="iou.csv is not that of a jaxad run"):
            iou.read(tmp_path)


def test_a_perfect_map_has_one_in_every_file(tmp_path):
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 2:5, 2:5] = True
    write(tmp_path, {"a": metrics.iou_steps(masks.astype(np.float32), masks, 0.0, 1.0)})
    assert [float(row["iou"]) for row in rows(tmp_path) if row["category"] == "mean"][1:] == [1.0] * 1000
