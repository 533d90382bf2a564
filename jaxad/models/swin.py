"""Parts of a Swin transformer (Liu et al., ICCV 2021, arXiv:2103.14030), and of Swin-Unet's way up (arXiv:2105.05537).

Grids are f[B, h, w, C] of any size: what is not a multiple of the window is padded below and on the right, and no token
attends to padding. A side that one window covers is not shifted, and a window keeps its size there, so that parameters
never depend on the size of the grid.

LayerNorm's epsilon is 1e-5 and GELU exact, as in the authors' code; LayerNorm, logits and softmax are float32 whatever
the dtype.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxad.models.layers import Dense, LayerNorm, depth_to_space, gelu
from jaxad.types import Array

# Added to a logit: its weight is exactly 0. With -inf a query that has padding as its only keys would be NaN, and -1e9
# would round all that a logit is besides, in a sum that is taken twice, here and when going back.
FORBIDDEN = -1e4
kernel_init = nn.initializers.normal(0.02)  # the authors truncate it, at -2 and 2: a hundred deviations
Sides = tuple[int, int]


def windows(x: Array, m: int) -> Array:
    """f[B, h, w, C] -> f[B, n, m * m, C]: the n = (h / m) (w / m) windows, row by row. m divides h and w.

    >>> windows(jnp.arange(16).reshape(1, 4, 4, 1), 2)[0, 1, :, 0].tolist()
    [2, 3, 6, 7]
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // m, m, width // m, m, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, -1, m * m, channels)


