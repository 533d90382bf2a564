"""What the methods on frozen pretrained features share: the backbone from the config, and patch descriptors.

A patch descriptor summarises the features of several stages around each position of the first stage's grid. Both kinds
are linear in the features: they are applied as one small constant kernel per stage, never as unfolded patches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from jaxad import pretrained
from jaxad.models import backbones
from jaxad.scoring.maps import interpolation_matrix
from jaxad.types import Array, Tree, UserError

GROUP = 4  # channels that mix in one output up to which shifted sums beat a dense convolution


class Extractor(NamedTuple):
    """A frozen backbone.

    load() -> variables, NumPy f32 trees for `TrainState.frozen` ·
    apply(variables, image: f32[B, H, W, 3] in [0, 1]) -> one f32[B, h, w, C] per layer ·
    shapes: (h, w, C) of each layer.
    """

    load: Callable[[], Tree]
    apply: Callable[[Tree, Array], tuple[Array, ...]]
    shapes: tuple[tuple[int, int, int], ...]


def compute_dtype(config: Any) -> jnp.dtype:
    """The dtype networks compute in, from config.train.precision: 'auto' is bfloat16 on GPU and TPU, float32 on CPU."""
    precision = config.train.precision
    if precision == "auto":
        precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if precision not in ("float32", "bfloat16"):
        raise UserError(f"config.train.precision={precision!r}: set it to auto, float32 or bfloat16")
    return jnp.dtype(precision)


def extractor(config: Any, layers: Sequence[str], size: int) -> Extractor:
    """The backbone of config.backbone up to the last of `layers`, with ImageNet normalisation in front of it.

    size: of the images, in pixels: `DataSpec.image_size`, which is the crop's where there is one.

    Raises UserError where the backbone, a layer or the weights do not exist (the weights when they are loaded).
    """
    if not layers:
        raise UserError(f"config.{config.method}.layers is empty: name stages of {config.backbone.name}")
    name, layers = config.backbone.name, tuple(layers)
    module = backbones.build(name, layers, dtype=compute_dtype(config))

    def apply(variables: Tree, image: Array) -> tuple[Array, ...]:
        found = module.apply(variables, backbones.normalise(image), train=False)
        return tuple(found[layer].astype(jnp.float32) for layer in layers)

    outputs, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return Extractor(
        load=functools.partial(pretrained.load, name, config.backbone.weights, layers, seed=config.seed),
        apply=apply,
        shapes=tuple(outputs[layer].shape[1:] for layer in layers),
    )


def after_ones_pass(config: Any, layers: Sequence[str], size: int, variables: Tree) -> Tree:
    """`variables` with BatchNorm averages moved by one training-mode pass of an image of ones, f32[1, S, S, 3].

    The PatchCore authors' code measures its feature dimensions that way before it switches the backbone to evaluation,
    so every average has moved a tenth of the way to that image when features are extracted.
    A backbone without BatchNorm stays as it is.
    """
    module = backbones.build(config.backbone.name, tuple(layers))
    _, moved = module.apply(variables, jnp.ones((1, size, size, 3)), train=True, mutable=["batch_stats"])
    return {**variables, **moved}


def concat(features: Sequence[Array], neighbourhood: int = 3) -> Array:
    """Average pools each f[B, h, w, C], resizes to the first grid and concatenates: f32[B, h0, w0, sum of C].

    The window of `neighbourhood` positions has stride 1 and zero padding that counts (PyTorch's AvgPool2d default),
    as in anomalib's PatchCore.

    >>> concat([jnp.ones((1, 4, 4, 2)), jnp.ones((1, 2, 2, 3))]).shape
    (1, 4, 4, 5)
    """
    grid = features[0].shape[1:3]
    return jnp.concatenate([resize(_mean_pool(layer, neighbourhood), grid) for layer in features], axis=-1)


def adaptive(features: Sequence[Array], neighbourhood: int = 3, layer_dim: int = 1024, dim: int = 1024) -> Array:
    """The descriptors of the PatchCore authors' code: f[B, h, w, C] per layer to f32[B, h0, w0, dim].

    There, each layer's patches of neighbourhood x neighbourhood x C values (channel-major) are resized bilinearly to
    the first grid and pooled adaptively to `layer_dim`, and the layers' vectors, end to end, are pooled to `dim`.
    All of it is linear, so here each layer takes one constant kernel first and is resized afterwards: same result.

    >>> adaptive([jnp.ones((1, 4, 4, 512)), jnp.ones((1, 2, 2, 1024))]).shape
    (1, 4, 4, 1024)
    """
    grid = features[0].shape[1:3]
    channels = tuple(layer.shape[-1] for layer in features)
    parts = [
        (resize(_apply_pooling(layer, pooling, neighbourhood), grid), pooling)
        for layer, pooling in zip(features, _poolings(channels, neighbourhood, layer_dim, dim), strict=True)
    ]
    if all(one.stop == two.start for (_, one), (_, two) in zip(parts, parts[1:], strict=False)):
        return jnp.concatenate([part for part, _ in parts], axis=-1)
    return sum(jnp.pad(part, ((0, 0),) * 3 + ((one.start, dim - one.stop),)) for part, one in parts)


def resize(features: Array, grid: tuple[int, int]) -> Array:
    """Bilinear at half-pixel centres (align_corners=False), without antialiasing: f[B, h, w, C] to f32[B, *grid, C]."""
    out = features.astype(jnp.float32)
    for axis, (n, m) in enumerate(zip(features.shape[1:3], grid, strict=True)):
        if n != m:
            weights = interpolation_matrix(n, m, "bilinear").astype(np.float32)
            out = jnp.einsum(
                ("yh,bhwc->bywc", "xw,bhwc->bhxc")[axis], weights, out, precision=jax.lax.Precision.HIGHEST
            )
    return out


class _Pooling(NamedTuple):
    """A layer's way to output dimensions [start, stop): `groups` blocks of channels, each with its own kernel.

    kernel: f32[n, n, groups, channels of a block, outputs of a block].
    """

    start: int
    stop: int
    kernel: np.ndarray


@functools.lru_cache
def _poolings(channels: tuple[int, ...], n: int, layer_dim: int, dim: int) -> tuple[_Pooling, ...]:
    last = _adaptive_pool(len(channels) * layer_dim, dim)
    poolings = []
    for layer, c in enumerate(channels):
        matrix = (_adaptive_pool(n * n * c, layer_dim) @ last[layer * layer_dim : (layer + 1) * layer_dim]).tocoo()
        start, stop = int(matrix.col.min()), int(matrix.col.max()) + 1
        outputs = stop - start
        # The smallest blocks of channels that no output straddles; one block of all channels always works.
        for g in range(1, c + 1):
            if c % g == 0 and outputs % (c // g) == 0:
                m = outputs * g // c
                if np.array_equal(matrix.row // (n * n * g), (matrix.col - start) // m):
                    break
        kernel = np.zeros((c // g, g, n, n, m), np.float32)
        channel, place = np.divmod(matrix.row, n * n)
        column = matrix.col - start
        kernel[channel // g, channel % g, place // n, place % n, column % m] = matrix.data
        poolings.append(_Pooling(start, stop, kernel.transpose(2, 3, 0, 1, 4)))
    return tuple(poolings)


def _adaptive_pool(n: int, m: int) -> scipy.sparse.csr_array:
    """f64[n, m], PyTorch's adaptive_avg_pool1d: bin i is the mean of entries floor(i n / m) to ceil((i + 1) n / m)."""
    columns = np.arange(m)
    begin, end = columns * n // m, -(-(columns + 1) * n // m)
    sizes = end - begin
    column = np.repeat(columns, sizes)
    row = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes) + np.repeat(begin, sizes)
    return scipy.sparse.csr_array((1.0 / np.repeat(sizes, sizes), (row, column)), shape=(n, m))


