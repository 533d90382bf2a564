"""The demo data set through TFDS: drawn by `jaxad.data.demo`, needs no manual_dir."""

from __future__ import annotations

from jaxad.data import demo
from jaxad.data.builders.base import configs
from jaxad.data.builders.generated import Generated


class Demo(Generated):
    """A woven cloth and a steel washer, 128 x 128 pixels, generated."""

    name = "demo"
    DRAWN_BY = demo
    CATEGORIES = demo.CATEGORIES
    BUILDER_CONFIGS = configs(demo.CATEGORIES, "Generated demo data")
    DESCRIPTION = "A generated texture and a generated object with four defect types each, for trying things out."
