"""The threshold: where it comes from, and what it says of itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxad import decision
from jaxad.decision import Threshold
from jaxad.types import DataSpec, Predictions, Record, UserError

SPEC = DataSpec("set", "cat", 6, 3, 0, 3, 0, True)
LIMIT = Threshold(3.0, 2.5, 0.0, "quantile", 0.995, "holdout", 400)


def predictions(labels, scores=None):
    """Random maps, those of anomalies ten higher; without `scores` their maxima."""
    labels = np.array(labels, bool)
    maps = np.random.default_rng(0).normal(size=(len(labels), 16, 16)).astype(np.float32)
    maps[labels] += 10
    scores = maps.max(axis=(1, 2)) if scores is None else np.array(scores, np.float32)
    records = tuple(Record(f"{row:03}.png", bool(label), "dent") for row, label in enumerate(labels))
    return Predictions(records, scores, maps, np.zeros(maps.shape, bool), 4.0)


def test_threshold_is_the_quantile_of_normals_only():
    normals = predictions([0, 0, 1, 0, 0], scores=[1, 2, 99, 3, 4])
    limit = decision.threshold(normals, source="train", quantile=0.5)
    assert limit.image == 3.0 and limit.n_images == 4
    assert limit.pixel == np.quantile(normals.maps[~normals.labels], decision.PIXEL_QUANTILE)
    assert limit.describe() == "3 (raw score) = 0.5 quantile of 4 training normals"


def test_threshold_never_comes_from_the_test_split():
    with pytest.raises(UserError, match="not from 'test'"):
        decision.threshold(predictions([0]), source="test")
    assert decision.threshold_split(SPEC) == "train"
    assert decision.threshold_split(dataclasses.replace(SPEC, n_holdout=2)) == "holdout"


def test_threshold_without_normals_or_of_an_unknown_rule_is_the_users_mistake():
    with pytest.raises(UserError, match="no normal image"):
        decision.threshold(predictions([1]), source="train")
    with pytest.raises(UserError, match="threshold.rule='best'"):
        decision.threshold(predictions([0]), source="train", rule="best")


def test_threshold_notes_say_when_it_is_optimistic_or_a_maximum():
    assert LIMIT.notes == ()
    weak = dataclasses.replace(LIMIT, source="train", n_images=20)
    assert weak.notes == (
        "threshold from training normals: optimistic; set data.holdout",
        "the 0.995 quantile of 20 images is their maximum",
    )


def test_a_score_at_the_threshold_is_normal():
    value = float(np.float32(0.1))
    limit = dataclasses.replace(LIMIT, image=value)
    np.testing.assert_array_equal(limit.calls(np.float32([0.1, np.nextafter(np.float32(0.1), np.float32(1))])), [0, 1])
