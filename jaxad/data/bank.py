"""Materialised files: a category's images, splits and synthetic views in one file, read with NumPy alone.

A file is a zip archive of deflated arrays and a `header.json`. Images are stored without loss: colours as differences
to green, each pixel as the difference to a neighbour (the better of two ways), which deflates to about PNG's size and
is undone by cumulative sums. Batches without views are those of the tf.data pipeline, bit for bit. A feed with views is
served from its bank: whole batches, as the pipeline made them for n = 0 .. N - 1; batch n is bank entry n mod N.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxad.data import order
from jaxad.data.store import Category, Load, cores, stores_of, to_float
from jaxad.errors import UserError
from jaxad.flags import nearest
from jaxad.types import Batch, DataSpec, Feed, Record

FORMAT = "jaxad.data 1"
SETTINGS = ("image_size", "resize", "crop_size", "holdout", "n_shot", "n_anomalies")  # what shapes a file's contents


def encode(array: np.ndarray) -> bytes:
    """An array as compressed bytes, without loss. u8[..., H, W, 3] is taken for images.

    >>> image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    >>> np.array_equal(decode(encode(image)), image)
    True
    """
    shape, kind = list(array.shape), "plain"
    if array.dtype == bool:
        kind, array = "bits", np.packbits(array)
    elif array.dtype == np.uint8 and array.ndim >= 3 and shape[-1] == 3:
        green = array[..., 1]
        planes = np.stack([green, array[..., 0] - green, array[..., 2] - green])  # modulo 256 throughout
        across = np.diff(planes, axis=-1, prepend=np.uint8(0))
        both = np.diff(across, axis=-2, prepend=np.uint8(0))
        kind, array = min(("across", across), ("both", both), key=lambda way: _magnitude(way[1]))
    header = json.dumps({"kind": kind, "dtype": array.dtype.str, "shape": shape})
    return header.encode() + b"\n" + zlib.compress(np.ascontiguousarray(array), 6)


def _magnitude(differences: np.ndarray) -> int:
    """A guess at the compressed size (PNG's heuristic): the sum of the absolute differences, taken as signed."""
    return int(np.minimum(differences, -differences).sum(dtype=np.int64))


def decode(data: bytes) -> np.ndarray:
    """The array that `encode` took."""
    head, _, body = data.partition(b"\n")
    header = json.loads(head)
    shape, kind = tuple(header["shape"]), header["kind"]
    array = np.frombuffer(zlib.decompress(body), header["dtype"])
    if kind == "bits":
        return np.unpackbits(array, count=int(np.prod(shape))).reshape(shape).astype(bool)
    if kind == "plain":
        return array.reshape(shape)
    planes = array.reshape(3, *shape[:-1])
    if kind == "both":
        planes = np.cumsum(planes, axis=-2, dtype=np.uint8)
    green, red, blue = np.cumsum(planes, axis=-1, dtype=np.uint8)
    return np.stack([red + green, green, blue + green], axis=-1)


def describe(feed: Feed) -> dict[str, Any]:
    """A feed as JSON-able values: a bank serves only the feed it was made for."""
    views = [[view.name, view.op, json.loads(json.dumps(dict(view.options)))] for view in feed.views]
    return {"batch_size": feed.batch_size, "split": feed.split, "shuffle": feed.shuffle, "views": views}


def _header(config: ConfigDict) -> dict[str, Any]:
    path = config.data.source
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read("header.json"))
    except OSError as error:
        raise UserError(f"data.source: cannot read {path}: {error.strerror}") from error
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(f"data.source: {path} is not a file of python -m jaxad.data.materialize") from error
    if header.get("format") != FORMAT:
        raise UserError(f"data.source: {path} has format {header.get('format')!r}, not {FORMAT!r}; materialise it again")
    return header


