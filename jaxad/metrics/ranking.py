"""Metrics of a ranking: AUROC, average precision, AUPR, best F1, and the two curves behind them.

One sort serves them all. The normal scores are sorted once, the anomalous scores once, and `Tally` notes for every
distinct anomalous score how many anomalies reach it and how many normals lie above it. Every metric of this package is
a function of these whole numbers, so none can change under a strictly increasing transform of the scores, under a
permutation, or with how the data were cut into batches; tied scores are one threshold.

Nothing here imports jax.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Tally(NamedTuple):
    """Counts at the K distinct scores of anomalies, in descending order; a score s is flagged at threshold t if s >= t.

    scores: [K] · count: i64[K], anomalies with this score · found: i64[K], anomalies with this score or a higher one ·
    above: i64[K], normals with a higher score · alarms: i64[K], normals with this score or a higher one ·
    group: i64[n_anomalous], for each anomaly, in input order, its row in the arrays above ·
    normal: [n_normal], the normal scores in ascending order.
    """

    scores: np.ndarray
    count: np.ndarray
    found: np.ndarray
    above: np.ndarray
    alarms: np.ndarray
    group: np.ndarray
    normal: np.ndarray

    @property
    def n_anomalous(self) -> int:
        return self.group.size

    @property
    def n_normal(self) -> int:
        return self.normal.size

    def missing(self, noun: str) -> str | None:
        """Why a ranking metric does not exist, or None where it does. noun: 'images' or 'pixels'."""
        if not self.n_anomalous and not self.n_normal:
            return f"no {noun}"
        if not self.n_anomalous:
            return f"no anomalous {noun}"
        return None if self.n_normal else f"no normal {noun}"


def check_scores(scores, name: str = "scores") -> np.ndarray:
    """`scores` as an array that sorts exactly: float16 and bfloat16 are widened to float32, other numbers kept.

    Raises ValueError if a score is not a number, saying how many are not.
    """
    scores = np.asarray(scores)
    if scores.dtype.name in ("float16", "bfloat16"):
        scores = scores.astype(np.float32)
    elif scores.dtype == bool:
        scores = scores.astype(np.uint8)
    if scores.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be real numbers, got dtype {scores.dtype}")
    finite = np.isfinite(scores)
    if not finite.all():
        bad, nan = int(finite.size - np.count_nonzero(finite)), int(np.count_nonzero(np.isnan(scores)))
        raise ValueError(f"{bad} of {scores.size} {name} are not finite ({nan} NaN, {bad - nan} infinite)")
    return scores


def check_labels(labels, scores: np.ndarray, name: str = "labels", scores_name: str = "scores") -> np.ndarray:
    """`labels` as bool, of the shape of `scores`. Raises ValueError on another shape or values other than 0 and 1."""
    labels = np.asarray(labels)
    if labels.shape != scores.shape:
        raise ValueError(f"{scores_name} {scores.shape} and {name} {labels.shape} differ in shape")
    if labels.dtype != bool:
        if not ((labels == 0) | (labels == 1)).all():
            raise ValueError(
                f"{name} must be bool or hold 0 and 1 only; pass {name} > 0 if any other value is an anomaly"
            )
        labels = labels.astype(bool)
    return labels


def tally(scores, labels) -> Tally:
    """Sorts once and counts.

    Args:
      scores: real[...], larger = more anomalous, finite.
      labels: bool[...] of the same shape, True = anomalous.

    >>> tally([0.1, 0.7, 0.7, 0.9], [0, 1, 0, 1])[:5]
    (array([0.9, 0.7]), array([1, 1]), array([1, 2]), array([0, 0]), array([0, 1]))
    """
    scores = check_scores(scores)
    labels = check_labels(labels, scores)
    normal = np.sort(scores[~labels], axis=None)
    anomalous = scores[labels]
    order = np.argsort(anomalous)[::-1]  # the order among ties is arbitrary and nothing below depends on it
    ranked = anomalous[order]
    first = np.ones(ranked.size, bool)
    np.not_equal(ranked[1:], ranked[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    distinct = ranked[starts]
    group = np.empty(ranked.size, np.int64)
    group[order] = np.cumsum(first) - 1
    found = np.append(starts[1:], ranked.size)[: starts.size]
    return Tally(
        scores=distinct,
        count=found - starts,
        found=found,
        above=normal.size - _search(normal, distinct, "right"),
        alarms=normal.size - _search(normal, distinct, "left"),
        group=group,
        normal=normal,
    )


def _search(ascending: np.ndarray, descending: np.ndarray, side: str) -> np.ndarray:
    """`np.searchsorted` with the keys handed over in ascending order, which is kinder to the cache."""
    return np.searchsorted(ascending, descending[::-1], side)[::-1]


def exact_dot(a: np.ndarray, b: np.ndarray) -> int:
    """sum(a * b) of two non-negative i64[K], as a Python int; exact while sum(b) < 2**32, as `a` is taken in halves."""
    return (int(np.dot(a >> 31, b)) << 31) + int(np.dot(a & (2**31 - 1), b))


def auroc(t: Tally) -> float:
    """Area under the ROC curve: the share of (anomaly, normal) pairs in the right order, a tie counting one half.

    The numerator is a whole number, so the result is the exact value rounded once.
    """
    twice_below = 2 * (t.n_normal - t.alarms) + (t.alarms - t.above)
    return exact_dot(twice_below, t.count) / (2 * t.n_anomalous * t.n_normal)


def average_precision(t: Tally) -> float:
    """Step-wise average precision: the sum over distinct scores of (rise in recall) x precision; no interpolation."""
    return float(np.sum(t.count * (t.found / (t.found + t.alarms)))) / t.n_anomalous


def aupr(t: Tally) -> float:
    """Area under the precision-recall curve by the trapezoidal rule, every distinct score being a threshold.

    The curve begins at recall 0 with the precision of what is flagged above the highest anomaly, 1 where that is
    nothing. VisA's image AU-PR. A straight line through tied scores, or from one anomaly to the next, promises more
    than any threshold reaches (Davis and Goadrich, ICML 2006), which average precision does not: a constant detector
    has (1 + share of anomalies) / 2.
    """
    before = t.found - t.count
    flagged = before + t.above
    left = np.where(flagged > 0, before / np.maximum(flagged, 1), 1.0)
    return float(np.sum(t.count * (left + t.found / (t.found + t.alarms)))) / (2 * t.n_anomalous)


def best_f1(t: Tally) -> tuple[float, float]:
    """(F1, threshold): the largest F1 = 2 TP / (TP + FP + P) over all thresholds, at the highest that has it.

    Only scores of anomalies need be tried: moving the threshold to a normal's score just adds a false alarm.
    """
    return _first_max(2 * t.found / (t.found + t.alarms + t.n_anomalous), t.scores)


def best_iou(t: Tally) -> tuple[float, float]:
    """(IoU, threshold): the largest IoU = TP / (P + FP) over all thresholds, at the highest that has it."""
    return _first_max(t.found / (t.n_anomalous + t.alarms), t.scores)


def _first_max(values: np.ndarray, thresholds: np.ndarray) -> tuple[float, float]:
    best = int(np.argmax(values))
    return float(values[best]), float(thresholds[best]) + 0.0  # + 0.0 turns -0.0, a tie of 0.0, into 0.0


def corners(t: Tally) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The thresholds at which a curve against the false alarms turns, with no point on a straight line left in.

    Returns (thresholds f64[n] descending from inf, false alarms i64[n], rows of `t` at or above the threshold i64[n]).
    Between two scores of anomalies the found anomalies do not change, so the curve runs level there.
    """
    rows = np.arange(t.scores.size)
    before = np.concatenate([[0], t.alarms])  # false alarms before each row, and at the end
    after = np.append(t.above, t.n_normal)  # false alarms just above each row, and of the lowest threshold
    level = after > before
    lowest_above = t.normal[t.n_normal - after[level]].astype(np.float64)
    thresholds = np.concatenate([[np.inf], lowest_above, t.scores.astype(np.float64)])
    alarms = np.concatenate([[0], after[level], t.alarms])
    found = np.concatenate([[0], np.append(rows, rows.size)[level], rows + 1])
    order = np.lexsort((alarms, found))  # the level stretch at `found` rows, entered by a rise and left by the next one
    return thresholds[order], alarms[order], found[order]


