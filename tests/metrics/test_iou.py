"""IoU against the threshold, and its maximum, against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from jaxad.metrics import iou_curve, pixel_metrics


def case(levels: int = 0):
    rng = np.random.default_rng(levels)
    masks = rng.random((3, 10, 8)) < 0.2
    masks[2] = False
    maps = (rng.standard_normal(masks.shape) + 1.5 * masks).astype(np.float32)
    return (np.floor(maps * levels / 3) if levels else maps), masks


def iou(maps, masks, threshold) -> float:
    flagged = maps >= threshold
    return (flagged & masks).sum() / (flagged | masks).sum()


@pytest.mark.parametrize("levels", [0, 1, 4])
def test_iou_max_is_that_of_trying_every_score(levels):
    maps, masks = case(levels)
    ours = pixel_metrics(maps, masks)
    tried = {float(t): iou(maps, masks, t) for t in np.unique(maps)}
    assert ours["iou_max"] == max(tried.values())
    assert ours["iou_max_threshold"] == max(t for t, value in tried.items() if value == ours["iou_max"])


@pytest.mark.parametrize("levels", [0, 4])
def test_iou_and_f1_are_largest_at_the_same_threshold(levels):
    ours = pixel_metrics(*case(levels))
    assert ours["iou_max_threshold"] == ours["pixel_f1max_threshold"]
    assert ours["pixel_f1max"] == pytest.approx(2 * ours["iou_max"] / (1 + ours["iou_max"]), abs=1e-15)


def test_full_curve_holds_the_maximum_and_is_what_its_thresholds_give():
    maps, masks = case()
    thresholds, values = iou_curve(maps, masks)
    assert values.max() == pixel_metrics(maps, masks)["iou_max"]
    assert (np.diff(thresholds) > 0).all()
    assert values.tolist() == [iou(maps, masks, t) for t in thresholds]


def test_curve_at_evenly_spaced_thresholds_spans_the_scores():
    maps, masks = case()
    thresholds, values = iou_curve(maps, masks, thresholds=10_000)
    assert thresholds.size == values.size == 10_000
    assert (thresholds[0], thresholds[-1]) == (maps.min(), maps.max())
    picked = np.arange(0, 10_000, 97)
    assert values[picked].tolist() == [iou(maps.astype(np.float64), masks, t) for t in thresholds[picked]]


def test_curve_at_given_thresholds_outside_the_scores():
    maps, masks = case()
    _, values = iou_curve(maps, masks, thresholds=[1e9, -1e9])
    assert values.tolist() == [0.0, masks.mean()]


def test_thinned_curve_has_the_points_asked_for():
    thresholds, values = iou_curve(*case(), points=20)
    assert 10 < thresholds.size == values.size <= 20


def test_curve_needs_anomalies_and_two_thresholds():
    maps, masks = case()
    with pytest.raises(ValueError, match="no anomalous pixels"):
        iou_curve(maps, np.zeros_like(masks))
    with pytest.raises(ValueError, match="at least 2"):
        iou_curve(maps, masks, thresholds=1)
