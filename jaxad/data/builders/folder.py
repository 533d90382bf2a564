"""Any folder of images: MVTec AD's layout, or only images of good parts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tensorflow_datasets as tfds

from jaxad.data.builders.base import AnomalyBuilder
from jaxad.data.listing import NORMAL, Listing, Sample, finish, folders_in, images_in, mvtec_layout, pair_masks


@dataclasses.dataclass(eq=False)
class FolderConfig(tfds.core.BuilderConfig):
    """category: a folder under manual_dir; empty: manual_dir itself."""

    name: str = "category"
    category: str = ""


class Folder(AnomalyBuilder):
    """`tfds.builder("folder", config=FolderConfig(category="screw"))` reads the folder `screw` under manual_dir.

    Without a config, manual_dir is itself the category.

    Read in this order: `train/` (MVTec AD's layout; images directly in train/ count as good) · `good/` for training and
    every other folder beside it as a defect type for testing · images directly in the folder, for training.
    """

    name = "folder"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Pass the folder that holds your images, or your category folders, as manual_dir."
    DESCRIPTION = "A folder of the user's own images in MVTec AD's layout, or only images of good parts."

    @classmethod
    def listing(cls, root: Path, category: str) -> Listing:
        base = root / category
        if (base / "train").is_dir():
            direct = images_in(base / "train")
            listing = mvtec_layout(root, category, masks_required=False)
            return _with_direct_images(listing, direct) if direct else listing
        if (base / NORMAL).is_dir():
            return _good_and_others(root, category)
        direct = images_in(base)
        note = f"{base}: no train and no good folder; its {len(direct)} images are the normal training images"
        samples = [Sample(path.relative_to(root).as_posix()) for path in direct]
        return finish(root, category, {"train": samples}, notes=[note] if direct else [])

    @classmethod
    def found(cls, root: Path) -> tuple[str, ...]:
        return tuple(path.name for path in folders_in(root) if cls.is_category(path))

    @staticmethod
    def is_category(path: Path) -> bool:
        """It holds train/, good/, or images."""
        return (path / "train").is_dir() or (path / NORMAL).is_dir() or bool(images_in(path))

    @classmethod
    def for_category(cls, category: str, **options) -> Folder:
        return cls(config=FolderConfig(category=category), **options)

    def _category(self) -> str:
        return self.builder_config.category if self.builder_config else ""


def _with_direct_images(listing: Listing, direct: list[Path]) -> Listing:
    where = listing.root / listing.category / "train"
    more = [Sample(path.relative_to(listing.root).as_posix()) for path in direct]
    splits = {split: list(samples) for split, samples in listing.splits.items()}
    splits["train"] = more + splits.get("train", [])
    problems = [problem for problem in listing.problems if "normal training image" not in problem]  # judged anew
    note = f"{where}: {len(direct)} images lie in train/ itself and count as good"
    return finish(listing.root, listing.category, splits, problems, [note])


def _good_and_others(root: Path, category: str) -> Listing:
    base = root / category
    train = [Sample(path.relative_to(root).as_posix()) for path in images_in(base / NORMAL)]
    test: list[Sample] = []
    problems: list[str] = []
    others = [path for path in folders_in(base) if path.name not in (NORMAL, "ground_truth") and images_in(path)]
    for folder in others:
        images = images_in(folder)
        pairs, wrong = pair_masks(images, images_in(base / "ground_truth" / folder.name), required=False)
        problems += wrong
        for path in images:
            mask = pairs[path].relative_to(root).as_posix() if path in pairs else None
            test.append(Sample(path.relative_to(root).as_posix(), folder.name, mask))
    note = f"{base}: no train folder; good/ holds the normal training images"
    if others:
        names = ", ".join(path.name for path in others)
        note += f", {names} the anomalous test images; without normal test images there is no AUROC"
    return finish(root, category, {"train": train, "test": test}, problems, [note])
