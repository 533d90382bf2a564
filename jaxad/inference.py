"""From a finished state to what it says of a whole split, on the host."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import numpy as np

from jaxad.types import Batch, Data, Feed, Predictions, Stage, TrainState, Tree, UserError


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


def embeddings(
    stage: Stage,
    state: TrainState,
    data: Data,
    *,
    split: str,
    batch_size: int,
    seed: int,
    rows: slice | None = None,
    limit: int = 0,
    place: Callable[[Batch], Batch] = jax.device_put,
    collect: Callable[[Tree], Tree] = jax.device_get,
) -> tuple[np.ndarray, np.ndarray]:
    """(f32[N, D], i64[N]): `stage.embed(state, batch)` of the images of a split, and which records they belong to.

    limit: a drawn part of the split, of about so many images; 0: all, in index order. Else as `predictions`.
    Raises UserError where the split holds no images, RuntimeError for features that are not finite.
    """
    n = len(data.records(split))
    if not n:
        raise UserError(f"no images in split {split!r} of {data.spec.category!r}; set config.data.holdout above 0")
    drawn = 0 < limit < n
    feed = Feed(batch_size, split=split, shuffle=drawn)
    stop = limit // batch_size or 1 if drawn else feed.one_pass(n)
    options = dict(seed=seed, stage=stage.name, start=0, stop=stop)
    embed = jax.jit(stage.embed)
    found, where = [], []
    for host_batch in data.batches(feed, rows=slice(0, batch_size) if rows is None else rows, **options):
        batch = place(host_batch)
        made, index, valid = collect((embed(state, batch), batch.index, batch.valid))
        found.append(np.asarray(made)[valid])
        where.append(np.asarray(index)[valid])
    features = np.concatenate(found)
    if not np.isfinite(features).all():
        raise RuntimeError(f"features of images in split {split!r} of {data.spec.category!r} are not finite")
    return features, np.concatenate(where).astype(np.int64)


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
