"""From patch scores to an anomaly map, from a map to an image score: the only place that upsamples, blurs or reduces.

Interpolation and Gaussian blur are linear and separable, so each is one constant matrix per image axis, and a whole
chain is two small matrix products: `A_h @ patches @ A_w.T` with A = blur @ upsample. That is exact, static in shape and
quick on every backend (a blurred 256x256 map from 32x32 patches costs 5 million multiplications, where filtering the
large map costs hundreds of millions on a matrix unit or a slow scalar convolution).
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxad.errors import UserError
from jaxad.types import Array

INTERPOLATIONS = ("bilinear", "bilinear_corners", "nearest")
REDUCTIONS = ("max", "mean", "top1%")
TRUNCATE = 4.0  # scipy.ndimage.gaussian_filter's default: the kernel ends at int(4 sigma + 0.5) pixels


def upsample(patches: Array, size: tuple[int, int], interpolation: str = "bilinear") -> Array:
    """Resizes maps: f[B, h, w] to f32[B, H, W], size = (H, W).

    interpolation: 'bilinear' samples at half-pixel centres (PyTorch's align_corners=False), 'bilinear_corners' puts the
    corner samples onto the corner pixels (align_corners=True), 'nearest' repeats. None of them antialiases.
    Raises UserError for another name.

    >>> upsample(jnp.array([[[0.0, 1.0]]]), (1, 4))[0, 0].tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    return anomaly_map(patches, size, interpolation=interpolation, sigma=0.0)


def gaussian_blur(maps: Array, sigma: float) -> Array:
    """Gaussian filter of f[B, H, W] with standard deviation `sigma` pixels, as `scipy.ndimage.gaussian_filter` does it.

    The kernel is cut at 4 sigma and normalised, borders are mirrored with the edge pixel repeated (scipy's 'reflect').
    sigma = 0 changes nothing. Raises UserError for a negative sigma.

    >>> gaussian_blur(jnp.ones((1, 8, 8)), 2.0).round(5).min().item()
    1.0
    """
    return anomaly_map(maps, maps.shape[1:], interpolation="nearest", sigma=sigma)


def anomaly_map(patches: Array, size: tuple[int, int], *, interpolation: str = "bilinear", sigma: float = 4.0) -> Array:
    """`gaussian_blur(upsample(patches, size, ...), sigma)` in two matrix products: f[B, h, w] to f32[B, H, W].

    >>> anomaly_map(jnp.ones((2, 4, 5)), (32, 40)).shape
    (2, 32, 40)
    """
    height, width = size
    rows = _chain(patches.shape[1], height, interpolation, float(sigma))
    columns = _chain(patches.shape[2], width, interpolation, float(sigma))
    maps = jnp.asarray(patches, jnp.float32)
    if columns is not None:
        maps = jnp.einsum("bhw,xw->bhx", maps, columns, precision=jax.lax.Precision.HIGHEST)
    if rows is not None:
        maps = jnp.einsum("yh,bhx->byx", rows, maps, precision=jax.lax.Precision.HIGHEST)
    return maps


def image_score(maps: Array, reduction: str = "max") -> Array:
    """One score per image from f[B, H, W]: the 'max', the 'mean', or 'top1%', the mean of the highest hundredth.

    Raises UserError for another name.

    >>> image_score(jnp.array([[[0.0, 3.0], [1.0, 0.0]]]), 'mean').tolist()
    [1.0]
    """
    flat = jnp.asarray(maps, jnp.float32).reshape(maps.shape[0], -1)
    if reduction == "max":
        return jnp.max(flat, axis=1)
    if reduction == "mean":
        return jnp.mean(flat, axis=1)
    if reduction == "top1%":
        return jnp.mean(jax.lax.top_k(flat, max(1, math.ceil(flat.shape[1] / 100)))[0], axis=1)
    raise UserError(f"config.score.reduction is {reduction!r}: set it to one of {', '.join(REDUCTIONS)}")


@functools.lru_cache
def interpolation_matrix(n: int, m: int, interpolation: str) -> np.ndarray:
    """f64[m, n]: row i holds the weights with which `n` samples make sample i of `m`. Every row sums to 1.

    >>> interpolation_matrix(2, 3, 'bilinear_corners').tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    target = np.arange(m)
    if interpolation == "bilinear":
        position = np.clip((target + 0.5) * n / m - 0.5, 0, n - 1)
    elif interpolation == "bilinear_corners":
        position = target * ((n - 1) / max(m - 1, 1))
    elif interpolation == "nearest":
        position = target * n // m
    else:
        raise UserError(
            f"config.score.interpolation is {interpolation!r}: set it to one of {', '.join(INTERPOLATIONS)}"
        )
    below = np.minimum(np.floor(position).astype(int), n - 1)
    above = np.minimum(below + 1, n - 1)
    fraction = position - below
    matrix = np.zeros((m, n))
    np.add.at(matrix, (target, below), 1 - fraction)
    np.add.at(matrix, (target, above), fraction)
    matrix.flags.writeable = False
    return matrix


@functools.lru_cache
def blur_matrix(n: int, sigma: float) -> np.ndarray:
    """f64[n, n]: the Gaussian filter of `n` samples with mirrored borders, however long the kernel is."""
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    source = (np.arange(n)[:, None] + offsets) % (2 * n)
    source = np.where(source < n, source, 2 * n - 1 - source)  # ... 1 0 | 0 1 ... n-1 | n-1 n-2 ...
    matrix = np.zeros((n, n))
    np.add.at(matrix, (np.arange(n)[:, None], source), kernel)
    matrix.flags.writeable = False
    return matrix


def _chain(n: int, m: int, interpolation: str, sigma: float) -> np.ndarray | None:
    """f32[m, n], blur @ interpolation, multiplied in float64; None for the identity."""
    if sigma < 0:
        raise UserError(f"config.score.sigma is {sigma:g}: set it to 0 (no smoothing) or more pixels")
    matrix = interpolation_matrix(n, m, interpolation)
    if sigma > 0:
        matrix = blur_matrix(m, sigma) @ matrix
    elif n == m:
        return None
    return matrix.astype(np.float32)
