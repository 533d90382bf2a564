"""From a finished state to numbers: predictions of a split, and the metrics of one category.

The only numbers here that look at test labels are the metrics themselves.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxad import metrics
from jaxad.data import splits
from jaxad.decision import Threshold
from jaxad.metrics.iou import peak
from jaxad.types import Batch, Data, Feed, Predictions, Stage, TrainState, Tree, UserError

IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1max")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1max", "aupro_0.3", "aupro_0.05", "iou_max")
METRICS = IMAGE_METRICS + PIXEL_METRICS
GLANCE = ("image_auroc", "image_ap", "pixel_auroc", "aupro_0.3")
PRO_LIMITS = (0.3, 0.05)  # the false positive rates of the two AUPROs


def predictions(
    stage: Stage,
    state: TrainState,
    data: Data,
    *,
    split: str = "test",
    batch_size: int,
    seed: int,
    rows: slice | None = None,
    place: Callable[[Batch], Batch] = jax.device_put,
    collect: Callable[[Tree], Tree] = jax.device_get,
    progress: Callable[[int], None] | None = None,
) -> Predictions:
    """`stage.predict(state, batch)` over a whole split, in index order, padding dropped. Pictures become 8-bit.

    Compiled once; the first batch runs twice, so that neither compiling nor warming up is timed. `ms_per_image` is the
    wall time of compiled `predict` alone, without loading or copying, per row computed.

    Args:
      stage: its `predict` is used, its name and `seed` name the order of the feed.
      state: what `stage.finish` returned, on the devices.
      data: the category, open.
      split: 'train', 'holdout' or 'test'.
      batch_size: rows of the global batch.
      rows: the share of each global batch that this process loads; None: all of it.
      place: puts a NumPy batch (of `rows`) on the devices as one global batch.
      collect: fetches a tree of global device arrays to this host, whole.
      progress: called with the number of images done after each batch.

    Raises:
      UserError: the split holds no images.
      RuntimeError: a score, map or extra that is not finite; rows that are missing or come twice.
      TypeError: an extra that is neither a score of each image nor a picture of it.
    """
    records = tuple(data.records(split))
    if not records:
        raise UserError(f"no images in split {split!r} of {data.spec.category!r}; look with python -m jaxad.data.check")
    feed = Feed(batch_size, split=split, shuffle=False)
    steps = feed.one_pass(len(records))
    rows = slice(0, batch_size) if rows is None else rows
    predict = jax.jit(stage.predict)

    seen = np.zeros(len(records), np.int64)
    scores = np.empty(len(records), np.float32)
    maps = masks = None
    extras: dict[str, np.ndarray] = {}
    broken: dict[str, np.ndarray] = {}  # of what is not finite: which rows
    seconds = 0.0
    for n, host_batch in enumerate(data.batches(feed, seed=seed, stage=stage.name, start=0, stop=steps, rows=rows)):
        batch = jax.block_until_ready(place(host_batch))
        if n == 0:
            jax.block_until_ready(predict(state, batch))
        start = time.perf_counter()
        found = jax.block_until_ready(predict(state, batch))
        seconds += time.perf_counter() - start

        image, pixel, mask, index, valid, *more = collect(
            (found.image, found.pixel, batch.mask, batch.index, batch.valid, *found.extras.values())
        )
        if maps is None:
            extras = {name: _room(name, value, len(records)) for name, value in zip(found.extras, more, strict=True)}
            maps = np.empty((len(records), *pixel.shape[1:]), np.float32)
            masks = np.empty((len(records), *mask.shape[1:]), bool)
        valid = np.asarray(valid, bool)
        index = np.asarray(index)[valid]
        np.add.at(seen, index, 1)
        scores[index], maps[index], masks[index] = image[valid], pixel[valid], mask[valid]
        for name, value in (("a score", image), ("a map", pixel), *zip(found.extras, more, strict=True)):
            wrong = ~np.isfinite(np.asarray(value[valid], np.float32)).all(axis=tuple(range(1, np.ndim(value))))
            if wrong.any():
                broken.setdefault(name, np.zeros(len(records), bool))[index] = wrong
            if name in extras:
                extras[name][index] = _bytes(value[valid]) if np.ndim(value) == 4 else value[valid]
        if progress is not None:
            progress(int(seen.sum()))

    if np.any(seen != 1):
        raise RuntimeError(
            f"split {split!r} of {data.spec.category!r}: {np.sum(seen == 0)} images were never served "
            f"and {np.sum(seen > 1)} more than once"
        )
    if broken:
        rows = np.any(list(broken.values()), axis=0)
        raise RuntimeError(
            f"{rows.sum()} of {len(records)} images in split {split!r} of {data.spec.category!r} got "
            f"{' and '.join(broken)} that is not finite, the first is {records[int(np.argmax(rows))].path}"
        )
    return Predictions(
        records, scores, maps, masks, 1e3 * seconds / (steps * batch_size), extras, map_range=stage.map_range
    )


def _room(name: str, value: np.ndarray, n: int) -> np.ndarray:
    """For an extra of `n` images. Raises TypeError where it is neither f32[B] nor f32[B, H, W, 3]."""
    shape = np.shape(value)
    if len(shape) == 1:
        return np.empty(n, np.float32)
    if len(shape) == 4 and shape[3] == 3:
        return np.empty((n, *shape[1:]), np.uint8)
    raise TypeError(
        f"the extra {name!r} of an AnomalyMap is {list(shape)}: make it [B], a score of each image, or [B, H, W, 3], "
        f"a picture of it"
    )


def _bytes(pictures: np.ndarray) -> np.ndarray:
    """f32[..., 3] in [0, 1] -> u8, rounded; what is outside is clipped, what is no number black."""
    return np.rint(255 * np.clip(np.nan_to_num(np.asarray(pictures, np.float32)), 0, 1)).astype(np.uint8)


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
    """
    labels = found.labels
    result, notes = _metrics(found, metrics_mode)
    result["iou"] = _iou(found, steps or iou_steps(found))
    if result["iou"] is None:
        notes["iou"] = "no masks" if labels.any() else "no anomalous pixels"
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
    defects = {}
    for defect in sorted({record.defect for record in found.records if record.label}):
        of_type = np.array([record.label and record.defect == defect for record in found.records])
        part = _select(found, of_type | ~labels)  # this type against all normals
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
    masks = found.masks if found.masks.any() or not labels.any() else None  # None: anomalies, but nobody drew them
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
