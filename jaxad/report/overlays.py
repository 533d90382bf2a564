"""Pictures of what was found: a panel per image, the worst mistakes first, and a sheet that shows all at one glance."""

from __future__ import annotations

import itertools
import math
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from jaxad.decision import Threshold
from jaxad.report import drawing, files
from jaxad.types import Predictions

OUTCOMES = ("miss", "false_alarm", "hit", "pass")
MISTAKES_SHARE = 0.6  # of the overlays, where there are more mistakes than that: the rest shows what was found
SIDE = 256  # pixels, the longer side of a tile
CELL = 132  # the same on the sheet
COLUMNS = 5  # of the sheet

ImageOf = Callable[[int], np.ndarray]  # row of the test split -> u8[H, W, 3]


def outcome(label: bool, score: float, limit: Threshold) -> str:
    """'miss', 'false_alarm', 'hit' or 'pass'."""
    called = bool(limit.calls(np.float32(score)))
    return ("hit" if called else "miss") if label else ("false_alarm" if called else "pass")


def choose(found: Predictions, limit: Threshold, count: int) -> list[int]:
    """At most `count` rows: mistakes, the worst first and misses and false alarms in turn; then the clearest finds of
    each defect type in turn, and normal images that passed. Mistakes take at most MISTAKES_SHARE of the places unless
    there is nothing else to show."""
    rising = np.argsort(found.scores, kind="stable")
    rows: dict[str, list[int]] = {name: [] for name in OUTCOMES}
    for row in map(int, rising):
        rows[outcome(found.records[row].label, float(found.scores[row]), limit)].append(row)
    falling = {name: list(reversed(members)) for name, members in rows.items()}
    mistakes = in_turn([rows["miss"], falling["false_alarm"]])
    types = sorted({found.records[row].defect for row in rows["hit"]})
    hits = in_turn([[row for row in falling["hit"] if found.records[row].defect == name] for name in types])
    right = hits[: len(types)] + falling["pass"][:1] + hits[len(types) :] + falling["pass"][1:]
    mistakes = mistakes[: max(count - len(right), math.ceil(MISTAKES_SHARE * count))]
    return (mistakes + right)[:count]


def in_turn(lists: Sequence[Sequence[int]]) -> list[int]:
    """
    >>> in_turn([[1, 2, 3], [7]])
    [1, 7, 2, 3]
    """
    return [row for turn in itertools.zip_longest(*lists) for row in turn if row is not None]


def write(
    folder: pathlib.Path, category: str, found: Predictions, limit: Threshold, image_of: ImageOf, count: int
) -> list[pathlib.Path]:
    """Writes '<category>_<place>_<outcome>_<defect>_<stem>.png'; removes this category's from an earlier run."""
    name = files.safe_name(category)
    written = []
    for place, row in enumerate(choose(found, limit, count)):
        record = found.records[row]
        kind = outcome(record.label, float(found.scores[row]), limit)
        stem = files.safe_name(pathlib.PurePosixPath(record.path).stem)
        path = folder / f"{name}_{place:03d}_{kind}_{files.safe_name(record.defect)}_{stem}.png"
        written.append(files.write_bytes(path, drawing.png(panel(category, found, row, limit, image_of(row)))))
    files.remove_others(folder, rf"{re.escape(name)}_\d{{3}}_({'|'.join(OUTCOMES)})_.*\.png", written)
    return written


