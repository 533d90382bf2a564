"""What lies in a data folder: images, their defect types and masks, read from names alone. No TensorFlow, no decoding.

Every data set's layout ends in one `Listing`. Masks are found by stem, never by sorted position, and an image is known
by its path, never by its stem (VisA has the same stem under Normal and Anomaly). What is wrong is collected as
`problems`, one line each: opening a category refuses them, `python -m jaxad.data.check` prints them all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from jaxad.data.images import EXTENSIONS
from jaxad.errors import UserError

NORMAL = "good"
_NORMAL_BY_ANOTHER_NAME = ("ok", "normal", "nominal")  # refused where 'good' is meant, not guessed


class Sample(NamedTuple):
    """One image. Paths are relative to the data root, '/'-separated.

    defect: 'good' for a normal image · mask: its ground truth, None where there is none · xyz: MVTec 3D-AD alone ·
    kind: its class, in a data set to pre-train on; '' in all others.
    """

    path: str
    defect: str = NORMAL
    mask: str | None = None
    xyz: str | None = None
    kind: str = ""

    @property
    def label(self) -> bool:
        """True = anomalous."""
        return self.defect != NORMAL


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images of one category. splits: {'train': ..., 'test': ...} in path order, empty splits left out.

    protocol: the two-class protocol by which it is divided, '' where it is another · problems: what makes it unusable ·
    notes: how it was read, where that is not obvious · ignored: files left out.
    """

    root: Path
    category: str
    splits: dict[str, tuple[Sample, ...]]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    protocol: str = ""

    @property
    def has_masks(self) -> bool:
        """Every anomalous test image has a mask, and there is at least one."""
        masks = [sample.mask is not None for sample in self.splits.get("test", ()) if sample.label]
        return bool(masks) and all(masks)

    @property
    def has_all_masks(self) -> bool:
        """Every anomalous image, of training or test, has a mask, and there is at least one."""
        masks = [sample.mask is not None for part in self.splits.values() for sample in part if sample.label]
        return bool(masks) and all(masks)

    def fingerprint(self) -> str:
        """Changes when a file is added, removed, renamed, resized or modified; no file is read."""
        digest = hashlib.sha256()
        for split, samples in sorted(self.splits.items()):
            for sample in samples:
                digest.update(f"{split}\0{sample.defect}\0".encode())
                for path in (sample.path, sample.mask, sample.xyz):
                    if path is not None:
                        stat = os.stat(f"{self.root}/{path}")  # a third of the time of a Path, for large sets
                        digest.update(
                            f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape")
                        )
        return digest.hexdigest()[:20]

    def check(self) -> Listing:
        """Itself, or UserError with the first problem and how to see the others."""
        if self.problems:
            more = len(self.problems) - 1
            others = f" (and {more} more: python -m jaxad.data.check lists them)" if more else ""
            raise UserError(self.problems[0] + others)
        return self


def data_root(root: str) -> Path:
    """The existing, non-empty folder `root`, absolute; UserError otherwise."""
    if not root:
        raise UserError("config.data.root is empty; set it to the folder that holds the data set")
    path = Path(root).expanduser().absolute()
    if not path.is_dir():
        raise UserError(f"config.data.root={root} is not a folder; set it to the folder that holds the data set")
    if not any(path.iterdir()):
        raise UserError(f"config.data.root={root} is an empty folder; unpack the data set there or change it")
    return path


def images_in(folder: Path) -> list[Path]:
    """Image files directly in `folder`, by extension, sorted by name; hidden files (such as macOS's ._x) left out."""
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if _is_image(path)]


