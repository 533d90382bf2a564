"""From a finished state to numbers: predictions of a split, and the metrics of one category.

The only numbers here that look at test labels are the metrics themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxad import metrics
from jaxad.data import splits
from jaxad.decision import Threshold
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
    """`stage.predict(state, batch)` over a whole split, in index order, padding dropped.

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
      RuntimeError: a score or map that is not finite; rows that are missing or come twice.
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
    seconds = 0.0
    for n, host_batch in enumerate(data.batches(feed, seed=seed, stage=stage.name, start=0, stop=steps, rows=rows)):
        batch = jax.block_until_ready(place(host_batch))
        if n == 0:
            jax.block_until_ready(predict(state, batch))
        start = time.perf_counter()
        found = jax.block_until_ready(predict(state, batch))
        seconds += time.perf_counter() - start

        image, pixel, mask, index, valid = collect((found.image, found.pixel, batch.mask, batch.index, batch.valid))
        if maps is None:
            maps = np.empty((len(records), *pixel.shape[1:]), np.float32)
            masks = np.empty((len(records), *mask.shape[1:]), bool)
        valid = np.asarray(valid, bool)
        index = np.asarray(index)[valid]
        np.add.at(seen, index, 1)
        scores[index], maps[index], masks[index] = image[valid], pixel[valid], mask[valid]
        if progress is not None:
            progress(int(seen.sum()))

    if np.any(seen != 1):
        raise RuntimeError(
            f"split {split!r} of {data.spec.category!r}: {np.sum(seen == 0)} images were never served "
            f"and {np.sum(seen > 1)} more than once"
        )
    broken = ~(np.isfinite(scores) & np.isfinite(maps).all(axis=(1, 2)))
    if broken.any():
        raise RuntimeError(
            f"{broken.sum()} of {len(records)} images in split {split!r} of {data.spec.category!r} got a score or a "
            f"map that is not finite, the first is {records[int(np.argmax(broken))].path}"
        )
    return Predictions(records, scores, maps, masks, 1e3 * seconds / (steps * batch_size))


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
    """
    labels = found.labels
    result, notes = _metrics(found, metrics_mode)
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


def _select(found: Predictions, keep: np.ndarray) -> Predictions:
    records = tuple(record for record, kept in zip(found.records, keep, strict=True) if kept)
    return Predictions(records, found.scores[keep], found.maps[keep], found.masks[keep], found.ms_per_image)


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
