"""PRO and AUPRO against a loop over thresholds and flood-filled regions, and against values worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from jaxad.metrics import pixel_metrics, pro, pro_curve


def flood_fill(mask) -> list[set[tuple[int, int]]]:
    """8-connected components, pixel by pixel."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    while left:
        todo, region = [left.pop()], set()
        while todo:
            y, x = todo.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            todo += near
        found.append(region)
    return found


def aupro_by_loop(maps, masks, limit: Fraction) -> float:
    """Every distinct score a threshold, trapezoids in exact fractions, cut by interpolation at the limit."""
    regions = [(i, region) for i, mask in enumerate(masks) for region in flood_fill(mask)]
    n_normal = int((~masks).sum())
    points = [(Fraction(0), Fraction(0))]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        flagged = maps >= threshold
        overlaps = [Fraction(sum(bool(flagged[i, y, x]) for y, x in r), len(r)) for i, r in regions]
        points.append((Fraction(int((flagged & ~masks).sum()), n_normal), sum(overlaps) / len(regions)))
    area = Fraction(0)
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x0 >= limit or x1 == x0:
            continue
        cut = min(x1, limit)
        y_cut = y0 + (y1 - y0) * (cut - x0) / (x1 - x0)
        area += (cut - x0) * (y0 + y_cut) / 2
    return float(area / limit)


def case(seed: int, levels: int = 0, shape=(4, 9, 11)):
    rng = np.random.default_rng(seed)
    masks = rng.random(shape) < 0.15
    masks[0] = False
    masks[1, 2:6, 3:5] = True
    maps = rng.standard_normal(shape) + masks
    return (np.floor(maps * levels / 3) if levels else maps), masks


@pytest.mark.parametrize("levels", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("limit", [Fraction(1), Fraction(3, 10), Fraction(1, 20), Fraction(1, 128)])
def test_aupro_is_that_of_the_loop_over_thresholds(levels, limit):
    maps, masks = case(levels, levels)
    ours = pixel_metrics(maps, masks, pro_limits=(float(limit),))[f"aupro_{float(limit):g}"]
    assert ours == pytest.approx(aupro_by_loop(maps, masks, limit), abs=2e-15)


@pytest.mark.parametrize("columns", [[3], [1, 3, 5]])
def test_aupro_of_a_ramp_over_columns_is_one_sixth(columns):
    maps = np.arange(2800).reshape(1, 400, 7) / 2800
    masks = np.zeros(maps.shape, bool)
    masks[..., columns] = True
    ours = pixel_metrics(maps, masks, pro_limits=(1 / 3,))["aupro_0.333333"]
    assert ours == pytest.approx(1 / 6, abs=1e-3)


def test_aupro_of_both_ramps_together_is_one_sixth():
    maps = np.concatenate([np.arange(2800).reshape(1, 400, 7) / 2800] * 2)
    masks = np.zeros(maps.shape, bool)
    masks[0, :, 3] = masks[1, :, 1] = masks[1, :, 3] = masks[1, :, 5] = True
    ours = pixel_metrics(maps, masks, pro_limits=(1 / 3,))["aupro_0.333333"]
    assert ours == pytest.approx(1 / 6, abs=1e-3)


def test_aupro_of_a_constant_map_is_half_its_limit():
    masks = np.zeros((2, 8, 8), bool)
    masks[1, 3:5, 2:4] = True
    ours = pixel_metrics(np.full(masks.shape, 0.7), masks)
    assert ours["aupro_0.3"] == pytest.approx(0.15, abs=1e-16)
    assert ours["aupro_0.05"] == pytest.approx(0.025, abs=1e-17)


def test_every_metric_of_the_mask_itself_is_exactly_one():
    _, masks = case(3)
    ours = pixel_metrics(masks.astype(np.float32), masks)
    keys = ("pixel_auroc", "pixel_ap", "pixel_f1max", "aupro_0.3", "aupro_0.05", "iou_max")
    assert [ours[key] for key in keys] == [1.0] * 6
    assert ours["iou_max_threshold"] == ours["pixel_f1max_threshold"] == 1.0


def test_aupro_of_the_inverted_mask_is_zero_and_auroc_too():
    _, masks = case(3)
    ours = pixel_metrics(1.0 - masks, masks)
    assert ours["aupro_0.3"] == 0.0 and ours["pixel_auroc"] == 0.0


def test_regions_weigh_the_same_whatever_their_size():
    """A found pixel-sized defect and a missed one of 12 pixels: half the regions are found."""
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 0, 0] = True
    masks[0, 3:6, 3:7] = True
    maps = np.zeros(masks.shape)
    maps[~masks], maps[0, 0, 0] = 1.0, 2.0
    assert pixel_metrics(maps, masks, pro_limits=(0.3,))["aupro_0.3"] == pytest.approx(0.5 + 0.0, abs=1e-15)
    assert pro.pro(maps, masks, [2.0, 1.0, 0.0]).tolist() == [0.5, 0.5, 1.0]


