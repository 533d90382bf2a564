"""Several runs' maps in one picture: image, ground truth, then each run's map over the image (the SPD poster's figure).

Every run keeps a few anomalous test images and their maps in W/maps/CATEGORY.npz; the picture is made of those that all
runs have. jax is not imported.
"""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from jaxad.errors import UserError
from jaxad.report import drawing, files

if TYPE_CHECKING:
    from jaxad.decision import Threshold
    from jaxad.types import Predictions

MOST = 4  # images kept per category
SIDE = 256  # pixels, the longer side of what is kept; a larger image is made smaller
CELL = 192  # pixels, the longer side of a tile
OPAQUE = 0.75  # of the heat where the map is largest
VEIL = 0.35  # of the heat just above the threshold: where it begins can be seen
FOLDER = "maps"


class Kept(NamedTuple):
    """What a run keeps of one category. n images, all anomalous, in the order of their paths.

    paths: relative to the data root · images: u8[n, h, w, 3] · masks: bool[n, h, w] · maps: f32[n, h, w], raw ·
    low: the run's pixel threshold in this category · high: the largest value of all its test maps there.
    """

    paths: tuple[str, ...]
    images: np.ndarray
    masks: np.ndarray
    maps: np.ndarray
    low: float
    high: float


def choose(found: Predictions, count: int) -> list[int]:
    """At most `count` rows of anomalous images, each defect type in turn, in the order of the images' paths.

    Within a type the images are drawn by a digest of their paths: what one run keeps, another run keeps, too, where its
    test set has the image, as those of the one-class and the two-class protocols do in part. Even steps along the list
    would meet hardly twice.
    """
    of_type: dict[str, list[tuple[str, int]]] = {}
    for row, record in enumerate(found.records):
        if record.label:
            digest = hashlib.sha256(record.path.encode()).hexdigest()
            of_type.setdefault(record.defect, []).append((digest, row))
    ranked = [[(place, name, row) for place, (_, row) in enumerate(sorted(of_type[name]))] for name in sorted(of_type)]
    rows = [row for _, _, row in sorted(entry for entries in ranked for entry in entries)[:count]]
    return sorted(rows, key=lambda row: found.records[row].path)


