"""All categories of a run as one: what a single model is trained on that is then judged on each of them.

The rows of a split are the images of all categories, one category after the other: first all their normals, then all
their anomalies, which in training are those that were moved there. The split 'test' is there to be looked at while a
model trains, not to judge it by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxad.data import bank, pipeline, store
from jaxad.errors import UserError
from jaxad.types import Data, DataSpec, Record

NAME = "joint"  # what the categories are called together


class Row(NamedTuple):
    """Where an image is: the category that it is of, and its index in the same split there."""

    part: store.Category
    index: int
    record: Record


def feeds(config: ConfigDict, opened: Mapping[str, store.Category]) -> Mapping[str, Data]:
    """What models are trained on, by name: every category, or with config.data.joint all of them as one.

    opened: the categories of the config, open. Raises UserError where they cannot be joined.
    """
    return {NAME: join(config, opened)} if config.data.joint else opened


def join(config: ConfigDict, opened: Mapping[str, store.Category]) -> Data:
    """The categories as one, ready to serve: by tf.data, or from the banks of the file `data.source`.

    Raises UserError for a single category, one that is called 'joint', and images of unequal size.
    """
    _check(opened)
    parts = tuple(opened.values())
    rows = {split: _rows(parts, split) for split in ("train", "holdout", "test")}

    def load(split: str) -> store.Load:
        def one(i: int) -> tuple[np.ndarray, np.ndarray]:
            row = rows[split][i]
            return row.part.load(split, row.index)

        return one

    def foreground(i: int) -> np.ndarray:
        row = rows["train"][i]
        return row.part.foreground(row.index)

    counts = {split: len(some) for split, some in rows.items()}
    spec = _spec(parts, rows)
    contents = store.Contents(
        spec,
        {split: tuple(row.record for row in some) for split, some in rows.items()},
        store.stores_of(counts, spec.image_size, load, config.data.memory_mb),
        tuple(note for part in parts for note in part.notes),
        {name: part.manifest() for name, part in opened.items()},
    )
    if config.data.source:
        return bank.Banked(contents, config.data.source, bank.joint(config.data.source), tuple(opened))
    return pipeline.Graph(contents, foreground)


def _rows(parts: tuple[store.Category, ...], split: str) -> list[Row]:
    every = [Row(part, i, record) for part in parts for i, record in enumerate(part.records(split))]
    return sorted(every, key=lambda row: row.record.label)  # stable: normals first


def _spec(parts: tuple[store.Category, ...], rows: Mapping[str, list[Row]]) -> DataSpec:
    tested = [part.spec for part in parts if part.spec.n_test_anomalous]
    return DataSpec(
        dataset=parts[0].spec.dataset,
        category=NAME,
        image_size=parts[0].spec.image_size,
        n_train=len(rows["train"]),
        n_holdout=len(rows["holdout"]),
        n_test_normal=sum(part.spec.n_test_normal for part in parts),
        n_test_anomalous=sum(part.spec.n_test_anomalous for part in parts),
        has_masks=bool(tested) and all(spec.has_masks for spec in tested),
        n_train_anomalous=sum(part.spec.n_train_anomalous for part in parts),
        kinds=pipeline.kinds_of(row.record for row in rows["train"]),
    )


def _check(opened: Mapping[str, store.Category]) -> None:
    names = list(opened)
    if len(names) < 2:
        raise UserError(
            f"config.data.joint=True joins several categories, config.data.category names one ({names[0]}): "
            f"name more, or set data.joint=False"
        )
    if NAME in names:
        raise UserError(
            f"config.data.joint=True calls all categories together {NAME!r}, and one of them is called so: rename its "
            f"folder, or leave it out of config.data.category"
        )
    first, *others = opened.items()
    for name, part in others:
        if part.spec.image_size != first[1].spec.image_size:
            raise UserError(
                f"config.data.joint=True needs images of one size, but {first[0]} has {first[1].spec.image_size} "
                f"pixels and {name} {part.spec.image_size}; use --config.data.resize=square or short_crop"
            )
