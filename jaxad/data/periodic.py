"""Printed cloths whose ornament repeats at six known periods, drawn with NumPy, 224 x 224 pixels.

The category says the period in percent of the image side, about a factor of 1.5 apart, and is all that differs: image
`number` of a split has the same lighting, noise and tilt and a defect of the same shape and size in pixels in every
category, so that a curve over the categories is the effect of the texture's size. At 224 pixels, the input of four
patches per side, the smallest period still is 9 pixels, enough for an ornament with a structure of its own.

Every image is a function of (seed, category, split, defect, number). The ornament has five different figures on a
square lattice, none of which repeats within the period or mirrors into itself. Defects are drawn into the scene
before lighting and noise, where they change it most of a few places: print that is missing, print out of register, a
stain and a scratch.
"""

from __future__ import annotations

import numpy as np

from jaxad.data import drawing
from jaxad.data.listing import NORMAL, Listing

SIZE = 224
PERIODS = {f"period_{percent:02d}": percent / 100 * SIZE for percent in (4, 6, 9, 14, 21, 32)}  # pixels
CATEGORIES = tuple(PERIODS)
DEFECTS = ("missing", "scratch", "shifted", "stain")
PLACES = 8  # that a defect is tried at

CLOTH, BARE = (0.80, 0.74, 0.62), (0.84, 0.79, 0.68)
VINE, PETAL, HEART = (0.36, 0.46, 0.30), (0.66, 0.26, 0.24), (0.90, 0.72, 0.32)
LEAF, DIAMOND, RING = (0.22, 0.40, 0.33), (0.24, 0.33, 0.56), (0.28, 0.22, 0.24)


def listing(category: str) -> Listing:
    """The images of `category`, in MVTec AD's layout."""
    return drawing.listing(category, DEFECTS)


