"""What is drawn, in which order, on which scale."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from PIL import Image

from jaxad.decision import Threshold
from jaxad.report import drawing, overlays
from jaxad.types import Predictions, Record

LIMIT = Threshold(5.0, 4.0, 1.0, "quantile", 0.995, "holdout", 400)


def predictions(scores, defects, size=32):
    """Maps that are flat at the score; the defect is the left half."""
    scores = np.array(scores, np.float32)
    maps = np.broadcast_to(scores[:, None, None], (len(scores), size, size)).copy()
    masks = np.zeros(maps.shape, bool)
    for row, defect in enumerate(defects):
        masks[row, :, : size // 2] = defect != "good"
    records = tuple(Record(f"cat/test/{d}/{row:03}.png", d != "good", d) for row, d in enumerate(defects))
    return Predictions(records, scores, maps, masks, 1.0)


def grey(row):
    return np.full((32, 32, 3), 40 + row, np.uint8)


def test_mistakes_come_first_the_worst_before_the_others_in_turn():
    scores = [4.0, 1.0, 9.0, 6.0, 7.0, 8.0, 3.0]
    defects = ["dent", "dent", "good", "good", "dent", "crack", "good"]
    found = predictions(scores, defects)
    # misses 1.0, 4.0; false alarms 9.0, 6.0; hits crack 8.0, dent 7.0; passed 3.0
    assert overlays.choose(found, LIMIT, 7) == [1, 2, 0, 3, 5, 4, 6]
    assert overlays.choose(found, LIMIT, 2) == [1, 2]


def test_hits_keep_some_places_when_mistakes_are_many():
    found = predictions([9.0] * 10 + [7.0, 8.0, 6.0], ["good"] * 10 + ["dent", "dent", "crack"])
    chosen = overlays.choose(found, LIMIT, 5)
    assert [found.records[row].defect for row in chosen] == ["good", "good", "good", "crack", "dent"]
    assert len(overlays.choose(found, LIMIT, 50)) == 13  # all of them, where there is room


def test_file_names_tell_place_outcome_defect_and_stem(tmp_path):
    found = predictions([1.0, 9.0, 6.0, 2.0], ["large dent", "good", "dent", "good"])
    (tmp_path / "cat_004_hit_old_x.png").touch()
    (tmp_path / "cat_b_000_hit_old_x.png").touch()
    written = overlays.write(tmp_path, "cat", found, LIMIT, grey, 20)
    assert [path.name for path in written] == [
        "cat_000_miss_large_dent_000.png",
        "cat_001_false_alarm_good_001.png",
        "cat_002_hit_dent_002.png",
        "cat_003_pass_good_003.png",
    ]
    assert set(os.listdir(tmp_path)) == {path.name for path in written} | {"cat_b_000_hit_old_x.png"}
    assert len({Image.open(path).size for path in written}) == 1


def test_a_value_has_one_colour_in_every_image_of_a_category():
    scale = drawing.colour_scale(LIMIT)
    assert scale == (1.0, 4.0, 10.0)
    low, high = np.full((8, 8), 3.0), np.full((8, 8), 3.0)
    low[0, 0], high[0, 0] = -50, 400  # extremes elsewhere in the map must not move the colour of 3.0
    colours = [np.asarray(drawing.heat(m, scale, (8, 8)))[7, 7] for m in (low, high)]
    np.testing.assert_array_equal(*colours)
    np.testing.assert_array_equal(drawing.levels(np.array([0.0, 1.0, 5.5, 10.0, 99.0]), scale), [0, 0, 128, 255, 255])


def test_constant_normals_still_give_a_scale():
    scale = drawing.colour_scale(Threshold(0.0, 0.0, 0.0, "quantile", 0.995, "train", 3))
    assert list(drawing.levels(np.array([0.0, 1.0]), scale)) == [0, 255]


def test_an_outline_surrounds_the_mask_and_leaves_its_inside_alone():
    tile = Image.fromarray(np.full((20, 20, 3), 90, np.uint8))
    mask = np.zeros((20, 20), bool)
    mask[8:12, 6:14] = True
    drawn = np.asarray(drawing.outline(tile, mask, drawing.TRUTH))
    assert (drawn[mask] == 90).all() and (drawn[0] == 90).all()
    green = (drawn == drawing.TRUTH).all(axis=-1)
    assert green[7, 10] and green[12, 10] and green[10, 5] and green[10, 14] and not green[mask].any()
    assert drawing.outline(tile, np.zeros((20, 20), bool), drawing.TRUTH) is tile


def test_an_outline_follows_the_border_where_the_mask_is_cut():
    tile = Image.fromarray(np.full((20, 20, 3), 90, np.uint8))
    drawn = np.asarray(drawing.outline(tile, np.ones((20, 20), bool), drawing.TRUTH))
    green = (drawn == drawing.TRUTH).all(axis=-1)
    assert green[0].all() and green[:, -1].all() and not green[3:-3, 3:-3].any()


def test_a_one_pixel_defect_survives_being_made_smaller():
    mask = np.zeros((500, 500), bool)
    mask[311, 77] = True
    assert drawing.shrink_mask(mask, (256, 256)).sum() >= 1


def test_the_panel_shows_heat_and_contour_where_the_map_is_high():
    found = predictions([9.0], ["dent"])
    found.maps[0] = 1.0
    found.maps[0, 8:24, 20:30] = 9.0
    picture = np.asarray(overlays.panel("cat", found, 0, LIMIT, grey(0)))
    left, side, gap, top = 16, overlays.SIDE, 10, 62
    tiles = [picture[top : top + side, left + n * (side + gap) :][:, :side] for n in range(4)]
    assert (tiles[0] == 40).all()
    inside = (slice(80, 170), slice(170, 230))  # of the bright square, 8 pixels to one
    np.testing.assert_array_equal(tiles[2][120, 200], drawing.palette()[round(255 * 8 / 9)])
    np.testing.assert_array_equal(tiles[2][10, 10], drawing.palette()[0])
    red, green = (
        (tile == colour).all(axis=-1) for tile, colour in ((tiles[3], drawing.FOUND), (tiles[1], drawing.TRUTH))
    )
    assert red.any() and not red[inside].any() and red[55:65, 170:230].any()
    assert green[:, 128:130].all() and not green[:, 140:].any()


@pytest.mark.parametrize(
    "scores, defects",
    [([3.0, 4.0], ["good", "good"]), ([9.0, 2.0], ["dent", "dent"]), ([9.0], ["an extremely long defect name " * 4])],
)
def test_sheet_and_panels_work_without_anomalies_or_normals(scores, defects):
    found = predictions(scores, defects)
    picture = overlays.sheet("category " * 40, found, LIMIT, grey)
    assert picture.size[0] > 1000
    overlays.panel("category " * 40, found, 0, LIMIT, grey(0))


def test_images_that_are_not_square_keep_their_shape():
    found = predictions([9.0, 2.0], ["dent", "good"])
    wide = Predictions(found.records, found.scores, found.maps[:, :16], found.masks[:, :16], 1.0)
    picture = overlays.panel("cat", wide, 0, LIMIT, np.zeros((16, 32, 3), np.uint8))
    assert picture.size[1] == overlays.panel("cat", found, 0, LIMIT, grey(0)).size[1] - 128


def test_twenty_overlays_take_less_than_three_seconds_of_one_core(tmp_path):
    rng = np.random.default_rng(0)
    found = predictions(rng.uniform(0, 10, 30), ["good", "dent", "crack"] * 10, size=256)
    found.maps[:] += rng.normal(size=found.maps.shape)
    images = rng.integers(0, 256, (30, 256, 256, 3), np.uint8)
    drawing.font(12), drawing.palette()
    start = time.process_time()
    assert len(overlays.write(tmp_path, "cat", found, LIMIT, lambda row: images[row], 20)) == 20
    assert time.process_time() - start < 3
