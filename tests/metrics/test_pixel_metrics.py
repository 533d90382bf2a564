"""All pixel metrics together: sklearn, invariance bit for bit, what does not exist, misuse, and speed."""

from __future__ import annotations

import time

import numpy as np
import pytest
from pixel_cases import case
from sklearn import metrics as sk

from jaxad.metrics import pixel_metrics

RANKED = ("pixel_auroc", "pixel_ap", "pixel_aupr", "pixel_f1max", "aupro_0.3", "aupro_0.05", "iou_max")
KEYS = {*RANKED, "pixel_f1max_threshold", "iou_max_threshold", "notes"}


@pytest.mark.parametrize("levels", [0, 2, 40])
def test_pixel_auroc_ap_and_aupr_agree_with_sklearn(levels):
    maps, masks = case(levels=levels)
    ours = pixel_metrics(maps, masks)
    assert ours["pixel_auroc"] == pytest.approx(sk.roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert ours["pixel_ap"] == pytest.approx(sk.average_precision_score(masks.ravel(), maps.ravel()), abs=1e-12)
    precision, recall, _ = sk.precision_recall_curve(masks.ravel(), maps.ravel())
    assert ours["pixel_aupr"] == pytest.approx(sk.auc(recall, precision), abs=1e-12)


@pytest.mark.parametrize("levels", [0, 2, 40])
def test_rank_metrics_are_bit_identical_under_increasing_transforms(levels):
    maps, masks = case(levels=levels)
    want = pixel_metrics(maps, masks)
    wide = maps.astype(np.float64)
    for transform in (lambda s: np.exp(3 * s), np.arctan, lambda s: 1e6 * s - 5):
        ours = pixel_metrics(transform(wide), masks)
        assert [ours[key] for key in RANKED] == [want[key] for key in RANKED]
        for key in ("pixel_f1max_threshold", "iou_max_threshold"):
            assert ours[key] == transform(np.float64(want[key]))


@pytest.mark.parametrize("levels", [0, 2, 40])
def test_order_of_images_and_flips_change_no_bit(levels):
    maps, masks = case(levels=levels)
    want = pixel_metrics(maps, masks)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(maps))
        ours = pixel_metrics(maps[order][:, ::-1, ::-1].swapaxes(1, 2), masks[order][:, ::-1, ::-1].swapaxes(1, 2))
        assert ours == want


def test_maps_gathered_from_batches_of_any_size_give_the_same_bits():
    maps, masks = case()
    want = pixel_metrics(maps, masks)
    for size in (1, 5, 12):
        cuts = range(0, len(maps), size)
        parts = [maps[i : i + size] for i in cuts], [masks[i : i + size] for i in cuts]
        assert pixel_metrics(*(np.concatenate(part) for part in parts)) == want


def test_metrics_of_any_float_width_are_those_of_the_same_values_in_float64():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    maps, masks = case()
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32):
        narrow = maps.astype(dtype)
        assert pixel_metrics(narrow, masks) == pixel_metrics(narrow.astype(np.float64), masks)


def test_all_metrics_lie_in_the_unit_interval_on_random_cases_with_heavy_ties():
    for seed in range(40):
        maps, masks = case(n=3, side=9, levels=seed % 5, seed=seed)
        ours = pixel_metrics(maps, masks, pro_limits=(1.0, 0.3, 0.05, 0.001))
        values = [value for key, value in ours.items() if key != "notes" and not key.endswith("threshold")]
        assert len(values) == 9 and all(0.0 <= value <= 1.0 for value in values)


@pytest.mark.parametrize(
    "fill, reason", [(None, "no masks"), (False, "no anomalous pixels"), (True, "no normal pixels")]
)
def test_metrics_that_do_not_exist_are_none_with_their_reason(fill, reason):
    maps, masks = case()
    ours = pixel_metrics(maps, None if fill is None else np.full_like(masks, fill))
    assert set(ours) == KEYS
    assert all(ours[key] is None for key in KEYS - {"notes"})
    assert ours["notes"] == dict.fromkeys(KEYS - {"notes"}, reason)


def test_no_images_is_a_reason_too():
    assert pixel_metrics(np.zeros((0, 4, 4)), np.zeros((0, 4, 4), bool))["notes"]["aupro_0.3"] == "no pixels"


def test_metrics_that_exist_are_python_floats_named_by_their_limits():
    ours = pixel_metrics(*case(), pro_limits=(0.3, 0.05))
    assert set(ours) == KEYS and ours["notes"] == {}
    assert all(type(value) is float for key, value in ours.items() if key != "notes")
    assert {"aupro_1", "aupro_0.01"} < set(pixel_metrics(*case(), pro_limits=(1, 0.01)))


def test_masks_of_zeros_and_ones_are_taken_as_bool():
    maps, masks = case()
    for dtype in (np.uint8, np.float32, np.int64):
        assert pixel_metrics(maps, masks.astype(dtype)) == pixel_metrics(maps, masks)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda maps, masks: (maps, masks[:, :-1]), r"maps \(12, 32, 32\) and masks \(12, 31, 32\) differ in shape"),
        (lambda maps, masks: (maps[0], masks[0]), r"must be \[N, H, W\], got shape \(32, 32\)"),
        (lambda maps, masks: (maps[..., None], masks[..., None]), r"got shape \(12, 32, 32, 1\)"),
        (lambda maps, masks: (maps, masks * np.uint8(255)), "masks must be bool or hold 0 and 1 only"),
        (lambda maps, masks: (np.where(maps > 3, np.nan, maps), masks), r"^\d+ of 12288 map pixels are not finite"),
    ],
)
def test_misuse_is_named_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        pixel_metrics(*change(*case()))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_all_pixel_metrics_take_less_than_three_quarters_of_sklearns_pixel_auroc():
    """100 maps of 256 x 256, in the same run, CPU time, the best of two each."""
    maps, masks = case(n=100, side=256, seed=3)

    def seconds(f) -> float:
        times = []
        for _ in range(2):
            start = time.process_time()
            f()
            times.append(time.process_time() - start)
        return min(times)

    theirs = seconds(lambda: sk.roc_auc_score(masks.ravel(), maps.ravel()))
    ours = seconds(lambda: pixel_metrics(maps, masks))
    print(f"sklearn pixel roc_auc_score {theirs:.2f} s, all pixel metrics {ours:.2f} s, ratio {ours / theirs:.3f}")
    assert ours <= 0.75 * theirs
