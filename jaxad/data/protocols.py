"""The two-class protocols of VisA, where training has anomalies too, on any data set that has real ones.

high_shot  60 % of the normal and 60 % of the anomalous images train, the others test.
few_shot   20 % of each label are a pool and the other 80 % test; of the pool, `data.k_shot` images of each label train,
           drawn by `data.draw`, one of five, and the rest of the pool is unused.

VisA's own division is in its CSV files, and these are read (`builders.visa`). Of any other data set, training and test
images are put together, and each label is divided by one fixed permutation of its sorted paths: no draw here depends on
`seed`, every run of a data set has the same ones, and the pool lies within the training images of high_shot, as VisA's
does. Counts are rounded to the nearest, which gives all counts of VisA's files.

Zou et al., "SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection and Segmentation", ECCV 2022.
Departure: how its k images were drawn from the pools is not published, so the five draws are our own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxad.data import splits
from jaxad.data.splits import Row, Splits
from jaxad.types import Record, UserError

PERCENT = {"high_shot": 60, "few_shot": 20}  # of each label, for training or for the pool
_LABELS = ("normal", "anomalous")


class Settings(NamedTuple):
    """`config.data.{protocol, k_shot, draw}`, and whether the source is divided by that protocol already."""

    protocol: str
    k_shot: int
    draw: int
    official: bool = False


def n_train(protocol: str, n: int) -> int:
    """Of `n` images of one label, how many train or are in the pool.

    >>> n_train("high_shot", 602), n_train("few_shot", 503)
    (361, 101)
    """
    return (2 * PERCENT[protocol] * n + 100) // 200  # to the nearest, in integers; no tie is possible


def order(label: str, n: int) -> np.ndarray:
    """i64[n], the fixed permutation of the sorted paths of a label; a protocol's training images are its first ones."""
    return splits.shuffled(0, f"protocol {label}", n)


def drawn(label: str, n_pool: int, k: int, draw: int) -> np.ndarray:
    """i64[k], rising: which images of the pool, in path order, train; a larger `k` contains the smaller ones.

    >>> drawn("anomalous", 20, 5, draw=0).tolist()
    [0, 4, 5, 14, 19]
    """
    return np.sort(splits.shuffled(draw, f"few_shot {label}", n_pool)[:k])


def split(
    train: tuple[Record, ...],
    test: tuple[Record, ...],
    settings: Settings,
    *,
    category: str,
    seed: int,
    holdout: float = 0.0,
    n_shot: int = 0,
    n_anomalies: int = 0,
    digests: Callable[[list[Row]], list[bytes]] | None = None,
) -> Splits:
    """Divides the source's records by a two-class protocol. `digests(rows) -> [content]`, as in `splits.split`.

    The training split: normals first, then anomalies, each in path order. Of an own division, test images with the
    pixels of a training or held-out one are removed; an official division stays as it is.
    Raises UserError for settings that belong to one_class, for too few images of a label, and for few_shot's holdout.
    """
    protocol, k, draw, official = settings
    for key, value in (("n_shot", n_shot), ("n_anomalies", n_anomalies)):
        if value:
            raise UserError(f"config.data.{key}={value} is of protocol one_class; set it to 0 for {protocol}")
    if holdout and protocol == "few_shot":
        raise UserError(f"config.data.holdout={holdout}: few_shot has no images to spare; set --config.data.holdout=0")
    rows = [Row(record, "train", i) for i, record in enumerate(train)]
    rows += [Row(record, "test", i) for i, record in enumerate(test)]
    if len({row.record.path for row in rows}) < len(rows):
        raise UserError(f"{category}: an image is listed for training and for testing; remove it from one of them")
    chosen: list[tuple[Row, ...]] = []
    tested: list[Row] = []
    unused: list[Row] = []
    for anomalous, label in enumerate(_LABELS):
        ours = sorted((row for row in rows if row.record.label == bool(anomalous)), key=lambda row: row.record.path)
        if len(ours) < 2:
            raise UserError(
                f"{category} has {len(ours) or 'no'} {label} image{'' if len(ours) == 1 else 's'}; "
                f"data.protocol={protocol} needs some of each label to train and to test: use one_class"
            )
        if official:
            pool = [row for row in ours if row.split == "train"]
        else:
            pool = [ours[i] for i in np.sort(order(label, len(ours))[: n_train(protocol, len(ours))])]
        kept = set(pool)
        tested += [row for row in ours if row not in kept]
        if protocol == "few_shot":
            if k > len(pool):
                raise UserError(
                    f"{category}: data.k_shot={k} but the few_shot pool has {len(pool)} of {len(ours)} {label} images; "
                    f"set --config.data.k_shot={len(pool)} or less"
                )
            taken = {pool[i] for i in drawn(label, len(pool), k, draw)}
            unused += [row for row in pool if row not in taken]
            pool = [row for row in pool if row in taken]
        chosen.append(tuple(pool))
    normals, anomalies = chosen
    normals, held = splits.hold_out(list(normals), category, seed, holdout)
    removed = () if official else _copies(tested, [*normals, *held, *anomalies], digests)
    gone = set(removed)
    left = sorted((row for row in tested if row not in gone), key=lambda row: row.record.path)
    notes = [f"{len(removed)} test images removed: the same pixels as training images"] if removed else []
    return Splits((*normals, *anomalies), held, tuple(left), (), removed, tuple(notes), tuple(unused))


def _copies(tested: list[Row], trained: list[Row], digests: Callable[[list[Row]], list[bytes]]) -> tuple[Row, ...]:
    """The test rows with the content of a training row."""
    contents = digests([*trained, *tested])
    taken = set(contents[: len(trained)])
    return tuple(row for row, content in zip(tested, contents[len(trained) :], strict=True) if content in taken)
