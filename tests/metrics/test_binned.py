"""The fixed-memory metrics: the exact value lies within the bound, however the data are cut, merged or stretched."""

from __future__ import annotations

import numpy as np
import pytest
from pixel_cases import case

from jaxad.metrics import PixelBins, RankSketch, binned_pixel_metrics, pixel_metrics

VALUES = ("pixel_auroc", "pixel_ap", "pixel_aupr", "pixel_f1max", "iou_max", "aupro_0.3", "aupro_0.05")


def batches(maps, masks, size=5):
    return lambda: ((maps[i : i + size], masks[i : i + size]) for i in range(0, len(maps), size))


def assert_within_bounds(binned, maps, masks):
    exact = pixel_metrics(maps, masks)
    assert set(binned) == set(exact) | {"error_bounds"} and set(binned["error_bounds"]) == set(VALUES)
    for key in VALUES:
        assert abs(binned[key] - exact[key]) <= binned["error_bounds"][key], key


@pytest.mark.parametrize("bins", [2, 3, 10, 100, 3000])
@pytest.mark.parametrize("levels", [0, 1, 9])
def test_exact_values_lie_within_the_bounds(bins, levels):
    for seed in range(4):
        maps, masks = case(levels=levels, seed=seed)
        assert_within_bounds(binned_pixel_metrics(batches(maps, masks), len(maps), bins=bins), maps, masks)


@pytest.mark.parametrize("bins", [5, 50])
def test_exact_values_lie_within_the_bounds_of_edges_that_fit_badly(bins):
    """Evenly spaced edges on a heavy tail: nearly all pixels share one bin, and the bound must say so."""
    maps, masks = case()
    maps = np.exp(3.0 * maps.astype(np.float64))
    linear = PixelBins(np.linspace(maps.min(), maps.max(), bins - 1))
    linear.update(maps, masks)
    assert_within_bounds(linear.result(), maps, masks)
    assert linear.result()["error_bounds"]["pixel_auroc"] > 0.05


@pytest.mark.parametrize("signal", [-1.5, 0.0, 6.0])
@pytest.mark.parametrize("bins", [2, 4, 12])
def test_the_bound_of_aupr_holds_for_poor_and_for_perfect_maps(signal, bins):
    """Poor maps start with normals, where precision is 0; perfect ones with anomalies alone, where it is 1."""
    for seed in range(6):
        maps, masks = case(n=3, side=9, levels=seed % 3 * 7, seed=seed, signal=signal)
        assert_within_bounds(binned_pixel_metrics(batches(maps, masks), len(maps), bins=bins), maps, masks)


def test_heavy_tails_cost_nothing_in_rank_space():
    maps, masks = case(n=30, side=64)
    stretched = np.exp(3.0 * maps.astype(np.float64))
    plain = binned_pixel_metrics(batches(maps, masks), len(maps), bins=2000)
    heavy = binned_pixel_metrics(batches(stretched, masks), len(maps), bins=2000)
    assert_within_bounds(heavy, stretched, masks)
    assert [heavy[key] for key in VALUES] == [plain[key] for key in VALUES]
    assert heavy["error_bounds"] == plain["error_bounds"]
    assert max(heavy["error_bounds"][key] for key in ("pixel_auroc", "aupro_0.3", "aupro_0.05")) < 5e-4


def test_a_few_distinct_scores_get_a_bin_each_and_are_exact():
    maps, masks = case(levels=6)
    binned, exact = binned_pixel_metrics(batches(maps, masks), len(maps)), pixel_metrics(maps, masks)
    for key in (*VALUES, "pixel_f1max_threshold", "iou_max_threshold"):
        assert binned[key] == pytest.approx(exact[key], abs=1e-10)
    assert max(binned["error_bounds"].values()) < 1e-10


def test_a_score_shared_by_half_the_pixels_adds_no_error():
    """As of a map cut off at zero: without a bin of its own that score alone would cost 0.1 of AUROC."""
    maps, masks = case()
    maps = np.maximum(maps, 0.0)
    binned = binned_pixel_metrics(batches(maps, masks), len(maps), bins=1000)
    assert_within_bounds(binned, maps, masks)
    assert binned["error_bounds"]["pixel_auroc"] < 2e-3


