"""What a config may ask of pattern generation, and what it may not."""

from __future__ import annotations

import math
from typing import Any

from jaxad.errors import Checks
from jaxad.losses import comparison
from jaxad.methods.pattern_reader import GENERATORS
from jaxad.models import comparator, cyclegan, pattern_generator
from jaxad.scoring.triples import COMBINES, COVERAGES, LEAST
from jaxad.types import DataSpec, UserError

SCORES = ("prob", "pixel", "product")
MOST = 16  # patches per side


def check(config: Any, spec: DataSpec) -> int:
    """`patch_of`, and UserError for values that make no sense, before anything is built."""
    options = config.pattern_generation
    checks = Checks(options, "config.pattern_generation")
    checks.one_of("n_select", ("fixed", "nmse"))
    checks.one_of("coverage", COVERAGES)
    checks.one_of("combine", COMBINES)
    checks.one_of("axis_combine", ("min", "max"))
    checks.one_of("score", SCORES)
    checks.one_of("generator", GENERATORS)
    checks.one_of("compare.mask_loss", comparison.MASK_LOSSES)
    checks.one_of("compare.mask_norm", comparison.NORMS)
    checks.one_of("compare.hinge_on", comparison.HINGES)
    checks.one_of("pairs.mask_pool", comparison.MASK_POOLS)
    checks.demand(0 <= options.context_mask_ratio < 1, "context_mask_ratio", "in [0, 1)")
    checks.demand(options.compare.lr > 0, "compare.lr", "positive")
    whole = bool(options.train_n) and LEAST <= min(options.train_n) and max(options.train_n) <= MOST
    checks.demand(whole, "train_n", f"numbers of patches per side, {LEAST} to {MOST}")
    checks.demand(options.n <= MOST, "n", f"{MOST} or less")
    if options.pretrain and options.generator == "copy_near":
        raise UserError("config.pattern_generation.generator=copy_near has nothing to pre-train; choose swin")
    if options.generator == "swin":
        pattern_generator.check(options.swin)
    patch = patch_of(config, spec)
    comparator.check((patch,), options.compare.sim_pool)
    if options.generator in cyclegan.BLOCKS:
        cyclegan.check_patch(patch)
    return patch


def patch_of(config: Any, spec: DataSpec) -> int:
    """The side of a patch, pixels. Raises UserError where the image cannot be cut so."""
    options = config.pattern_generation
    n = options.n
    unit = math.lcm(comparator.REDUCTION, options.swin.embed_stride if options.generator == "swin" else 1)
    least = 3 if options.combine.startswith("single") else LEAST
    if n < least:
        raise UserError(
            f"config.pattern_generation.n={n}: with fewer than {least} patches per side some are never predicted "
            f"from two sides; set n={least} and data.image_size={_near(spec.image_size, least * unit)}"
        )
    if options.patch:
        if options.patch % unit:
            raise UserError(
                f"config.pattern_generation.patch={options.patch} must be a multiple of {unit}; "
                f"set it to {_near(options.patch, unit)}"
            )
        return options.patch
    if spec.image_size % (n * unit):
        raise UserError(
            f"images of {spec.image_size} pixels are not cut into {n} x {n} patches whose sides are multiples of "
            f"{unit}; set config.data.image_size to {_near(spec.image_size, n * unit)}, or pattern_generation.patch to "
            f"the side of a patch, and images are resized"
        )
    return spec.image_size // n


def _near(value: int, unit: int) -> str:
    """The multiples of `unit` on both sides of a value that is none, or the value itself.

    >>> _near(225, 16), _near(224, 16)
    ('224 or 240', '224')
    """
    below = value // unit * unit
    if below == value:
        return str(value)
    return f"{below} or {below + unit}" if below else str(unit)
