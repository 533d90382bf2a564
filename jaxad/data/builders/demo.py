"""The demo data set through TFDS: drawn by `jaxad.data.demo`, needs no manual_dir."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxad.data import demo, images
from jaxad.data.builders.base import AnomalyBuilder, configs
from jaxad.data.listing import Listing, Sample


class Demo(AnomalyBuilder):
    """A woven cloth and a steel washer, 128 x 128 pixels, generated."""

    name = "demo"
    CATEGORIES = demo.CATEGORIES
    BUILDER_CONFIGS = configs(demo.CATEGORIES, "Generated demo data")
    DESCRIPTION = "A generated texture and a generated object with four defect types each, for trying things out."

    @classmethod
    def listing(cls, root: Path, category: str) -> Listing:
        return demo.listing(category)

    @classmethod
    def found(cls, root: Path) -> tuple[str, ...]:
        return cls.CATEGORIES

    @classmethod
    def fingerprint(cls, listing: Listing) -> str:
        """Changes when the drawing code does."""
        return hashlib.sha256(Path(demo.__file__).read_bytes()).hexdigest()[:20]

    def _split_generators(self, dl_manager):
        splits = demo.listing(self._category()).splits
        return {split: self._generate_examples(Path(), samples) for split, samples in splits.items()}

    def _generate_examples(self, root: Path, samples: tuple[Sample, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, sample in enumerate(samples):
            image, mask = demo.render(sample.path)
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
