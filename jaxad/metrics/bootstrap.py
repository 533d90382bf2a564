"""How sure a metric is: its interval over images drawn again."""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000  # of the bootstrap; the ends of a 95 % interval then rest on 25 resamples each


def bootstrap_auroc(
    scores: np.ndarray, labels: np.ndarray, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """The percentile interval of the AUROC, images resampled with replacement within each class.

    scores: f[N] · labels: bool[N]. None where a class is empty. (Efron and Tibshirani 1993, section 13.3.)

    >>> bootstrap_auroc(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]))
    (1.0, 1.0)
    """
    labels = np.asarray(labels, bool)
    n, m = int(np.sum(~labels)), int(np.sum(labels))
    if n == 0 or m == 0:
        return None
    order = np.argsort(scores, kind="stable")
    labels = labels[order]
    starts = np.flatnonzero(np.diff(np.asarray(scores)[order], prepend=-np.inf))  # one group per distinct score
    rng = np.random.default_rng(seed)
    values = []
    for block in np.array_split(np.arange(resamples), -(-resamples * len(labels) // 5_000_000)):  # flat memory
        times = np.empty((len(block), len(labels)), np.int64)  # how often each image was drawn
        times[:, ~labels] = rng.multinomial(n, np.full(n, 1 / n), size=len(block))
        times[:, labels] = rng.multinomial(m, np.full(m, 1 / m), size=len(block))
        normal = np.add.reduceat(np.where(labels, 0, times), starts, axis=1)
        anomalous = np.add.reduceat(np.where(labels, times, 0), starts, axis=1)
        below = np.cumsum(normal, axis=1) - normal
        values.append(np.sum(anomalous * (2 * below + normal), axis=1) / (2 * n * m))  # ties count one half
    low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
