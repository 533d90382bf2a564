"""What pattern generation pictures, on the sheet of maps: per direction what was predicted, and how it differs."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxad import inference
from jaxad.decision import Threshold
from jaxad.report import drawing, maps
from jaxad.scoring.triples import DIRECTIONS, assemble, partition, triples
from jaxad.types import AnomalyMap, Feed, Predictions, Stage, TrainState

SIDE, N = 32, 4
ROWS = (("predicted", 1), ("mask", 2))  # names, and how many times darker than the image
# Where a direction predicts nothing: the two patches that it begins with.
UNREACHED = {"lr": np.s_[:, :16], "rl": np.s_[:, 16:], "tb": np.s_[:16], "bt": np.s_[16:]}


def predict(state, batch):
    """Pictures as the method makes them: every patch that is a target in a direction, the others black."""
    patches, found, extras = partition(batch.image, N), triples(N), {}
    for place, direction in enumerate(DIRECTIONS):
        reached = np.isin(np.arange(N * N), found.target[found.direction == place])
        seen = assemble(jnp.where(reached[None, :, None, None, None], patches, 0.0), N)
        extras |= {f"{name}_{direction}": seen / divisor for name, divisor in ROWS}
    score = jnp.max(batch.image, axis=(1, 2, 3))
    return AnomalyMap(batch.image[..., 0], score, extras | {"prob": score})


@pytest.fixture(scope="module")
def found():
    """(what is said of six normal and four anomalous images, these images)."""
    stage = Stage("compare", Feed(4), 0, lambda *_: None, None, predict=predict, map_range=(0.0, 1.0))
    data = toy.ArrayData(n=6, size=SIDE, anomalies=4)
    return inference.predictions(stage, TrainState.create(), data, split="test", batch_size=5, seed=0), data


def test_the_rows_follow_the_reading_from_what_is_expected_to_how_it_differs(found):
    predictions, data = found
    assert set(predictions.extras) == {f"{name}_{end}" for name, _ in ROWS for end in DIRECTIONS} | {"prob"}
    limit = Threshold(0.9, 0.8, 0.4, "quantile", 0.995, "holdout", 40)
    chosen = maps.choose(predictions, limit)
    assert [(kind, len(rows)) for kind, rows in chosen.items()] == [("hit", 4), ("pass", 4)]
    picture = np.asarray(maps.sheet("carpet", predictions, limit, lambda row: data.image("test", row)))
    size = (maps.CELL, maps.CELL)
    rows = [("image", ""), *(("predicted", end) for end in maps.DIRECTIONS), ("truth", ""), ("map", "")]
    rows += [("mask", end) for end in maps.DIRECTIONS]
    assert list(maps.DIRECTIONS) == ["lr", "rl", "tb", "bt"] and set(maps.DIRECTIONS) == set(DIRECTIONS)
    for number, (name, end) in enumerate(rows):
        top = maps.TOP + number * (maps.CELL + maps.GAP) + (0, maps.APART, 2 * maps.APART)[(number > 4) + (number > 6)]
        for column, row in enumerate(sum(chosen.values(), [])):
            left = maps.LEFT + column * (maps.CELL + maps.GAP) + (column > 3) * maps.APART
            tile = picture[top : top + maps.CELL, left : left + maps.CELL]
            if name == "truth":
                assert (tile == 255).any() == predictions.records[row].label
                continue
            if name == "map":
                expected = drawing.resample(255 * predictions.maps[row], size)[..., None]
                assert np.abs(tile - expected).max() <= 1
                continue
            shown = data.images[row] / dict(ROWS).get(name, 1)
            if end:
                shown[UNREACHED[end]] = 0.0
            shown = (shown * 255 if name == "image" else np.round(shown * 255)).astype(np.uint8)
            np.testing.assert_array_equal(tile, np.asarray(drawing.photo(shown, size)), err_msg=f"{name} {end}")


def test_more_images_make_no_larger_sheet(found):
    predictions, data = found
    limit = Threshold(0.2, 0.2, 0.1, "quantile", 0.995, "holdout", 40)  # six false alarms
    chosen = maps.choose(predictions, limit)
    assert sum(map(len, chosen.values())) == maps.COLUMNS and list(chosen) == ["false_alarm", "hit"]
    picture = maps.sheet("carpet", predictions, limit, lambda row: data.image("test", row))
    assert picture.size[0] < 1300 and picture.size[1] < 1700


def test_only_a_known_end_makes_a_picture_one_of_several():
    named = {name: np.zeros((1, 4, 4, 3), np.uint8) for name in ("lr", "mask_rl", "colour_map", "mask", "mask_lr")}
    predictions = Predictions((), *[np.zeros(1)] * 3, 1.0, extras=named)
    rows = {name: [row.word for row in of] for name, of in maps._pictures(predictions, (8, 8)).items()}
    assert rows == {"lr": [""], "mask": ["", "left to right", "right to left"], "colour_map": [""]}
