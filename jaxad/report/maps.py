"""Maps before thresholding (AnoSeg, figs. 7, 8 and 13 to 17): image, mask, map, and what else the method pictures."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from jaxad.decision import Threshold
from jaxad.report import drawing
from jaxad.report.overlays import ImageOf, in_turn
from jaxad.types import Predictions

CELL = 128  # pixels, the longer side of a tile
COLUMNS = 8
NORMALS = 2  # of the columns
NOTHING = (226, 229, 232)  # where there is no mask


def extras(found: Predictions) -> dict[str, np.ndarray]:
    """{name: u8[N, H, W, 3]} of the extras that are pictures."""
    return {name: values for name, values in found.extras.items() if values.ndim == 4}


def choose(found: Predictions) -> list[int]:
    """At most COLUMNS rows: the first images of each defect type in turn, then the first NORMALS normal ones."""
    of_type: dict[str, list[int]] = {}
    normal = []
    for row, record in enumerate(found.records):
        (of_type.setdefault(record.defect, []) if record.label else normal).append(row)
    normal = normal[:NORMALS]
    return in_turn([of_type[name] for name in sorted(of_type)])[: COLUMNS - len(normal)] + normal


def sheet(category: str, found: Predictions, limit: Threshold, image_of: ImageOf) -> Image.Image:
    """A column per chosen image; rows: image, ground truth, map, then a row per picture in `found.extras`.

    The map is grey from one end of `found.map_range`, black, to the other, white: as it is, nothing rescaled. Where
    the maps are on no scale, it has the colours of the category's heat maps.
    """
    chosen = choose(found)
    width, height = size = drawing.tile_size(*found.maps.shape[1:], CELL)
    rows = _rows(found, limit, size, image_of)
    margin, gap, side, head, bar = 16, 5, 118, 92, 0 if found.map_range else 150
    left = margin + side
    total = left + max(COLUMNS // 2, len(chosen)) * (width + gap) - gap + margin + bar
    canvas = Image.new("RGB", (total, head + len(rows) * (height + gap) - gap + margin), drawing.PAPER)
    draw = ImageDraw.Draw(canvas)
    bold, face, small = drawing.font(16, bold=True), drawing.font(12), drawing.font(11)
    title = drawing.shorten(f"{category} · maps before thresholding", total - 2 * margin, bold)
    draw.text((margin, 12), title, drawing.INK, bold)
    for column, row in enumerate(chosen):
        x, record = left + column * (width + gap), found.records[row]
        name = f"{record.defect}/{pathlib.PurePosixPath(record.path).stem}"
        draw.text((x, head - 40), drawing.shorten(name, width, small), drawing.INK, small)
        draw.text((x, head - 22), f"score {found.scores[row]:.4g}", drawing.FAINT, small)
    for number, (name, (word, tile_of)) in enumerate(rows.items()):
        y = head + number * (height + gap)
        middle = y + height / 2 - (9 if word else 0)
        draw.text((margin, middle), drawing.shorten(name, side - 8, face), drawing.INK, face, anchor="lm")
        draw.text((margin, middle + 17), drawing.shorten(word, side - 8, small), drawing.FAINT, small, anchor="lm")
        for column, row in enumerate(chosen):
            canvas.paste(tile_of(row), (left + column * (width + gap), y))
        if name == "anomaly map" and not found.map_range:
            drawing.colour_bar(draw, drawing.colour_scale(limit), total - margin - bar + 14, y, height)
    return canvas


def _rows(found: Predictions, limit: Threshold, size: tuple[int, int], image_of: ImageOf) -> Mapping[str, tuple]:
    """{label: (words below it, row of the split -> tile)}."""

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
    rows = {
        "image": ("", lambda row: drawing.photo(image_of(row), size)),
        "ground truth": ("grey: no mask" if no_mask else "", truth),
        "anomaly map": (ends, grey if found.map_range else heat),
    }
    for name, pictures in extras(found).items():
        rows[name if name not in rows else f"{name} (extra)"] = (
            "",
            lambda row, pictures=pictures: drawing.photo(pictures[row], size),
        )
    return rows
