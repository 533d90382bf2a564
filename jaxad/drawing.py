"""What pictures are made of: fonts, tiles, outlines. Pillow and NumPy; nothing here knows what is drawn."""

from __future__ import annotations

import functools
import io
import pathlib

import numpy as np
from PIL import Image, ImageFont
from scipy import ndimage

INK, FAINT, PAPER = (24, 28, 33), (110, 117, 125), (255, 255, 255)
TRUTH = (0, 220, 130)  # outline of the ground truth


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


def png(picture: Image.Image) -> bytes:
    """Encoded quickly; the same picture gives the same bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
