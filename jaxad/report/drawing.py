"""What the pictures share: fonts, outlines, the fixed colour scale and its bar. Pillow and NumPy, no figure each."""

from __future__ import annotations

import functools
import io
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from jaxad.evaluate import Threshold

INK, FAINT, PAPER = (24, 28, 33), (110, 117, 125), (255, 255, 255)
TRUTH, FOUND = (0, 220, 130), (255, 66, 77)  # outline of the ground truth, contour at the pixel threshold
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


@functools.cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which travels with matplotlib: the same letters on every machine."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", name)
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def shorten(text: str, width: int, face: ImageFont.FreeTypeFont) -> str:
    """`text`, its middle left out where it is wider than `width` pixels."""
    if face.getlength(text) <= width:
        return text
    half = len(text) // 2
    while half > 1 and face.getlength(f"{text[:half]}…{text[-half:]}") > width:
        half -= 1
    return f"{text[:half]}…{text[-half:]}"


def tile_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(width, height) of a tile whose longer side is `side`, as Pillow counts them."""
    factor = side / max(height, width)
    return max(1, round(width * factor)), max(1, round(height * factor))


def photo(image: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """image: u8[H, W, 3]."""
    return Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BICUBIC)


def heat(values: np.ndarray, scale: Scale, size: tuple[int, int]) -> Image.Image:
    """values: f32[H, W], coloured on the fixed scale."""
    return Image.fromarray(palette()[levels(resample(values, size), scale)])


def levels(values: np.ndarray, scale: Scale) -> np.ndarray:
    """u8, the place of each value on the scale."""
    return np.clip(np.round(255 * (values - scale.low) / (scale.high - scale.low)), 0, 255).astype(np.uint8)


def resample(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """f32[H, W] -> f32 at the size of a tile."""
    return np.asarray(Image.fromarray(np.asarray(values, np.float32)).resize(size, Image.Resampling.BILINEAR))


def shrink_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool[H, W] -> bool at the size of a tile; a defect one pixel wide stays visible when made smaller."""
    return np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX)) > 0


def outline(tile: Image.Image, mask: np.ndarray, colour: tuple[int, int, int]) -> Image.Image:
    """A line around `mask: bool[h, w]`, with a dark rim so that it shows on any ground; along the border where cut."""
    if not mask.any():
        return tile
    pixels = np.array(tile)
    wide = ndimage.binary_dilation(mask, _disk(3))
    line = ndimage.binary_dilation(mask, _disk(2)) & ~mask
    frame = np.ones_like(mask)
    frame[2:-2, 2:-2] = False
    line |= mask & frame
    pixels[wide & ~mask] = (0, 0, 0)
    pixels[line] = colour
    return Image.fromarray(pixels)


def _disk(radius: int) -> np.ndarray:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius + 1


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


def png(picture: Image.Image) -> bytes:
    """Encoded quickly; the same picture gives the same bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
