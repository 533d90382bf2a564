"""From `config.data` to open images: which categories there are, and random access to the images of one of them.

A data set is prepared once, by its TFDS builder, into a cache keyed by the listing of its files (relative paths, sizes,
modification times): touched files mean a new preparation. Preparing happens in a scratch folder under a lock and ends
in a rename, so two processes that start at once, or one that is killed half-way, leave nothing broken behind. Images are
stored as they lie on disk (no re-encoding of 8-bit PNG and JPEG), in array_record files, and read by index.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np

from jaxad.types import Record

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's C++ side reads it at import: no banners


class Source(Protocol):
    """The images of one category by random access, at their original size. Thread-safe; runs no TensorFlow op.

    name: the category · root: the data root (absolute; empty for the demo) ·
    has_masks: every anomalous test image has a ground-truth mask (False where there is none at all) ·
    notes: what the user should know of how the folder was read, one line each.
    """

    name: str
    root: str
    has_masks: bool
    notes: tuple[str, ...]

    def records(self, split: str) -> tuple[Record, ...]:
        """Split 'train' or 'test', sorted by path; () where the split has no images."""
        ...

    def load(self, split: str, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Image u8[h, w, 3] RGB and mask bool[h, w] (all False where normal or without a mask) of record i."""
        ...
