"""What the builders of generated data sets share: a module of `jaxad.data` that draws, and no manual_dir."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from jaxad.data import drawing, images
from jaxad.data.builders.base import AnomalyBuilder
from jaxad.data.listing import Listing, Sample


class Generated(AnomalyBuilder, skip_registration=True):
    """A data set is this class with the module that draws it."""

    DRAWN_BY: ClassVar[ModuleType]  # has CATEGORIES, listing(category) and render(path)

    @classmethod
    def listing(cls, root: Path, category: str) -> Listing:
        return cls.DRAWN_BY.listing(category)

    @classmethod
    def found(cls, root: Path) -> tuple[str, ...]:
        return cls.CATEGORIES

    @classmethod
    def fingerprint(cls, listing: Listing) -> str:
        """Changes when the drawing code does."""
        code = b"".join(Path(module.__file__).read_bytes() for module in (cls.DRAWN_BY, drawing))
        return hashlib.sha256(code).hexdigest()[:20]

    def _split_generators(self, dl_manager):
        splits = self.listing(Path(), self._category()).splits
        return {split: self._generate_examples(Path(), samples) for split, samples in splits.items()}

    def _generate_examples(self, root: Path, samples: tuple[Sample, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, sample in enumerate(samples):
            image, mask = self.DRAWN_BY.render(sample.path)
            yield (
                index,
                {
                    "image": images.encode_png(image),
                    "mask": images.encode_png(mask),
                    "has_mask": True,
                    "label": int(sample.label),
                    "defect": sample.defect,
                    "path": sample.path,
                },
            )
