"""The deviation loss of the Siamese U-Net: a score per image and layer, near 0 for normal images, p or more for others.

Sources: Lin and Lai, "Siamese U-Net for Image Anomaly Detection and Segmentation with Contrastive Learning", section
3.2.2, eq. 8; Pang et al., "Explainable Deep Few-shot Anomaly Detection with Deviation Networks", arXiv:2108.00462, from
where the top-k comes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxad.losses.distillation import distance_map
from jaxad.types import Array

SCORES = ("topk", "literal", "mean", "zscore")


def layer_score(
    teacher: Array, student: Array, score: str = "topk", k: float = 0.05, mask: Array | None = None
) -> Array:
    """The scalar S_i of eq. 8: features f[B, h, w, C] of teacher and student -> f32[B], larger = more anomalous.

    Departure: eq. 8 has |S_i| for the student's features themselves. Features are no scalar, and pulling their
    magnitude to 0 or p cannot change a map of cosines. So S_i is taken from d = 1 - cosine over the channels, in [0, 1]
    for features >= 0: the quantity that scores at test time.

    score:
      'topk'     the mean of the ceil(k h w) largest d: what the maximum of the map will see
      'mean'     the mean of d; small defects vanish in it
      'literal'  the mean of the student's features, as printed; `teacher` is not used
      'zscore'   as 'topk', for the caller to standardise by the scores of normal images (`standardise`)
    mask: bool[B, h, w], only for 'topk' and 'zscore': positions that count. An image with none has score 0.
    Raises ValueError for another score, and for k outside (0, 1].

    >>> teacher = jnp.array([[[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]]])
    >>> student = jnp.array([[[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]]])  # fails at one of four positions
    >>> [float(layer_score(teacher, student, score, k=0.5)[0]) for score in SCORES]
    [0.5, 0.5, 0.25, 0.5]
    """
    if score not in SCORES:
        raise ValueError(f"layer_score: score is one of {', '.join(SCORES)}, got {score!r}")
    if score == "literal":
        return jnp.mean(student.astype(jnp.float32), axis=(1, 2, 3))
    distance = distance_map(teacher, student)
    if score == "mean":
        return jnp.mean(distance, axis=(1, 2))
    if not 0 < k <= 1:
        raise ValueError(f"layer_score: k is a fraction of the positions in (0, 1], got {k}")
    if mask is not None:
        distance = jnp.where(mask, distance, -jnp.inf)
    flat = distance.reshape(len(distance), -1)
    top = jax.lax.top_k(flat, math.ceil(k * flat.shape[1]))[0]
    found = top > -jnp.inf
    return jnp.sum(jnp.where(found, top, 0.0), axis=1) / jnp.maximum(jnp.sum(found, axis=1), 1).astype(jnp.float32)


def standardise(scores: Mapping[str, Array], mean: Mapping[str, Array], var: Mapping[str, Array]) -> dict[str, Array]:
    """(score - mean) / standard deviation of the scores of normal images: {layer: f32[B]}, {layer: f32[]} twice.

    The reference distribution that deviation networks have and eq. 8 lacks. No gradient through mean and variance.

    >>> values = standardise({"layer1": jnp.array([3.0])}, {"layer1": jnp.array(1.0)}, {"layer1": jnp.array(4.0)})
    >>> values["layer1"].round(3).tolist()
    [1.0]
    """
    floor = 1e-12  # a variance of exactly 0, of one image, say
    mean, var = jax.lax.stop_gradient((mean, var))
    return {layer: (scores[layer] - mean[layer]) * jax.lax.rsqrt(var[layer] + floor) for layer in scores}


def deviation(scores: Mapping[str, Array], label: Array, p: float = 0.5) -> Array:
    """Eq. 8: the mean over layers of (1 - y) |S_i| + y max(0, p - S_i): {layer: f32[B]}, y: bool[B] -> f32[B].

    p: what the score of an anomaly should reach; at most 1 where scores are cosine distances of features >= 0.

    >>> values = deviation({"layer1": jnp.array([0.2, 0.2, 0.7])}, jnp.array([False, True, True]))
    >>> [round(float(value), 3) for value in values]
    [0.2, 0.3, 0.0]
    """
    terms = (jnp.where(label, jnp.maximum(p - score, 0.0), jnp.abs(score)) for score in scores.values())
    return sum(terms) / len(scores)
