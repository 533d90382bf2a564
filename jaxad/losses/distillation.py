"""Distillation losses: how far the student's features are from the teacher's, by cosine.

Sources: Deng and Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022,
eqs. 1 and 2, and the authors' code RD4AD. The two differ: see `layer_distance`.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jax import lax

from jaxad.types import Array

EPS = (
    1e-8  # floor of each norm, as PyTorch's cosine_similarity: the cosine with a zero vector is 0, its gradient finite
)
REDUCTIONS = ("flat", "position")


def cosine(a: Array, b: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """Cosine similarity of `a` and `b` (same shape, any float type) over `axis`: f32; 0 where one of them is zero.

    >>> a, b = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[4.0, 3.0], [1.0, 2.0]])
    >>> [round(float(value), 2) for value in cosine(a, b)]
    [0.96, 0.0]
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    # Sums of products, not a dot: a GPU may compute a float32 dot in fewer bits.
    dot = jnp.sum(a * b, axis)
    squares = jnp.maximum(jnp.sum(a * a, axis), EPS**2), jnp.maximum(jnp.sum(b * b, axis), EPS**2)
    return dot * lax.rsqrt(squares[0]) * lax.rsqrt(squares[1])


def distance_map(teacher: Array, student: Array) -> Array:
    """1 - cosine over the channels at each position (eq. 1): f32[B, h, w, C] twice -> f32[B, h, w], in [0, 2].

    >>> distance_map(jnp.ones((1, 2, 3, 4)), -jnp.ones((1, 2, 3, 4))).shape
    (1, 2, 3)
    """
    return 1.0 - cosine(teacher, student)


def layer_distance(teacher: Array, student: Array, reduce: str = "flat") -> Array:
    """Distance of one layer's features: f32[B, h, w, C] twice -> f32[B], in [0, 2].

    reduce: 'flat', 1 - cosine of the whole feature maps flattened to vectors (RD4AD's code), or 'position', the mean
    over positions of `distance_map` (eq. 2). Raises ValueError for another.
    Departure: 'flat' is the default although the article has 'position': it is what the authors' code trains with, and
    those who put 'position' there report worse results (RD4AD issue 22).

    >>> teacher = jnp.array([[[[1.0, 0.0]], [[0.0, 9.0]]]])  # two positions of two channels, one of them strong
    >>> student = jnp.array([[[[0.0, 1.0]], [[0.0, 9.0]]]])
    >>> [round(float(layer_distance(teacher, student, reduce)[0]), 3) for reduce in REDUCTIONS]
    [0.012, 0.5]
    """
    if teacher.shape != student.shape:
        raise ValueError(f"layer_distance: teacher {teacher.shape} and student {student.shape} differ in shape")
    if reduce == "flat":
        return 1.0 - cosine(teacher, student, axis=(1, 2, 3))
    if reduce == "position":
        return jnp.mean(distance_map(teacher, student), axis=(1, 2))
    raise ValueError(f"layer_distance: reduce is one of {', '.join(REDUCTIONS)}, got {reduce!r}")


def distillation(
    teacher: Mapping[str, Array], student: Mapping[str, Array], reduce: str = "flat", layers: str = "sum"
) -> Array:
    """Sum over layers of `layer_distance`: {layer: f32[B, h, w, C]} twice, with the same names -> f32[B].

    layers: 'sum' (the article's eq. 2 and RD4AD's code) or 'mean' (eq. 1 of Lin and Lai's Siamese U-Net). Alone under
    Adam the two train alike; beside other terms the factor counts. Gradients reach both arguments: stop the teacher's
    at the call.

    >>> features = {"layer1": jnp.ones((2, 4, 4, 3)), "layer2": jnp.ones((2, 2, 2, 5))}
    >>> opposite = {name: -value for name, value in features.items()}
    >>> [round(float(value), 5) for value in distillation(features, opposite)]
    [4.0, 4.0]
    """
    if set(teacher) != set(student):
        raise ValueError(f"distillation: teacher has layers {sorted(teacher)}, student {sorted(student)}")
    if layers not in ("sum", "mean"):
        raise ValueError(f"distillation: layers is 'sum' or 'mean', got {layers!r}")
    total = sum(layer_distance(teacher[name], student[name], reduce) for name in sorted(teacher))
    return total / len(teacher) if layers == "mean" else total
