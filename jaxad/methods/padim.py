"""PaDiM (Defard et al. 2020, "PaDiM: a Patch Distribution Modeling Framework", arXiv:2011.08785).

One stage that fits in one ordered pass: mean and covariance of the features of a frozen backbone at every position
(section III.B, eq. 1) over the normal images, and `predict` is the Mahalanobis distance to them (section III.C, eq. 2).
The features are some channels of several layers, drawn once for all categories (section III.A).

Where the article leaves a choice, it is that of the PyTorch port that most people compare with (xiahaifeng1995's): the
nearest-neighbour resize to the first layer's grid, the covariance over N - 1, a Gaussian of sigma 4 over the map, and
the largest value of the smoothed map as image score.

Which channels are drawn matters more than anything else here where there are few images: compare PaDiM with another
method, or with another implementation, over several `config.padim.dim_seed`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxad.errors import Checks
from jaxad.methods import features
from jaxad.scoring import gaussian, maps
from jaxad.types import AnomalyMap, Array, Batch, DataSpec, Feed, Stage, TrainState, UserError
from jaxad.updates import remember

ROWS = 64  # positions are padded to a multiple of this, so that they divide over the devices of a mesh


def stages(config: Any, spec: DataSpec) -> tuple[Stage, ...]:
    """One stage, 'fit'. Raises UserError where config.padim, the backbone or the data make no sense."""
    options, score = config.padim, config.score
    _check(options)
    backbone = features.extractor(config, options.layers, spec.image_size)
    height, width, _ = backbone.shapes[0]
    channels = [shape[-1] for shape in backbone.shapes]
    if options.embedding == "channels":
        kept = draw(options.dim_seed, channels, options.dim)
        reduce, dim = functools.partial(embed, channels=kept), sum(map(len, kept))
    else:
        matrices = semi_orthogonal(options.dim_seed, channels, options.dim)
        reduce, dim = functools.partial(project, matrices=matrices), matrices[0].shape[1]
    positions = height * width
    rows = -(-positions // ROWS) * ROWS
    if spec.n_train_normal < 2:
        raise UserError(
            f"{spec.category}: PaDiM needs 2 normal training images or more for a covariance, not "
            f"{spec.n_train_normal}: set config.data.n_shot to 2 or more"
        )

    def embedding(state: TrainState, image: Array) -> Array:
        """f[B, H, W, 3] to f32[B, rows, dim], zero beyond the positions"""
        found = reduce(backbone.apply(state.frozen["backbone"], image))
        return jnp.pad(found.reshape(-1, positions, dim), ((0, 0), (0, rows - positions), (0, 0)))

    def init(key: Array, spec: DataSpec, carry: TrainState | None) -> TrainState:
        return TrainState.create(frozen={"backbone": backbone.load()}, memory=_memory(gaussian.no_moments(rows, dim)))

    def count(state: TrainState, batch: Batch, key: Array) -> dict[str, Array]:
        return _memory(gaussian.update(_moments(state), embedding(state, batch.image), batch.valid))

    def finish(state: TrainState) -> TrainState:
        moments = _moments(state)
        factor = gaussian.factors(moments.scatter, moments.count, options.regularisation)  # eq. 1
        return state.replace(memory={"bank_mean": moments.mean, "bank_factor": factor})

    def predict(state: TrainState, batch: Batch) -> AnomalyMap:
        memory = state.memory
        distance = gaussian.mahalanobis(embedding(state, batch.image), memory["bank_mean"], memory["bank_factor"])
        pixel = maps.anomaly_map(
            distance[:, :positions].reshape(-1, height, width),
            batch.image.shape[1:3],
            interpolation=score.interpolation,
            sigma=score.sigma,
        )
        return AnomalyMap(pixel, maps.image_score(pixel, score.reduction))

    feed = Feed(config.data.batch_size, split="train_normal", shuffle=False)
    return (Stage("fit", feed, feed.one_pass(spec.n_train_normal), init, remember(count), finish, predict),)


def draw(seed: int, channels: Sequence[int], dim: int) -> tuple[np.ndarray, ...]:
    """Which channels of each layer to keep: rising i64[k] per layer, `dim` in all, drawn without replacement; 0: all.

    channels: how many each layer has. The draw is of raw words of PCG64, whose stream NumPy guarantees, so it is the
    same for all categories, versions and machines. Raises UserError for more than there are.

    >>> [part.tolist() for part in draw(1024, [2, 3], 0)]
    [[0, 1], [0, 1, 2]]
    >>> sum(len(part) for part in draw(1024, [64, 128, 256], 100))
    100
    """
    total = _total(channels, dim)
    words = [seed, *b"channels"]
    order = np.argsort(np.random.PCG64(words).random_raw(total), kind="stable")
    ends = np.cumsum(channels)
    parts = np.split(kept := np.sort(order[: dim or total]), np.searchsorted(kept, ends[:-1]))
    return tuple(part - (end - size) for part, end, size in zip(parts, ends, channels, strict=True))


def embed(layers: Sequence[Array], channels: Sequence[np.ndarray]) -> Array:
    """The drawn `channels` of each f[B, h, w, C], on the grid of the first layer: f32[B, h0, w0, dim].

    Nearest neighbour, which is what the port's unfolding and folding come to.

    >>> embed([jnp.ones((1, 4, 4, 2)), jnp.ones((1, 2, 2, 3))], [np.array([1]), np.array([0, 2])]).shape
    (1, 4, 4, 3)
    """
    grid = layers[0].shape[1:3]
    parts = []
    for layer, kept in zip(layers, channels, strict=True):
        part = jnp.take(layer.astype(jnp.float32), kept, axis=3)  # before the resize: fewer channels to copy
        parts.append(_nearest(part, grid))
    return jnp.concatenate(parts, axis=-1)


def semi_orthogonal(seed: int, channels: Sequence[int], dim: int) -> tuple[np.ndarray, ...]:
    """A random matrix with orthonormal columns, cut by layers: f32[C, dim] each; 0: as many as there are channels.

    Kim et al., "Semi-orthogonal Embedding for Efficient Unsupervised Anomaly Segmentation" (arXiv:2105.14737), section
    3.2. Every channel has a share in every dimension, so it matters little which matrix is drawn. Raises as `draw`.

    >>> first, second = semi_orthogonal(0, [2, 3], 4)
    >>> bool(np.allclose(first.T @ first + second.T @ second, np.eye(4), atol=1e-6))
    True
    """
    total = _total(channels, dim)
    gaussian_matrix = np.random.default_rng(seed).standard_normal((total, dim or total))
    columns, upper = np.linalg.qr(gaussian_matrix)
    columns = (columns * np.sign(np.diag(upper))).astype(np.float32)  # then it is uniform, and LAPACK's signs no matter
    return tuple(np.split(columns, np.cumsum(channels)[:-1]))


def project(layers: Sequence[Array], matrices: Sequence[np.ndarray]) -> Array:
    """What `semi_orthogonal` makes of f[B, h, w, C] per layer, on the grid of the first: f32[B, h0, w0, dim].

    >>> project([jnp.ones((1, 4, 4, 2)), jnp.ones((1, 2, 2, 3))], semi_orthogonal(0, [2, 3], 4)).shape
    (1, 4, 4, 4)
    """
    grid, found = layers[0].shape[1:3], 0.0
    for layer, matrix in zip(layers, matrices, strict=True):
        part = jnp.matmul(layer.astype(jnp.float32), matrix, precision=jax.lax.Precision.HIGHEST)
        found = found + _nearest(part, grid)
    return found


def _total(channels: Sequence[int], dim: int) -> int:
    total = sum(channels)
    if dim > total:
        raise UserError(
            f"config.padim.dim={dim}, but the layers have {total} channels in all: set it to at most {total}, "
            f"or to 0 for all of them"
        )
    return total


def _nearest(layer: Array, grid: tuple[int, int]) -> Array:
    """f[B, h, w, D] on a finer grid."""
    for axis, (n, m) in enumerate(zip(layer.shape[1:3], grid, strict=True), 1):
        if n != m:
            layer = jnp.take(layer, np.arange(m) * n // m, axis=axis)
    return layer


def _memory(moments: gaussian.Moments) -> dict[str, Array]:
    """Names beginning with 'bank' are split by rows over the devices."""
    return {"count": moments.count, "bank_mean": moments.mean, "bank_scatter": moments.scatter}


def _moments(state: TrainState) -> gaussian.Moments:
    memory = state.memory
    return gaussian.Moments(memory["count"], memory["bank_mean"], memory["bank_scatter"])


def _check(options: Any) -> None:
    """Raises UserError for values that make no sense, before anything is loaded."""
    check = Checks(options, "config.padim")
    check.demand(len(options.layers) > 0, "layers", "one stage of the backbone or more")
    check.one_of("embedding", ("channels", "semi_orthogonal"))
    check.not_negative("dim", "dim_seed")
    # However many images there are: a ReLU channel that is silent at a position in all of them has no variance there.
    check.demand(0 < options.regularisation < math.inf, "regularisation", "more than 0, say 0.01")
