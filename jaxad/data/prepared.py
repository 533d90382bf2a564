"""A category in the cache: prepared once by its TFDS builder, opened for random access.

The cache is keyed by the listing (relative paths, sizes, modification times): touched files mean a new preparation, and
the old one is removed when the new one is done. Preparing happens in a scratch folder, under a lock, and ends in a
rename, so two processes that start at once, or one that is killed half-way, leave nothing broken behind. Images are
stored as they lie on disk (8-bit PNG and JPEG are not re-encoded) in array_record files, which are read by index
without running TensorFlow. Where array_record has no wheel (macOS, Windows), TFRecord files are read into memory once,
still encoded.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import io
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from jaxad.data import images
from jaxad.data.builders import AnomalyBuilder
from jaxad.data.listing import Listing
from jaxad.errors import UserError
from jaxad.types import Record

_LOCK = "lock"


class TfdsSource:
    """A `jaxad.data.catalog.Source`: records from the listing, pixels from the files that TFDS wrote."""

    def __init__(self, name: str, listing: Listing, readers: Mapping[str, Sequence[Mapping[str, Any]]]):
        self.name = name
        self.root = str(listing.root) if listing.root.is_absolute() else ""
        self.has_masks, self.has_all_masks = listing.has_masks, listing.has_all_masks
        self.protocol = listing.protocol
        self.notes = listing.notes
        self._samples, self._readers = listing.splits, readers

    def records(self, split: str) -> tuple[Record, ...]:
        return tuple(
            Record(sample.path, sample.label, sample.defect, sample.kind) for sample in self._samples.get(split, ())
        )

    def load(self, split: str, i: int) -> tuple[np.ndarray, np.ndarray]:
        sample, example = self._samples[split][i], self._readers[split][i]
        if example["path"].decode() != sample.path:
            raise UserError(f"{self.root}/{sample.path} moved while the folder was being prepared; run again")
        image = images.decode(example["image"], sample.path)
        if sample.label and sample.mask is not None:
            return image, images.decode_mask(example["mask"], sample.mask)
        return image, np.zeros(image.shape[:2], bool)

    def foreground(self, split: str, i: int) -> np.ndarray | None:
        example = self._readers[split][i]
        if "foreground" not in example:
            return None
        return images.decode_mask(example["foreground"], self._samples[split][i].path)


def open_category(builder: type[AnomalyBuilder], name: str, listing: Listing, cache: Path) -> TfdsSource:
    """The category that `listing` describes, prepared below `cache` if it is not there as it is now.

    Raises UserError for files that cannot be used, a cache that cannot be written, and a full disk.
    """
    identity = hashlib.sha256(f"{listing.root}\0{listing.category}".encode("utf-8", "surrogateescape")).hexdigest()[:12]
    slug = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:40]
    home = cache / "prepared" / builder.name / f"{slug}-{identity}"
    target = home / f"{builder.fingerprint(listing)}-{file_format()}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        # Opening is under the lock, too: nobody removes a preparation that another process is about to open.
        with filelock.FileLock(home / _LOCK):
            if not target.is_dir():
                _remove(path for path in home.glob("scratch*"))
                _prepare(builder, listing, home / "scratch")
                (home / "scratch").rename(target)
            readers = _open(builder, listing, target)
            _remove(path for path in home.iterdir() if path.name not in (_LOCK, target.name))
    except (OSError, RuntimeError) as error:
        explained = cache_error(error, cache)
        if explained is None:
            raise
        raise explained from error
    return TfdsSource(name, listing, readers)


def file_format() -> str:
    """'array_record', or 'tfrecord' where that has no wheel."""
    return "array_record" if importlib.util.find_spec("array_record") else "tfrecord"


def _prepare(builder: type[AnomalyBuilder], listing: Listing, scratch: Path) -> None:
    count = sum(map(len, listing.splits.values()))
    logging.info("Preparing %s, %d images, once", listing.root / listing.category, count)
    try:
        with quiet():
            instance = builder.for_category(listing.category, data_dir=str(scratch), file_format=file_format())
            download = tfds.download.DownloadConfig(manual_dir=str(listing.root) if builder.needs_root() else None)
            instance.download_and_prepare(download_dir=str(scratch / "downloads"), download_config=download)
    except BaseException:
        _remove([scratch])
        raise
    _remove([scratch / "downloads"])


def _open(builder: type[AnomalyBuilder], listing: Listing, target: Path) -> dict[str, Sequence[Mapping[str, Any]]]:
    with quiet():
        instance = builder.for_category(listing.category, data_dir=str(target), file_format=file_format())
        features = instance.info.features
        encoded = {
            name: tfds.decode.SkipDecoding() for name in features if isinstance(features[name], tfds.features.Image)
        }
        readers = {}
        for split, samples in listing.splits.items():
            if file_format() == "array_record":
                readers[split] = instance.as_data_source(split=split, decoders=encoded)
                for first in np.cumsum([0, *instance.info.splits[split].shard_lengths])[:-1]:
                    readers[split][first]  # opens each file now, so that it may be unlinked later
            else:
                options = tfds.ReadConfig(interleave_cycle_length=1)
                dataset = instance.as_dataset(split=split, decoders=encoded, read_config=options)
                readers[split] = list(tfds.as_numpy(dataset))
            if len(readers[split]) != len(samples):
                raise UserError(f"files in {listing.root / listing.category} came or went while being read; run again")
    return readers


def _remove(paths) -> None:
    for path in list(paths):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)  # on Windows another process may still read it; the next run tries


def cache_error(error: Exception, cache: Path) -> UserError | None:
    """What to tell the user; None where the error is no matter of the disk."""
    fix = "set config.data.cache_dir or JAXAD_CACHE to another folder"
    full = ("No space left", "Disk quota exceeded", "Not enough disk space")  # array_record's errors have no errno
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(words in str(error) for words in full):
        return UserError(f"the disk is full under the cache {cache}; free some space or {fix}")
    if isinstance(error, OSError):
        return UserError(f"the cache {cache} cannot be used ({error.strerror or error}); {fix}")
    return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no 'Downloading ...' lines and no warnings of TFDS: preparing is our business."""
    from tensorflow_datasets.core.utils import tqdm_utils

    verbosity, bars = logging.get_verbosity(), tqdm_utils._active
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            tfds.enable_progress_bar()