def test_pro_of_five_lines_at_six_thresholds():
    maps = np.repeat(np.arange(10.0)[:, None] / 10 + 0.05, 5, axis=1)[None]
    masks = np.zeros(maps.shape, bool)
    for i in range(5):
        masks[0, 2 * i + 1, : i + 1] = True
    ours = pro.pro(maps, masks, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(ours, [1.0, 0.8, 0.6, 0.4, 0.2, 0.0], atol=1e-15)


def test_a_long_snake_is_one_region():
    mask = np.zeros((63, 65), bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    assert pro.regions(mask[None]).area.tolist() == [mask.sum()]


def test_diagonal_pixels_are_one_region_but_neighbouring_images_are_not():
    masks = np.zeros((3, 4, 4), bool)
    masks[0, 0, 0] = masks[0, 1, 1] = True
    masks[1, 3, 3] = masks[2, 0, 0] = masks[2, 3, 3] = True
    assert pro.regions(masks).area.tolist() == [2, 1, 1, 1]


def test_regions_are_those_of_a_flood_fill():
    rng = np.random.default_rng(11)
    masks = rng.random((6, 12, 7)) < 0.35
    want = sorted(len(region) for mask in masks for region in flood_fill(mask))
    ours = pro.regions(masks)
    assert sorted(ours.area.tolist()) == want
    assert ours.pixel.size == masks.sum() and ours.pixel.max() == len(want) - 1


@pytest.mark.parametrize("levels", [0, 3])
def test_pro_curve_points_are_what_their_thresholds_give(levels):
    maps, masks = case(5, levels)
    fpr, overlap, thresholds = pro_curve(maps, masks)
    assert (fpr[0], overlap[0], fpr[-1], overlap[-1]) == (0, 0, 1, 1)
    np.testing.assert_allclose(overlap[1:], pro.pro(maps, masks, thresholds[1:]), atol=1e-13)
    np.testing.assert_array_equal(fpr, [(maps[~masks] >= t).mean() for t in thresholds])
    assert (np.diff(overlap) >= 0).all() and (np.diff(fpr) >= 0).all()
    full = pixel_metrics(maps, masks, pro_limits=(1.0,))["aupro_1"]
    assert np.trapezoid(overlap, fpr) == pytest.approx(full, abs=1e-13)


def test_pro_curve_does_not_depend_on_the_order_of_the_images():
    maps, masks = case(6, 4)
    order = [2, 0, 3, 1]
    for ours, want in zip(pro_curve(maps[order], masks[order]), pro_curve(maps, masks), strict=True):
        np.testing.assert_array_equal(ours, want)


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.5])
def test_a_limit_that_is_no_rate_is_refused(limit):
    maps, masks = case(1)
    with pytest.raises(ValueError, match="PRO limit"):
        pixel_metrics(maps, masks, pro_limits=(limit,))


def test_pro_without_anomalies_is_refused():
    with pytest.raises(ValueError, match="no anomalous pixels"):
        pro.pro(np.zeros((1, 2, 2)), np.zeros((1, 2, 2), bool), [0.5])