def test_a_constant_map_is_exact():
    maps, masks = case()
    maps = np.zeros_like(maps)
    binned = binned_pixel_metrics(batches(maps, masks), len(maps))
    assert binned["pixel_auroc"] == 0.5 and binned["aupro_0.3"] == pytest.approx(0.15, abs=1e-10)
    assert_within_bounds(binned, maps, masks)


def test_thresholds_reach_the_maxima_given():
    maps, masks = case()
    binned = binned_pixel_metrics(batches(maps, masks), len(maps), bins=40)
    flagged = maps >= binned["iou_max_threshold"]
    assert binned["iou_max"] == (flagged & masks).sum() / (flagged | masks).sum()
    flagged = maps >= binned["pixel_f1max_threshold"]
    assert binned["pixel_f1max"] == 2 * (flagged & masks).sum() / (flagged.sum() + masks.sum())


@pytest.mark.parametrize("levels", [0, 5])
def test_batches_order_and_processes_change_no_bit(levels):
    maps, masks = case(levels=levels)
    want = binned_pixel_metrics(batches(maps, masks), len(maps), bins=300)
    order = np.random.default_rng(2).permutation(len(maps))
    assert binned_pixel_metrics(batches(maps[order], masks[order], size=7), len(maps), bins=300) == want

    shares = [order[:3], order[3:14], order[14:]]  # three processes
    sketches = []
    for share in shares:
        sketches.append(RankSketch(len(maps)))
        sketches[-1].update(maps[share])
    for share, sketch in zip(shares[1:], sketches[1:], strict=True):
        sketches[0].merge(sketch.sample(), images=len(share))
    edges = sketches[0].edges(300)
    total = PixelBins(edges)
    for share in shares:
        part = PixelBins(edges)
        part.update(maps[share], masks[share])
        total.merge(part.state())
    assert total.result() == want


def test_memory_does_not_grow_with_the_images():
    maps, masks = case()
    sketch = RankSketch(images=len(maps), capacity=800)
    for i in range(len(maps)):
        sketch.update(maps[i : i + 1])
    assert 400 < sketch.sample().size <= 800
    assert sketch.edges(100).size <= 99
    bins = PixelBins(sketch.edges(100))
    before = sum(array.nbytes for array in bins.state().values())
    for _ in range(3):
        bins.update(maps, masks)
    assert sum(array.nbytes for array in bins.state().values()) == before


def test_metrics_that_do_not_exist_are_none_with_their_reason():
    maps, masks = case()
    for fill, reason in ((False, "no anomalous pixels"), (True, "no normal pixels")):
        binned = binned_pixel_metrics(batches(maps, np.full_like(masks, fill)), len(maps))
        assert binned["aupro_0.3"] is None and binned["notes"]["aupro_0.3"] == reason
        assert set(binned["notes"]) == set(pixel_metrics(maps, None)["notes"])
    assert PixelBins([0.0]).result()["notes"]["iou_max"] == "no pixels"


def test_summary_prints_the_bound_beside_the_value():
    maps, masks = case()
    bins = PixelBins(np.linspace(-2, 3, 50))
    assert "pixel_auroc            n/a (no pixels)" in bins.summary()
    bins.update(maps, masks)
    line = next(line for line in bins.summary().splitlines() if line.startswith("aupro_0.3 "))
    result = bins.result()
    assert line.split() == [
        "aupro_0.3",
        f"{result['aupro_0.3']:.6f}",
        "+-",
        f"{result['error_bounds']['aupro_0.3']:.6f}",
    ]


@pytest.mark.parametrize(
    "misuse, message",
    [
        (lambda maps, masks: RankSketch(100, capacity=1000), "at least 16 scores per image"),
        (lambda maps, masks: RankSketch(5).update(maps), "19 images more than"),
        (lambda maps, masks: RankSketch(5).update(maps[0]), r"must be \[B, H, W\]"),
        (lambda maps, masks: RankSketch(5).edges(), "no bin edges from 0 scores"),
        (lambda maps, masks: PixelBins([0.0, 0.0]), "strictly ascending"),
        (lambda maps, masks: PixelBins([0.0]).update(maps, masks[1:]), r"\(24, 32, 32\) and masks \(23, 32, 32\)"),
        (lambda maps, masks: PixelBins([0.0]).merge(PixelBins([1.0]).state()), "other edges"),
    ],
)
def test_misuse_is_named_in_one_line(misuse, message):
    with pytest.raises(ValueError, match=message):
        misuse(*case(n=24))