def render(path: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Image u8[224, 224, 3] and mask bool[224, 224] of a path of `listing`.

    >>> image, mask = render("period_09/test/stain/003.png")
    >>> image.shape, bool(mask.any())
    ((224, 224, 3), True)
    """
    category, split, defect, name = path.split("/")
    number = int(name.partition(".")[0])
    key = [seed, split == "test", (NORMAL, *DEFECTS).index(defect), number]  # without the category
    scene, flaw, camera = np.random.default_rng(key).spawn(3)
    colour, mask = draw(PERIODS[category], scene, flaw, defect)
    return drawing.photograph(camera, colour), mask


def draw(
    period: float, rng: np.random.Generator, flaw: np.random.Generator, defect: str = NORMAL
) -> tuple[np.ndarray, np.ndarray]:
    """The cloth before lighting and noise, colour f[224, 224, 3] in [0, 1], and the mask of its defect.

    period: pixels · rng: of the cloth · flaw: of the defect, which it alone depends on, but for its place.
    """
    x, y = drawing.grid(SIZE)
    tilt, phase = np.deg2rad(rng.uniform(-1.5, 1.5)), rng.uniform(0, 1, 2).astype(np.float32)
    cos, sin = np.float32(np.cos(tilt) / period), np.float32(np.sin(tilt) / period)
    u, v = x * cos + y * sin + phase[0], y * cos - x * sin + phase[1]
    thread = 1 + 0.04 * drawing.smooth(rng, 75, SIZE) + 0.02 * drawing.smooth(rng, 8, SIZE)
    thread = (thread[..., None] * rng.uniform(0.97, 1.03, 3)).astype(np.float32)
    colour = ornament(u, v, period) * thread
    mask = np.zeros(x.shape, bool)
    if defect == "missing":  # bare cloth, where the screen was clogged
        radius = flaw.uniform(9, 14)
        bare = np.float32(BARE) * thread
        centre = _busiest(flaw, np.abs(bare - colour).max(-1) > 0.15, radius)
        mask = drawing.irregular_distance(flaw, SIZE, radius, 0.25, centre) < 0
        colour = np.where(mask[..., None], bare, colour)
    elif defect == "shifted":  # the print is out of register there, by a third to a half of the period each way
        radius = flaw.uniform(12, 18)
        by = (flaw.uniform(0.33, 0.5, 2) * flaw.choice([-1, 1], 2)).astype(np.float32)
        moved = ornament(u + by[0], v + by[1], period) * thread
        centre = _busiest(flaw, np.abs(moved - colour).max(-1) > 0.15, radius)
        mask = drawing.irregular_distance(flaw, SIZE, radius, 0.2, centre) < 0
        colour = np.where(mask[..., None], moved, colour)
    elif defect == "stain":  # a liquid that darkens print and cloth alike, more so at its edge
        distance = drawing.irregular_distance(flaw, SIZE, flaw.uniform(12, 19), 0.25)
        depth = np.clip(-distance / 3, 0, 1) * (0.75 + 0.25 * np.exp(-((distance + 3) ** 2) / 8))
        tint = np.array([(0.70, 0.60, 0.45), (0.58, 0.64, 0.70)][flaw.integers(2)])
        colour = colour * (1 - depth[..., None] * (1 - tint))
        mask = distance < 0
    elif defect == "scratch":  # a pulled thread, bright, and its shadow
        line = _line(flaw, flaw.uniform(30, 55))
        distance, below = drawing.distance_to(line, SIZE), drawing.distance_to(line + 1.6, SIZE)
        colour = colour * (1 - 0.5 * np.clip(1.3 - below, 0, 1))[..., None]
        colour = colour + (0.97 - colour) * (0.9 * np.clip(1.7 - distance, 0, 1))[..., None]
        mask = (distance < 1.7) | (below < 1.3)
    return colour, mask


def ornament(u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    """Colour f32[..., 3] of the print at `u`, `v` in periods; edges are smooth over one of `period` pixels."""
    colour = np.broadcast_to(np.float32(CLOTH), (*u.shape, 3))

    def ink(inside: np.ndarray, paint: tuple[float, float, float]) -> None:
        """inside: periods to the edge, positive within."""
        nonlocal colour
        cover = np.clip(0.5 + inside * period, 0, 1).astype(np.float32)[..., None]
        colour = colour + (np.float32(paint) - colour) * cover

    a, b = _cell(u, 0.5), _cell(v, 0.5)  # a vine that runs along u and swings
    ink(0.035 - np.abs(b - 0.11 * np.sin(2 * np.pi * u)), VINE)
    ink((0.155 - np.abs(a + 0.06) - np.abs(b)) / np.sqrt(2), DIAMOND)
    a, b = _cell(u, 0.0), _cell(v, 0.0)  # a flower of five petals, turned
    radius, angle = np.hypot(a, b), np.arctan2(b, a)
    ink(0.235 + 0.085 * np.cos(5 * angle + 0.7) - radius, PETAL)
    ink(0.10 - radius, HEART)
    a, b = _cell(u, 0.42), _cell(v, 0.02)  # a leaf to its right, leaning
    ink(0.075 - np.hypot(0.45 * (a * 0.6 + b * 0.8), a * 0.8 - b * 0.6), LEAF)
    a, b = _cell(u, 0.04), _cell(v, 0.40)  # a ring above it
    ink(0.032 - np.abs(np.hypot(a, b) - 0.085), RING)
    return colour


def _cell(along: np.ndarray, centre: float) -> np.ndarray:
    """From the nearest figure at `centre` + a whole number, -0.5 .. 0.5."""
    offset = along - centre
    return offset - np.round(offset)


def _busiest(rng: np.random.Generator, changed: np.ndarray, radius: float) -> np.ndarray:
    """Of PLACES random centres (x, y), the one around which the largest part of a square is `changed`, bool[h, w]."""
    reach = int(radius)
    places = rng.integers(reach + 10, SIZE - reach - 10, (PLACES, 2))
    parts = [changed[y - reach : y + reach + 1, x - reach : x + reach + 1].mean() for x, y in places]
    return places[int(np.argmax(parts))]


def _line(rng: np.random.Generator, length: float) -> np.ndarray:
    """Points (x, y) f[n, 2], half a pixel apart, of a slightly bent line well inside the image."""
    heading, bend = rng.uniform(0, np.pi), rng.uniform(-0.01, 0.01)
    along = heading + bend * (np.arange(0, length, 0.5) - length / 2)
    line = np.cumsum(np.stack([np.cos(along), np.sin(along)], 1), 0) * 0.5
    return line - line.mean(0) + rng.uniform(length / 2 + 8, SIZE - length / 2 - 8, 2)
