"""k-NN vote, linear probe, collapse and chance: slow loops, closed cases, and what must not change them."""

from __future__ import annotations

import collections
import math
import time

import numpy as np
import pytest

from jaxad.metrics import representation
from jaxad.metrics.representation import chance, collapse, knn_top1, linear_top1


def blobs(rng, n, kinds, size, spread):
    """Features of `n` images around a centre per class."""
    centres = np.random.default_rng(7).standard_normal((kinds, size))
    labels = rng.integers(0, kinds, n)
    return (centres[labels] + spread * rng.standard_normal((n, size))).astype(np.float32), labels


def slow_knn(train, train_kinds, test, test_kinds, k, temperature):
    """One image, one neighbour at a time."""
    right = 0
    for x, kind in zip(test, test_kinds, strict=True):
        cosines = [float(x @ row) / math.sqrt(float(x @ x) * float(row @ row)) for row in train]
        votes = collections.Counter()
        for n in sorted(range(len(train)), key=lambda n: -cosines[n])[:k]:
            votes[int(train_kinds[n])] += math.exp(cosines[n] / temperature)
        right += max(votes, key=votes.get) == kind
    return right / len(test)


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (5, 0.07), (20, 0.5), (40, 0.02)])
def test_knn_is_the_vote_of_a_slow_loop(monkeypatch, k, temperature):
    monkeypatch.setattr(representation, "BLOCK", 7)  # several blocks, the last one short
    rng = np.random.default_rng(0)
    train, kinds = blobs(rng, 40, 4, 6, 1.5)
    test, test_kinds = blobs(rng, 30, 4, 6, 1.5)
    want = slow_knn(train.astype(float), kinds, test.astype(float), test_kinds, k, temperature)
    assert 0.3 < want < 1
    assert knn_top1(train, kinds, test, test_kinds, k, temperature) == pytest.approx(want)


def test_one_close_neighbour_outvotes_two_distant_ones_at_a_low_temperature_only():
    train, kinds = np.array([[1, 0.0], [0.6, 0.8], [0.6, -0.8]]), [3, 9, 9]
    query, kind = [[1.0, 0.0]], [3]
    assert knn_top1(train, kinds, query, kind, k=3, temperature=0.07) == 1  # exp(1 / T) > 2 exp(0.6 / T)
    assert knn_top1(train, kinds, query, kind, k=3, temperature=1.0) == 0  # below T = 0.4 / log 2 = 0.58 only


def test_knn_looks_at_directions_not_lengths():
    rng = np.random.default_rng(1)
    (train, kinds), (test, test_kinds) = blobs(rng, 60, 5, 8, 1.5), blobs(rng, 40, 5, 8, 1.5)
    lengths = [rng.uniform(0.1, 10, (len(x), 1)) for x in (train, test)]
    want = knn_top1(train, kinds, test, test_kinds)
    assert 0.3 < want < 1
    assert knn_top1(train * lengths[0], kinds, test * lengths[1], test_kinds) == want


def test_a_tiny_temperature_does_not_overflow():
    assert knn_top1([[1.0, 0.0], [0.9, 0.5]], [0, 1], [[1.0, 0.0]], [0], k=2, temperature=1e-4) == 1


def test_a_class_that_the_bank_lacks_is_never_found():
    train, kinds = [[1.0, 0.0], [0.0, 1.0]], [0, 1]
    test, test_kinds = [[1.0, 0.1], [0.1, 1.0]], [0, 2]
    assert knn_top1(train, kinds, test, test_kinds, k=1) == 0.5
    assert linear_top1(train, kinds, test, test_kinds) == 0.5


def test_the_linear_probe_separates_what_a_hyperplane_can_and_finds_chance_in_noise():
    rng = np.random.default_rng(2)
    (train, kinds), (test, test_kinds) = blobs(rng, 300, 5, 20, 0.3), blobs(rng, 200, 5, 20, 0.3)
    assert linear_top1(train, kinds, test, test_kinds) == 1.0
    noise = rng.standard_normal((500, 10)).astype(np.float32)
    labels = rng.integers(0, 5, 500)
    assert abs(linear_top1(noise[:300], labels[:300], noise[300:], labels[300:]) - 0.2) < 0.1


