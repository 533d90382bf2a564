"""VisA's metrics with 202 thresholds: a loop over them, the exact values, and what the authors' definition implies."""

from __future__ import annotations

import numpy as np
import pytest
from pixel_cases import case

from jaxad.metrics import pixel_metrics, visa202
from jaxad.metrics import visa as module


def slow(maps, masks):
    """One threshold after another, counting all pixels each time."""
    maps = maps.astype(np.float64)
    on_defects = maps[masks]
    at = list(np.percentile(on_defects, np.linspace(0, 100, 100)))
    at += list(np.linspace(on_defects.min(), on_defects.max(), 100))
    at += [maps.min() - 1e-8, maps.max() + 1e-8]
    points = []
    for threshold in sorted(at, reverse=True):
        flagged = maps > threshold
        hits, alarms = (flagged & masks).sum(), (flagged & ~masks).sum()
        precision = hits / (hits + alarms) if hits + alarms else 1.0
        points.append((alarms / (~masks).sum(), hits / masks.sum(), precision))
    roc = sum((x1 - x0) * (y1 + y0) / 2 for (x0, y0, _), (x1, y1, _) in zip(points, points[1:], strict=False))
    pr = sum((y1 - y0) * (p1 + p0) / 2 for (_, y0, p0), (_, y1, p1) in zip(points, points[1:], strict=False))
    return roc, pr


def smooth(n=8, side=48, seed=0):
    """Maps that rise softly towards a blob in each defect, over soft noise, as an upsampled and blurred map does."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    masks = np.zeros((n, side, side), bool)
    for mask in masks[n // 4 :]:
        y, x, h, w = *rng.integers(4, side // 2, 2), *rng.integers(6, 14, 2)
        mask[y : y + h, x : x + w] = True
    noise = np.stack([ndimage.gaussian_filter(image, 2) for image in rng.standard_normal(masks.shape)])
    signal = np.stack([ndimage.gaussian_filter(mask.astype(float), 2) for mask in masks])
    return (noise / noise.std() + 3 * signal).astype(np.float32), masks


@pytest.mark.parametrize("levels", [0, 2, 9])
@pytest.mark.parametrize("signal", [-1.0, 0.9, 6.0])
def test_both_areas_are_those_of_a_loop_over_the_thresholds(levels, signal):
    for seed in range(3):
        maps, masks = case(levels=levels, seed=seed, signal=signal)
        ours, (roc, pr) = visa202(maps, masks), slow(maps, masks)
        assert ours["pixel_auroc"] == pytest.approx(roc, abs=0.5001e-4)
        assert ours["pixel_aupr"] == pytest.approx(pr, abs=0.5001e-4)
        assert ours["notes"] == {} and all(type(ours[key]) is float for key in module.KEYS)
        assert all(ours[key] == round(ours[key], 4) for key in module.KEYS)


def test_smooth_scores_are_within_a_200th_of_the_exact_metrics():
    for seed in range(5):
        maps, masks = smooth(seed=seed)
        ours, exact = visa202(maps, masks), pixel_metrics(maps, masks)
        for key in module.KEYS:
            assert 0.3 < exact[key] < 0.999
            assert abs(ours[key] - exact[key]) < 0.005


def test_the_thresholds_are_202_and_the_ends_flag_all_and_nothing():
    anomalous, normal = np.array([0.3, 0.5, 2.0]), np.array([-1.0, 0.1, 3.0])
    at = module.thresholds(anomalous, normal)
    assert at.size == 202 and (np.diff(at) <= 0).all()
    assert at[0] == 3.0 + 1e-8 and at[-1] == -1.0 - 1e-8
    assert at[1] == at[2] == 2.0 and at[-2] == at[-3] == 0.3  # both rows of thresholds begin and end there
    assert np.sum(at == 0.5) == 0 and np.sum((at > 0.3) & (at < 0.5)) > 40  # half of the percentiles, few others


def test_a_pixel_at_a_threshold_is_not_flagged():
    """Strictly above: of 0.5 and 1 the threshold 0.5, the smallest score of a defect, flags the second alone."""
    maps, masks = np.array([[[1.0, 0.5, 0.5, 0.0]]]), np.array([[[1, 1, 0, 0]]])
    # recall 0, 1/2 (up to the threshold 0.5), 1 at the last threshold only, which flags the other normal pixel, too
    assert visa202(maps, masks)["pixel_auroc"] == 0.75
    assert pixel_metrics(maps, masks)["pixel_auroc"] == 0.875


def test_a_constant_map_is_one_half_and_ties_do_not_break_it():
    masks = np.zeros((2, 4, 4), bool)
    masks[1, :2] = True
    ours = visa202(np.full(masks.shape, 0.25), masks)
    assert ours["pixel_auroc"] == 0.5 and ours["pixel_aupr"] == (1 + 0.25) / 2


@pytest.mark.parametrize("levels", [0, 3])
def test_the_order_of_images_and_pixels_changes_nothing(levels):
    maps, masks = case(levels=levels)
    order = np.random.default_rng(1).permutation(len(maps))
    assert visa202(maps[order][:, ::-1].swapaxes(1, 2), masks[order][:, ::-1].swapaxes(1, 2)) == visa202(maps, masks)


def test_normal_images_count():
    maps, masks = smooth()
    bad = masks.any(axis=(1, 2))
    maps[~bad] += 2  # false alarms of normal images only
    assert visa202(maps, masks)["pixel_auroc"] < visa202(maps[bad], masks[bad])["pixel_auroc"] - 0.02


@pytest.mark.parametrize(
    "fill, reason", [(None, "no masks"), (False, "no anomalous pixels"), (True, "no normal pixels")]
)
def test_what_does_not_exist_is_none_with_its_reason(fill, reason):
    maps, masks = case()
    ours = visa202(maps, None if fill is None else np.full_like(masks, fill))
    assert ours == {"pixel_auroc": None, "pixel_aupr": None, "notes": dict.fromkeys(module.KEYS, reason)}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda maps, masks: (maps, masks * np.uint8(255)), "masks must be bool or hold 0 and 1 only"),
        (lambda maps, masks: (maps, masks[1:]), "differ in shape"),
        (lambda maps, masks: (np.where(maps > 3, np.inf, maps), masks), "map pixels are not finite"),
    ],
)
def test_misuse_is_one_line(change, message):
    with pytest.raises(ValueError, match=message):
        visa202(*change(*case()))
