"""What the report's pictures share: the fixed colour scale and its bar, and what all pictures are made of."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from jaxad.drawing import FAINT, INK, PAPER, font
from jaxad.drawing import TRUTH as TRUTH
from jaxad.drawing import outline as outline
from jaxad.drawing import photo as photo
from jaxad.drawing import png as png
from jaxad.drawing import shorten as shorten
from jaxad.drawing import shrink_mask as shrink_mask
from jaxad.drawing import tile_size as tile_size

if TYPE_CHECKING:  # python -m jaxad.report draws without jax
    from jaxad.decision import Threshold

FOUND = (255, 66, 77)  # contour at the pixel threshold
BADGES = {"miss": (176, 58, 0), "false_alarm": (150, 20, 70), "hit": (0, 112, 74), "pass": (72, 84, 98)}
MEANING = {
    "miss": "anomalous, called normal",
    "false_alarm": "normal, called anomalous",
    "hit": "anomalous, called anomalous",
    "pass": "normal, called normal",
}


class Scale(NamedTuple):
    """One colour scale for all maps of a category: darkest at `low` and below, brightest at `high` and above."""

    low: float
    limit: float  # the pixel threshold
    high: float


def colour_scale(limit: Threshold) -> Scale:
    """From the normal images that set the threshold, never from the picture's own extremes.

    Darkest: the median of the normal map values. Brightest: three times as far above it as the pixel threshold.
    """
    span = max(limit.pixel - limit.pixel_median, 1e-6 * abs(limit.pixel), 1e-30)
    return Scale(limit.pixel_median, limit.pixel, limit.pixel_median + 3 * span)


@functools.cache
def palette() -> np.ndarray:
    """u8[256, 3], matplotlib's inferno: its lightness rises evenly, so it survives grey print and colour blindness."""
    import matplotlib

    return np.round(255 * matplotlib.colormaps["inferno"](np.arange(256))[:, :3]).astype(np.uint8)


def heat(values: np.ndarray, scale: Scale, size: tuple[int, int]) -> Image.Image:
    """values: f32[H, W], coloured on the fixed scale."""
    return Image.fromarray(palette()[levels(resample(values, size), scale)])


def levels(values: np.ndarray, scale: Scale) -> np.ndarray:
    """u8, the place of each value on the scale."""
    return np.clip(np.round(255 * (values - scale.low) / (scale.high - scale.low)), 0, 255).astype(np.uint8)


def resample(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """f32[H, W] -> f32 at the size of a tile."""
    return np.asarray(Image.fromarray(np.asarray(values, np.float32)).resize(size, Image.Resampling.BILINEAR))


def colour_bar(draw: ImageDraw.ImageDraw, scale: Scale, left: int, top: int, height: int) -> None:
    """The scale with its numbers."""
    face = font(12)
    strip = palette()[np.round(np.linspace(255, 0, height)).astype(int)]
    for row, colour in enumerate(strip):
        draw.line([(left, top + row), (left + 15, top + row)], fill=tuple(int(c) for c in colour))
    draw.rectangle([left - 1, top - 1, left + 16, top + height], outline=FAINT)
    at_limit = height - 1 - round((height - 1) * (scale.limit - scale.low) / (scale.high - scale.low))
    ticks = [
        (0, f"≥ {scale.high:.4g}", ""),
        (at_limit, f"{scale.limit:.4g}", "pixel threshold"),
        (height - 1, f"≤ {scale.low:.4g}", "median of normals"),
    ]
    for row, number, meaning in ticks:
        draw.line([(left + 16, top + row), (left + 21, top + row)], fill=INK)
        draw.text((left + 26, top + row), number, INK, face, anchor="lm")
        if meaning:
            above = -14
            draw.text((left + 26, top + row + above), meaning, FAINT, font(11), anchor="lm")


def badge(draw: ImageDraw.ImageDraw, left: int, top: int, outcome: str, size: int = 13) -> int:
    """The outcome as a coloured label; returns where it ends."""
    face, text = font(size, bold=True), outcome.replace("_", " ").upper()
    right = left + round(face.getlength(text)) + 12
    draw.rounded_rectangle([left, top, right, top + size + 8], 4, fill=BADGES[outcome])
    draw.text(((left + right) / 2, top + size / 2 + 4), text, PAPER, face, anchor="mm")
    return right
