"""How good a detector is: exact ranking metrics of images and pixels, in NumPy and SciPy alone.

`image_metrics` and `pixel_metrics` are the front door; `binned` holds the fixed-memory variant for sets whose maps do
not fit; `visa202` what VisA's authors report; the curves are for plots; the thresholds for decisions; the bootstrap for
the width of an interval; `representation` judges features of images with classes. Misuse raises ValueError with one
line.
"""

from __future__ import annotations

import numpy as np

from jaxad.metrics import pro, ranking
from jaxad.metrics.binned import PixelBins, RankSketch, binned_pixel_metrics
from jaxad.metrics.bootstrap import bootstrap_auroc
from jaxad.metrics.iou import IouSteps, iou_curve, iou_steps
from jaxad.metrics.pro import pro_curve
from jaxad.metrics.ranking import pr_curve, roc_curve
from jaxad.metrics.threshold import oracle_f1_threshold, quantile_threshold
from jaxad.metrics.visa import visa202

__all__ = [
    "IouSteps",
    "PixelBins",
    "RankSketch",
    "binned_pixel_metrics",
    "bootstrap_auroc",
    "image_metrics",
    "iou_curve",
    "iou_steps",
    "oracle_f1_threshold",
    "pixel_metrics",
    "pr_curve",
    "pro_curve",
    "quantile_threshold",
    "roc_curve",
    "visa202",
]


def image_metrics(scores, labels) -> dict:
    """Metrics of one score per image.

    Args:
      scores: real[N], larger = more anomalous, finite.
      labels: bool[N], True = anomalous.

    Returns:
      {image_auroc, image_ap, image_aupr, image_f1max, image_f1max_threshold, notes}. image_ap is the step-wise average
      precision, image_aupr the trapezoidal area under the same curve. Without anomalous or without normal images they
      do not exist: each is None and notes[key] says why. The threshold is the highest with the best F1 for score >=
      threshold.

    >>> image_metrics([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])["image_auroc"]
    0.75
    >>> image_metrics([0.1, 0.4], [0, 0])["notes"]["image_auroc"]
    'no anomalous images'
    """
    if np.ndim(scores) != 1:
        raise ValueError(f"image scores must be [N], one per image, got shape {np.shape(scores)}")
    t = ranking.tally(scores, labels)
    keys = ("image_auroc", "image_ap", "image_aupr", "image_f1max", "image_f1max_threshold")
    reason = t.missing("images")
    if reason:
        return _absent(keys, reason)
    values = (ranking.auroc(t), ranking.average_precision(t), ranking.aupr(t), *ranking.best_f1(t))
    return dict(zip(keys, values, strict=True), notes={})


def pixel_metrics(maps, masks, pro_limits=(0.3, 0.05)) -> dict:
    """Metrics of the anomaly maps of one category against its masks, all pixels of all images pooled.

    Args:
      maps: real[N, H, W], larger = more anomalous, finite; normal images included.
      masks: bool[N, H, W], True = anomalous; or None where the data set has none.
      pro_limits: the false positive rates up to which AUPRO is taken, each in (0, 1].

    Returns:
      {pixel_auroc, pixel_ap, pixel_aupr, pixel_f1max, pixel_f1max_threshold, aupro_LIMIT..., iou_max,
      iou_max_threshold, notes}. What does not exist (no masks, no anomalous or no normal pixels) is None and notes[key]
      says why.

    >>> maps = [[[0.9, 0.1], [0.2, 0.3]], [[0.1, 0.2], [0.0, 0.5]]]
    >>> masks = [[[1, 0], [0, 0]], [[0, 0], [0, 0]]]
    >>> pixel_metrics(maps, masks)["aupro_0.3"]
    1.0
    """
    limits = tuple(pro.check_limit(limit) for limit in pro_limits)
    keys = ("pixel_auroc", "pixel_ap", "pixel_aupr", "pixel_f1max", "pixel_f1max_threshold")
    keys += ("iou_max", "iou_max_threshold")
    aupro_keys = tuple(f"aupro_{limit:g}" for limit in limits)
    if masks is None:
        return _absent(keys + aupro_keys, "no masks")
    maps, masks = pro.check_maps(maps, masks)
    t = ranking.tally(maps, masks)
    reason = t.missing("pixels")
    if reason:
        return _absent(keys + aupro_keys, reason)
    r = pro.regions(masks)
    values = (ranking.auroc(t), ranking.average_precision(t), ranking.aupr(t))
    values += (*ranking.best_f1(t), *ranking.best_iou(t))
    aupros = (pro.aupro(t, r, limit) for limit in limits)
    return dict(zip(keys + aupro_keys, (*values, *aupros), strict=True), notes={})


def _absent(keys, reason: str) -> dict:
    return {key: None for key in keys} | {"notes": {key: reason for key in keys}}