def unwindows(x: Array, m: int, size: Sides) -> Array:
    """f[B, n, m * m, C] -> f[B, *size, C]: what `windows` was given."""
    (height, width), channels = size, x.shape[-1]
    x = x.reshape(-1, height // m, width // m, m, m, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, height, width, channels)


def relative_index(m: int) -> np.ndarray:
    """i32[m * m, m * m]: the row of the bias table for a query i and a key j of one window.

    (dr + m - 1) (2m - 1) + (dc + m - 1) for a key dr rows above the query and dc columns left of it.

    >>> relative_index(2)[0].tolist(), relative_index(2)[3].tolist()
    ([4, 3, 1, 0], [8, 7, 5, 4])
    """
    place = np.stack(np.unravel_index(np.arange(m * m), (m, m)))
    rows, columns = place[:, :, None] - place[:, None, :] + m - 1
    return np.asarray(rows * (2 * m - 1) + columns, np.int32)


def shifts(height: int, width: int, m: int, shift: int) -> Sides:
    """By how much each axis is shifted: not where one window covers it."""
    return (shift if height > m else 0, shift if width > m else 0)


@functools.lru_cache
def window_mask(height: int, width: int, m: int, shift: int) -> np.ndarray | None:
    """f32[n, m * m, m * m], what is added to the logits of a query (row) and a key in each window; None if nothing is.

    height, width: of the grid before padding. FORBIDDEN for a key that is padding, and for one that only the cyclic
    shift has made a neighbour: from another of the three slices of an axis of the padded and shifted grid, all but the
    last window, the last window up to the seam, and what lies behind it.

    >>> window_mask(8, 8, 4, 0) is None
    True
    >>> (window_mask(8, 8, 4, 2) < 0).any((1, 2)).tolist()
    [False, True, True, True]
    """
    region, real = np.zeros((1, 1), np.int32), np.ones((1, 1), bool)
    for axis, (side, by) in enumerate(zip((height, width), shifts(height, width, m, shift), strict=True)):
        padded = -(-side // m) * m
        place = np.arange(padded)
        slices = np.digitize(place, (padded - m, padded - by)) if by else np.zeros(padded, np.int32)
        along = (-1, 1) if axis == 0 else (1, -1)
        region = region * 3 + slices.reshape(along)
        real = real & (np.roll(place, -by) < side).reshape(along)
    region, real = (np.asarray(windows(value[None, :, :, None], m))[0, :, :, 0] for value in (region, real))
    allowed = (region[:, :, None] == region[:, None, :]) & real[:, None, :]
    if allowed.all():
        return None
    mask = np.where(allowed, 0.0, FORBIDDEN).astype(np.float32)
    mask.flags.writeable = False
    return mask


def linear(features: int, dtype=None, use_bias: bool = True, *, name: str | None = None) -> nn.Module:
    """A Swin transformer's linear layer over channels: f[..., C] -> f[..., features]."""
    return Dense(features, use_bias, dtype, kernel_init, nn.initializers.zeros, name=name)


@jax.custom_vjp
def attend(q: Array, k: Array, v: Array, bias: Array) -> Array:
    """softmax(q k^T / sqrt(d) + bias) v, window by window and head by head: f[B, n, H, T, d].

    q, k, v: f[B, n, H, T, d] · bias: f32[n, H, T, T] of query and key, or f32[1, H, T, T] for all windows.
    """
    return _attend(q, k, v, bias)[0]


def _attend(q: Array, k: Array, v: Array, bias: Array):
    logits = _product(q, _turned(k)) * _scale(q) + bias[None]
    highest = jnp.max(logits, -1, keepdims=True)
    weights = jnp.exp(logits - highest)
    total = jnp.sum(weights, -1, keepdims=True)
    found = _product(weights.astype(v.dtype), v) / total
    return found.astype(q.dtype), (q, k, v, bias, found, highest + jnp.log(total))


def _attend_back(kept, change: Array):
    """The weights once more, this time with keys as rows (Dao et al., arXiv:2205.14135): none need be stored.

    In every product, here and above, the first factor's last axis meets the second's last but one. On CPU XLA needs
    three to five times as long for other forms, when matrices are as small as a window's.
    """
    q, k, v, bias, found, normaliser = kept
    scale = _scale(q)
    weights = jnp.exp(_product(k, _turned(q)) * scale + _turned(bias)[None] - _turned(normaliser))
    along = jnp.sum(change.astype(jnp.float32) * found, -1)[..., None, :]
    of_logits = weights * (_product(v, _turned(change)) - along)
    of_v = _product(weights.astype(v.dtype), change)
    narrow = of_logits.astype(q.dtype)
    of_k = _product(narrow, q) * scale
    of_q = _turned(_product(_turned(k), narrow) * scale)
    of_bias = jnp.sum(of_logits, 0) if bias.shape[0] > 1 else jnp.sum(of_logits, (0, 1))[None]
    return of_q.astype(q.dtype), of_k.astype(k.dtype), of_v.astype(v.dtype), _turned(of_bias)


attend.defvjp(_attend, _attend_back)


def _scale(q: Array) -> float:
    return 1 / math.sqrt(q.shape[-1])


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _turned(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2)


class WindowAttention(nn.Module):
    """Attention of `heads` heads within windows, with a bias by relative place: f[B, n, m * m, C] -> the same shape.

    mask: f32[n, m * m, m * m] or None, see `window_mask`. The bias table is the parameter 'relative_bias',
    f32[(2m - 1)^2, heads].
    """

    heads: int
    window: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, mask: np.ndarray | None = None) -> Array:
        def project(name: str) -> Array:
            y = linear(x.shape[-1], self.dtype, name=name)(x)
            return y.reshape(*x.shape[:3], self.heads, -1).swapaxes(2, 3)

        table = self.param("relative_bias", kernel_init, ((2 * self.window - 1) ** 2, self.heads))
        # As a product with 0 and 1: the gradient of a look-up is a sum whose order accelerators do not keep.
        looked_up = nn.one_hot(relative_index(self.window), len(table))
        bias = jnp.einsum("ijk,kh->hij", looked_up, table, precision="highest")[None]
        if mask is not None:
            bias = bias + mask[:, None]
        y = attend(project("query"), project("key"), project("value"), bias)
        return linear(x.shape[-1], self.dtype, name="out")(y.swapaxes(2, 3).reshape(x.shape))


class SwinBlock(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)), eq. 3 of Liu et al.: f[B, h, w, C] -> the same shape.

    shift: of the windows, 0 or less than `window` · drop_path: the probability that a sample skips a residual branch in
    training, drawn from the rng 'drop_path'.
    """

    heads: int
    window: int = 7
    shift: int = 0
    drop_path: float = 0.0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = x.astype(self.dtype or x.dtype)
        attended = self._attend(LayerNorm(self.dtype, name="norm1")(x))
        x = x + self._dropped(attended, train)
        y = linear(4 * x.shape[-1], self.dtype, name="mlp1")(LayerNorm(self.dtype, name="norm2")(x))
        y = linear(x.shape[-1], self.dtype, name="mlp2")(gelu(y))
        return x + self._dropped(y, train)

    def _attend(self, x: Array) -> Array:
        height, width = x.shape[1:3]
        m = self.window
        below, right = -height % m, -width % m
        by = shifts(height, width, m, self.shift)
        # The mask is that of a grid which is padded first and rolled then.
        x = jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0)))
        size = x.shape[1:3]
        x = windows(jnp.roll(x, (-by[0], -by[1]), (1, 2)), m)
        x = WindowAttention(self.heads, m, self.dtype, name="attention")(x, window_mask(height, width, m, self.shift))
        return jnp.roll(unwindows(x, m, size), by, (1, 2))[:, :height, :width]

    def _dropped(self, branch: Array, train: bool) -> Array:
        if not train or not self.drop_path:
            return branch
        return drop_path(branch, self.drop_path, self.make_rng("drop_path"))


def drop_path(branch: Array, rate: float, key: Array) -> Array:
    """f[B, ...], 0 for a sample with probability `rate`, else divided by 1 - rate (Huang et al., arXiv:1603.09382)."""
    kept = jax.random.bernoulli(key, 1 - rate, (branch.shape[0],) + (1,) * (branch.ndim - 1))
    return jnp.where(kept, branch / jnp.asarray(1 - rate, branch.dtype), jnp.zeros((), branch.dtype))


class PatchMerging(nn.Module):
    """2x2 neighbours side by side, LN, linear: f[B, h, w, C] -> f[B, ceil(h/2), ceil(w/2), 2C]; odd sides are padded.

    The channels of a cell's (row, column) are in the order (0, 0), (1, 0), (0, 1), (1, 1).
    """

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        cells = x.reshape(batch, -(-height // 2), 2, -(-width // 2), 2, channels).transpose(0, 1, 3, 4, 2, 5)
        cells = cells.reshape(*cells.shape[:3], 4 * channels)
        cells = LayerNorm(self.dtype, name="norm")(cells)
        return linear(2 * channels, self.dtype, False, name="reduction")(cells)


class PatchExpanding(nn.Module):
    """Linear, its channels spread over 2x2 cells, LN: f[B, h, w, C] -> f[B, 2h, 2w, C/2], cropped to `size`.

    The channels of a cell's (row, column) are in the order (0, 0), (0, 1), (1, 0), (1, 1).
    """

    size: Sides
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = linear(2 * x.shape[-1], self.dtype, False, name="expansion")(x)
        x = depth_to_space(x, 2)[:, : self.size[0], : self.size[1]]
        return LayerNorm(self.dtype, name="norm")(x)