def _apply_pooling(features: Array, pooling: _Pooling, n: int) -> Array:
    """f[B, h, w, C] to f32[B, h, w, stop - start], zero padding."""
    _, _, groups, g, m = pooling.kernel.shape
    b, h, w, c = features.shape
    features = features.astype(jnp.float32)
    if g > GROUP:  # outputs that mix many channels: a dense convolution
        dense = np.zeros((n, n, groups, g, groups, m), np.float32)
        dense[:, :, np.arange(groups), :, np.arange(groups)] = pooling.kernel.transpose(2, 0, 1, 3, 4)
        return jax.lax.conv_general_dilated(
            features,
            dense.reshape(n, n, c, groups * m),
            (1, 1),
            ((n // 2, (n - 1) // 2),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
    padded = jnp.pad(features, ((0, 0), (n // 2, (n - 1) // 2), (n // 2, (n - 1) // 2), (0, 0)))
    out = 0.0
    for dy, dx in np.ndindex(n, n):
        shifted = jax.lax.slice(padded, (0, dy, dx, 0), (b, dy + h, dx + w, c)).reshape(b, h, w, groups, g, 1)
        for i in range(g):
            out += shifted[..., i, :] * pooling.kernel[dy, dx, :, i].reshape(1, 1, 1, groups, m)
    return out.reshape(b, h, w, groups * m)


def _mean_pool(features: Array, n: int) -> Array:
    """f[B, h, w, C]: the mean of n x n windows; the zeros around the border count."""
    window, edge = (1, n, n, 1), (n // 2, (n - 1) // 2)
    total = jax.lax.reduce_window(
        features.astype(jnp.float32), 0.0, jax.lax.add, window, (1, 1, 1, 1), ((0, 0), edge, edge, (0, 0))
    )
    return total / (n * n)
