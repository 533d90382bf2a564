"""Self-supervised losses: spot-the-difference and those that it is added to. One value per image.

Sources: Zou et al., "SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection and Segmentation" (SPD),
ECCV 2022; Chen et al. 2020, arXiv:2002.05709 (SimCLR), He et al. 2020, arXiv:1911.05722 (MoCo), Chen and He 2021,
arXiv:2011.10566 (SimSiam), each beside its authors' code. N is the number of images of the global batch: under `jit`
with a sharded batch negatives come from all devices, with their gradients.
"""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jax import lax
from jax.scipy.special import logsumexp

from jaxad.losses.distillation import EPS, cosine
from jaxad.types import Array

Pair = tuple[Array, Array]  # prediction p and projection z of one view, f[B, D] each


def unit(vectors: Array) -> Array:
    """Rows of length 1: f[B, D] -> f32[B, D]; a zero row stays zero and has a finite gradient.

    >>> unit(jnp.array([[2.0, 0.0], [0.0, 0.0]])).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    vectors = vectors.astype(jnp.float32)
    return vectors * lax.rsqrt(jnp.maximum(jnp.sum(vectors * vectors, axis=-1, keepdims=True), EPS**2))


def spot_the_difference(anchor: Array, negative: Array, positive: Array) -> Array:
    """L_SPD = cos(z, z~-) - cos(z, z~+): f[B, D] each -> f32[B], in [-2, 2]; gradients reach all three.

    anchor z, of the image · negative z~-, of its local change · positive z~+, of its weak global one. Equal vectors
    give 0: nothing is gained by collapse. Raises ValueError for shapes that differ.

    >>> z = jnp.array([[2.0, 0.0]])
    >>> float(spot_the_difference(z, negative=jnp.array([[0.0, 1.0]]), positive=z)[0])
    -1.0
    """
    _same_shapes("spot_the_difference", anchor, negative, positive)
    return cosine(anchor, negative) - cosine(anchor, positive)


def predicted_difference(anchor: Pair, negative: Pair, positive: Pair) -> Array:
    """L_SPD between predictions and projections, as SimSiam compares views: pairs (p, z) of f[B, D] -> f32[B].

    1/2 {[cos(p, z~-) + cos(p~-, z)] - [cos(p, z~+) + cos(p~+, z)]}, in [-2, 2]; no gradient into any z.
    Departure: the poster has cos(z, z~-) - cos(z, z~+); SimSiam needs predictor and stopped gradient to stay stable.
    Raises ValueError for shapes that differ.

    >>> one, other = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> float(predicted_difference((one, one), negative=(other, one), positive=(one, other))[0])  # (1 + 0 - 0 - 1) / 2
    0.0
    """
    _same_shapes("predicted_difference", *anchor, *negative, *positive)
    return simsiam(anchor, positive) - simsiam(anchor, negative)


def simsiam(first: Pair, second: Pair) -> Array:
    """-1/2 [cos(p1, z2) + cos(p2, z1)], no gradient into z (SimSiam, eqs. 3 and 4): pairs of f[B, D] -> f32[B].

    In [-1, 1]. Raises ValueError for shapes that differ.

    >>> one, other = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> float(simsiam((one, one), (one, other))[0])
    -0.5
    """
    _same_shapes("simsiam", *first, *second)
    (p1, z1), (p2, z2) = first, second
    return -0.5 * (cosine(p1, lax.stop_gradient(z2)) + cosine(p2, lax.stop_gradient(z1)))


def nt_xent(first: Array, second: Array, temperature: float) -> Array:
    """NT-Xent (SimCLR, eq. 1): f[B, D] of two views -> f32[B], the sum of both directions.

    The negatives of an image are both views of all others, 2 N - 2.
    Departure: the paper takes the mean of the 2 N terms, half of this; the authors' code adds the two directions, and
    their learning rates belong to that. Raises ValueError for shapes that differ.

    >>> z = jnp.eye(2)
    >>> [round(float(value), 3) for value in nt_xent(z, z, 1.0)]  # 2 log(1 + 2 / e)
    [1.103, 1.103]
    """
    _same_shapes("nt_xent", first, second)
    first, second = unit(first), unit(second)

    def direction(query: Array, other: Array) -> Array:
        across, within = _similarities(query, other) / temperature, _similarities(query, query) / temperature
        itself = jnp.eye(len(query), dtype=bool)
        logits = jnp.concatenate([across, jnp.where(itself, -jnp.inf, within)], axis=1)
        return logsumexp(logits, axis=1) - _diagonal(across)

    return direction(first, second) + direction(second, first)


def info_nce(first: Array, second: Array, temperature: float) -> Array:
    """InfoNCE as the SPD poster has it: f[B, D] of two views -> f32[B].

    One direction; the negatives of an image are the second views of the others, N - 1. Raises ValueError for shapes
    that differ.

    >>> z = jnp.eye(2)
    >>> [round(float(value), 3) for value in info_nce(z, z, 1.0)]  # log(1 + 1 / e)
    [0.313, 0.313]
    """
    _same_shapes("info_nce", first, second)
    logits = _similarities(unit(first), unit(second)) / temperature
    return logsumexp(logits, axis=1) - _diagonal(logits)


def moco(query: Array, key: Array, queue: Array, temperature: float) -> Array:
    """MoCo's InfoNCE (eq. 1): f[B, D] of two views and f[K, D], the unit rows of older keys -> f32[B].

    Logits [q k, q queue] / temperature with the first one right; query and key are brought to length 1 here. No
    gradient into key and queue. Raises ValueError for shapes that differ.

    >>> q = jnp.array([[3.0, 0.0]])
    >>> round(float(moco(q, q, jnp.array([[0.0, 1.0], [-1.0, 0.0]]), 1.0)[0]), 3)  # log(1 + 1 / e + 1 / e^2)
    0.408
    """
    _same_shapes("moco", query, key)
    query, key, queue = unit(query), lax.stop_gradient(unit(key)), lax.stop_gradient(queue.astype(jnp.float32))
    positive = jnp.sum(query * key, axis=1, keepdims=True)
    logits = jnp.concatenate([positive, _similarities(query, queue)], axis=1) / temperature
    return logsumexp(logits, axis=1) - logits[:, 0]


def enqueue(queue: Array, pointer: Array, keys: Array) -> tuple[Array, Array]:
    """The newest keys over the oldest: f32[K, D], i32[], f[B, D] -> the queue and where the next keys go.

    Keys are brought to length 1, as `moco` expects its queue. The pointer begins at 0 and is always a multiple of B.
    Raises ValueError, while tracing, where B does not divide K: a batch would reach over the queue's end.

    >>> queue, pointer = enqueue(jnp.zeros((4, 2)), jnp.int32(2), jnp.array([[5.0, 0.0], [0.0, 2.0]]))
    >>> queue.tolist(), int(pointer)
    ([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], 0)
    """
    if len(queue) % len(keys):
        raise ValueError(f"enqueue: {len(keys)} keys a batch do not divide a queue of {len(queue)}")
    queue = lax.dynamic_update_slice_in_dim(queue, lax.stop_gradient(unit(keys)), pointer, axis=0)
    return queue, (pointer + len(keys)) % len(queue)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """-log softmax(logits)[label]: f[B, classes], i32[B] -> f32[B].

    >>> [round(float(value), 3) for value in cross_entropy(jnp.array([[0.0, 0.0], [9.0, -9.0]]), jnp.array([1, 0]))]
    [0.693, 0.0]
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def _similarities(rows: Array, columns: Array) -> Array:
    """f32[B, D], f32[K, D] -> f32[B, K], in float32 on accelerators, too: at temperature 0.07 errors grow 14 times."""
    return jnp.matmul(rows, columns.T, precision=lax.Precision.HIGHEST)


def _diagonal(square: Array) -> Array:
    # A masked sum, not a gather: each device needs only the rows that it has.
    return jnp.sum(jnp.where(jnp.eye(len(square), dtype=bool), square, 0.0), axis=1)


def _same_shapes(name: str, *arrays: Array) -> None:
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) > 1:
        raise ValueError(f"{name}: shapes differ: {', '.join(map(str, shapes))}")
