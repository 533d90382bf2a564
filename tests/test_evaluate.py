"""One category's numbers."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from jaxad import evaluate, metrics
from jaxad.data import splits
from jaxad.decision import Threshold
from jaxad.types import Predictions, Record, UserError

SIZE = 6


def predictions(labels, scores=None, seed=0, defects=("crack", "dent"), masks=True):
    """Random maps; anomalies, their types in turn, have a square of higher values, its mask shifted by a pixel."""
    rng = np.random.default_rng(seed)
    labels = np.array(labels, bool)
    maps = rng.normal(size=(len(labels), 16, 16)).astype(np.float32)
    truth = np.zeros(maps.shape, bool)
    for n, row in enumerate(np.flatnonzero(labels)):
        maps[row, 3:8, 2 : 6 + n % 2] += 2
        truth[row, 4:9, 2:6] = masks
    types = itertools.cycle(defects)
    records = tuple(
        Record(f"{'bad' if label else 'good'}/{row:03}.png", bool(label), next(types) if label else "good")
        for row, label in enumerate(labels)
    )
    scores = maps.max(axis=(1, 2)) if scores is None else np.array(scores, np.float32)
    return Predictions(records, scores, maps, truth, 4.0)


LIMIT = Threshold(3.0, 2.5, 0.0, "quantile", 0.995, "holdout", 400)


KEYS = (
    "image_auroc image_ap image_aupr image_f1max "
    "pixel_auroc pixel_ap pixel_aupr pixel_f1max aupro_0.3 aupro_0.05 iou_max "
    "n_train n_test_normal n_test_anomalous fit_seconds predict_ms_per_image"
).split()


def test_a_category_has_every_promised_number_and_says_which_saw_the_labels():
    found = predictions([0, 1, 0, 1, 1, 0, 0])
    result = evaluate.category_result(found, LIMIT, n_train=40, fit_seconds=1.5)
    assert set(KEYS) <= set(result) and not result["notes"]
    wanted = metrics.image_metrics(found.scores, found.labels) | metrics.pixel_metrics(found.maps, found.masks)
    for key in KEYS[:11]:
        assert result[key] == wanted[key]
    assert result["oracle_pixel_f1max_threshold"] == wanted["pixel_f1max_threshold"]
    assert not any(key.endswith("_threshold") and not key.startswith("oracle_") for key in result)
    assert (result["n_train"], result["n_test_normal"], result["n_test_anomalous"]) == (40, 4, 3)
    assert result["false_alarms"] == np.sum(found.scores[~found.labels] > 3)
    assert result["misses"] == np.sum(found.scores[found.labels] <= 3)
    assert result["threshold"]["unit"] == "raw score" and result["threshold"]["value"] == 3.0


def test_a_defect_type_is_measured_against_all_normals():
    found = predictions([0, 1, 0, 1, 1, 0, 0])
    result = evaluate.category_result(found, LIMIT, n_train=1, fit_seconds=0)
    assert {name: part["n"] for name, part in result["defects"].items()} == {"crack": 2, "dent": 1}
    keep = np.array([record.defect in ("good", "crack") for record in found.records])
    wanted = metrics.pixel_metrics(found.maps[keep], found.masks[keep])
    assert result["defects"]["crack"]["aupro_0.3"] == wanted["aupro_0.3"]
    assert result["defects"]["crack"]["image_auroc"] == np.mean(
        found.scores[keep & found.labels][:, None] > found.scores[~found.labels]
    )


def test_metrics_that_do_not_exist_are_none_with_a_reason():
    result = evaluate.category_result(predictions([0, 0, 0]), LIMIT, n_train=1, fit_seconds=0)
    for key in KEYS[:11]:
        assert result[key] is None and result["notes"][key].startswith("no anomalous")
    assert result["image_auroc_ci95"] is None and result["defects"] == {}

    unmasked = evaluate.category_result(predictions([0, 1, 0], masks=False), LIMIT, n_train=1, fit_seconds=0)
    assert unmasked["image_auroc"] is not None and unmasked["defects"]["crack"]["pixel_auroc"] is None
    assert {unmasked["notes"][key] for key in KEYS[4:11]} == {"no masks"}


def test_anomalies_with_empty_masks_are_counted_in_a_note():
    found = predictions([0, 1, 0, 1])
    found.masks[3] = False
    result = evaluate.category_result(found, LIMIT, n_train=1, fit_seconds=0)
    assert result["notes"]["masks"].startswith("1 of 2 anomalous images have an empty mask")


def test_without_drawn_leaves_out_the_anomalies_that_a_run_with_real_ones_trains_on():
    found = predictions([0, 1, 0, 1, 1, 0, 1, 1, 1])
    by_path = {path: label for path, label in ((r.path, r.label) for r in found.records)}
    train = tuple(Record(f"train/{i}.png", False, "good") for i in range(3))
    parts = splits.split(
        train,
        found.records,
        category="c",
        seed=5,
        holdout=0.0,
        n_shot=0,
        n_anomalies=2,
        digests=lambda rows: [str(row).encode() for row in rows],
    )
    left = evaluate.without_drawn(found, 5, 2)
    assert {record.path for record in left.records} == {row.record.path for row in parts.test}
    assert len(by_path) - len(left.records) == 2
    result = evaluate.category_result(found, LIMIT, n_train=1, fit_seconds=0, seed=5, n_drawn=2)
    wanted = metrics.image_metrics(left.scores, left.labels)["image_auroc"]
    assert result["without_drawn"]["image_auroc"] == wanted and result["without_drawn"]["n"] == 2
    too_many = evaluate.category_result(found, LIMIT, n_train=1, fit_seconds=0, n_drawn=4)
    assert "without_drawn" not in too_many and "more than half" in too_many["notes"]["without_drawn"]


def test_the_metrics_after_each_stage_stand_in_the_result():
    found = predictions([0, 1, 0, 1])
    stages = {"one": evaluate.glance(found), "two": {"image_auroc": 0.5}}
    result = evaluate.category_result(found, LIMIT, n_train=1, fit_seconds=0, stages=stages)
    assert result["stages"] == stages and stages["one"]["aupro_0.3"] == result["aupro_0.3"]
    assert evaluate.glance(predictions([0, 1, 0], masks=False))["pixel_auroc"] is None


def test_extra_scores_are_ranked_and_their_size_told():
    found = predictions([0, 1, 0, 1])
    assert "scores" not in evaluate.category_result(found, LIMIT, n_train=1, fit_seconds=0)
    pictures = np.zeros((4, 2, 2, 3), np.uint8)
    extras = {"b": np.float32([1, 3, 2, 1.5]), "picture": pictures, "a": np.float32([4, 1, 3, 2])}
    result = evaluate.category_result(dataclasses.replace(found, extras=extras), LIMIT, n_train=1, fit_seconds=0)
    assert result["scores"] == {
        "b": {"image_auroc": 0.75, "mean_normal": 1.5, "mean_anomalous": 2.25},
        "a": {"image_auroc": 0.0, "mean_normal": 3.5, "mean_anomalous": 1.5},
    }
    normals = dataclasses.replace(predictions([0, 0, 0, 0]), extras=extras)
    score = evaluate.category_result(normals, LIMIT, n_train=1, fit_seconds=0)["scores"]["b"]
    assert score == {"image_auroc": None, "mean_normal": 1.875, "mean_anomalous": None}


def test_iou_is_on_the_maps_own_scale_or_on_their_extremes():
    found = predictions([0, 1, 0, 1, 1])
    result = evaluate.category_result(found, LIMIT, n_train=1, fit_seconds=0)
    ours, low, high = result["iou"], float(found.maps.min()), float(found.maps.max())
    assert (ours["points"], ours["range"], ours["normalised"]) == (10_000, [low, high], True)
    at, curve = metrics.iou_curve(found.maps, found.masks, thresholds=np.linspace(low, high, 10_000))
    assert ours["oracle_max"] == curve.max() and ours["oracle_max"] <= result["iou_max"]
    assert ours["oracle_threshold"] == pytest.approx(at[curve == curve.max()][-1], abs=1e-12)
    bad = found.labels
    defective = metrics.iou_steps(found.maps[bad], found.masks[bad], low, high)
    assert ours["oracle_max_defect_only"] == defective.pooled.max() > ours["oracle_max"]
    assert ours["oracle_max_per_image"] == defective.per_image.max()

    ranged = dataclasses.replace(found, map_range=(0.0, 2.0))
    ours = evaluate.category_result(ranged, LIMIT, n_train=1, fit_seconds=0)["iou"]
    assert (ours["range"], ours["normalised"]) == ([0.0, 2.0], False)
    assert ours["at_half"] == metrics.iou_curve(found.maps, found.masks, thresholds=[1.0])[1][0]


def test_iou_that_does_not_exist_is_none_with_a_reason():
    clean = evaluate.category_result(predictions([0, 0]), LIMIT, n_train=1, fit_seconds=0)
    assert clean["iou"] is None and clean["notes"]["iou"] == "no anomalous pixels"
    unmasked = evaluate.category_result(predictions([0, 1], masks=False), LIMIT, n_train=1, fit_seconds=0)
    assert unmasked["iou"] is None and unmasked["notes"]["iou"] == "no masks"


def test_visas_own_metrics_are_those_of_the_loop_beside_the_exact_image_metrics():
    found = predictions([0, 1, 0, 1, 1, 0, 0])
    assert "visa202" not in evaluate.category_result(found, LIMIT, n_train=1, fit_seconds=0)
    result = evaluate.category_result(found, LIMIT, n_train=1, fit_seconds=0, visa202=True)
    wanted = metrics.visa202(found.maps, found.masks)
    assert result["visa202"] == {
        "pixel_auroc": wanted["pixel_auroc"],
        "pixel_aupr": wanted["pixel_aupr"],
        "image_auroc": result["image_auroc"],
        "image_aupr": result["image_aupr"],
    }
    assert "visa202" not in result["notes"] and not any("visa202" in of for of in result["defects"].values())
    unmasked = predictions([0, 1, 0], masks=False)
    result = evaluate.category_result(unmasked, LIMIT, n_train=1, fit_seconds=0, visa202=True)
    assert result["visa202"]["pixel_aupr"] is None and result["notes"]["visa202"] == "no masks"
    assert result["visa202"]["image_aupr"] == result["image_aupr"] is not None


def test_binned_metrics_hold_their_error_bounds():
    found = predictions([0, 1] * 12)
    exact = evaluate.category_result(found, LIMIT, n_train=1, fit_seconds=0)
    binned = evaluate.category_result(found, LIMIT, n_train=1, fit_seconds=0, metrics_mode="binned")
    for key, bound in binned["error_bounds"].items():
        assert abs(binned[key] - exact[key]) <= bound
    assert "binned" in binned["notes"]
    with pytest.raises(UserError, match="eval.metrics='fast'"):
        evaluate.category_result(found, LIMIT, n_train=1, fit_seconds=0, metrics_mode="fast")
