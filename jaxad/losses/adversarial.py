"""A critic tells real from fake, a generator makes what it takes for real (Goodfellow et al. 2014).

All on the critic's logits d: f32[B], larger = more real, D = sigmoid(d); each gives f32[B], to be minimised.

  kind     critic, real     critic, fake    generator
  ns       softplus(-d)     softplus(d)     softplus(-d), non-saturating: -log D
  minimax  softplus(-d)     softplus(d)     -softplus(d): log(1 - D), as AnoSeg's eq. 3 is printed
  lsgan    (d - 1)^2 / 2    d^2 / 2         (d - 1)^2 / 2 (Mao et al. 2017); here d itself is compared, not D
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxad.types import Array

KINDS = ("ns", "minimax", "lsgan")


def real(logits: Array, kind: str = "ns") -> Array:
    """What the critic pays for a real pair: 0 if it is sure. Raises ValueError for another kind.

    >>> round(float(real(jnp.zeros(1))[0]), 3)  # log 2
    0.693
    """
    return 0.5 * jnp.square(logits - 1.0) if _check(kind) == "lsgan" else jax.nn.softplus(-logits)


def fake(logits: Array, kind: str = "ns") -> Array:
    """What the critic pays for a fake pair."""
    return 0.5 * jnp.square(logits) if _check(kind) == "lsgan" else jax.nn.softplus(logits)


def generator(logits: Array, kind: str = "ns") -> Array:
    """What the generator pays for a fake pair."""
    return -jax.nn.softplus(logits) if _check(kind) == "minimax" else real(logits, kind)


def feature_matching(real: Array, fake: Array) -> Array:
    """Mean squared difference of the critic's features f[B, ...] of an image and of its restoration -> f32[B].

    AnoSeg, Appendix A, L_fea. Per image, as printed there; Salimans et al. 2016 compare the means of batches.
    Departure: the mean over the features and not the squared norm, so that it has the scale of L_MSE in eq. 5.

    >>> feature_matching(jnp.ones((1, 2, 2, 3)), jnp.full((1, 2, 2, 3), 3.0)).tolist()
    [4.0]
    """
    return jnp.mean(jnp.square(real - fake), axis=tuple(range(1, real.ndim)))


def _check(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"adversarial: kind is one of {', '.join(KINDS)}, got {kind!r}")
    return kind
