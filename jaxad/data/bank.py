"""The reader of materialised files (`jaxad.data.materialize`): the pipeline's batches with NumPy alone.

Batches without views are those of the tf.data pipeline, bit for bit. A feed with views is served from its bank: the
views as the pipeline made them for batches 0 .. N - 1. Batch n is then batch n mod N, the same bits while n < N.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxad.data import archive, order
from jaxad.data.store import Category, Contents, Load, pool, stores_of, to_float
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


def joint(path: str) -> Mapping[str, Any]:
    """{stage: what the file says of its bank} of all its categories together; {} where it was written without them."""
    return archive.read_header(path).get("joint", {})


class Banked(Category):
    """`jaxad.types.Data` whose batches are made by NumPy; views come from the banks of a materialised file.

    banks: {stage: what the file says of its bank} · joined: the categories that are joined here, if any.
    """

    def __init__(self, contents: Contents, path: str, banks: Mapping[str, Any], joined: Sequence[str] = ()):
        super().__init__(contents)
        self._path, self._banks, self._archive = path, banks, zipfile.ZipFile(path)
        self._joined = {"categories": list(joined)} if joined else {}

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
                f"data.source: {self._path} has no bank of views for stage {stage!r} of {self.spec.category} "
                f"(it has: {held}); materialise it with --stage={stage}"
            )
        bank = self._banks[stage]
        asked = archive.describe(feed) | {"seed": seed} | self._joined
        for key, value in asked.items():
            if bank["feed"].get(key) != value:
                raise UserError(
                    f"data.source: the bank for stage {stage!r} in {self._path} was made with "
                    f"{key}={bank['feed'].get(key)}, this run has {value}; set it so or materialise it again"
                )
        return bank

    def _view(self, stage: str, n: int, key: str, local: np.ndarray) -> np.ndarray:
        names = [archive.entry(self.spec.category, stage, n, key, row) for row in local]
        array = np.stack(list(pool().map(lambda name: archive.decode(self._archive.read(name)), names)))
        return to_float(array) if array.dtype == np.uint8 else array


class Materialised(Banked):
    """One category of a materialised file.

    Raises UserError where the file was written with settings other than the config's.
    """

    def __init__(self, config: ConfigDict, category: str):
        header = archive.read_header(config.data.source)
        held = header["categories"][category]
        _check_settings(config, header)
        spec = DataSpec(
            **held["spec"] | {"kinds": tuple(held["spec"].get("kinds", ()))}
        )  # files before 'kinds' read on
        records = {split: tuple(Record(*record) for record in rows) for split, rows in held["records"].items()}
        counts = {split: len(rows) for split, rows in records.items()}
        stores = stores_of(counts, spec.image_size, self._load, config.data.memory_mb)
        contents = Contents(spec, records, stores, tuple(held["notes"]), held["manifest"])
        super().__init__(contents, config.data.source, held["banks"])

    def _load(self, split: str) -> Load:
        def one(i: int) -> tuple[np.ndarray, np.ndarray]:
            name = archive.member(self.spec.category, split, i)
            image = archive.decode(self._archive.read(name))
            if not self._records[split][i].label:
                return image, np.zeros(image.shape[:2], bool)
            return image, archive.decode(self._archive.read(f"{name}.mask"))

        return one


def _check_settings(config: ConfigDict, header: Mapping[str, Any]) -> None:
    path, seed, settings = config.data.source, header["seed"], header["settings"]
    for key in archive.SETTINGS:
        if key == "image_size" and settings["resize"] == "none":
            continue
        if key in ("k_shot", "draw") and config.data.protocol != "few_shot":
            continue
        held = settings.get(key, "one_class")  # older files know no protocol
        if config.data[key] != held:
            raise UserError(
                f"data.source: {path} was written with data.{key}={held}, this run has "
                f"{config.data[key]}; set --config.data.{key}={held} or materialise it again"
            )
    drawn = [key for key in ("holdout", "n_shot", "n_anomalies") if settings[key]]
    if drawn and config.seed != seed:
        raise UserError(
            f"data.source: the data.{drawn[0]} of {path} was drawn with seed {seed}, this run has "
            f"{config.seed}; set --config.seed={seed} or materialise it again"
        )


def _ahead(make, start: int, stop: int) -> Iterator[Batch]:
    """make(n) for n = start .. stop - 1, the next one made in a thread while the last is used."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(make, start) if start < stop else None
        for n in range(start, stop):
            ready, coming = coming, worker.submit(make, n + 1) if n + 1 < stop else None
            yield ready.result()
