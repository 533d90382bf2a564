"""IoU against the threshold, and its maximum, against brute force."""

from __future__ import annotations

import time

import numpy as np
import pytest

from jaxad.metrics import iou_curve, iou_steps, pixel_metrics
from jaxad.metrics.iou import peak


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


def on_edges(low, high, points):
    """Scores on the thresholds, next to them, between them and outside [low, high], in float32."""
    rng = np.random.default_rng(points)
    edges = (low + (high - low) * np.arange(points) / (points - 1)).astype(np.float32)
    near = [np.nextafter(edges, np.float32(side)) for side in (-np.inf, np.inf)]
    outside = np.float32([low - 1, high + 1, low, high])
    drawn = rng.choice(np.concatenate([edges, *near, outside, rng.normal(size=40)]), size=(4, 12, 9))
    masks = rng.random(drawn.shape) < 0.3
    masks[1] = False
    return drawn.astype(np.float32), masks


@pytest.mark.parametrize("low, high, points", [(0.0, 1.0, 101), (-0.3, 0.7, 77), (0.1, 0.1, 5), (0.0, 1.0, 10_000)])
def test_steps_equal_direct_thresholding_on_edges_beside_them_and_outside(low, high, points):
    maps, masks = on_edges(low, high, points)
    steps = iou_steps(maps, masks, low, high, points)
    wide, defective = maps.astype(np.float64), masks.any(axis=(1, 2))
    assert (steps.thresholds[0], steps.thresholds[-1], steps.thresholds.size) == (low, high, points)
    for at in np.unique(np.linspace(0, points - 1, 60).astype(int)):
        t = low + (high - low) * (at / (points - 1)) if at < points - 1 else high
        assert steps.thresholds[at] == t
        assert steps.pooled[at] == iou(wide, masks, t)
        assert steps.defect_only[at] == iou(wide[defective], masks[defective], t)
        each = [iou(m, truth, t) for m, truth in zip(wide[defective], masks[defective], strict=True)]
        assert steps.per_image[at] == pytest.approx(np.mean(each), abs=1e-15)
    assert steps.at_half == iou(wide, masks, low + (high - low) / 2)


def test_steps_of_a_perfect_map_reach_one_and_of_an_inverted_one_no_more_than_chance():
    _, masks = case()
    perfect, inverted = masks.astype(np.float32), 1 - masks.astype(np.float32)
    steps = iou_steps(perfect, masks, 0.0, 1.0)
    assert (steps.pooled[1:] == 1).all() and steps.at_half == steps.defect_only.max() == steps.per_image.max() == 1.0
    assert pixel_metrics(perfect, masks)["pixel_auroc"] == 1.0
    steps = iou_steps(inverted, masks, 0.0, 1.0)
    assert steps.pooled.max() == masks.mean() and steps.at_half == 0.0
    assert pixel_metrics(inverted, masks)["pixel_auroc"] == 0.0


def test_good_images_count_against_the_pooled_iou_only():
    maps, masks = case()
    few = iou_steps(maps, masks, -3, 3)
    more = iou_steps(np.concatenate([maps, maps[2:]]), np.concatenate([masks, masks[2:]]), -3, 3)
    np.testing.assert_array_equal(few.defect_only, more.defect_only)
    np.testing.assert_array_equal(few.per_image, more.per_image)
    assert (more.pooled <= few.pooled).all() and more.pooled.max() < few.pooled.max() < few.defect_only.max()


def test_the_peak_is_at_the_highest_threshold_that_has_it():
    assert peak(np.array([0.1, 0.7, 0.2, 0.7, 0.0])) == 3


def test_steps_of_a_hundred_maps_take_well_under_a_second_of_one_core():
    rng = np.random.default_rng(0)
    maps = rng.random((100, 256, 256), np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[:70, 100:140, 60:120] = True
    start = time.process_time()
    iou_steps(maps, masks, 0.0, 1.0)
    assert time.process_time() - start < 1.5  # 0.3 where it was written


def test_steps_need_anomalies_a_scale_and_two_thresholds():
    maps, masks = case()
    for change, says in (
        (dict(masks=np.zeros_like(masks)), "no anomalous pixels"),
        (dict(points=1), "at least 2"),
        (dict(low=2.0), "in this order"),
        (dict(high=np.inf), "must be finite"),
    ):
        with pytest.raises(ValueError, match=says):
            iou_steps(**(dict(maps=maps, masks=masks, low=0.0, high=1.0) | change))
