"""Thresholds that turn a score into a decision.

A threshold for use comes from held-out normals (`quantile_threshold`); one that has seen the test labels is named
`oracle_...`.
"""

from __future__ import annotations

import numpy as np

from jaxad.metrics import ranking


def quantile_threshold(normal_scores, q: float) -> float:
    """The q-quantile of the scores of held-out normals; an image is called anomalous if score > threshold.

    The quantile is always one of the scores: of the two neighbours the higher ('higher', position ceil(q (n - 1)) of
    the sorted scores), never a value between. So at most a share 1 - q of these normals is called anomalous, and the
    decisions do not change under a strictly increasing transform of the scores. With n <= 1 / (1 - q) normals it is
    their maximum.

    Args:
      normal_scores: real[N], N >= 1, finite.
      q: in [0, 1].

    >>> quantile_threshold([3.0, 1.0, 2.0, 4.0], 0.5)
    3.0
    """
    scores = ranking.check_scores(normal_scores, "normal scores").ravel()
    if not scores.size:
        raise ValueError("no normal scores to set a threshold from; hold out normals with config.data.holdout")
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"quantile {q} is not in [0, 1]")
    return float(np.quantile(scores, q, method="higher")) + 0.0


def oracle_f1_threshold(scores, labels) -> float:
    """The threshold of the best F1 on these labels; an image is called anomalous if score >= threshold.

    Of several thresholds with the same F1 the highest; without anomalies every F1 is 0 and that is the largest score.

    Args:
      scores: real[N], N >= 1, finite.
      labels: bool[N], True = anomalous.

    >>> oracle_f1_threshold([2.3, 1.6, 2.6, 7.9, 3.3], [0, 0, 0, 1, 1])
    3.3
    """
    t = ranking.tally(scores, labels)
    if not t.n_anomalous and not t.n_normal:
        raise ValueError("no scores to set a threshold from")
    return ranking.best_f1(t)[1] if t.n_anomalous else float(t.normal[-1]) + 0.0
