"""The sheet of maps before thresholding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxad.decision import Threshold
from jaxad.report import drawing, maps, overlays
from jaxad.types import Predictions, Record

LIMIT = Threshold(5.0, 4.0, 1.0, "quantile", 0.995, "holdout", 400)
STEP = maps.CELL + maps.GAP


def predictions(defects, value=0.5, size=32, **changes):
    found = np.full((len(defects), size, size), value, np.float32)
    masks = np.zeros(found.shape, bool)
    for row, defect in enumerate(defects):
        masks[row, :, : size // 2] = defect != "good"
    records = tuple(Record(f"cat/test/{d}/{row:03}.png", d != "good", d) for row, d in enumerate(defects))
    made = Predictions(records, found.max(axis=(1, 2)), found, masks, 1.0, map_range=(0.0, 1.0))
    return dataclasses.replace(made, **changes)


def grey(row):
    return np.full((32, 32, 3), 40 + row, np.uint8)


def tile(picture, row, column):
    """A tile of a sheet with one column in each group, and no pictures that are EXPECTED."""
    top = maps.TOP + row * STEP + (0, 1, 1, 2, 3)[row] * maps.APART
    left = maps.LEFT + column * (STEP + maps.APART)
    return np.asarray(picture)[top : top + maps.CELL, left : left + maps.CELL]


def height_of(rows, groups):
    return maps.TOP + rows * STEP + (groups - 1) * maps.APART - maps.GAP + maps.MARGIN


def test_the_images_are_those_of_the_overlays_grouped_by_outcome():
    defects = ["good"] * 4 + ["dent"] * 5 + ["crack"] * 2
    found = predictions(defects, scores=np.array([1, 2, 7, 8, 3, 6, 7, 8, 9, 4, 6], np.float32))
    chosen = maps.choose(found, LIMIT)
    assert list(chosen.items()) == [("miss", [4, 9]), ("false_alarm", [3, 2]), ("hit", [10, 8, 7]), ("pass", [1])]
    assert sorted(sum(chosen.values(), [])) == sorted(overlays.choose(found, LIMIT, maps.COLUMNS))
    assert [len(rows) for rows in maps.choose(predictions(["good"] * 9), LIMIT).values()] == [maps.COLUMNS]


def test_the_map_is_grey_on_its_own_scale_whatever_else_is_in_it():
    found = predictions(["dent", "good"])
    found.maps[0, :8], found.maps[1, :8] = 0.75, 0.0
    picture = maps.sheet("cat", found, LIMIT, grey)
    first, second = tile(picture, 2, 0), tile(picture, 2, 1)
    assert (first[-10:] == 128).all() and (second[-10:] == 128).all()  # 0.5, in maps of other extremes
    assert (first[:20] == 191).all() and (second[:20] == 0).all()
    wide = dataclasses.replace(found, map_range=(0.5, 1.5))
    assert (tile(maps.sheet("cat", wide, LIMIT, grey), 2, 0)[-10:] == 0).all()


def test_maps_on_no_scale_have_the_colours_of_the_category():
    found = predictions(["dent", "good"], value=4.0, map_range=None)
    drawn = tile(maps.sheet("cat", found, LIMIT, grey), 2, 0)
    colour = drawing.palette()[drawing.levels(np.float32(4.0), drawing.colour_scale(LIMIT))]
    assert (drawn == colour).all()


def test_rows_are_image_mask_map_and_every_picture_of_the_method():
    pictures = {name: np.full((2, 16, 16, 3), level, np.uint8) for name, level in (("rebuilt", 200), ("image", 90))}
    found = predictions(["dent", "good"], extras={**pictures, "score": np.zeros(2, np.float32)})
    picture = maps.sheet("cat", found, LIMIT, grey)
    assert picture.size[1] == height_of(5, groups=4)
    assert (tile(picture, 0, 0) == 40).all() and (tile(picture, 0, 1) == 41).all()
    truth = tile(picture, 1, 0)
    assert (truth[:, : maps.CELL // 2] == 255).all() and (truth[:, maps.CELL // 2 :] == 0).all()
    assert (tile(picture, 1, 1) == 0).all()
    assert (tile(picture, 3, 0) == 200).all() and (tile(picture, 4, 1) == 90).all()


def test_an_anomaly_that_nobody_drew_is_not_shown_as_normal():
    found = predictions(["dent", "good"])
    found.masks[:] = False
    picture = maps.sheet("cat", found, LIMIT, grey)
    assert (tile(picture, 1, 0) == maps.NOTHING).all() and (tile(picture, 1, 1) == 0).all()


@pytest.mark.parametrize("defects", [["good"], ["dent"], ["a very long name of a defect " * 3] * 9])
def test_any_mix_of_images_has_a_sheet_that_is_wide_enough_for_its_title(defects):
    picture = maps.sheet("category " * 40, predictions(defects), LIMIT, grey)
    assert picture.size[0] > 600 and picture.size[1] == height_of(3, groups=2)


def test_maps_that_are_not_square_keep_their_shape():
    found = predictions(["dent"])
    wide = dataclasses.replace(found, maps=found.maps[:, :16], masks=found.masks[:, :16])
    picture = maps.sheet("cat", wide, LIMIT, lambda row: np.zeros((16, 32, 3), np.uint8))
    assert picture.size[1] == height_of(3, groups=2) - 3 * maps.CELL // 2