def categories(config: ConfigDict) -> tuple[str, ...]:
    """The categories that `config.data.category` names, of those in the file; all of them where it is empty."""
    held = list(_header(config)["categories"])
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
        header = _header(config)
        self._path, self._seed = config.data.source, header["seed"]
        held = header["categories"][category]
        self._check_settings(config, header["settings"])
        self._archive = zipfile.ZipFile(self._path)
        self._category, self._banks = category, held["banks"]
        self._pool = ThreadPoolExecutor(cores())
        spec = DataSpec(**held["spec"])
        records = {split: tuple(Record(*record) for record in rows) for split, rows in held["records"].items()}
        counts = {split: len(rows) for split, rows in records.items()}
        stores = stores_of(counts, spec.image_size, self._load, config.data.memory_mb)
        super().__init__(spec, records, stores, tuple(held["notes"]), held["manifest"])

    def _check_settings(self, config: ConfigDict, settings: dict[str, Any]) -> None:
        for key in SETTINGS:
            if key == "image_size" and settings["resize"] == "none":
                continue
            if config.data[key] != settings[key]:
                raise UserError(
                    f"data.source: {self._path} was written with data.{key}={settings[key]}, this run has "
                    f"{config.data[key]}; set --config.data.{key}={settings[key]} or materialise it again"
                )
        drawn = [key for key in ("holdout", "n_shot", "n_anomalies") if settings[key]]
        if drawn and config.seed != self._seed:
            raise UserError(
                f"data.source: the data.{drawn[0]} of {self._path} was drawn with seed {self._seed}, this run has "
                f"{config.seed}; set --config.seed={self._seed} or materialise it again"
            )

    def _load(self, split: str) -> Load:
        def one(i: int) -> tuple[np.ndarray, np.ndarray]:
            name = member(self._category, split, i)
            image = decode(self._archive.read(name))
            masked = self._records[split][i].label
            return image, decode(self._archive.read(f"{name}.mask")) if masked else np.zeros(image.shape[:2], bool)

        return one

    def batches(self, feed: Feed, *, seed: int, stage: str, start: int, stop: int, rows: slice) -> Iterator[Batch]:
        """NumPy batches n = start .. stop - 1, each only the `rows` of the global batch. See `jaxad.types.Data`.

        Raises before the first batch: UserError for a feed with views that the file has no bank for.
        """
        n_images = self.check(feed, start, stop)
        if feed.views:
            bank = self._bank(feed, seed, stage)
            return _ahead(lambda n: self._from_bank(stage, n % bank["n"], bank["keys"], rows), start, stop)
        fetch = self.fetcher(feed.split)

        def make(n: int) -> Batch:
            index, valid = order.rows_of(feed, n_images, seed=seed, stage=stage, n=n)
            batch = self.assemble(feed.split, fetch, index[rows], valid[rows])
            return batch.replace(image=to_float(batch.image))

        return _ahead(make, start, stop)

    def _bank(self, feed: Feed, seed: int, stage: str) -> dict[str, Any]:
        if stage not in self._banks:
            held = ", ".join(self._banks) or "none"
            raise UserError(
                f"data.source: {self._path} has no bank of views for stage {stage!r} of {self._category} (it has: {held}); "
                f"materialise it with --stage={stage}"
            )
        bank = self._banks[stage]
        asked = describe(feed) | {"seed": seed}
        for key, value in asked.items():
            if bank["feed"][key] != value:
                raise UserError(
                    f"data.source: the bank for stage {stage!r} in {self._path} was made with {key}={bank['feed'][key]}, "
                    f"this run has {value}; set it so or materialise it again"
                )
        return bank

    def _from_bank(self, stage: str, n: int, keys: list[str], rows: slice) -> Batch:
        def read(key: str) -> np.ndarray:
            array = decode(self._archive.read(entry(self._category, stage, n, key)))[rows]
            return to_float(array) if array.dtype == np.uint8 else array

        arrays = dict(zip(keys, self._pool.map(read, keys), strict=True))
        fields = {key.removeprefix("batch."): arrays.pop(key) for key in keys if key.startswith("batch.")}
        return Batch(**fields, views={key.removeprefix("view."): array for key, array in arrays.items()})


def _ahead(make, start: int, stop: int) -> Iterator[Batch]:
    """make(n) for n = start .. stop - 1, the next one made in a thread while the last is used."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(make, start) if start < stop else None
        for n in range(start, stop):
            ready, coming = coming, worker.submit(make, n + 1) if n + 1 < stop else None
            yield ready.result()


def member(category: str, split: str, i: int) -> str:
    """The name in the archive of image i; its mask's is the same with '.mask'."""
    return f"{category}/{split}/{i:06d}"


def entry(category: str, stage: str, n: int, key: str) -> str:
    """The name in the archive of one array of bank entry n."""
    return f"{category}/bank/{stage}/{n:06d}/{key}"