def thin(points: int | None, *curves: np.ndarray) -> tuple[np.ndarray, ...]:
    """At most `points` of the points of a curve, evenly along its length in the first two arrays; None keeps all.

    The first and the last point stay.
    """
    n = curves[0].size
    if points is None or n <= points:
        return curves
    if points < 2:
        raise ValueError(f"points={points}: a curve needs at least 2")
    steps = [np.diff(curve) / max(np.ptp(curve), np.finfo(float).tiny) for curve in curves[:2]]
    length = np.concatenate([[0.0], np.cumsum(np.hypot(*steps))])
    keep = np.searchsorted(length, np.linspace(0.0, length[-1], points))
    keep[-1] = n - 1
    keep = np.unique(keep)
    return tuple(curve[keep] for curve in curves)


def require(t: Tally, noun: str = "scores") -> Tally:
    """`t`, or a ValueError saying why no curve exists."""
    reason = t.missing(noun)
    if reason:
        raise ValueError(f"the curve does not exist: {reason}")
    return t


def roc_curve(scores, labels, points: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ROC curve of images ([N]) or pixels ([N, H, W]).

    Returns:
      (false positive rate f64[n], true positive rate f64[n], thresholds f64[n]): from (0, 0) at inf to (1, 1). Points
      between which the curve is straight are left out, so its trapezoidal area is the AUROC (with points=None).

    >>> roc_curve([0.1, 0.7, 0.7, 0.9], [0, 1, 0, 1])[:2]
    (array([0. , 0. , 0.5, 1. ]), array([0. , 0.5, 1. , 1. ]))
    """
    t = require(tally(scores, labels))
    thresholds, alarms, rows = corners(t)
    found = np.concatenate([[0], t.found])[rows]
    return thin(points, alarms / t.n_normal, found / t.n_anomalous, thresholds)


def pr_curve(scores, labels, points: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The precision-recall curve of images ([N]) or pixels ([N, H, W]).

    Returns:
      (recall f64[n], precision f64[n], thresholds f64[n]) at the distinct scores of anomalies, recall rising to 1. To
      be drawn as steps: average precision is the sum of (rise in recall) x precision.

    >>> pr_curve([0.1, 0.7, 0.7, 0.9], [0, 1, 0, 1])[:2]
    (array([0.5, 1. ]), array([1.        , 0.66666667]))
    """
    t = require(tally(scores, labels))
    recall, precision = t.found / t.n_anomalous, t.found / (t.found + t.alarms)
    return thin(points, recall, precision, t.scores.astype(np.float64))
