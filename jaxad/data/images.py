"""Image files to arrays, and resizing: PIL and NumPy, no TensorFlow.

Whatever lies on disk becomes u8[h, w, 3] RGB. Grey is repeated over the channels, palettes are looked up, CMYK is
converted, the first frame of several is taken. 16-bit grey is scaled by its full range (divided by 257 and rounded),
not clipped: a camera that fills 12 of the 16 bits therefore gives a dark image. 16-bit colour keeps the high byte,
within one grey level of the same. Alpha is dropped, not composited: a camera saw the colours under transparent pixels.
EXIF orientation is ignored, so that image and mask stay aligned.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxad.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
MODES = ("square", "short_crop", "none")

# Once for the process: `catch_warnings` is not thread-safe.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # line-scan images are this large
warnings.filterwarnings("ignore", "Truncated File Read")  # an error follows, which says more

_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # older Pillow opens a 16-bit PNG as "I"


def decode(source: bytes | str | os.PathLike, name: str = "") -> np.ndarray:
    """Image file (path or encoded bytes) to u8[h, w, 3] RGB, in [0, 255].

    `name` is what an error calls the bytes. Raises UserError for a missing, truncated or unreadable file, and for
    32-bit images, whose range nobody knows.

    >>> buffer = io.BytesIO()
    >>> Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(buffer, "PNG")
    >>> decode(buffer.getvalue())[..., 0].tolist()
    [[0, 1, 255]]
    """
    image, name = _open(source, name)
    try:
        if image.mode in _16_BIT:
            grey = np.asarray(image)
            if grey.size and (grey.min() < 0 or grey.max() > 65535):
                raise UserError(f"{name} holds 32-bit values; save it with 8 or 16 bits per channel")
            return np.repeat(_16_to_8(grey)[..., None], 3, axis=2)
        if image.mode == "F":
            raise UserError(f"{name} holds floating-point values; save it with 8 or 16 bits per channel")
        return np.array(_to_rgb(image))
    except (OSError, ValueError, SyntaxError) as error:
        raise _unreadable(name, error) from error


def decode_mask(source: bytes | str | os.PathLike, name: str = "", above: int = 0) -> np.ndarray:
    """Mask file to bool[h, w]: True where any channel is larger than `above`, so class ids 1, 2, ... all count.

    Alpha is dropped. A JPEG mask is compared with 127 instead, because compression leaves small values around edges.
    Raises UserError as `decode` does.

    >>> buffer = io.BytesIO()
    >>> Image.fromarray(np.array([[0, 3, 255]], np.uint8)).save(buffer, "PNG")
    >>> decode_mask(buffer.getvalue()).tolist()
    [[False, True, True]]
    """
    image, name = _open(source, name)
    above = max(above, 127) if image.format == "JPEG" else above
    try:
        if image.mode in ("P", "PA", "RGBA", "LA", "CMYK", "YCbCr"):
            image = _to_rgb(image)
        values = np.asarray(image) > (0 if image.mode == "1" else above)
    except (OSError, ValueError, SyntaxError) as error:
        raise _unreadable(name, error) from error
    return values if values.ndim == 2 else values.any(axis=2)


def describe(source: bytes | str | os.PathLike, name: str = "") -> tuple[tuple[int, int], str]:
    """((height, width), kind) from the header alone; kind: 'grey 8-bit', 'RGB 8-bit', 'grey 16-bit', 'palette', ..."""
    image, _ = _open(source, name)
    return (image.height, image.width), _kind(image)


def storable(data: bytes, name: str = "") -> tuple[bytes, tuple[int, int]]:
    """Encoded bytes that every reader decodes to the same RGB, and (height, width): what the TFDS builders store.

    8-bit RGB and grey PNG and JPEG files pass through untouched, after a check that they are whole (checksums for PNG,
    a full decode for JPEG). Everything else is decoded by `decode` and re-encoded as lossless PNG.
    """
    image, name = _open(data, name)
    size = (image.height, image.width)
    plain = image.mode in ("L", "RGB") and "transparency" not in image.info and _kind(image).endswith("8-bit")
    if plain and image.format == "PNG":
        try:
            image.verify()
        except (OSError, ValueError, SyntaxError) as error:
            raise _unreadable(name, error) from error
        return data, size
    if plain and image.format == "JPEG":
        try:
            image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))  # reads all, computes little
            image.load()
        except (OSError, ValueError, SyntaxError) as error:
            raise _unreadable(name, error) from error
        return data, size
    return encode_png(decode(data, name)), size


def encode_png(array: np.ndarray) -> bytes:
    """u8[h, w, 3], u8[h, w] or bool[h, w] (stored as 0 and 255) to PNG bytes, fast rather than small."""
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def resize_image(image: np.ndarray, size: int, mode: str = "square", crop: int = 0) -> np.ndarray:
    """u8[h, w, 3] to u8[H, W, 3]: PIL's bilinear filter, which averages when it shrinks (antialiased; RD4AD's choice).

    mode 'square': size x size, the aspect is not kept · 'short_crop': the short side to `size`, then the centre
    crop x crop (0: size), torchvision's arithmetic · 'none': unchanged. Raises UserError for another mode or a crop
    larger than `size`.

    >>> resize_image(np.zeros((40, 60, 3), np.uint8), 32, "short_crop", 28).shape
    (28, 28, 3)
    """
    return _resize(image, size, mode, crop, Image.Resampling.BILINEAR)


def resize_mask(mask: np.ndarray, size: int, mode: str = "square", crop: int = 0) -> np.ndarray:
    """bool[h, w] to bool[H, W], nearest neighbour, in the geometry of `resize_image`."""
    return _resize(mask.astype(np.uint8), size, mode, crop, Image.Resampling.NEAREST) > 0


def _resize(array: np.ndarray, size: int, mode: str, crop: int, resample: Image.Resampling) -> np.ndarray:
    if mode not in MODES:
        raise UserError(f"config.data.resize is {mode!r}; it must be one of {', '.join(MODES)}")
    if mode == "none":
        return array
    height, width = array.shape[:2]
    if mode == "square":
        target = (size, size)
    else:
        crop = crop or size
        if crop > size:
            raise UserError(f"config.data.crop_size={crop} is larger than config.data.image_size={size}; lower it")
        short = min(height, width)
        target = (int(size * height / short), int(size * width / short))
    if target != (height, width):
        array = np.array(Image.fromarray(array).resize(target[::-1], resample))
    if mode == "short_crop":
        top, left = (int(round((side - crop) / 2.0)) for side in target)
        array = array[top : top + crop, left : left + crop]
    return np.ascontiguousarray(array)


def _open(source: bytes | str | os.PathLike, name: str) -> tuple[Image.Image, str]:
    if isinstance(source, bytes):
        name, data = name or "an image", source
    else:
        name = name or os.fspath(source)
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise UserError(f"{name} cannot be read ({error.strerror or error}); restore or remove it") from error
    try:
        return Image.open(io.BytesIO(data)), name
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> UserError:
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
    return UserError(f"{name} is truncated or unreadable ({reason}); restore or remove it")


def _16_to_8(grey: np.ndarray) -> np.ndarray:
    return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)  # round(v / 257): 0 -> 0, 65535 -> 255


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _kind(image: Image.Image) -> str:
    if image.mode in _16_BIT:
        return "grey 16-bit"
    if image.mode in ("RGB", "RGBA") and _raw_16_bit(image):
        return "RGB 16-bit" if image.mode == "RGB" else "RGB+alpha 16-bit"
    names = {"L": "grey 8-bit", "RGB": "RGB 8-bit", "1": "black and white", "P": "palette", "F": "float"}
    names |= {"RGBA": "RGB+alpha 8-bit", "LA": "grey+alpha 8-bit", "CMYK": "CMYK 8-bit"}
    return names.get(image.mode, image.mode)


def _raw_16_bit(image: Image.Image) -> bool:
    tiles = getattr(image, "tile", ())
    return any("16" in str(tile[-1]) for tile in tiles)  # PIL hides the depth of 16-bit colour in the raw mode
