"""Who trains, who sets the threshold, who is tested: one seeded division of a category, kept as a manifest.

This is protocol one_class, in which training is normal but for what `n_anomalies` moves; the others, whose training has
anomalies of its own, are in `jaxad.data.protocols`. Anomalies that a data set lists for training (VisA's files for
those protocols do) are left out here, and a note says so.

The draws, all functions of (seed, number of candidates) and independent of each other:
  n_shot       that many training normals, of those not held out; a larger n_shot contains the smaller ones
  holdout      a fraction of the training normals, for thresholds; the same ones whatever n_shot is
  n_anomalies  real anomalies moved from the test set into training; uniform over the sorted paths,
               and a larger number contains the smaller ones
Training and test are disjoint by path and by content: a test image with the pixels of a moved one, under whatever name
and label, leaves the test set too, and a note says so. The draws are raw words of PCG64, whose stream NumPy guarantees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxad.types import Record, UserError


class Row(NamedTuple):
    """One image of a split and where the source keeps it: `source.load(split, index)`."""

    record: Record
    split: str
    index: int


class Splits(NamedTuple):
    """The rows of each split, in index order; train: normals first, then the moved anomalies.

    moved: of the training rows, those taken from the test set by `n_anomalies` · removed: test rows dropped as copies
    of training rows · unused: what few_shot's draw left in the pool.
    """

    train: tuple[Row, ...]
    holdout: tuple[Row, ...]
    test: tuple[Row, ...]
    moved: tuple[Row, ...]
    removed: tuple[Row, ...]
    notes: tuple[str, ...]
    unused: tuple[Row, ...] = ()

    def manifest(self) -> dict[str, list[str]]:
        """Paths by split, JSON-able."""
        parts = dict(train=self.train, holdout=self.holdout, test=self.test, moved=self.moved, removed=self.removed)
        parts |= dict(unused=self.unused) if self.unused else {}
        return {name: [row.record.path for row in rows] for name, rows in parts.items()}


def shuffled(seed: int, draw: str, n: int) -> np.ndarray:
    """i64[n], a uniform permutation for the draw of that name.

    >>> shuffled(0, "normals", 4).shape
    (4,)
    """
    words = [seed, *draw.encode()]
    return np.argsort(np.random.PCG64(words).random_raw(n), kind="stable")


def drawn_anomalies(seed: int, n_anomalies: int, n: int) -> np.ndarray:
    """i64[n], rising: which of the anomalies, in path order, `data.n_anomalies=n` moves into training."""
    return np.sort(shuffled(seed, "anomalies", n_anomalies)[:n])


def content(image: np.ndarray) -> bytes:
    """A digest of the decoded pixels and their shape: equal for copies under other names and in lossless formats."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image))
    return digest.digest()


def split(
    train: tuple[Record, ...],
    test: tuple[Record, ...],
    *,
    category: str,
    seed: int,
    holdout: float = 0.0,
    n_shot: int = 0,
    n_anomalies: int = 0,
    digests: Callable[[list[Row]], list[bytes]] | None = None,
) -> Splits:
    """Divides the source's records. `digests(rows) -> [content]` is asked only if anomalies are moved.

    Raises UserError where nothing is left to train on, or more than half of the anomalies would be moved.

    >>> records = tuple(Record(f"train/good/{i}.png", False, "good") for i in range(10))
    >>> parts = split(records, (), category="c", seed=0, holdout=0.2, n_shot=3)
    >>> len(parts.train), len(parts.holdout)
    (3, 2)
    """
    normals = [Row(record, "train", i) for i, record in enumerate(train) if not record.label]
    rows = [Row(record, "test", i) for i, record in enumerate(test)]
    if not normals:
        raise UserError(f"{category}: no normal training images (expected them in train/good)")
    if both := {row.record.path for row in normals} & {row.record.path for row in rows}:
        raise UserError(f"{category}: {min(both)} is listed for training and for testing; remove it from one of them")
    trained, held = hold_out(normals, category, seed, holdout, n_shot)
    moved, removed = _moved(rows, category, seed, n_anomalies, digests)
    gone = {row.index for row in moved + removed}
    notes = []
    if len(trained) == 1:
        notes.append("one training image: expect little, and thresholds without meaning")
    if left_out := len(train) - len(normals):
        notes.append(f"left out of training, as data.protocol is one_class: the {left_out} anomalies listed for it")
    if removed:
        notes.append(f"{len(removed)} test images removed: the same pixels as anomalies moved into training")
    rest = tuple(row for row in rows if row.index not in gone)
    return Splits((*trained, *moved), held, rest, moved, removed, tuple(notes))


def hold_out(
    normals: list[Row], category: str, seed: int, holdout: float, n_shot: int = 0
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """(training normals, held-out normals): the first n_shot and the last share of one permutation; n_shot 0: all."""
    n = len(normals)
    n_held = max(1, round(holdout * n)) if holdout > 0 else 0
    if n_held >= n:
        raise UserError(f"{category}: data.holdout={holdout} leaves none of {n} normals to train on; set it to 0")
    if n_shot > n - n_held:
        raise UserError(f"{category}: data.n_shot={n_shot} but only {n - n_held} normals (with {n_held} held out)")
    order = shuffled(seed, "normals", n)
    n_train = n_shot or n - n_held
    trained, held = np.sort(order[:n_train]), np.sort(order[n - n_held :])
    return tuple(normals[i] for i in trained), tuple(normals[i] for i in held)


def _moved(rows: list[Row], category: str, seed: int, n: int, digests):
    """(anomalies moved into training, test rows with the same content as one of them)."""
    if not n:
        return (), ()
    anomalies = sorted((row for row in rows if row.record.label), key=lambda row: row.record.path)
    if n > len(anomalies) // 2:
        raise UserError(
            f"{category}: data.n_anomalies={n} is more than half of its {len(anomalies)} anomalous test images; "
            f"at most {len(anomalies) // 2} may move into training"
        )
    moved = tuple(anomalies[i] for i in drawn_anomalies(seed, len(anomalies), n))
    paths = {row.record.path for row in moved}
    contents = digests(rows)
    taken = {digest for row, digest in zip(rows, contents, strict=True) if row.record.path in paths}
    copies = (row for row, digest in zip(rows, contents, strict=True) if digest in taken)
    return moved, tuple(row for row in copies if row.record.path not in paths)
