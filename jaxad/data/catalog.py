"""From `config.data` to open images: which categories there are, and random access to the images of one of them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from ml_collections import ConfigDict

from jaxad.config import DATASETS
from jaxad.data.listing import Listing, data_root, folders_in
from jaxad.errors import UserError
from jaxad.types import Record

if TYPE_CHECKING:
    from jaxad.data.builders import AnomalyBuilder

# Read by TensorFlow when it is imported: no banners, and no oneDNN, whose results depend on the processor.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


class Source(Protocol):
    """The images of one category by random access, at their original size. Thread-safe; runs no TensorFlow op.

    name: the category · root: the data root (absolute; empty for generated data) ·
    has_masks: every anomalous test image has a ground-truth mask (False where there is none at all) ·
    has_all_masks: so have those listed for training · protocol: the two-class protocol that divides it, '' for others ·
    notes: what the user should know of how the folder was read, one line each.
    """

    name: str
    root: str
    has_masks: bool
    has_all_masks: bool
    protocol: str
    notes: tuple[str, ...]

    def records(self, split: str) -> tuple[Record, ...]:
        """Split 'train' or 'test', sorted by path; () where the split has no images."""
        ...

    def load(self, split: str, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Image u8[h, w, 3] RGB and mask bool[h, w] (all False where normal or without a mask) of record i."""
        ...

    def foreground(self, split: str, i: int) -> np.ndarray | None:
        """bool[h, w], where record i shows the object; None where the data set does not say (all but MVTec 3D-AD)."""
        ...


def categories(config: ConfigDict) -> tuple[str, ...]:
    """The categories that `config.data.category` names: one, a comma list, or 'all' that are there.

    An empty category of generated data is all it has; of `folder`, it is the data root itself, named by its last
    folder. For `images`, an empty category and 'all' are the data root itself, all its folders together, and 'a+b' are
    two of them together; for `tfds`, see `jaxad.data.ready`.
    Raises UserError for an unknown data set or category, with the nearest, and for a missing or empty folder.
    """
    wanted = [name.strip() for name in config.data.category.split(",") if name.strip()]
    if config.data.dataset == "tfds":
        from jaxad.data import ready

        return ready.categories(data_root(config.data.root), wanted)
    builder, root = _builder(config)
    if builder.name == "folder" and (not wanted or wanted in (["all"], [root.name]) and builder.is_category(root)):
        return (_own_name(builder, root),)
    if builder.name == "images" and wanted in ([], ["all"]):
        return (_own_name(builder, root),)
    found = builder.found(root)
    if not wanted and not builder.needs_root() or wanted == ["all"]:
        names = tuple(name for name in found if name in builder.CATEGORIES or builder.name == "folder")
        if not names:
            raise UserError(_nothing_found(builder, root))
        return names
    if not wanted:
        raise UserError(f"config.data.category is empty; set it to 'all' or some of {', '.join(found) or 'none found'}")
    for name in (part for category in wanted for part in builder.parts(category)):
        if name not in found:
            raise UserError(_unknown(builder, root, name, found))
    return tuple(dict.fromkeys(wanted))


def open_source(config: ConfigDict, category: str) -> Source:
    """Opens one of `categories(config)`, preparing it first where the cache does not hold its files as they are now.

    Raises UserError for whatever is wrong with the folder: no or one normal training image, a mask without an image or
    of another size, an unreadable file, a full disk.
    """
    from jaxad.data import prepared, ready

    if config.data.dataset == "tfds":
        return ready.open_category(data_root(config.data.root), category, cache_folder(config))
    listing = list_category(config, category).check()
    return prepared.open_category(_builder(config)[0], category, listing, cache_folder(config))


def list_category(config: ConfigDict, category: str) -> Listing:
    """What lies in the folder of `category`, problems included: nothing is read or prepared.

    Raises UserError for `tfds`, which keeps no folder of images.
    """
    if config.data.dataset == "tfds":
        raise UserError(
            "config.data.dataset=tfds has no folder of images to look at: TFDS read them when it prepared them"
        )
    builder, root = _builder(config)
    itself = builder.name == "folder" and category == root.name and builder.is_category(root)
    itself |= builder.name == "images" and config.data.category.strip() in ("", "all")
    return builder.listing(root, "" if itself else builder.listed_as(category, config.data.protocol))


def cache_folder(config: ConfigDict) -> Path:
    """config.data.cache_dir, else $JAXAD_CACHE, else ~/.cache/jaxad."""
    chosen = config.data.cache_dir or os.environ.get("JAXAD_CACHE") or Path.home() / ".cache" / "jaxad"
    return Path(chosen).expanduser().absolute()


def _builder(config: ConfigDict) -> tuple[type[AnomalyBuilder], Path]:
    from jaxad.data import builders

    name = config.data.dataset
    if name not in builders.BUILDERS:
        raise UserError(f"config.data.dataset={name!r} is unknown{_nearest(name, DATASETS)}; use {', '.join(DATASETS)}")
    builder = builders.BUILDERS[name]
    return builder, data_root(config.data.root) if builder.needs_root() else Path()


def _own_name(builder: type[AnomalyBuilder], root: Path) -> str:
    if builder.is_category(root):
        return root.name
    if found := builder.found(root):
        raise UserError(f"{root} is not a category; set config.data.category to 'all' or some of {', '.join(found)}")
    raise UserError(_nothing_found(builder, root))


def _nothing_found(builder: type[AnomalyBuilder], root: Path) -> str:
    if builder.name == "images":
        return f"{root} holds no images at any depth; set config.data.root to a folder that does"
    if builder.name == "folder":
        return f"{root} holds no images and no folder with train/ or good/; set config.data.root to one that does"
    hint = f"set config.data.root to the folder that holds {', '.join(builder.CATEGORIES[:2])}, ..."
    if root.name in builder.CATEGORIES:
        hint = f"it is a category: use config.data.root={root.parent} and config.data.category={root.name}"
    else:
        inner = [path for path in folders_in(root) if builder.found(path)]
        if inner:
            hint = f"did you mean config.data.root={inner[0]}?"
    return f"{root} holds no {builder.name} category; {hint}"


def _unknown(builder: type[AnomalyBuilder], root: Path, name: str, found: tuple[str, ...]) -> str:
    if not found:
        return _nothing_found(builder, root)
    place = f" in {root}" if builder.needs_root() else ""
    shown = [other for other in found if other in builder.CATEGORIES] or found
    return f"config.data.category={name!r} is not{place}{_nearest(name, found)}; found: {', '.join(shown)}"


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.lower(), known, 1, 0.5)
    return f" (nearest: {close[0]})" if close else ""
