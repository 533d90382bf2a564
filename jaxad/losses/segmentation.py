"""What a map of normality should be, where the truth is known (AnoSeg, eq. 2): 1 on normal pixels, 0 on anomalous ones.

Maps come as logits z: f32[B, H, W, C] with A_hat = sigmoid(z). `normal`: f32[B, H, W, 1], 1 = normal, 0 = anomalous;
it is compared with every channel. Each loss gives f32[B], one value per image.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxad.types import Array

SEGMENTATIONS = ("l1", "bce", "balanced_l1")


def segmentation(logits: Array, normal: Array, kind: str = "l1") -> Array:
    """`l1` (the paper's), `bce` or `balanced_l1`. Raises ValueError for another kind."""
    if kind not in SEGMENTATIONS:
        raise ValueError(f"segmentation: kind is one of {', '.join(SEGMENTATIONS)}, got {kind!r}")
    return {"l1": l1, "bce": bce, "balanced_l1": balanced_l1}[kind](logits, normal)


def l1(logits: Array, normal: Array) -> Array:
    """Eq. 2: mean over pixels of |A - A_hat|, in [0, 1]. A map of all ones has the anomalous share of the image.

    >>> [round(float(value), 3) for value in l1(jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1)))]
    [0.5]
    """
    return jnp.mean(_distance(logits, normal), axis=(1, 2, 3))


def bce(logits: Array, normal: Array) -> Array:
    """Mean binary cross entropy: its gradient does not vanish, as l1's does, where the sigmoid saturates wrongly.

    >>> [round(float(value), 3) for value in bce(jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1)))]
    [0.693]
    """
    return jnp.mean(jax.nn.softplus(logits) - logits * normal, axis=(1, 2, 3))


def balanced_l1(logits: Array, normal: Array) -> Array:
    """Mean of |A - A_hat| over the normal pixels, over the anomalous ones, and of these two where there are both.

    >>> half = jnp.array([1.0, 1.0, 1.0, 0.0]).reshape(1, 2, 2, 1)
    >>> [round(float(value), 3) for value in balanced_l1(jnp.full((1, 2, 2, 1), 50.0), half)]  # all ones
    [0.5]
    """
    distance = _distance(logits, normal)
    means, present = [], []
    for weight in (normal, 1.0 - normal):
        total = jnp.sum(weight, axis=(1, 2, 3))
        means.append(jnp.sum(distance * weight, axis=(1, 2, 3)) / (jnp.maximum(total, 1.0) * logits.shape[-1]))
        present.append((total > 0).astype(logits.dtype))
    return sum(means) / jnp.maximum(sum(present), 1.0)


def dice(logits: Array, truth: Array) -> tuple[Array, Array]:
    """Soft Dice overlap, (2 sum of p t, sum of p + sum of t), f32[B] each, p = sigmoid(z); 1 - their ratio is the loss.

    truth: f32[B, H, W, 1], 1 = what the logits are of. Take the ratio of the sums over a batch: of an image without any
    of it the ratio is 0 whatever is drawn, but in a batch its p still cost. (Milletari et al. 2016, arXiv:1606.04797,
    section 3; Departure: p and t in the denominator, not their squares.)

    >>> both, each = dice(jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1)))
    >>> [round(float(value), 3) for value in (*both, *each)]
    [4.0, 6.0]
    """
    drawn = jax.nn.sigmoid(logits)
    axes = (1, 2, 3)
    return 2.0 * jnp.sum(drawn * truth, axis=axes), jnp.sum(drawn, axis=axes) + jnp.sum(truth, axis=axes)


def recall(logits: Array, normal: Array) -> tuple[Array, Array]:
    """(anomalous pixels with A_hat < 0.5, anomalous pixels), f32[B] each; A_hat the mean over channels.

    Near 0 over a batch while the loss is small: the map has collapsed to ones.
    """
    return _called(logits, 1.0 - normal)


def false_alarms(logits: Array, normal: Array) -> tuple[Array, Array]:
    """(normal pixels with A_hat < 0.5, normal pixels), f32[B] each."""
    return _called(logits, normal)


def _distance(logits: Array, normal: Array) -> Array:
    # |1 - sigmoid(z)| = sigmoid(-z), which does not round to 0 as 1 - sigmoid(z) does in float32
    return normal * jax.nn.sigmoid(-logits) + (1.0 - normal) * jax.nn.sigmoid(logits)


def _called(logits: Array, weight: Array) -> tuple[Array, Array]:
    called = jnp.mean(jax.nn.sigmoid(logits), axis=-1, keepdims=True) < 0.5
    return jnp.sum(jnp.where(called, weight, 0.0), axis=(1, 2, 3)), jnp.sum(weight, axis=(1, 2, 3))
