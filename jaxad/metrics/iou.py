"""Intersection over union of the thresholded map with the mask, pooled over all pixels of a category.

IoU(t) = TP / (TP + FP + FN) for score >= t; pixels of normal images count, as false positives. The maximum is exact:
every distinct score is tried (`ranking.best_iou`). F1 = 2 IoU / (1 + IoU), so both are largest at the same threshold.

`iou_steps` is AnoSeg's measurement: a given scale cut into 10,000 thresholds, so that maps of different methods can be
compared at the same place of their scales.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxad.metrics import pro, ranking


def iou_curve(maps, masks, thresholds=None, points: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """IoU against the threshold.

    Args:
      maps: real[N, H, W], larger = more anomalous.
      masks: bool[N, H, W], with at least one anomalous and one normal pixel.
      thresholds: None: every score where the curve turns · an int n >= 2: n thresholds evenly from the smallest to the
        largest score (10,000 is customary) · real[T]: these.
      points: at most so many points of the curve, evenly along its length.

    Returns:
      (thresholds f64[n] ascending, or as given, IoU f64[n]).

    >>> iou_curve([[[0.9, 0.1, 0.8]]], [[[1, 0, 1]]], thresholds=[0.85, 0.5, 0.0])[1]
    array([0.5       , 1.        , 0.66666667])
    """
    maps, masks = pro.check_maps(maps, masks)
    t = ranking.require(ranking.tally(maps, masks), "pixels")
    if thresholds is None:
        at, alarms, rows = (array[:0:-1] for array in ranking.corners(t))  # without inf, where nothing is flagged
    else:
        if np.ndim(thresholds) == 0:
            if thresholds < 2:
                raise ValueError(f"thresholds={thresholds}: the curve needs at least 2")
            at = np.linspace(float(maps.min()), float(maps.max()), int(thresholds))
        else:
            at = np.ravel(thresholds).astype(np.float64)
        alarms = t.n_normal - np.searchsorted(t.normal.astype(np.float64), at, "left")
        rows = t.scores.size - np.searchsorted(t.scores[::-1].astype(np.float64), at, "left")
    found = np.concatenate([[0], t.found])[rows]
    return ranking.thin(points, at, found / (t.n_anomalous + alarms))


class IouSteps(NamedTuple):
    """IoU at T thresholds evenly from `low` to `high`, ascending.

    thresholds: f64[T], in units of the maps · pooled: f64[T], over all pixels of all images · defect_only: f64[T], over
    those of images with an anomalous pixel · per_image: f64[T], of each image with an anomalous pixel, averaged over
    them · at_half: the pooled one at (low + high) / 2, which is a threshold only where T is odd.
    """

    thresholds: np.ndarray
    pooled: np.ndarray
    defect_only: np.ndarray
    per_image: np.ndarray
    at_half: float

    @property
    def places(self) -> np.ndarray:
        """f64[T]: the thresholds in [0, 1], as shares of the way from `low` to `high`."""
        return _places(self.thresholds.size)


def iou_steps(maps, masks, low: float, high: float, points: int = 10_000) -> IouSteps:
    """IoU at `points` thresholds evenly from `low` to `high`; a pixel is flagged where score >= threshold.

    The counts are those of direct thresholding, ties and scores outside [low, high] included: scores keep their own
    precision and are compared in float64.

    Args:
      maps: real[N, H, W], larger = more anomalous.
      masks: bool[N, H, W], with at least one anomalous pixel.
      low, high: the ends of the scale, in units of the maps.

    >>> iou_steps([[[0.9, 0.1, 0.8]]], [[[1, 0, 1]]], 0.0, 1.0, points=5).pooled
    array([0.66666667, 1.        , 1.        , 1.        , 0.        ])
    """
    maps, masks = pro.check_maps(maps, masks)
    if points < 2:
        raise ValueError(f"points={points}: the curve needs at least 2")
    if not (np.isfinite([low, high]).all() and low <= high):
        raise ValueError(f"a scale from {low} to {high}: its ends must be finite and in this order")
    if not masks.any():
        raise ValueError("IoU does not exist: no anomalous pixels")
    thresholds = np.minimum(low + (high - low) * _places(points), high)
    thresholds[-1] = high
    at = np.append(thresholds, low + (high - low) / 2)
    found, alarms, elsewhere = np.zeros((3, at.size), np.int64)  # true positives, false ones, those in good images
    each, defective = np.zeros(at.size), 0
    for scores, mask in zip(maps, masks, strict=True):  # image by image: small sorts, and the counts of each
        flagged = _reaching(scores[~mask], at)
        if not mask.any():
            elsewhere += flagged
            continue
        hit = _reaching(scores[mask], at)
        each += hit / (np.count_nonzero(mask) + flagged)
        found, alarms, defective = found + hit, alarms + flagged, defective + 1
    total = np.count_nonzero(masks)
    pooled, defect_only = found / (total + alarms + elsewhere), found / (total + alarms)
    return IouSteps(thresholds, pooled[:-1], defect_only[:-1], each[:-1] / defective, float(pooled[-1]))


def _places(points: int) -> np.ndarray:
    return np.arange(points) / (points - 1)


def _reaching(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """i64[T]: how many of `scores` reach each threshold. Sorting them is faster than sorting them into the bins."""
    return scores.size - np.searchsorted(np.sort(scores), thresholds, "left")


def peak(curve: np.ndarray) -> int:
    """Where a curve over ascending thresholds is largest, the highest threshold of several."""
    return curve.size - 1 - int(np.argmax(curve[::-1]))
