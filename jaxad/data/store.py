"""One open category: its splits, records and decoded images. What tf.data pipelines and materialised files share.

A small set is decoded and resized once, when it is first used, and stays in memory as uint8; a larger one is read by
index, image by image. Which of the two it is changes no batch.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from jaxad.errors import UserError
from jaxad.flags import nearest
from jaxad.types import Batch, DataSpec, Feed, Record

Load = Callable[[int], tuple[np.ndarray, np.ndarray]]  # row -> u8[H, W, 3], bool[H, W]; from several threads at once
Fetch = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # i32[b] -> u8[b, H, W, 3], bool[b, H, W]


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def pool() -> ThreadPoolExecutor:
    """The threads that decode. What runs in them may not wait for them."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="jaxad-decode")


def to_float(image: np.ndarray) -> np.ndarray:
    """u8[...] -> f32[...] in [0, 1]. The same bits as the tf.data graph's."""
    return np.divide(image, np.float32(255), dtype=np.float32)


class Memory:
    """The decoded splits that stay, of all open categories together; the one unused for longest goes first."""

    def __init__(self):
        self._kept: OrderedDict[int, tuple[int, weakref.ref[Store]]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, store: Store, limit: int) -> None:
        """Counts `store` as just used, and drops others until all that is kept fits in `limit` bytes."""
        with self._lock:
            self._kept[id(store)] = store.nbytes, weakref.ref(store)
            self._kept.move_to_end(id(store))
            for key, (_, reference) in list(self._kept.items()):
                other = reference()
                if other is None:  # its category was closed
                    del self._kept[key]
                elif other is not store and sum(size for size, _ in self._kept.values()) > limit:
                    other.kept = None
                    del self._kept[key]


MEMORY = Memory()


class Store:
    """The `n` images and masks of one split, `side` pixels square. limit: bytes that may stay decoded; 0: none."""

    def __init__(self, n: int, side: int, load: Load, limit: int):
        self.n, self.side, self.load, self.limit = n, side, load, limit
        self.nbytes = n * side * side * 4
        self.kept: tuple[np.ndarray, np.ndarray] | None = None
        self._lock = threading.Lock()

    def _read(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = np.zeros((len(index), self.side, self.side, 3), np.uint8)
        masks = np.zeros((len(index), self.side, self.side), bool)

        def read(slot: int) -> None:
            if index[slot] < self.n:  # else padding: zeros
                images[slot], masks[slot] = self.load(int(index[slot]))

        if len(index) == 1:
            read(0)
        else:
            list(pool().map(read, range(len(index))))
        return images, masks

    def open(self) -> Fetch:
        """The function that fetches rows; rows from `n` on are padding, zeros. Decodes the split now if it may stay."""
        if not self.limit:
            return self._read
        with self._lock:
            MEMORY.keep(self, self.limit)
            images, masks = self.kept = self.kept or self._read(np.arange(self.n))

        def fetch(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            known = np.minimum(index, self.n - 1)
            some, their = images[known], masks[known]
            padding = index >= self.n
            some[padding], their[padding] = 0, False
            return some, their

        return fetch


def stores_of(counts: Mapping[str, int], side: int, load: Callable[[str], Load], memory_mb: float) -> dict[str, Store]:
    """A store for each split with `counts[split]` images; kept in memory if all of them together fit in `memory_mb`."""
    limit = int(memory_mb * 2**20)
    small = sum(counts.values()) * side * side * 4 <= limit
    return {split: Store(n, side, load(split), limit if small else 0) for split, n in counts.items()}


class Contents(NamedTuple):
    """What is in a category; of its splits 'train', 'holdout' and 'test'.

    manifest: the division as JSON-able paths: train, holdout, test, moved, removed; and the seed that drew it.
    """

    spec: DataSpec
    records: Mapping[str, tuple[Record, ...]]
    stores: Mapping[str, Store]
    notes: tuple[str, ...]
    manifest: Mapping[str, Any]


class Category:
    """Half of `jaxad.types.Data`: everything but `batches`.

    Splits: 'train', 'holdout', 'test', and 'train_normal', the rows of 'train' without the moved anomalies; these come
    last, so an index means the same image in both.
    """

    def __init__(self, contents: Contents):
        records, stores = contents.records, contents.stores
        self.spec, self.notes, self._manifest = contents.spec, contents.notes, contents.manifest
        self._stores = {**stores, "train_normal": stores["train"]}
        self._records = {**records, "train_normal": tuple(r for r in records["train"] if not r.label)}
        self._labels = {split: np.array([r.label for r in rows], bool) for split, rows in self._records.items()}

    def manifest(self) -> dict[str, Any]:
        """That of the contents."""
        return dict(self._manifest)

    def records(self, split: str) -> tuple[Record, ...]:
        """The rows of a split, in index order."""
        if split not in self._records:
            raise UserError(f"no split {split!r}{nearest(split, list(self._records))}")
        return self._records[split]

    def image(self, split: str, index: int) -> np.ndarray:
        """u8[H, W, 3], resized as the batches are."""
        return self.load(split, index)[0]

    def load(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(u8[H, W, 3], bool[H, W]), an image as the batches have it, and its mask."""
        if not 0 <= index < len(self.records(split)):
            raise IndexError(f"{split} has {len(self.records(split))} images, no row {index}")
        return self._stores[split].load(index)

    def counts(self, split: str) -> tuple[int, int]:
        """(normal, anomalous) images of a split; the anomalous come last in the training splits."""
        anomalous = sum(record.label for record in self.records(split))
        return len(self.records(split)) - anomalous, anomalous

    def check(self, feed: Feed, start: int, stop: int) -> int:
        """The number of images of the feed's split; raises where no such batches exist."""
        n = len(self.records(feed.split))
        if feed.batch_size < 1:
            raise UserError(f"data.batch_size={feed.batch_size}: it must be at least 1")
        if not n:
            raise UserError(f"{self.spec.category}: the split {feed.split!r} has no images")
        if start < 0 or (not feed.shuffle and stop > feed.one_pass(n)):
            raise ValueError(f"batches {start}..{stop} of a feed that has {feed.one_pass(n)}")
        return n

    def fetcher(self, split: str) -> Fetch:
        """What fetches the split's rows; decodes the split now if it may stay in memory."""
        return self._stores[split].open()

    def assemble(self, split: str, fetch: Fetch, index: np.ndarray, valid: np.ndarray) -> Batch:
        """The batch of these rows, as NumPy arrays; the image still u8. Padding is labelled normal."""
        image, mask = fetch(index)
        known = np.minimum(index, len(self._labels[split]) - 1)
        return Batch(image=image, mask=mask, label=self._labels[split][known] & valid, index=index, valid=valid)