def test_the_linear_probe_is_blind_to_the_scale_and_offset_of_channels_and_to_constant_ones():
    rng = np.random.default_rng(3)
    (train, kinds), (test, test_kinds) = blobs(rng, 200, 4, 8, 2.0), blobs(rng, 200, 4, 8, 2.0)
    want = linear_top1(train, kinds, test, test_kinds)
    assert 0.4 < want < 1
    scale, offset = np.geomspace(1e-3, 1e3, 8), rng.uniform(-5, 5, 8)
    moved = [x * scale + offset * scale for x in (train, test)]
    assert abs(linear_top1(moved[0], kinds, moved[1], test_kinds) - want) <= 0.01
    rows = [np.concatenate([x, np.full((200, 1), 0.1)], 1) for x in (train, test)]
    rows[1][:, -1] += 1e-3  # in test the constant channel is another: to be ignored, not divided by 1e-9
    assert linear_top1(rows[0], kinds, rows[1], test_kinds) == want


def test_of_a_large_training_set_the_probe_draws_by_its_seed(monkeypatch):
    rng = np.random.default_rng(4)
    (train, kinds), (test, test_kinds) = blobs(rng, 200, 4, 8, 3.0), blobs(rng, 200, 4, 8, 3.0)
    every = linear_top1(train, kinds, test, test_kinds, seed=0)
    assert linear_top1(train, kinds, test, test_kinds, seed=1) == every
    monkeypatch.setattr(representation, "PROBE_MOST", 30)
    few = [linear_top1(train, kinds, test, test_kinds, seed=seed) for seed in (0, 0, 1, 2)]
    assert few[0] == few[1] and len(set(few)) > 1 and max(few) <= every + 0.02


@pytest.mark.slow
def test_the_linear_probe_of_5000_images_takes_less_than_20_seconds():
    rng = np.random.default_rng(5)
    (train, kinds), (test, test_kinds) = blobs(rng, 5000, 30, 512, 6.0), blobs(rng, 1000, 30, 512, 6.0)
    start = time.perf_counter()
    assert linear_top1(train, kinds, test, test_kinds) > 0.3
    assert time.perf_counter() - start < 20


def test_collapse_is_1_for_isotropic_features_and_falls_to_0():
    rng = np.random.default_rng(6)
    isotropic = rng.standard_normal((4000, 64))
    assert collapse(isotropic) == pytest.approx(1, abs=0.01)
    assert collapse(isotropic * rng.uniform(0.1, 9, (4000, 1))) == pytest.approx(collapse(isotropic), abs=1e-6)
    same = np.tile(rng.standard_normal(64), (100, 1)) * rng.uniform(0.1, 9, (100, 1))
    assert collapse(same) < 1e-6
    drifting = [collapse(isotropic + offset) for offset in (0, 1, 4, 16)]
    assert drifting == sorted(drifting, reverse=True) and drifting[-1] < 0.1


def test_collapse_of_a_closed_case():
    # Directions +-e1 alike often: std 1 in the first of two channels, 0 in the second.
    assert collapse([[2.0, 0.0], [-1.0, 0.0]]) == pytest.approx(0.5 * math.sqrt(2))


def test_dimensional_collapse_to_a_few_directions_is_seen():
    rng = np.random.default_rng(8)
    flat = rng.standard_normal((2000, 2)) @ np.eye(2, 64)
    assert collapse(flat) == pytest.approx(math.sqrt(2 / 64), abs=0.01)


def test_chance_of_even_classes_is_one_over_their_number():
    assert chance(np.repeat(np.arange(8), 5), np.repeat(np.arange(8), 3)) == 1 / 8
    assert chance([1, 1, 0], [0, 0, 0, 1]) == 0.25


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: knn_top1(np.eye(3), [0, 1, 2], np.eye(3), [0, 1, 2], k=4), "k=4: the bank holds 3 images"),
        (lambda: knn_top1(np.eye(3), [0, 1, 2], np.eye(3), [0, 1, 2], k=0), "k=0"),
        (lambda: knn_top1(np.eye(3), [0, 1, 2], np.eye(3), [0, 1, 2], k=1, temperature=0), "temperature=0"),
        (lambda: knn_top1(np.eye(3), [0, 1], np.eye(3), [0, 1, 2]), r"train features \(3, 3\) and train kinds \(2,\)"),
        (lambda: knn_top1(np.eye(3), [0, 1, 2], np.eye(2), [0, 1]), "differ in length"),
        (lambda: linear_top1(np.eye(3), [5, 5, 5], np.eye(3), [5, 5, 5]), "all training images are of class 5"),
        (lambda: linear_top1(np.eye(3) * np.nan, [0, 1, 2], np.eye(3), [0, 1, 2]), "9 of 9 train features are not fin"),
        (lambda: linear_top1(np.eye(3), [0, 1, 2], np.zeros((0, 3)), []), "test features must be"),
        (lambda: collapse(np.ones((1, 4))), "2 images or more"),
        (lambda: collapse(np.ones(4)), r"must be \[N, D\]"),
        (lambda: chance([], [1]), "no chance level"),
    ],
)
def test_misuse_is_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()
