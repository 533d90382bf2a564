"""Draws what a stage is trained on: its images and every extra view of them, side by side.

  python -m jaxad.data.preview --config=configs/siamese_unet.py --config.data.root=FOLDER --out=sheet.png

One column per example, in the order in which the stage sees them: the image, its views (rotated, anomaly, ...), a mask
view as a picture and as an outline on the view that it belongs to. With several categories, sheet_CATEGORY.png each.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from absl import flags

from jaxad.errors import UserError, exit_code
from jaxad.flags import debug_asked, nearest, parse

if TYPE_CHECKING:
    from ml_collections import ConfigDict
    from PIL import Image

    from jaxad.types import Batch, Data, Stage

SMALL, LARGE = 96, 256  # pixels: a smaller tile is magnified by a whole factor, a larger one reduced to that
LEFT, TOP, GAP = 130, 68, 6  # pixels: the view names' column, title and captions, between tiles


class Example(NamedTuple):
    """One column. caption: lines above it · tiles: {name of the row: u8[h, w, 3], bool[h, w] or (image, mask)}."""

    caption: tuple[str, ...]
    tiles: Mapping[str, np.ndarray | tuple[np.ndarray, np.ndarray]]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: this process's) and returns its exit code."""
    argv = sys.argv if argv is None else argv

    def body() -> None:
        own = flags.FlagValues()
        flags.DEFINE_string("out", None, "the picture to write, a .png file", flag_values=own)
        flags.DEFINE_string("stage", "", "the stage to look at; none: the first that has views", flag_values=own)
        flags.DEFINE_integer("count", 12, "examples to draw", lower_bound=1, flag_values=own)
        parsed = parse(argv, own, __doc__)
        if parsed is None:
            return
        config, own = parsed
        if not own.out:
            raise UserError("no picture to write: --out=FILE.png")
        print(write(config, own.out, stage=own.stage, count=own.count))

    return exit_code(body, debug_asked(argv))


def write(config: ConfigDict, path: str, *, stage: str = "", count: int = 12) -> str:
    """Draws a sheet for every category of the config and returns a summary to print.

    path: a .png file; with several categories, each has its name put behind the stem · stage: the stage to look at;
    the first that has views, else the first, where empty · count: examples.
    Raises UserError for a stage that the method does not have, and a path that cannot be written.
    """
    from jaxad import methods
    from jaxad.data import pipeline

    _check(path)
    names = pipeline.categories(config)
    lines = []
    for category in names:
        data = pipeline.open(config, category)
        shown = _stage(config.method, methods.resolve(config.method).stages(config, data.spec), stage)
        batches = _batches(data, shown, config.seed, count)
        columns, left_out = examples(data, shown, batches, count)
        title = f"{category} · stage {shown.name} of {config.method} · split {shown.feed.split}, seed {config.seed}"
        stem, end = os.path.splitext(path)
        out = f"{stem}_{category}{end}" if len(names) > 1 else path
        _save(sheet(title, columns), out)
        rows = ", ".join(columns[0].tiles)
        lines.append(f"{out}: {len(columns)} examples of stage {shown.name}, {category}: {rows}")
        lines += [f"{category}: {what}: not a picture, not drawn" for what in left_out]
    return "\n".join(lines)


def _check(path: str) -> None:
    """Raises UserError where `path` can be seen not to work, before minutes of loading."""
    folder = os.path.dirname(path) or "."
    if not path.lower().endswith(".png"):
        raise UserError(f"--out={path}: the sheet is written as PNG; give a name that ends in .png")
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK) or os.path.isdir(path):
        raise UserError(f"cannot write {path}: {folder!r} is no folder that can be written to; choose another --out")


def _save(picture: Image.Image, path: str) -> None:
    from jaxad.drawing import png

    partial = f"{path}.partial"
    try:
        with open(partial, "wb") as file:
            file.write(png(picture))
        os.replace(partial, path)
    except OSError as error:
        if os.path.exists(partial):
            os.remove(partial)
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --out") from error


def _stage(method: str, stages: Sequence[Stage], name: str) -> Stage:
    found = {stage.name: stage for stage in stages}
    if name and name not in found:
        raise UserError(f"method {method!r} has no stage {name!r}{nearest(name, list(found))}")
    return found[name] if name else next((stage for stage in stages if stage.feed.views), stages[0])


def _batches(data: Data, stage: Stage, seed: int, count: int) -> list[Batch]:
    """The first batches of a stage, as many as hold `count` examples; an ordered feed ends with its split."""
    feed = stage.feed
    n = feed.one_pass(count)
    if not feed.shuffle:
        n = min(n, feed.one_pass(len(data.records(feed.split))))
    return list(data.batches(feed, seed=seed, stage=stage.name, start=0, stop=n, rows=slice(None)))


