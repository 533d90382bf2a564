"""The format of materialised files: a zip archive of compressed arrays and a `header.json`, by NumPy alone.

Images are stored without loss: colours as differences to green, each pixel as the difference to a neighbour (the better
of two ways), which deflates to about PNG's size and is undone by cumulative sums.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxad.data.store import pool
from jaxad.errors import UserError
from jaxad.types import Feed

FORMAT = "jaxad.data 1"
# What shapes a file's contents.
SETTINGS = ("image_size", "resize", "crop_size", "holdout", "n_shot", "n_anomalies", "protocol", "k_shot", "draw")


def member(category: str, split: str, i: int) -> str:
    """The name in the archive of image i; its mask's is the same with '.mask'."""
    return f"{category}/{split}/{i:06d}"


def entry(category: str, stage: str, n: int, key: str, row: int) -> str:
    """The name in the archive of one row of a view in bank entry n."""
    return f"{category}/bank/{stage}/{n:06d}/{key}/{row:04d}"


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
    return {
        "batch_size": feed.batch_size,
        "split": feed.split,
        "shuffle": feed.shuffle,
        "views": views,
        "replay": list(feed.replay) if feed.replay else None,
    }


def read_header(path: str) -> dict[str, Any]:
    """The header of a materialised file. UserError where it is not one."""
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read("header.json"))
    except OSError as error:
        raise UserError(f"data.source: cannot read {path}: {error.strerror}") from error
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(f"data.source: {path} is not a file of python -m jaxad.data.materialize") from error
    if header.get("format") != FORMAT:
        raise UserError(f"data.source: {path} has format {header.get('format')!r}, not {FORMAT!r}; write it again")
    return header


class Writer:
    """Writes the file beside its place; `finish` moves it there, and leaving the `with` without that removes it."""

    def __init__(self, path: str):
        self.path, self._partial = path, f"{path}.{os.getpid()}.partial"
        self.size = 0  # bytes written so far

    def __enter__(self) -> Writer:
        with self._disk():
            self._zip = zipfile.ZipFile(self._partial, "w", zipfile.ZIP_STORED, allowZip64=True)
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._zip.close()
        with contextlib.suppress(OSError):
            os.unlink(self._partial)

    @contextlib.contextmanager
    def _disk(self):
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}; choose another --out") from error

    def add(self, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
        """Encodes and writes (name, array) pairs."""
        arrays = list(arrays)
        encoded = pool().map(lambda pair: encode(pair[1]), arrays)
        with self._disk():
            for (name, _), data in zip(arrays, encoded, strict=True):
                self._zip.writestr(name, data)
                self.size += len(data)

    def finish(self, header: dict[str, Any]) -> None:
        """Writes the header and moves the file into place."""
        with self._disk():
            self._zip.writestr("header.json", json.dumps(header), zipfile.ZIP_DEFLATED)
            self._zip.close()
            with open(self._partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(self._partial, self.path)
