"""The batches that train, set thresholds and test: `open` a category, then ask it for the batches of a feed.

The pipeline is a stateless tf.data graph: batch n of a stage is a pure function of (seed, stage, n), so the step is the
position at which a run resumes and there is no iterator to save. Opened from a materialised file (`data.source`), the
same batches come from NumPy alone; TensorFlow is imported when the first graph is built, never before.

>>> from jaxad import config
>>> data = open(config.default("patchcore"), "")  # doctest: +SKIP
>>> next(data.batches(Feed(8), seed=0, stage="fit", start=0, stop=1, rows=slice(None))).image.shape  # doctest: +SKIP
(8, 256, 256, 3)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxad.data import bank, order, protocols, splits, store
from jaxad.errors import UserError
from jaxad.types import Batch, Data, DataSpec, Feed, Record


def categories(config: ConfigDict) -> tuple[str, ...]:
    """The categories that `config.data.category` names: of the file `data.source`, or of the data set."""
    if config.data.source:
        return bank.categories(config)
    from jaxad.data import catalog

    return catalog.categories(config)


def open(config: ConfigDict, category: str) -> Data:
    """One category, ready to serve. Images are decoded when they are first asked for; sizes and splits are known now.

    Raises UserError for splits that cannot be made, images of unequal size where `data.resize` is 'none', and a file
    that was written with other settings.
    """
    if config.data.source:
        return bank.Materialised(config, category)
    from jaxad.data import catalog

    return Pipeline(config, catalog.open_source(config, category))


class Graph(store.Category):
    """`jaxad.types.Data` whose batches are made by tf.data.

    foreground: row of 'train' -> bool[H, W], where the image shows the object; UserError where the data do not say.
    """

    def __init__(self, contents: store.Contents, foreground: Callable[[int], np.ndarray]):
        super().__init__(contents)
        self._foreground = foreground

    def foreground(self, i: int) -> np.ndarray:
        """bool[H, W], where image `i` of the split 'train' shows the object; nowhere, for padding."""
        if i >= len(self.records("train")):
            return np.zeros((self.spec.image_size,) * 2, bool)
        return self._foreground(i)

    @functools.cached_property
    def _positions(self) -> np.ndarray:
        """i32[N], the position in `spec.kinds` of each row of 'train'. UserError where the data have no classes."""
        if not self.spec.kinds:
            raise UserError(
                f"config.data.category={self.spec.category} has no classes: put the images of each class into a folder "
                "of their own, or choose a recipe without labels"
            )
        position = {kind: i for i, kind in enumerate(self.spec.kinds)}
        return np.array([position[record.kind] for record in self.records("train")], np.int32)

    def batches(self, feed: Feed, *, seed: int, stage: str, start: int, stop: int, rows: slice) -> Iterator[Batch]:
        """NumPy batches n = start .. stop - 1, each only the `rows` of the global batch. See `jaxad.types.Data`.

        Raises before the first batch: UserError for a view that cannot be built, ValueError for batches that the feed
        does not have.
        """
        return self._iterate(feed, seed=seed, stage=stage, start=start, stop=stop, rows=rows, as_float=True)

    def stored_batches(self, feed: Feed, *, seed: int, stage: str, start: int, stop: int) -> Iterator[Batch]:
        """`batches`, whole, with images (also those in views) still u8: what a materialised file holds."""
        whole = slice(None)
        return self._iterate(feed, seed=seed, stage=stage, start=start, stop=stop, rows=whole, as_float=False)

    def _iterate(self, feed: Feed, *, seed: int, stage: str, start: int, stop: int, rows: slice, as_float: bool):
        from jaxad.data import graph

        n_images = self.check(feed, start, stop)
        fetch = self.fetcher(feed.split)
        local = np.arange(feed.batch_size)[rows]

        def read(n: int) -> tuple[Batch, list[np.ndarray]]:
            index, valid = order.rows_of(feed, n_images, seed=seed, stage=stage, n=n)
            seeds = [order.example_seeds(feed, view.name, seed=seed, stage=stage, n=n)[local] for view in feed.views]
            return self.assemble(feed.split, fetch, index[local], valid[local]), seeds

        others = None
        if feed.views:
            counts, same_split = self.counts("train"), feed.split.startswith("train")
            others = graph.Others(self.fetcher("train"), *counts, same_split, self.foreground, lambda: self._positions)
        shape = len(local), self.spec.image_size
        return graph.batches(read, feed.views, start=start, stop=stop, shape=shape, others=others, as_float=as_float)


class Pipeline(Graph):
    """The images of a `jaxad.data.catalog.Source`, divided as `config.data` asks."""

    def __init__(self, config: ConfigDict, source: Any):
        from jaxad.data import images

        data = config.data
        one_class = data.protocol == "one_class"
        named = {} if one_class else {key: data[key] for key in ("protocol", "k_shot", "draw")}
        divide = splits.split
        if named:
            settings = protocols.Settings(**named, official=source.protocol == data.protocol)
            divide = functools.partial(protocols.split, settings=settings)
        parts = divide(
            source.records("train"),
            source.records("test"),
            category=source.name,
            seed=config.seed,
            holdout=data.holdout,
            n_shot=data.n_shot,
            n_anomalies=data.n_anomalies,
            digests=lambda rows: list(store.pool().map(lambda row: splits.content(source.load(*row[1:])[0]), rows)),
        )
        rows = {"train": parts.train, "holdout": parts.holdout, "test": parts.test}
        if data.resize == "none":
            everything = [row for part in rows.values() for row in part]
            shapes = store.pool().map(lambda row: source.load(row.split, row.index)[0].shape[:2], everything)
            side = _common_side([row.record.path for row in everything], list(shapes))
        else:
            side = (data.resize == "short_crop" and data.crop_size) or data.image_size
        how = data.image_size, data.resize, data.crop_size

        def load(split: str) -> store.Load:
            def one(i: int) -> tuple[np.ndarray, np.ndarray]:
                image, mask = source.load(*rows[split][i][1:])
                return images.resize_image(image, *how), images.resize_mask(mask, *how)

            return one

        @functools.cache
        def packed(i: int) -> np.ndarray:  # one bit per pixel: as often as it is asked for, it is decoded once
            row = rows["train"][i]
            mask = source.foreground(row.split, row.index)
            if mask is None:
                raise UserError("the foreground 'xyz' needs data.dataset=mvtec_3d_ad, whose point images show it")
            return np.packbits(images.resize_mask(mask, *how))

        def foreground(i: int) -> np.ndarray:
            return np.unpackbits(packed(i), count=side * side).reshape(side, side).astype(bool)

        anomalous = sum(row.record.label for row in parts.test)
        spec = DataSpec(
            dataset=data.dataset,
            category=source.name,
            image_size=side,
            n_train=len(parts.train),
            n_holdout=len(parts.holdout),
            n_test_normal=len(parts.test) - anomalous,
            n_test_anomalous=anomalous,
            has_masks=bool(anomalous and (source.has_masks if one_class else source.has_all_masks)),
            n_train_anomalous=sum(row.record.label for row in parts.train),
            kinds=kinds_of(row.record for row in parts.train),
        )
        records = {split: tuple(row.record for row in part) for split, part in rows.items()}
        counts = {split: len(part) for split, part in rows.items()}
        manifest = {"dataset": data.dataset, "category": source.name, "seed": config.seed, **named, **parts.manifest()}
        stores = store.stores_of(counts, side, load, data.memory_mb)
        super().__init__(store.Contents(spec, records, stores, (*source.notes, *parts.notes), manifest), foreground)


def kinds_of(records: Iterable[Record]) -> tuple[str, ...]:
    """The classes of these images, sorted; () where none has one.

    >>> kinds_of([Record("a.png", False, "good", "cat"), Record("b.png", False, "good", "ant")])
    ('ant', 'cat')
    """
    kinds = tuple(sorted({record.kind for record in records}))
    return () if kinds == ("",) else kinds


def _common_side(paths: Sequence[str], shapes: Sequence[tuple[int, int]]) -> int:
    """The side that all images share. Raises UserError naming two files that differ, or one that is not square."""
    first = shapes[0]
    fix = "use --config.data.resize=square or short_crop"
    for path, shape in zip(paths, shapes, strict=True):
        if shape != first:
            raise UserError(
                f"data.resize=none needs images of one size, but {paths[0]} is {first[1]}x{first[0]} and {path} is "
                f"{shape[1]}x{shape[0]}; {fix}"
            )
    if first[0] != first[1]:
        raise UserError(f"data.resize=none needs square images, but {paths[0]} is {first[1]}x{first[0]}; {fix}")
    return first[0]
