"""The contrastive loss of the Siamese U-Net: the restored features of a normal image stay nearer to those of its
rotated copy than to those of an anomaly.

Source: Lin and Lai, "Siamese U-Net for Image Anomaly Detection and Segmentation with Contrastive Learning", section
3.2.1, eqs. 6 and 7.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxad.losses.distillation import cosine
from jaxad.types import Array

REDUCTIONS = ("flat", "gap", "position")
STOPS = ("none", "anchor")


def similarity(a: Array, b: Array, reduce: str = "flat") -> Array:
    """Cosine of two feature maps: f[B, h, w, C] twice -> f32[B], in [-1, 1].

    reduce: 'flat', of the whole maps as vectors; 'gap', of their means over positions, which knows nothing of places;
    'position', the mean over positions of the cosine of the channels. Raises ValueError for another.
    The paper does not say of what; 'flat' is how the loss that it builds on (RD4AD's code) compares features.

    >>> a = jnp.array([[[[1.0, 0.0]], [[0.0, 3.0]]]])  # two positions of two channels
    >>> [round(float(similarity(a, a[:, ::-1], reduce)[0]), 3) for reduce in REDUCTIONS]  # the positions swapped
    [0.0, 1.0, 0.0]
    """
    if a.shape != b.shape:
        raise ValueError(f"similarity: {a.shape} and {b.shape} differ in shape")
    if reduce == "flat":
        return cosine(a, b, axis=(1, 2, 3))
    if reduce == "gap":
        return cosine(*(jnp.mean(x.astype(jnp.float32), axis=(1, 2)) for x in (a, b)))
    if reduce == "position":
        return jnp.mean(cosine(a, b), axis=(1, 2))
    raise ValueError(f"similarity: reduce is one of {', '.join(REDUCTIONS)}, got {reduce!r}")


def similarities(
    normal: Mapping[str, Array], other: Mapping[str, Array], reduce: str = "flat", stop: str = "none"
) -> dict[str, Array]:
    """`similarity` of each layer: {layer: f[B, h, w, C]} twice, with the same names -> {layer: f32[B]}.

    stop: 'anchor' lets no gradient reach `normal`: the others move, it does not; 'none', as in the paper.
    """
    if set(normal) != set(other):
        raise ValueError(f"similarities: one has layers {sorted(normal)}, the other {sorted(other)}")
    if stop not in STOPS:
        raise ValueError(f"similarities: stop is one of {', '.join(STOPS)}, got {stop!r}")
    anchor = jax.lax.stop_gradient(normal) if stop == "anchor" else normal
    return {layer: similarity(anchor[layer], other[layer], reduce) for layer in normal}


def hinge(positive: Mapping[str, Array], negative: Mapping[str, Array], margin: float) -> Array:
    """Eq. 6 on similarities: mean over layers of max(negative - positive + margin, 0), {layer: f32[B]} twice -> f32[B].

    Departure: the paper does not say whether the maximum is taken of a sample or of the batch's mean; here of each
    sample, for easy triplets must not pay for hard ones.

    >>> values = hinge({"layer1": jnp.array([0.9, 0.9])}, {"layer1": jnp.array([0.8, 0.6])}, margin=0.2)
    >>> [round(float(value), 3) for value in values]
    [0.1, 0.0]
    """
    return sum(jnp.maximum(negative[layer] - positive[layer] + margin, 0.0) for layer in positive) / len(positive)


def contrastive(
    normal: Mapping[str, Array],
    rotated: Mapping[str, Array],
    anomaly: Mapping[str, Array],
    margin: float = 0.2,
    reduce: str = "flat",
    stop: str = "none",
) -> Array:
    """Eq. 6: restored features {layer: f[B, h, w, C]} of an image, its rotated copy and an anomaly -> f32[B].

    In [0, 2 + margin]. See `similarity` for `reduce`, `similarities` for `stop`.

    >>> same, other = {"layer1": jnp.ones((1, 2, 2, 3))}, {"layer1": -jnp.ones((1, 2, 2, 3))}
    >>> [round(float(contrastive(same, same, anomaly)[0]), 3) for anomaly in (other, same)]
    [0.0, 0.2]
    """
    positive, negative = (similarities(normal, other, reduce, stop) for other in (rotated, anomaly))
    return hinge(positive, negative, margin)


def stage_one(contrast: Array, restoration: Array, lambda_con: float = 0.1, lambda_cos: float = 1.0) -> Array:
    """Eq. 7: lambda_con * L_contrastive + lambda_cos * L_cossim, f32[B] twice -> f32[B].

    L_cossim is `distillation.distillation(..., layers='mean')` (eq. 1). The paper gives no weights; it falls to a few
    hundredths while the hinge is of the order of its margin, so equal weights would let the hinge rule.

    >>> [round(float(value), 3) for value in stage_one(jnp.array([0.5]), jnp.array([0.25]))]
    [0.3]
    """
    return lambda_con * contrast + lambda_cos * restoration