def folders_in(folder: Path) -> list[Path]:
    """Sub-folders, sorted by name, hidden ones left out."""
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def pair_masks(images: list[Path], masks: list[Path], required: bool) -> tuple[dict[Path, Path], list[str]]:
    """Matches `<stem>.*` to `<stem>_mask.*` or `<stem>.*`: ({image: mask}, problems).

    Problems: a mask without an image, two masks for an image, two images for a mask, and, where masks are `required`,
    an image without one.
    """
    by_stem: dict[str, list[Path]] = {}
    for image in images:
        by_stem.setdefault(image.stem, []).append(image)
    pairs: dict[Path, Path] = {}
    problems = []
    for mask in masks:
        owners = by_stem.get(mask.stem) or by_stem.get(mask.stem.removesuffix("_mask"))
        if not owners:
            problems.append(f"{mask} is a mask without an image; remove it or restore the image")
        elif len(owners) > 1:
            problems.append(f"{mask} fits both {owners[0]} and {owners[1].name}; rename one of the images and its mask")
        elif owners[0] in pairs:
            problems.append(f"{owners[0]} has two masks, {pairs[owners[0]].name} and {mask.name}; remove one")
        else:
            pairs[owners[0]] = mask
    if required:
        problems += [f"{image} has no mask; restore it or remove the image" for image in images if image not in pairs]
    return pairs, problems


def mvtec_layout(root: Path, category: str, *, normal: str = NORMAL, masks_required: bool = True) -> Listing:
    """`CATEGORY/{train/good, test/good, test/<defect>, ground_truth/<defect>}`, as MVTec AD and others lie on disk.

    category '': `root` itself. normal: the folder of normal images (BTAD: 'ok'), listed as 'good'. Anomalies under
    `train` are listed as such, with masks from `ground_truth/train/<defect>`.
    """
    base = root / category
    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    problems: list[str] = []
    known = [path for path in folders_in(base) if path.name in ("train", "test", "ground_truth")]
    claimed: set[Path] = set()
    for split, samples in splits.items():
        for folder in folders_in(base / split):
            images = images_in(folder)
            if folder.name == normal:
                samples += [Sample(_relative(path, root)) for path in images]
                continue
            if folder.name in _NORMAL_BY_ANOTHER_NAME and not (base / split / normal).is_dir():
                problems.append(f"{folder} seems to hold normal images, which are read from '{normal}'; rename it")
            truth = _truth_folder(base, split, folder.name)
            claimed.add(truth)
            pairs, wrong = pair_masks(images, images_in(truth), masks_required and split == "test")
            problems += wrong
            samples += [
                Sample(_relative(path, root), folder.name, _relative(pairs[path], root) if path in pairs else None)
                for path in images
            ]
    for folder in folders_in(base / "ground_truth"):
        inner = folders_in(folder) if folder.name in splits else [folder]
        for truth in inner:
            if truth not in claimed and truth.name != normal and (masks := images_in(truth)):
                problems.append(f"{masks[0]} is a mask without an image: no such folder under test; remove {truth}")
    return finish(root, category, splits, problems, searched=known)


def finish(
    root: Path,
    category: str,
    splits: dict[str, list[Sample]],
    problems: Iterable[str] = (),
    notes: Iterable[str] = (),
    searched: Iterable[Path] = (),
) -> Listing:
    """A Listing in path order, with the checks that every layout shares; `searched`: folders that may hold more."""
    problems, notes = list(problems), list(notes)
    ordered = {split: tuple(sorted(samples)) for split, samples in splits.items() if samples}
    where = root / category
    normals = sum(not sample.label for sample in ordered.get("train", ()))
    if not normals:
        problems.insert(0, f"{where} has no normal training images; put them into {where / 'train' / NORMAL}")
    elif normals == 1:
        problems.insert(0, f"{where} has one normal training image; a model of what is normal needs at least two")
    anomalies = [sample for sample in ordered.get("test", ()) if sample.label]
    without = sum(sample.mask is None for sample in anomalies)
    if without:
        notes.append(f"{without} of {len(anomalies)} anomalous test images have no mask: no pixel metrics")
    used = {
        path for samples in ordered.values() for sample in samples for path in (sample.path, sample.mask, sample.xyz)
    }
    lost = [
        relative
        for folder in searched
        for path in sorted(folder.rglob("*"))
        if _is_image(path) and (relative := _relative(path, root)) not in used
    ]
    return Listing(root, category, ordered, tuple(problems), tuple(notes), tuple(lost))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _truth_folder(base: Path, split: str, defect: str) -> Path:
    nested = base / "ground_truth" / split / defect
    return nested if split == "train" or nested.is_dir() else base / "ground_truth" / defect
