"""Any folder of images to pre-train on: sub-folders are classes, nothing is anomalous, there are no masks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from jaxad.data.builders.base import AnomalyBuilder
from jaxad.data.builders.folder import FolderConfig
from jaxad.data.images import EXTENSIONS
from jaxad.data.listing import Listing, Sample, folders_in, images_in

TOGETHER = "+"  # in a category: these folders as one data set


class Images(AnomalyBuilder):
    """`tfds.builder("images", config=FolderConfig(category="tiny_imagenet+dtd"))` reads two folders under manual_dir.

    Without a config, or with category '', manual_dir itself: its folders together, and the images directly in it.

    Every image at any depth is a training image. Its kind, in other words its class, is its folder's path below the
    category's; of several folders together, the path below manual_dir, which begins with the category's name and so
    keeps equal names apart. A folder with `train/` and `val/` (ImageNet as unpacked) is officially split: kinds are
    paths below these two, `val/` is the test set, and what lies beside them is left out.
    """

    name = "images"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Pass the folder that holds your folders of images as manual_dir."
    DESCRIPTION = "A folder of images to pre-train on; its sub-folders are the classes."

    @classmethod
    def listing(cls, root: Path, category: str) -> Listing:
        notes: list[str] = []
        names = cls.parts(category) if category else [""]
        splits: dict[str, list[Sample]] = {"train": [], "test": []}
        if names == [""] and not _is_split(root):
            splits["train"] += [Sample(path.name) for path in images_in(root)]
            names = [path.name for path in folders_in(root)]
            together = True
        else:
            together = len(names) > 1
        for name in names:
            where = (name,) if name else ()
            kind = name if together else ""
            if _is_split(root / name):
                splits["train"] += _samples(root, "/".join((*where, "train")), kind)
                splits["test"] += _samples(root, "/".join((*where, "val")), kind)
                notes.append(f"{root / name}: train/ and val/ are its official split; val/ is for testing")
            else:
                splits["train"] += _samples(root, name, kind)
        ordered = {split: tuple(sorted(samples)) for split, samples in splits.items() if samples}
        problems = _problems(root, category, ordered.get("train", ()))
        return Listing(root, category, ordered, tuple(problems), tuple(notes))

    @classmethod
    def found(cls, root: Path) -> tuple[str, ...]:
        return tuple(path.name for path in folders_in(root) if next(_below(path), None))

    @staticmethod
    def is_category(path: Path) -> bool:
        """There are images in it, at some depth."""
        return next(_below(path), None) is not None

    @classmethod
    def parts(cls, category: str) -> list[str]:
        return list(dict.fromkeys(name.strip() for name in category.split(TOGETHER)))

    @classmethod
    def for_category(cls, category: str, **options) -> Images:
        return cls(config=FolderConfig(category=category), **options)

    def _category(self) -> str:
        return self.builder_config.category if self.builder_config else ""

    def _features(self) -> dict[str, Any]:
        return super()._features() | {"kind": tfds.features.Text()}

    def _more(self, root: Path, sample: Sample, size: tuple[int, int]) -> dict[str, Any]:
        return {"kind": sample.kind}


def _is_split(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "val").is_dir()


def _samples(root: Path, folder: str, kind: str) -> list[Sample]:
    """The images below root/folder; their kinds begin with `kind`."""
    return [
        Sample("/".join(filter(None, (folder, inner, name))), kind="/".join(filter(None, (kind, inner))))
        for inner, name in _below(root / folder)
    ]


def _below(folder: Path) -> Iterator[tuple[str, str]]:
    """(folder of the image relative to `folder`, '' for itself; file name) of every image, hidden ones left out.

    Strings and one directory read per folder, for there may be a million. A folder met twice through links is read
    once.
    """
    top, seen = str(folder), set()
    for here, folders, names in os.walk(top, followlinks=True):
        stat = os.stat(here)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inner = os.path.relpath(here, top).replace(os.sep, "/") if here != top else ""
        for name in names:
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("."):
                yield inner, name


def _problems(root: Path, category: str, train: tuple[Sample, ...]) -> Iterator[str]:
    where = root / category
    if len(train) < 2:
        count = "one image" if train else "no images"
        yield f"{where} holds {count} to train on ({', '.join(EXTENSIONS[:3])}, ...); pre-training needs at least two"
    masks = [sample.path for sample in train if "ground_truth" in sample.path.split("/")[:-1]]
    if masks:
        yield (
            f"{root / masks[0]} is a mask, not an image to pre-train on; use data.dataset=folder, or point "
            "config.data.root at the normal images alone"
        )