def keep(
    workdir: pathlib.Path,
    category: str,
    found: Predictions,
    limit: Threshold,
    image_of: Callable[[int], np.ndarray],
    count: int = MOST,
) -> pathlib.Path | None:
    """Writes W/maps/CATEGORY.npz; without a chosen image, removes that of an earlier run.

    Args:
      found, limit: predictions of the test split and its threshold.
      image_of: row of the test split -> u8[H, W, 3], resized as the batches were.

    Raises UserError where the file cannot be written.
    """
    path = _file(workdir, category)
    rows = choose(found, count)
    if not rows:
        path.unlink(missing_ok=True)
        return None
    height, width = found.maps.shape[1:]
    size = drawing.tile_size(height, width, min(SIDE, max(height, width)))
    arrays = {
        "paths": np.array([found.records[row].path for row in rows]),
        "images": np.stack([np.asarray(drawing.photo(image_of(row), size)) for row in rows]),
        "masks": np.stack([drawing.shrink_mask(found.masks[row], size) for row in rows]),
        "maps": _shorten(np.stack([drawing.resample(found.maps[row], size) for row in rows])),
        "scale": np.array([limit.pixel, found.maps.max()], np.float64),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return files.write_bytes(path, buffer.getvalue())


def _shorten(maps: np.ndarray) -> np.ndarray:
    """f32 of any size rounded to 11 bits, as many as f16 has within its range: the zeros compress to nothing."""
    bits = np.ascontiguousarray(maps, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def read(run: str | os.PathLike, categories: Sequence[str]) -> dict[str, Kept]:
    """{category: what the run keeps of it}, of those that have anomalous images.

    Raises UserError where the run keeps nothing, or a file is broken.
    """
    kept = {}
    for category in categories:
        path = _file(run, category)
        try:
            with np.load(path, allow_pickle=False) as found:
                names = ("paths", "images", "masks", "maps", "scale")
                paths, images, masks, maps, scale = (found[name] for name in names)
        except FileNotFoundError:
            continue
        except Exception as error:  # what NumPy raises for a broken archive is of many kinds
            raise UserError(f"{path} is not readable; run the same command again") from error
        kept[category] = Kept(tuple(map(str, paths)), images, masks, maps, float(scale[0]), float(scale[1]))
    if not kept:
        raise UserError(
            f"{os.fspath(run)!r} has no {FOLDER}/CATEGORY.npz: it is of an older jaxad, drew no overlays, or its test "
            f"set has no anomalies; run the same command again with --config.report.overlays=20"
        )
    return kept


def write(path: str, kept: Mapping[str, Mapping[str, Kept]], methods: Mapping[str, str]) -> list[str]:
    """Draws the figure to `path`; returns what is to be said of it.

    Args:
      path: ends in .png.
      kept: {run: `read(run)`}.
      methods: {run: its method}.

    Raises UserError where no image is in all runs, or the file cannot be written.
    """
    rows = shared(kept)
    if not rows:
        raise UserError("--figure: no anomalous test image is in the maps of all the runs given")
    files.write_bytes(path, drawing.png(picture(kept, rows, methods)))
    counts = {category: sum(name == category for name, _ in rows) for category, _ in rows}
    told = ", ".join(f"{count} of {category}" for category, count in counts.items())
    return [f"wrote {path}: {told}; colours from each run's pixel threshold to the largest value of its test maps"]


def shared(kept: Mapping[str, Mapping[str, Kept]]) -> list[tuple[str, str]]:
    """(category, path) of the images that every run keeps, in the order of the first."""
    first, *others = kept.values()
    return [
        (category, path)
        for category, of in first.items()
        for path in of.paths
        if all(category in other and path in other[category].paths for other in others)
    ]


def picture(
    kept: Mapping[str, Mapping[str, Kept]], rows: Sequence[tuple[str, str]], methods: Mapping[str, str]
) -> Image.Image:
    """A row per image; columns: image and outlined ground truth as the first run saw them, then a run each."""
    first = next(iter(kept.values()))
    sizes = [drawing.tile_size(*first[category].masks.shape[1:], CELL) for category, _ in rows]
    margin, gap, head, foot, strip = 16, 8, 66, 56, 22
    columns = 2 + len(kept)
    total = 2 * margin + columns * (CELL + gap) - gap
    height = head + sum(tall + strip + gap for _, tall in sizes) + foot
    canvas = Image.new("RGB", (total, height), drawing.PAPER)
    draw = ImageDraw.Draw(canvas)
    bold, face, small = drawing.font(13, bold=True), drawing.font(12), drawing.font(11)
    lefts = [margin + column * (CELL + gap) for column in range(columns)]
    for left, (title, below) in zip(lefts, [("image", ""), ("ground truth", ""), *_titles(methods)], strict=True):
        draw.text((left, 22), drawing.shorten(title, CELL, bold), drawing.INK, bold)
        draw.text((left, 42), drawing.shorten(below, CELL, small), drawing.FAINT, small)
    top = head
    for (category, path), size in zip(rows, sizes, strict=True):
        plain, mask, _ = _of(first[category], path)
        image = drawing.photo(plain, size)
        truth = drawing.outline(image, drawing.shrink_mask(mask, size), drawing.TRUTH)
        name = "/".join(pathlib.PurePosixPath(path).with_suffix("").parts[-2:])
        tiles = [(image, f"{category} · {name}"), (truth, "" if mask.any() else "no mask")]
        for of in kept.values():
            own, _, values = _of(of[category], path)
            tiles.append((heat(own, values, of[category].low, of[category].high, size), _reach(of[category], values)))
        for left, (tile, caption) in zip(lefts, tiles, strict=True):
            canvas.paste(tile, (left, top))
            words = drawing.shorten(caption, CELL, small)
            draw.text((left, top + size[1] + strip / 2), words, drawing.FAINT, small, anchor="lm")
        top += size[1] + strip + gap
    _legend(canvas, draw, margin, top + 8, total - 2 * margin, face)
    return canvas


def heat(image: np.ndarray, values: np.ndarray, low: float, high: float, size: tuple[int, int]) -> Image.Image:
    """`image: u8[h, w, 3]` in grey under `values: f32[h, w]` in colour, where these are above `low`.

    The brightest colour is `high`; at `low` and below, the image shows alone.
    """
    values = drawing.resample(values, size)
    share = np.clip((values - low) / max(high - low, 1e-30), 0.0, 1.0)
    grey = np.asarray(drawing.photo(image, size).convert("L").convert("RGB"), np.float32)
    colours = drawing.palette()[_levels(share)].astype(np.float32)
    cover = np.where(share > 0, VEIL + (OPAQUE - VEIL) * share, 0.0)[..., None]
    return Image.fromarray(np.round((1 - cover) * grey + cover * colours).astype(np.uint8))


def _levels(share: np.ndarray) -> np.ndarray:
    """Places on the palette; its darkest quarter, which would read as shadow, is left out."""
    return np.round(64 + 191 * share).astype(np.uint8)


def _reach(of: Kept, values: np.ndarray) -> str:
    """How far up its run's scale this map goes."""
    if values.max() <= of.low:
        return f"largest {values.max():.3g}, below {of.low:.3g}"
    return f"largest {values.max():.3g} ({of.low:.3g} to {of.high:.3g})"


def _of(of: Kept, path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row = of.paths.index(path)
    return of.images[row], of.masks[row], of.maps[row]


def _titles(methods: Mapping[str, str]) -> list[tuple[str, str]]:
    """(folder, method) of each run; the whole path where two folders have one name."""
    own = {run: pathlib.PurePath(os.path.abspath(run)).name for run in methods}
    alike = len(set(own.values())) < len(own)
    return [(run if alike else own[run], method) for run, method in methods.items()]


def _legend(canvas: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: int, width: int, face) -> None:
    """The colours and what their ends mean."""
    bar = 120
    colours = drawing.palette()[_levels(np.linspace(0, 1, bar))]
    canvas.paste(Image.fromarray(np.repeat(colours[None], 12, axis=0)), (left, top))
    lines = (
        "from the run's pixel threshold (0.999 of its normal pixels lie below)",
        "to the largest value of its test maps, per category",
    )
    for number, words in enumerate(lines):
        at = (left + bar + 10, top + 6 + 17 * number)
        draw.text(at, drawing.shorten(words, width - bar - 10, face), drawing.INK, face, anchor="lm")


def _file(run: str | os.PathLike, category: str) -> pathlib.Path:
    return pathlib.Path(run) / FOLDER / f"{files.safe_name(category)}.npz"