def panel(category: str, found: Predictions, row: int, limit: Threshold, image: np.ndarray) -> Image.Image:
    """Image | ground truth outline | heat map on the category's scale | contour at the pixel threshold.

    image: u8[H, W, 3], row `row` of the test split.
    """
    record, score = found.records[row], float(found.scores[row])
    kind = outcome(record.label, score, limit)
    scale = drawing.colour_scale(limit)
    width, height = size = drawing.tile_size(*found.maps[row].shape, SIDE)
    plain = drawing.photo(image, size)
    mask = found.masks[row]
    truth = drawing.outline(plain, drawing.shrink_mask(mask, size), drawing.TRUTH)
    above = drawing.resample(found.maps[row], size) > limit.pixel
    contour = drawing.outline(plain, above, drawing.FOUND)
    truth_caption = (
        "ground truth" if mask.any() else "ground truth: no mask" if record.label else "ground truth: normal"
    )
    found_caption = "above pixel threshold" if above.any() else "nothing above pixel threshold"

    margin, gap, head, foot, bar = 16, 10, 62, 30, 150
    total = 2 * margin + 4 * width + 3 * gap + bar
    canvas = Image.new("RGB", (total, head + height + foot), drawing.PAPER)
    draw = ImageDraw.Draw(canvas)
    bold, normal, small = drawing.font(15, bold=True), drawing.font(13), drawing.font(12)
    title = drawing.shorten(f"{category} · {record.defect}", total // 2, bold)
    draw.text((margin, 12), title, drawing.INK, bold)
    start = margin + round(bold.getlength(title)) + 14
    draw.text((start, 14), drawing.shorten(record.path, total - margin - start, normal), drawing.FAINT, normal)
    end = drawing.badge(draw, margin, 35, kind, 12)
    sign = ">" if kind in ("hit", "false_alarm") else "≤"
    line = f"score {score:.5g} {sign} threshold {limit.image:.5g} (raw)   {drawing.MEANING[kind]}"
    draw.text(
        (end + 10, 45), drawing.shorten(line, total - end - 10 - margin, normal), drawing.INK, normal, anchor="lm"
    )

    tiles = [
        (plain, "image"),
        (truth, truth_caption),
        (drawing.heat(found.maps[row], scale, size), f"heat map, largest {found.maps[row].max():.4g}"),
        (contour, found_caption),
    ]
    left = margin
    for tile, caption in tiles:
        canvas.paste(tile, (left, head))
        draw.text((left, head + height + 15), drawing.shorten(caption, width, small), drawing.FAINT, small, anchor="lm")
        left += width + gap
    drawing.colour_bar(draw, scale, left + 6, head, height)
    return canvas


def sheet(category: str, found: Predictions, limit: Threshold, image_of: ImageOf) -> Image.Image:
    """Rows of pairs (image with both outlines, heat map): the extremes of the normal and of the anomalous images."""
    rising = [int(row) for row in np.argsort(found.scores, kind="stable")]
    normal = [row for row in rising if not found.records[row].label]
    anomalous = [row for row in rising if found.records[row].label]
    rows = [
        ("anomalous, lowest scores first (misses, if any)", anomalous[:COLUMNS]),
        ("normal, highest scores first (false alarms, if any)", normal[::-1][:COLUMNS]),
        ("anomalous, highest scores first", anomalous[::-1][:COLUMNS]),
        ("normal, lowest scores first", normal[:COLUMNS]),
    ]
    rows = [(title, members) for title, members in rows if members]
    scale = drawing.colour_scale(limit)
    width, height = size = drawing.tile_size(*found.maps.shape[1:], CELL)
    margin, gap, head, strip, foot, bar = 16, 14, 64, 24, 22, 150
    total = 2 * margin + COLUMNS * (2 * width + 2) + (COLUMNS - 1) * gap + bar
    line = strip + height + foot + 8
    canvas = Image.new("RGB", (total, head + len(rows) * line + margin), drawing.PAPER)
    draw = ImageDraw.Draw(canvas)
    bold, face, small = drawing.font(16, bold=True), drawing.font(12), drawing.font(11)
    draw.text((margin, 12), drawing.shorten(category, total - 2 * margin, bold), drawing.INK, bold)
    _legend(draw, margin, 42, f"threshold {limit.describe()}", total - 2 * margin)
    for number, (title, members) in enumerate(rows):
        top = head + number * line
        draw.text((margin, top + strip / 2), title, drawing.INK, face, anchor="lm")
        for column, row in enumerate(members):
            left = margin + column * (2 * width + 2 + gap)
            record, score = found.records[row], float(found.scores[row])
            tile = drawing.outline(
                drawing.photo(image_of(row), size), drawing.shrink_mask(found.masks[row], size), drawing.TRUTH
            )
            tile = drawing.outline(tile, drawing.resample(found.maps[row], size) > limit.pixel, drawing.FOUND)
            canvas.paste(tile, (left, top + strip))
            canvas.paste(drawing.heat(found.maps[row], scale, size), (left + width + 2, top + strip))
            kind = outcome(record.label, score, limit)
            words = f"{kind.replace('_', ' ')}   {score:.4g}"
            below = top + strip + height + 11
            draw.text((left, below), words, drawing.BADGES[kind], drawing.font(11, bold=True), anchor="lm")
            start = drawing.font(11, bold=True).getlength(words) + 8
            place = f"{record.defect}/{pathlib.PurePosixPath(record.path).stem}"
            text = drawing.shorten(place, 2 * width - int(start), small)
            draw.text((left + start, below), text, drawing.FAINT, small, anchor="lm")
    drawing.colour_bar(draw, scale, total - margin - bar + 14, head + strip, height)
    return canvas


def _legend(draw: ImageDraw.ImageDraw, left: int, middle: int, text: str, width: int) -> None:
    """What the two lines mean, then `text`."""
    face = drawing.font(12)
    for colour, words in ((drawing.TRUTH, "ground truth"), (drawing.FOUND, "above pixel threshold")):
        draw.rectangle([left, middle - 4, left + 14, middle + 4], outline=colour, width=2)
        draw.text((left + 20, middle), words, drawing.INK, face, anchor="lm")
        left += 20 + round(face.getlength(words)) + 18
    draw.text((left, middle), drawing.shorten(text, width - left, face), drawing.FAINT, face, anchor="lm")
