"""The bootstrap: resampling by loops, and its seed."""

from __future__ import annotations

import numpy as np

from jaxad.metrics import bootstrap_auroc, image_metrics


def test_bootstrap_equals_resampling_by_loops():
    rng = np.random.default_rng(3)
    scores, labels = rng.integers(0, 6, 25).astype(float), rng.uniform(size=25) < 0.4
    scores[labels] += 1
    low, high = bootstrap_auroc(scores, labels, resamples=4000, seed=1)
    normal, anomalous = scores[~labels], scores[labels]
    values = []
    for _ in range(4000):
        a, b = rng.choice(anomalous, anomalous.size), rng.choice(normal, normal.size)
        values.append(np.mean((a[:, None] > b) + 0.5 * (a[:, None] == b)))
    np.testing.assert_allclose([low, high], np.quantile(values, [0.025, 0.975]), atol=0.012)
    assert low < image_metrics(scores, labels)["image_auroc"] < high


def test_bootstrap_is_seeded_and_absent_with_one_class():
    scores, labels = np.random.default_rng(0).normal(size=30), np.arange(30) % 4 == 0
    assert bootstrap_auroc(scores, labels, seed=2) == bootstrap_auroc(scores, labels, seed=2)
    assert bootstrap_auroc(scores, labels, seed=2) != bootstrap_auroc(scores, labels, seed=3)
    assert bootstrap_auroc(scores, np.zeros(30, bool)) is None
