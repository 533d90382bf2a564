"""Thresholds: closed cases, and the promise each rule makes."""

from __future__ import annotations

import numpy as np
import pytest

from jaxad.metrics import oracle_f1_threshold, quantile_threshold


@pytest.mark.parametrize(
    "labels, scores, want",
    [
        ([0, 0, 0, 1, 1], [2.3, 1.6, 2.6, 7.9, 3.3], 3.3),
        ([1, 0, 0, 0], [4, 3, 2, 1], 4),
        ([1, 1, 1, 1], [4, 3, 2, 1], 1),
        ([0, 0, 0, 0], [4, 3, 2, 1], 4),
    ],
)
def test_oracle_f1_threshold_of_closed_cases(labels, scores, want):
    assert oracle_f1_threshold(np.array(scores, float), labels) == want


def test_at_most_the_asked_share_of_the_normals_is_above_the_quantile_threshold():
    rng = np.random.default_rng(3)
    for n in (1, 2, 7, 100, 333):
        for scores in (rng.standard_normal(n), rng.integers(0, 4, n).astype(float)):
            for q in (0.0, 0.5, 0.9, 0.995, 1.0):
                threshold = quantile_threshold(scores, q)
                assert threshold in scores
                assert (scores > threshold).sum() <= (1 - q) * n + 1e-9


def test_quantile_threshold_takes_the_higher_neighbour():
    assert quantile_threshold([4.0, 1.0, 3.0, 2.0], 0.5) == 3.0
    assert quantile_threshold(np.arange(100.0), 0.995) == 99.0
    assert quantile_threshold(np.arange(1001.0), 0.995) == 995.0


def test_decisions_of_the_quantile_threshold_survive_an_increasing_transform():
    rng = np.random.default_rng(5)
    normal, new = rng.standard_normal(50), rng.standard_normal(80) + 1
    want = new > quantile_threshold(normal, 0.9)
    assert 0 < want.sum() < 80
    np.testing.assert_array_equal(np.exp(3 * new) > quantile_threshold(np.exp(3 * normal), 0.9), want)


@pytest.mark.parametrize(
    "scores, q, message",
    [
        ([], 0.9, "no normal scores"),
        ([1.0], 1.5, r"1.5 is not in \[0, 1\]"),
        ([np.nan], 0.9, "1 of 1 normal scores are not"),
    ],
)
def test_bad_quantile_threshold_is_refused(scores, q, message):
    with pytest.raises(ValueError, match=message):
        quantile_threshold(np.array(scores, float), q)


def test_oracle_threshold_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no scores"):
        oracle_f1_threshold(np.zeros(0), np.zeros(0, bool))
