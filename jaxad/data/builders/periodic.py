"""Periodic textures through TFDS: drawn by `jaxad.data.periodic`, need no manual_dir."""

from __future__ import annotations

from jaxad.data import periodic
from jaxad.data.builders.base import configs
from jaxad.data.builders.generated import Generated


class Periodic(Generated):
    """Printed cloths of six known periods, 224 x 224 pixels, generated."""

    name = "periodic"
    DRAWN_BY = periodic
    CATEGORIES = periodic.CATEGORIES
    BUILDER_CONFIGS = configs(periodic.CATEGORIES, "Generated periodic textures")
    DESCRIPTION = "A generated ornament at six periods, 4 to 32 % of the image side, with the same defects at each."
