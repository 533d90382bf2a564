"""Intersection over union of the thresholded map with the mask, pooled over all pixels of a category.

IoU(t) = TP / (TP + FP + FN) for score >= t; pixels of normal images count, as false positives. The maximum is exact:
every distinct score is tried (`ranking.best_iou`). F1 = 2 IoU / (1 + IoU), so both are largest at the same threshold.
"""

from __future__ import annotations

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
