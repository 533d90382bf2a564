"""What a classifier of normal and anomalous images pays: binary cross entropy, f32[B], one value per image."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxad.types import Array


def class_weights(n_normal: int, n_anomalous: int) -> tuple[float, float]:
    """What an image of each class weighs, so that the classes weigh the same and the mean weight is 1.

    >>> class_weights(30, 10)
    (0.6666666666666666, 2.0)
    """
    total = n_normal + n_anomalous
    return total / (2 * n_normal), total / (2 * n_anomalous)


def bce(logit: Array, label: Array, weights: tuple[float, float] = (1.0, 1.0)) -> Array:
    """f32[B]: -log of the probability given to the right class, times the weight of that class.

    logit: f32[B], of the image being anomalous · label: bool[B] · weights: of normal and of anomalous images.

    >>> [round(float(value), 3) for value in bce(jnp.zeros(2), jnp.array([False, True]), (1.0, 2.0))]
    [0.693, 1.386]
    """
    normal, anomalous = weights
    return jnp.where(label, anomalous * jax.nn.softplus(-logit), normal * jax.nn.softplus(logit))
