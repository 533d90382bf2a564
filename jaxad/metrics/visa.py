"""The pixel metrics that VisA's authors report: areas under curves drawn through 202 thresholds.

Zou et al., "SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection and Segmentation", ECCV 2022, after
what the authors' metrics.py computes. The exact values are `pixel_auroc` and `pixel_aupr` of
`jaxad.metrics.pixel_metrics`. Between neighbouring thresholds the curves here are straight lines, so the values depend
on the scale of the scores, not on their order alone.
"""

from __future__ import annotations

import numpy as np

from jaxad.metrics import pro

SHARE = 100  # thresholds that are percentiles, and as many that are evenly spaced
MARGIN = 1e-8  # below the smallest and above the largest score
DIGITS = 4  # to which the authors round
KEYS = ("pixel_auroc", "pixel_aupr")


def visa202(maps, masks) -> dict:
    """Pixel AU-ROC and AU-PR of one category with 202 thresholds, all pixels of all images pooled, normals included.

    The thresholds: SHARE percentiles of the scores on anomalous pixels, SHARE evenly spaced ones between the smallest
    and the largest of these, and one beyond either end of all scores. A pixel is flagged above a threshold, strictly.
    Where nothing is flagged precision is 1. Both areas are trapezoidal and rounded to DIGITS.

    Args:
      maps: real[N, H, W], larger = more anomalous, finite; normal images included.
      masks: bool[N, H, W], True = anomalous; or None where the data set has none.

    Returns:
      {pixel_auroc, pixel_aupr, notes}. What does not exist (no masks, no anomalous or no normal pixels) is None and
      notes[key] says why.

    Raises:
      ValueError: shapes that differ, masks of other values than 0 and 1 (255), scores that are not finite.

    >>> maps, masks = np.linspace(0, 1, 2000).reshape(2, 25, 40), np.zeros((2, 25, 40), bool)
    >>> masks[1, 15:] = True  # the 400 highest scores; the lowest of them is above no threshold but the last
    >>> visa202(maps, masks)
    {'pixel_auroc': 0.9988, 'pixel_aupr': 0.999, 'notes': {}}
    """
    if masks is None:
        return _absent("no masks")
    maps, masks = pro.check_maps(maps, masks)
    anomalous, normal = (np.sort(maps[chosen].astype(np.float64)) for chosen in (masks, ~masks))
    if not anomalous.size or not normal.size:
        kinds = [kind for kind, scores in (("anomalous", anomalous), ("normal", normal)) if not scores.size]
        return _absent("no pixels" if len(kinds) == 2 else f"no {kinds[0]} pixels")
    at = thresholds(anomalous, normal)
    found, alarms = (scores.size - np.searchsorted(scores, at, "right") for scores in (anomalous, normal))
    flagged = found + alarms
    precision = np.where(flagged > 0, found / np.maximum(flagged, 1), 1.0)
    recall = found / anomalous.size
    areas = np.trapezoid(recall, alarms / normal.size), np.trapezoid(precision, recall)
    return dict(zip(KEYS, (round(float(area), DIGITS) for area in areas), strict=True), notes={})


def thresholds(anomalous: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """f64[202], descending. anomalous, normal: f64[...], the scores in ascending order, neither empty."""
    low, high = anomalous[0], anomalous[-1]
    return np.sort(
        np.concatenate(
            [
                np.percentile(anomalous, np.linspace(0, 100, SHARE)),
                np.linspace(low, high, SHARE),
                [min(low, normal[0]) - MARGIN, max(high, normal[-1]) + MARGIN],
            ]
        )
    )[::-1]


def _absent(reason: str) -> dict:
    return dict.fromkeys(KEYS) | {"notes": dict.fromkeys(KEYS, reason)}
