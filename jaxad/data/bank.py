"""The reader of materialised files (`jaxad.data.materialize`): the pipeline's batches with NumPy alone.

Batches without views are those of the tf.data pipeline, bit for bit. A feed with views is served from its bank: the
views as the pipeline made them for batches 0 .. N - 1. Batch n is then batch n mod N, the same bits while n < N.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxad.data import archive, order
from jaxad.data.store import Category, Load, pool, stores_of, to_float
from jaxad.errors import UserError
from jaxad.flags import nearest
from jaxad.types import Batch, DataSpec, Feed, Record


def categories(config: ConfigDict) -> tuple[str, ...]:
    """The categories that `config.data.category` names, of those in the file; all of them where it is empty."""
    held = list(archive.read_header(config.data.source)["categories"])
    asked = [name.strip() for name in config.data.category.split(",") if name.strip()]
    if not asked or asked == ["all"]:
        return tuple(held)
    for name in asked:
        if name not in held:
            raise UserError(f"{config.data.source} holds no category {name!r}{nearest(name, held)}")
    return tuple(asked)


class Materialised(Category):
    """`jaxad.types.Data` over a materialised file, by NumPy.

    Raises UserError where the file was written with settings other than the config's.
    """

    def __init__(self, config: ConfigDict, category: str):
        header = archive.read_header(config.data.source)
        self._path, self._seed = config.data.source, header["seed"]
        held = header["categories"][category]
        self._check_settings(config, header["settings"])
        self._archive = zipfile.ZipFile(self._path)
        self._category, self._banks = category, held["banks"]
        spec = DataSpec(
            **held["spec"] | {"kinds": tuple(held["spec"].get("kinds", ()))}
        )  # files before 'kinds' read on
        records = {split: tuple(Record(*record) for record in rows) for split, rows in held["records"].items()}
        counts = {split: len(rows) for split, rows in records.items()}
        stores = stores_of(counts, spec.image_size, self._load, config.data.memory_mb)
        super().__init__(spec, records, stores, tuple(held["notes"]), held["manifest"])

    def _check_settings(self, config: ConfigDict, settings: dict[str, Any]) -> None:
        for key in archive.SETTINGS:
            if key == "image_size" and settings["resize"] == "none":
                continue
            if key in ("k_shot", "draw") and config.data.protocol != "few_shot":
                continue
            held = settings.get(key, "one_class")  # older files know no protocol
            if config.data[key] != held:
                raise UserError(
                    f"data.source: {self._path} was written with data.{key}={held}, this run has "
                    f"{config.data[key]}; set --config.data.{key}={held} or materialise it again"
                )
        drawn = [key for key in ("holdout", "n_shot", "n_anomalies") if settings[key]]
        if drawn and config.seed != self._seed:
            raise UserError(
                f"data.source: the data.{drawn[0]} of {self._path} was drawn with seed {self._seed}, this run has "
                f"{config.seed}; set --config.seed={self._seed} or materialise it again"
            )

    def _load(self, split: str) -> Load:
        def one(i: int) -> tuple[np.ndarray, np.ndarray]:
            name = archive.member(self._category, split, i)
            image = archive.decode(self._archive.read(name))
            if not self._records[split][i].label:
                return image, np.zeros(image.shape[:2], bool)
            return image, archive.decode(self._archive.read(f"{name}.mask"))

        return one

    def batches(self, feed: Feed, *, seed: int, stage: str, start: int, stop: int, rows: slice) -> Iterator[Batch]:
        """NumPy batches n = start .. stop - 1, each only the `rows` of the global batch. See `jaxad.types.Data`.

        Raises before the first batch: UserError for a feed with views that the file has no bank for.
        """
        n_images = self.check(feed, start, stop)
        bank = self._bank(feed, seed, stage) if feed.views else None
        local = np.arange(feed.batch_size)[rows]
        fetch = self.fetcher(feed.split)

        def make(n: int) -> Batch:
            n = n % bank["n"] if bank else n
            index, valid = order.rows_of(feed, n_images, seed=seed, stage=stage, n=n)
            batch = self.assemble(feed.split, fetch, index[local], valid[local])
            views = {key: self._view(stage, n, key, local) for key in bank["keys"]} if bank else {}
            return batch.replace(image=to_float(batch.image), views=views)

        return _ahead(make, start, stop)

    def _bank(self, feed: Feed, seed: int, stage: str) -> dict[str, Any]:
        if stage not in self._banks:
            held = ", ".join(self._banks) or "none"
            raise UserError(
                f"data.source: {self._path} has no bank of views for stage {stage!r} of {self._category} "
                f"(it has: {held}); materialise it with --stage={stage}"
            )
        bank = self._banks[stage]
        asked = archive.describe(feed) | {"seed": seed}
        for key, value in asked.items():
            if bank["feed"].get(key) != value:
                raise UserError(
                    f"data.source: the bank for stage {stage!r} in {self._path} was made with "
                    f"{key}={bank['feed'].get(key)}, this run has {value}; set it so or materialise it again"
                )
        return bank

    def _view(self, stage: str, n: int, key: str, local: np.ndarray) -> np.ndarray:
        names = [archive.entry(self._category, stage, n, key, row) for row in local]
        array = np.stack(list(pool().map(lambda name: archive.decode(self._archive.read(name)), names)))
        return to_float(array) if array.dtype == np.uint8 else array


def _ahead(make, start: int, stop: int) -> Iterator[Batch]:
    """make(n) for n = start .. stop - 1, the next one made in a thread while the last is used."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(make, start) if start < stop else None
        for n in range(start, stop):
            ready, coming = coming, worker.submit(make, n + 1) if n + 1 < stop else None
            yield ready.result()
