"""Triples of neighbouring patches, as pattern generation reads an image (Huang et al., sections III-A and III-C).

A square image is cut into N x N patches, numbered row by row from 0. A triple is three patches in a line, read along a
direction: from the first two, far and near, the third is predicted. Read from all sides, most patches are predicted
several times, and what holds for a patch is what all of its predictions agree on (eq. 5).

Tables are NumPy, constants of a program; the functions on images are JAX, static in shape.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxad.errors import UserError
from jaxad.types import Array

COVERAGES = ("rows_cols", "rows", "raster", "wrap")
COMBINES = ("min", "mean", "max", "single_lr", "single_rl")
# Directions, by the quarter turns (np.rot90) after which a triple is read from left to right.
DIRECTIONS = ("lr", "tb", "rl", "bt")
LEAST = 4  # patches per side from which on all of them can be predicted


class Triples(NamedTuple):
    """i32[T] each, sorted by direction: the patches far, near and target, and the direction's place in DIRECTIONS."""

    far: np.ndarray
    near: np.ndarray
    target: np.ndarray
    direction: np.ndarray


@functools.lru_cache
def triples(n: int, coverage: str = "rows_cols") -> Triples:
    """All triples of an image of n x n patches.

    coverage: 'rows_cols', rows and columns, from both ends · 'rows', rows only · 'raster', along the numbers, from the
    end of a row to the begin of the next, where no neighbours are · 'wrap', rows whose ends meet, for textures whose
    period divides the image.
    Raises UserError for another coverage.

    >>> found = triples(4, "rows")
    >>> len(found.far), [int(part[0]) for part in found[:3]]
    (16, [0, 1, 2])
    """
    if coverage not in COVERAGES:
        raise UserError(f"config.pattern_generation.coverage={coverage!r} is not one of {', '.join(COVERAGES)}")
    places = np.arange(n * n).reshape(n, n)
    lines = {"lr": places, "tb": places.T, "rl": places[:, ::-1], "bt": places.T[:, ::-1]}
    if coverage == "raster":
        lines = {"lr": places.reshape(1, -1), "rl": places.reshape(1, -1)[:, ::-1]}
    elif coverage != "rows_cols":
        lines = {name: lines[name] for name in ("lr", "rl")}
    if coverage == "wrap":
        lines = {name: np.concatenate([line, line[:, :2]], axis=1) for name, line in lines.items()}
    rows = []
    for direction, name in enumerate(DIRECTIONS):
        if name in lines:
            line = lines[name]
            three = np.stack([line[:, :-2], line[:, 1:-1], line[:, 2:]], axis=-1).reshape(-1, 3)
            rows.append(np.concatenate([three, np.full((len(three), 1), direction)], axis=1))
    table = np.concatenate(rows).astype(np.int32)
    table.flags.writeable = False
    return Triples(*table.T)


def partition(images: Array, n: int) -> Array:
    """f[B, n p, n p, C] -> f[B, n * n, p, p, C], row by row.

    >>> partition(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, 1, :, :, 0].tolist()
    [[2.0, 3.0], [6.0, 7.0]]
    """
    batch, side, _, channels = images.shape
    patches = images.reshape(batch, n, side // n, n, side // n, channels)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, n * n, side // n, side // n, channels)


def assemble(patches: Array, n: int) -> Array:
    """f[B, n * n, p, p, C] -> f[B, n p, n p, C]: what `partition` was given."""
    batch, _, side, _, channels = patches.shape
    grid = patches.reshape(batch, n, n, side, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(batch, n * side, n * side, channels)


def take(patches: Array, number: np.ndarray, found: Triples, canonical: bool = True) -> Array:
    """f[B, n * n, p, p, C] -> f[B, T, p, p, C]: patch number[t] of every triple, turned with it where canonical.

    number: i32[T], one of `found.far`, `found.near`, `found.target`.
    """
    return _turned(patches[:, number], found, 1) if canonical else patches[:, number]


def turn_back(patches: Array, found: Triples) -> Array:
    """f[B, T, p, p, C] of triples that were turned to be read from left to right, as they lie in the image."""
    return _turned(patches, found, -1)


def _turned(patches: Array, found: Triples, sign: int) -> Array:
    parts, start = [], 0
    for direction, count in zip(*np.unique(found.direction, return_counts=True), strict=True):
        part = patches[:, start : start + count]
        parts.append(jnp.rot90(part, sign * int(direction), axes=(2, 3)) if direction else part)
        start += count
    return jnp.concatenate(parts, axis=1)


def combine(values: Array, found: Triples, n: int, how: str = "min", across: str = "min") -> Array:
    """eq. 5 in its soft form: f[B, T, ...] of triples -> f[B, n * n, ...] of their targets.

    how: over the directions of a line ('lr' and 'rl', 'tb' and 'bt'). 'min' is the intersection: it exceeds a threshold
    where all do. 'mean', 'max' · 'single_lr', 'single_rl': that direction of rows alone; a patch that it does not reach
    has what the other says · across: of what rows and what columns say, 'min' or 'max'.
    A patch that is never predicted, as with n < LEAST, has 0.
    Raises UserError for another name.
    """
    if how not in COMBINES:
        raise UserError(f"config.pattern_generation.combine={how!r} is not one of {', '.join(COMBINES)}")
    if across not in ("min", "max"):
        raise UserError(f"config.pattern_generation.axis_combine={across!r} is neither min nor max")
    slots = np.full((len(DIRECTIONS), n * n), -1)  # the triple that predicts a patch in a direction
    slots[found.direction, found.target] = np.arange(len(found.target))
    rows, columns = _along(values, slots[0], slots[2], how), None
    if how.startswith("single"):
        return jnp.where(_beside(rows[1], rows[0]), rows[0], 0.0)
    if (slots[[1, 3]] >= 0).any():
        columns = _along(values, slots[1], slots[3], how)
        rows = _join(rows, columns, across)
    return jnp.where(_beside(rows[1], rows[0]), rows[0], 0.0)


def _along(values: Array, one: np.ndarray, other: np.ndarray, how: str) -> tuple[Array, np.ndarray]:
    """(f[B, n * n, ...] of a line, bool[n * n] where there is any). one, other: i32[n * n] into T, -1: none."""
    first, second = ((values[:, np.maximum(slot, 0)], slot >= 0) for slot in (one, other))
    if how == "single_rl":
        first, second = second, first
    if how.startswith("single"):
        return jnp.where(_beside(first[1], first[0]), first[0], second[0]), first[1] | second[1]
    return _join(first, second, how)


def _join(left: tuple[Array, np.ndarray], right: tuple[Array, np.ndarray], how: str) -> tuple[Array, np.ndarray]:
    both = {"min": jnp.minimum, "max": jnp.maximum, "mean": lambda a, b: 0.5 * (a + b)}[how](left[0], right[0])
    only_left = jnp.where(_beside(left[1], left[0]), left[0], right[0])
    return jnp.where(_beside(left[1] & right[1], both), both, only_left), left[1] | right[1]


def _beside(mask: np.ndarray, values: Array) -> np.ndarray:
    return mask.reshape((1, -1) + (1,) * (values.ndim - 2))
