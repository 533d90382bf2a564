"""How far a restored image is from the one it should be. Images f32[B, H, W, C] in [0, 1]."""

from __future__ import annotations

import jax.numpy as jnp

from jaxad.types import Array

GUARD = 1e-8  # of eq. 4's denominator, for a batch without one normal pixel


def masked_l1(image: Array, restored: Array, normal: Array) -> tuple[Array, Array]:
    """AnoSeg's eq. 4: numerator and denominator, f32[B] each, of sum |x A - x_hat A| / sum A.

    normal: A, f32[B, H, W, 1], 1 = normal. It counts once for every channel in both sums; without that in the
    denominator the loss would be three times as large. Take `ratio` of the two: of the sums over a batch (the ratio of
    expectations of the paper), in which an image without anomaly weighs more than one with a large one.

    >>> image, normal = jnp.ones((1, 1, 2, 3)), jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)
    >>> float(ratio(*masked_l1(image, image - 0.25, normal)))
    0.25
    """
    distance = jnp.abs(image - restored) * normal
    return jnp.sum(distance, axis=(1, 2, 3)), jnp.sum(normal, axis=(1, 2, 3)) * image.shape[-1]


def ratio(numerator: Array, denominator: Array) -> Array:
    """f32[B] twice -> f32[], the ratio of the sums."""
    return jnp.sum(numerator) / (jnp.sum(denominator) + GUARD)


def l1(image: Array, restored: Array) -> Array:
    """f32[B], the mean of |x - x_hat| over pixels and channels."""
    return jnp.mean(jnp.abs(image - restored), axis=(1, 2, 3))


def mse(image: Array, restored: Array) -> Array:
    """f32[B], the mean of (x - x_hat)^2 over pixels and channels."""
    return jnp.mean(jnp.square(image - restored), axis=(1, 2, 3))
