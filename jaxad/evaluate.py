"""From the predictions of a split to the numbers of one category.

The only numbers here that look at test labels are the metrics themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxad import metrics
from jaxad.data import splits
from jaxad.decision import Threshold
from jaxad.metrics.iou import peak
from jaxad.types import Predictions, UserError

IMAGE_METRICS = ("image_auroc", "image_ap", "image_aupr", "image_f1max")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_aupr", "pixel_f1max", "aupro_0.3", "aupro_0.05", "iou_max")
METRICS = IMAGE_METRICS + PIXEL_METRICS
GLANCE = ("image_auroc", "image_ap", "pixel_auroc", "aupro_0.3")
PRO_LIMITS = (0.3, 0.05)  # the false positive rates of the two AUPROs


def glance(found: Predictions) -> dict[str, float | None]:
    """The metrics GLANCE of a test split, None where one does not exist: what is logged between stages."""
    masks = found.masks if found.masks.any() else None
    values = metrics.image_metrics(found.scores, found.labels) | metrics.pixel_metrics(found.maps, masks, (0.3,))
    return {name: values[name] for name in GLANCE}


def without_drawn(found: Predictions, seed: int, n: int) -> Predictions:
    """`found` without the anomalies that `data.n_anomalies=n` would move into training under this seed.

    So that a method that trains on none of them can be compared with one that does. Copies of a moved image under other
    names, which leave the test set too, are not looked for here.
    """
    anomalies = sorted((record.path, row) for row, record in enumerate(found.records) if record.label)
    keep = np.ones(len(found.records), bool)
    keep[[anomalies[i][1] for i in splits.drawn_anomalies(seed, len(anomalies), n)]] = False
    return _select(found, keep)


def category_result(
    found: Predictions,
    limit: Threshold,
    *,
    n_train: int,
    fit_seconds: float,
    metrics_mode: str = "exact",
    seed: int = 0,
    stages: Mapping[str, Mapping[str, float | None]] | None = None,
    n_drawn: int = 0,
    steps: metrics.IouSteps | None = None,
    visa202: bool = False,
) -> dict[str, Any]:
    """What `results.json` holds of one category. A metric that does not exist is None, its reason in 'notes'.

    Args:
      found: predictions of the test split.
      limit: its threshold, from `decision.threshold`.
      n_train: training images; fit_seconds: wall time of training.
      metrics_mode: 'exact', or 'binned': counted in bins, with the error bounds.
      seed: of the bootstrap, and of the draw of anomalies.
      stages: {stage: `glance` after it}, where several stages predict.
      n_drawn: also give the metrics without so many drawn anomalies, see `without_drawn`; 0: do not.
      steps: `iou_steps(found)`; None: computed here.
      visa202: also give the metrics as VisA's authors compute them.
    """
    labels = found.labels
    result, notes = _metrics(found, metrics_mode)
    result["iou"] = _iou(found, steps or iou_steps(found))
    if result["iou"] is None:
        notes["iou"] = "no masks" if labels.any() else "no anomalous pixels"
    if visa202:
        result["visa202"], note = _visa202(found, result)
        notes |= {"visa202": note} if note else {}
    interval = metrics.bootstrap_auroc(found.scores, labels, seed=seed)
    called = limit.calls(found.scores)
    result |= {
        "n_train": int(n_train),
        "n_test_normal": int(np.sum(~labels)),
        "n_test_anomalous": int(np.sum(labels)),
        "fit_seconds": float(fit_seconds),
        "predict_ms_per_image": float(found.ms_per_image),
        "image_auroc_ci95": None if interval is None else list(interval),
        "threshold": limit.summary(),
        "false_alarms": int(np.sum(called & ~labels)),
        "misses": int(np.sum(~called & labels)),
    }
    extra = {name: values for name, values in found.extras.items() if values.ndim == 1}
    if extra:
        result["scores"] = {name: _score(values, labels) for name, values in extra.items()}
    if stages:
        result["stages"] = {name: dict(values) for name, values in stages.items()}
    if n_drawn and labels.sum() >= 2 * n_drawn:
        result["without_drawn"] = {"n": n_drawn, **glance(without_drawn(found, seed, n_drawn))}
    elif n_drawn:
        notes["without_drawn"] = (
            f"eval.without_drawn={n_drawn} is more than half of the {labels.sum()} anomalous images"
        )
    plain = dataclasses.replace(found, extras={})  # pictures are large, and no metric looks at them
    defects = {}
    for defect in sorted({record.defect for record in found.records if record.label}):
        of_type = np.array([record.label and record.defect == defect for record in found.records])
        part = _select(plain, of_type | ~labels)  # this type against all normals
        values, _ = _metrics(part, metrics_mode)
        defects[defect] = {
            "n": int(of_type.sum()),
            "misses": int(np.sum(of_type & ~called)),
            **{key: values[key] for key in METRICS},
        }
    empty = int(np.sum(labels & ~found.masks.any(axis=(1, 2))))
    if empty and found.masks.any():
        notes["masks"] = f"{empty} of {labels.sum()} anomalous images have an empty mask: their pixels count as normal"
    for note in limit.notes:
        notes["threshold"] = "; ".join(filter(None, (notes.get("threshold"), note)))
    return {**result, "defects": defects, "notes": notes}


def iou_steps(found: Predictions) -> metrics.IouSteps | None:
    """IoU at 10,000 thresholds evenly along the scale of the maps, as in AnoSeg; None without anomalous pixels.

    The scale is `found.map_range`. Maps that are on none are min-max normalised: theirs goes from the smallest to the
    largest value of these maps, as the paper does for the methods that it compares with. That looks at the test set,
    so it serves this comparison and nothing else.
    """
    if not found.masks.any():
        return None
    low, high = found.map_range or (found.maps.min(), found.maps.max())
    return metrics.iou_steps(found.maps, found.masks, float(low), float(high))


def _iou(found: Predictions, steps: metrics.IouSteps | None) -> dict[str, Any] | None:
    """`steps` in numbers. 'oracle_...': the threshold is chosen on the test labels, each time for the number itself.

    at_half: at the middle of the scale, the fixed threshold 0.5 of a map in [0, 1].
    """
    if steps is None:
        return None
    best = peak(steps.pooled)
    return {
        "points": int(steps.thresholds.size),
        "range": [float(steps.thresholds[0]), float(steps.thresholds[-1])],
        "normalised": found.map_range is None,
        "oracle_max": float(steps.pooled[best]),
        "oracle_threshold": float(steps.thresholds[best]),
        "at_half": steps.at_half,
        "oracle_max_defect_only": float(steps.defect_only.max()),
        "oracle_max_per_image": float(steps.per_image.max()),
    }


def _masks(found: Predictions) -> np.ndarray | None:
    """The masks; None where there are anomalies, but nobody drew them."""
    return found.masks if found.masks.any() or not found.labels.any() else None


def _visa202(found: Predictions, result: Mapping[str, Any]) -> tuple[dict[str, float | None], str | None]:
    """The four metrics of VisA, those of pixels after `metrics.visa202`, and why some do not exist."""
    pixel = metrics.visa202(found.maps, _masks(found))
    reasons = pixel.pop("notes")
    return pixel | {key: result[key] for key in ("image_auroc", "image_aupr")}, next(iter(reasons.values()), None)


def _score(values: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """How well an extra score ranks the images, and its size: terms of a sum must be of one order to matter both."""
    means = {
        f"mean_{name}": float(np.mean(values[of], dtype=np.float64)) if of.any() else None
        for name, of in (("normal", ~labels), ("anomalous", labels))
    }
    return {"image_auroc": metrics.image_metrics(values, labels)["image_auroc"], **means}


def _select(found: Predictions, keep: np.ndarray) -> Predictions:
    return dataclasses.replace(
        found,
        records=tuple(record for record, kept in zip(found.records, keep, strict=True) if kept),
        scores=found.scores[keep],
        maps=found.maps[keep],
        masks=found.masks[keep],
        extras={name: values[keep] for name, values in found.extras.items()},
    )


def _metrics(found: Predictions, mode: str) -> tuple[dict[str, Any], dict[str, str]]:
    """All metrics by name, thresholds chosen on test labels as 'oracle_...', and the notes."""
    if mode not in ("exact", "binned"):
        raise UserError(f"eval.metrics={mode!r} is not known; it is 'exact' or 'binned'")
    labels = found.labels
    masks = _masks(found)
    image = metrics.image_metrics(found.scores, labels)
    if mode == "exact" or masks is None:
        pixel = metrics.pixel_metrics(found.maps, masks, PRO_LIMITS)
    else:
        starts = range(0, len(labels), 16)
        pixel = metrics.binned_pixel_metrics(
            lambda: ((found.maps[n : n + 16], masks[n : n + 16]) for n in starts), len(labels), pro_limits=PRO_LIMITS
        )
    values = image | pixel
    result: dict[str, Any] = {key: values[key] for key in METRICS}
    result |= {f"oracle_{key}": value for key, value in values.items() if key.endswith("_threshold")}
    notes = {key: note for key, note in (image["notes"] | pixel["notes"]).items() if key in METRICS}
    if pixel.get("error_bounds"):
        result["error_bounds"] = pixel["error_bounds"]
        worst = max(pixel["error_bounds"], key=pixel["error_bounds"].get)
        notes["binned"] = (
            f"pixel metrics are binned, the largest error bound is {pixel['error_bounds'][worst]:.1e} ({worst})"
        )
    return result, notes
