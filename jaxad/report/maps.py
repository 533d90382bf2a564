"""Maps before thresholding (AnoSeg, figs. 7, 8 and 13 to 17): image, mask, map, and what else the method pictures."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from jaxad.decision import Threshold
from jaxad.report import drawing, overlays
from jaxad.types import Predictions

CELL = 128  # pixels, the longer side of a tile
COLUMNS = 8
LEFT, TOP, GAP, APART = 134, 112, 5, 12  # pixels: left of and above the tiles, between two, more between groups of them
MARGIN = 16
BADGE = 100  # pixels, the longest name of an outcome
NOTHING = (226, 229, 232)  # where there is no mask
EXPECTED = ("predicted", "reconstruction", "ad_reconstruction")  # pictures of the image as it should be
# Ends of a picture's name, in this order: the way along which the method went through the image.
DIRECTIONS = {"lr": "left to right", "rl": "right to left", "tb": "top to bottom", "bt": "bottom to top"}


class Row(NamedTuple):
    """One row of the sheet. word: said below its name · tile: row of the split -> its tile."""

    name: str
    word: str
    tile: Callable[[int], Image.Image]


def extras(found: Predictions) -> dict[str, np.ndarray]:
    """{name: u8[N, H, W, 3]} of the extras that are pictures."""
    return {name: values for name, values in found.extras.items() if values.ndim == 4}


def choose(found: Predictions, limit: Threshold) -> dict[str, list[int]]:
    """{outcome: rows}, in the order of OUTCOMES: the first COLUMNS that have an overlay, the worst mistakes first."""
    chosen: dict[str, list[int]] = {name: [] for name in overlays.OUTCOMES}
    for row in overlays.choose(found, limit, COLUMNS):
        chosen[overlays.outcome(found.records[row].label, float(found.scores[row]), limit)].append(row)
    return {name: rows for name, rows in chosen.items() if rows}


def sheet(category: str, found: Predictions, limit: Threshold, image_of: overlays.ImageOf) -> Image.Image:
    """A column per chosen image, grouped by outcome; rows: the image and the pictures that are EXPECTED of it, ground
    truth and map, then every other picture in `found.extras`. Pictures whose names differ in their ends alone, one per
    direction, stand together.

    The map is grey from one end of `found.map_range`, black, to the other, white: as it is, nothing rescaled. Where
    the maps are on no scale, it has the colours of the category's heat maps.
    """
    chosen = choose(found, limit)
    width, height = size = drawing.tile_size(*found.maps.shape[1:], CELL)
    groups = _groups(found, limit, size, image_of)
    columns = _places([len(rows) for rows in chosen.values()], LEFT, width, BADGE)
    lines = _places([len(rows) for rows in groups], TOP, height)
    bar = 0 if found.map_range else 150
    total = max(columns[-1][-1] + width, LEFT + COLUMNS // 2 * (width + GAP) - GAP) + MARGIN + bar
    canvas = Image.new("RGB", (total, lines[-1][-1] + height + MARGIN), drawing.PAPER)
    draw = ImageDraw.Draw(canvas)
    bold, face, small = drawing.font(16, bold=True), drawing.font(12), drawing.font(11)
    title = drawing.shorten(f"{category} · maps before thresholding", total - 2 * MARGIN, bold)
    draw.text((MARGIN, 12), title, drawing.INK, bold)
    for (kind, rows), lefts in zip(chosen.items(), columns, strict=True):
        drawing.badge(draw, lefts[0], TOP - 64, kind, 11)
        for x, row in zip(lefts, rows, strict=True):
            record = found.records[row]
            name = f"{record.defect}/{pathlib.PurePosixPath(record.path).stem}"
            draw.text((x, TOP - 38), drawing.shorten(name, width, small), drawing.INK, small)
            draw.text((x, TOP - 21), f"score {found.scores[row]:.4g}", drawing.FAINT, small)
    room = LEFT - MARGIN - 8
    for of, tops in zip(groups, lines, strict=True):
        for row, y in zip(of, tops, strict=True):
            middle = y + height / 2 - (9 if row.word else 0)
            draw.text((MARGIN, middle), drawing.shorten(row.name, room, face), drawing.INK, face, anchor="lm")
            draw.text((MARGIN, middle + 17), drawing.shorten(row.word, room, small), drawing.FAINT, small, anchor="lm")
            for lefts, members in zip(columns, chosen.values(), strict=True):
                for x, member in zip(lefts, members, strict=True):
                    canvas.paste(row.tile(member), (x, y))
    if not found.map_range:
        drawing.colour_bar(draw, drawing.colour_scale(limit), total - MARGIN - bar + 14, lines[1][1], height)
    return canvas


def _places(counts: list[int], start: int, size: int, least: int = 0) -> list[list[int]]:
    """Where tiles of `size` pixels begin, per group; a group takes `least` pixels or more.

    >>> _places([2, 1], 100, 10)
    [[100, 115], [142]]
    """
    places = []
    for count in counts:
        places.append([start + number * (size + GAP) for number in range(count)])
        start = max(places[-1][-1] + size + GAP, start + least) + APART
    return places


def _groups(found: Predictions, limit: Threshold, size: tuple[int, int], image_of: overlays.ImageOf) -> list[list[Row]]:
    """The rows of the sheet: [image, what is EXPECTED of it], [ground truth, map], then a group per other picture."""

    def truth(row: int) -> Image.Image:
        mask = found.masks[row]
        if found.records[row].label and not mask.any():
            return Image.new("RGB", size, NOTHING)
        return Image.fromarray(255 * drawing.shrink_mask(mask, size).astype(np.uint8)).convert("RGB")

    def heat(row: int) -> Image.Image:
        return drawing.heat(found.maps[row], drawing.colour_scale(limit), size)

    def grey(row: int) -> Image.Image:
        scale = drawing.Scale(found.map_range[0], limit.pixel, found.map_range[1])
        return Image.fromarray(drawing.levels(drawing.resample(found.maps[row], size), scale)).convert("RGB")

    no_mask = any(record.label and not mask.any() for record, mask in zip(found.records, found.masks, strict=True))
    ends = "black {:.4g}, white {:.4g}".format(*found.map_range) if found.map_range else ""
    first = [Row("image", "", lambda row: drawing.photo(image_of(row), size))]
    second = [
        Row("ground truth", "grey: no mask" if no_mask else "", truth),
        Row("anomaly map", ends, grey if found.map_range else heat),
    ]
    pictures = _pictures(found, size)
    for name in EXPECTED:
        first += pictures.pop(name, [])
    return [first, second, *pictures.values()]


def _pictures(found: Predictions, size: tuple[int, int]) -> dict[str, list[Row]]:
    """{name: its rows}: one, or one per direction."""
    named: dict[str, dict[str, np.ndarray]] = {}
    for full, values in extras(found).items():
        name, _, end = full.rpartition("_")
        name, end = (name, end) if name and end in DIRECTIONS else (full, "")
        named.setdefault(name, {})[end] = values
    return {
        name: [
            Row(name, DIRECTIONS.get(end, ""), lambda row, values=ends[end]: drawing.photo(values[row], size))
            for end in ("", *DIRECTIONS)
            if end in ends
        ]
        for name, ends in named.items()
    }
