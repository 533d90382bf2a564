"""What all builders share: the features of an example, and the walk from a `Listing` to encoded examples."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxad.data import images
from jaxad.data.listing import Listing, Sample, folders_in
from jaxad.errors import UserError


class AnomalyBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One category of an anomaly data set per config. A data set is this class with a `listing`.

    Examples, in path order (record i is `listing.splits[split][i]`):
      image u8[h, w, 3], stored as on disk where that is 8-bit PNG or JPEG ·
      mask u8[h, w, 1], 255 on the defect, all zero where normal or unknown · has_mask: the mask is ground truth ·
      label 0 normal, 1 anomalous · defect: 'good' or the defect type · path: relative to the data root.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    CATEGORIES: ClassVar[tuple[str, ...]] = ()
    DESCRIPTION: ClassVar[str] = ""
    HOMEPAGE: ClassVar[str] = ""
    CITATION: ClassVar[str] = ""
    MASK_ABOVE: ClassVar[int] = 0  # mask values above this are defect

    @classmethod
    @abc.abstractmethod
    def listing(cls, root: Path, category: str) -> Listing:
        """The images of `category` under `root`."""

    @classmethod
    def found(cls, root: Path) -> tuple[str, ...]:
        """The categories that lie under `root`."""
        present = {path.name for path in folders_in(root)}
        return tuple(name for name in cls.CATEGORIES if name in present)

    @classmethod
    def listed_as(cls, category: str, protocol: str) -> str:
        """The category whose listing is read under `config.data.protocol`; another where that is officially divided."""
        return category

    @classmethod
    def parts(cls, category: str) -> list[str]:
        """The folders, of those `found`, that a category is made of."""
        return [category]

    @classmethod
    def fingerprint(cls, listing: Listing) -> str:
        """Names a preparation of `listing`: changes with its files and with this builder's version."""
        return f"{cls.VERSION}-{listing.fingerprint()}"

    @classmethod
    def for_category(cls, category: str, **options) -> AnomalyBuilder:
        """The builder of `category`; `options` as for `tfds.builder`."""
        return cls(config=category, **options)

    @classmethod
    def needs_root(cls) -> bool:
        """False for generated data."""
        return bool(cls.MANUAL_DOWNLOAD_INSTRUCTIONS)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(self._features()),
            homepage=self.HOMEPAGE or None,
            citation=self.CITATION or None,
            disable_shuffling=True,  # record i is image i in path order
        )

    def _features(self) -> dict[str, Any]:
        return {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "has_mask": np.bool_,
            "label": tfds.features.ClassLabel(names=["normal", "anomalous"]),
            "defect": tfds.features.Text(),
            "path": tfds.features.Text(),
        }

    def _split_generators(self, dl_manager):
        listing = self.listing(Path(dl_manager.manual_dir), self._category()).check()
        return {split: self._generate_examples(listing.root, samples) for split, samples in listing.splits.items()}

    def _category(self) -> str:
        return self.builder_config.name

    def _generate_examples(self, root: Path, samples: tuple[Sample, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
        empty: dict[tuple[int, int], bytes] = {}
        for index, sample in enumerate(samples):
            encoded, size = images.storable(read(root / sample.path), str(root / sample.path))
            if sample.mask is None or not sample.label:
                if size not in empty:
                    empty[size] = images.encode_png(np.zeros(size, bool))
                mask = empty[size]
            else:
                mask = self._mask(root, sample, size)
            example = {
                "image": encoded,
                "mask": mask,
                "has_mask": sample.mask is not None or not sample.label,
                "label": int(sample.label),
                "defect": sample.defect,
                "path": sample.path,
            }
            yield index, example | self._more(root, sample, size)

    def _mask(self, root: Path, sample: Sample, size: tuple[int, int]) -> bytes:
        path = root / str(sample.mask)
        mask = images.decode_mask(read(path), str(path), above=self.MASK_ABOVE)
        check_size(path, mask.shape[:2], root / sample.path, size)
        return images.encode_png(mask)

    def _more(self, root: Path, sample: Sample, size: tuple[int, int]) -> dict[str, Any]:
        """Features of one data set alone."""
        return {}

    @classmethod
    def check_more(cls, root: Path, sample: Sample, size: tuple[int, int]) -> None:
        """UserError where a file of one data set alone is wrong."""


def read(path: Path) -> bytes:
    """The bytes of `path`; UserError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); restore or remove it") from error


def check_size(path: Path, size: tuple[int, ...], image: Path, image_size: tuple[int, int]) -> None:
    """UserError unless the file that belongs to `image` has its size."""
    if tuple(size) != tuple(image_size):
        raise UserError(
            f"{path} is {size[1]}x{size[0]} but its image {image} is {image_size[1]}x{image_size[0]}; "
            "export the two at the same size"
        )


def configs(names: tuple[str, ...], description: str) -> list[tfds.core.BuilderConfig]:
    """One BuilderConfig per category."""
    return [tfds.core.BuilderConfig(name=name, description=f"{description}, category {name}.") for name in names]