def examples(data: Data, stage: Stage, batches: Sequence[Batch], count: int) -> tuple[list[Example], list[str]]:
    """The columns of a sheet, and the views that are no pictures, as 'name dtype[shape]'."""
    records = data.records(stage.feed.split)
    columns, left_out = [], []
    labelled = any(batch.label.any() for batch in batches)
    for batch in batches:
        rows, left_out = _rows(batch)
        if labelled:
            rows["mask"], rows["image + mask"] = batch.mask, (rows["image"], batch.mask)
        for i in np.flatnonzero(batch.valid):
            tiles = {
                name: tuple(array[i] for array in of) if isinstance(of, tuple) else of[i] for name, of in rows.items()
            }
            record = records[batch.index[i]]
            about = f"#{batch.index[i]}" + (f" · {record.defect}" if record.label else "")
            columns.append(Example((os.path.basename(record.path), about), tiles))
    return columns[:count], left_out


def _rows(batch: Batch) -> tuple[dict[str, np.ndarray | tuple[np.ndarray, np.ndarray]], list[str]]:
    """{row: what to draw, for the whole batch}, and the views that are no pictures."""
    pictures: dict[str, np.ndarray] = {"image": _levels(batch.image)}
    masks, left_out = {}, []
    for name, view in batch.views.items():
        if view.ndim == 4 and view.shape[-1] in (1, 3) and view.dtype != bool:
            pictures[name] = _levels(view)
        elif view.ndim == 3 and view.dtype == bool:
            masks[name] = view
        elif view.ndim == 3 and np.issubdtype(view.dtype, np.floating):
            pictures[name] = _levels(view[..., None])
        else:
            left_out.append(f"{name} {view.dtype}{list(view.shape[1:])}")
    rows: dict[str, np.ndarray | tuple[np.ndarray, np.ndarray]] = dict(pictures)
    for name, mask in masks.items():
        rows[name] = mask
        # 'anomaly_mask' belongs to 'anomaly': what an op returns beside its image has the view's name in front
        owner = max((of for of in pictures if name.startswith(f"{of}_")), key=len, default=None)
        if owner and pictures[owner].shape[:3] == mask.shape:
            rows[f"{owner} + {name.removeprefix(f'{owner}_')}"] = (pictures[owner], mask)
    return rows, left_out


def _levels(images: np.ndarray) -> np.ndarray:
    """f[B, h, w, 1 or 3] in [0, 1], or u8 -> u8[B, h, w, 3]."""
    if images.dtype != np.uint8:
        images = np.round(np.clip(images, 0, 1) * np.float32(255)).astype(np.uint8)
    return np.broadcast_to(images, (*images.shape[:3], 3))


def sheet(title: str, columns: Sequence[Example]) -> Image.Image:
    """The picture: a column per example, a row per kind of tile, `corner(row, column, side)` the place of each."""
    from PIL import Image, ImageDraw

    from jaxad.drawing import FAINT, INK, PAPER, font, shorten

    rows = list(columns[0].tiles)
    side = tile_side(columns)
    right, bottom = corner(len(rows), len(columns), side)
    width = max(right, LEFT + 2 * LARGE)
    picture = Image.new("RGB", (width, bottom), PAPER)
    draw = ImageDraw.Draw(picture)
    bold = font(14, bold=True)
    draw.text((GAP, 8), shorten(title, width - 2 * GAP, bold), INK, bold)
    face = font(11)
    for row, name in enumerate(rows):
        place = (GAP, corner(row, 0, side)[1] + side / 2)
        draw.text(place, shorten(name, LEFT - 2 * GAP, face), INK, face, anchor="lm")
    for column, example in enumerate(columns):
        left = corner(0, column, side)[0]
        for n, (line, colour) in enumerate(zip(example.caption, (INK, FAINT), strict=True)):
            draw.text((left, TOP - 34 + 15 * n), shorten(line, side, face), colour, face)
        for row, name in enumerate(rows):
            picture.paste(_tile(example.tiles[name], side), corner(row, column, side))
    return picture


def tile_side(columns: Sequence[Example]) -> int:
    """Pixels of a tile's side."""
    side = len(columns[0].tiles["image"])
    return LARGE if side > LARGE else side * -(-SMALL // side)


def corner(row: int, column: int, side: int) -> tuple[int, int]:
    """(left, top) of a tile."""
    return LEFT + column * (side + GAP), TOP + row * (side + GAP)


def _tile(content: np.ndarray | tuple[np.ndarray, np.ndarray], side: int) -> Image.Image:
    from PIL import Image

    from jaxad.drawing import TRUTH, outline, shrink_mask

    image, mask = content if isinstance(content, tuple) else (content, None)
    if image.dtype == bool:
        image = np.repeat(np.where(image, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)
    # pixels stay what they are where a tile is as large or a multiple; BOX averages where it is smaller
    exact = side % image.shape[0] == 0 and side % image.shape[1] == 0
    how = Image.Resampling.NEAREST if exact else Image.Resampling.BOX
    tile = Image.fromarray(np.ascontiguousarray(image)).resize((side, side), how)
    return tile if mask is None else outline(tile, shrink_mask(mask, (side, side)), TRUTH)


if __name__ == "__main__":
    sys.exit(main())
