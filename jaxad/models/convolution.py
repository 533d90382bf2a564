"""`lax.conv_general_dilated`, on CPU with other arithmetic where XLA's is slow: the largest images and the smallest.

Large images, the kernel's gradient. XLA computes it as one convolution whose window is the whole image: at 16 x 128 x
128 x 32 with 9 GFLOP/s on 2 cores, where the forward pass runs at 44. A product of matrices for each place of the
kernel, a few images at a time so that they stay in the cache, runs at 38; a training step of AnoSeg at 128 pixels takes
0.75 of the time. Smaller ones keep XLA's, which is quicker to compile and nearly as fast to run.

Small images of many channels, as in the last stage of a ResNet at 64 pixels. At 16 x 2 x 2 x 512, one core, XLA's
convolution and its gradient of the image run at 0.9 and 0.8 GFLOP/s; one product of matrices over patches runs at 70
and 65, its gradient of the kernel at 107 (86). From 3 x 3 on XLA's forward pass keeps up, its gradients not quite.

Other backends keep XLA's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxad.types import AXIS, Array

NHWC = ("NHWC", "HWIO", "NHWC")
FEWEST = 16  # channels on either side below which XLA's own is as fast
MANY = 2**16  # positions of the output, all images together, from which the products are worth compiling
AT_ONCE = 4096  # positions that are worked on at once
TINY, DEEP = 16, 128  # positions of an output up to which, and channels from which on, patches are multiplied
Padding = Sequence[tuple[int, int]]


def convolve(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> Array:
    """f[B, H, W, C] by f[kh, kw, C, F] -> f[B, h, w, F]; `padding` ((top, bottom), (left, right)), explicit.

    >>> convolve(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), (2, 2), ((1, 1), (1, 1)))[0, :, :, 0].tolist()
    [[4.0, 6.0], [6.0, 9.0]]
    """
    if min(kernel.shape[2:]) < DEEP or math.prod(_grid(x.shape, kernel.shape, strides, padding)) > TINY:
        return _convolve(x, kernel, strides, padding)

    def by_patches(x: Array, kernel: Array) -> Array:
        return _by_patches(x, kernel, strides, padding)

    def plain(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC)

    return lax.platform_dependent(x, kernel, cpu=by_patches, default=plain)


def _grid(image: Sequence[int], kernel: Sequence[int], strides: tuple[int, int], padding: Padding) -> tuple[int, int]:
    """(h, w) of the output."""
    h, w = ((image[1 + i] + sum(padding[i]) - kernel[i]) // strides[i] + 1 for i in (0, 1))
    return h, w


def _by_patches(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> Array:
    """The convolution as one product: patches f[B h w, kh kw C] by kernel f[kh kw C, F]."""
    rows, columns, channels, features = kernel.shape
    h, w = _grid(x.shape, kernel.shape, strides, padding)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))

    def at(row: int, column: int) -> Array:
        stop = (len(x), row + strides[0] * (h - 1) + 1, column + strides[1] * (w - 1) + 1, channels)
        return lax.slice(padded, (0, row, column, 0), stop, (1, *strides, 1))

    patches = jnp.concatenate([at(row, column) for row in range(rows) for column in range(columns)], axis=-1)
    y = patches.reshape(-1, rows * columns * channels) @ kernel.reshape(-1, features)
    return y.reshape(len(x), h, w, features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC)


def _forward(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding):
    return _convolve(x, kernel, strides, padding), (x, kernel)


def _backward(strides: tuple[int, int], padding: Padding, kept: tuple[Array, Array], change: Array):
    x, kernel = kept

    def plain(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC)

    (of_x,) = jax.linear_transpose(lambda x: plain(x, kernel), x)(change)

    def by_xla(x: Array, change: Array) -> Array:
        return jax.linear_transpose(lambda kernel: plain(x, kernel), kernel)(change)[0]

    if min(kernel.shape[2:]) < FEWEST or math.prod(change.shape[:3]) < MANY:
        return of_x, by_xla(x, change)

    def by_products(x: Array, change: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        return kernel_gradient(padded, change, kernel.shape[:2], strides).astype(kernel.dtype)

    return of_x, lax.platform_dependent(x, change, cpu=by_products, default=by_xla)


_convolve.defvjp(_forward, _backward)


def kernel_gradient(padded: Array, change: Array, size: tuple[int, int], strides: tuple[int, int]) -> Array:
    """Gradient of a `convolve` without padding: inputs f[B, H, W, C], change f[B, h, w, F] -> f32[*size, C, F].

    Images are added up a few at a time, within each device's share of the batch, so that none changes its device.
    """
    rows, h, w, features = change.shape
    shares = jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)
    shares = shares if rows % shares == 0 else 1
    own = rows // shares
    at_once = max(n for n in range(1, own + 1) if own % n == 0 and (n == 1 or n * h * w <= AT_ONCE))

    def part(padded: Array, change: Array) -> Array:
        flat = change.reshape(-1, features)

        def at(row: int, column: int) -> Array:
            stop = (len(padded), row + strides[0] * (h - 1) + 1, column + strides[1] * (w - 1) + 1, padded.shape[3])
            seen = lax.slice(padded, (0, row, column, 0), stop, (1, *strides, 1)).reshape(len(flat), -1)
            return lax.dot_general(seen, flat, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

        return jnp.stack([jnp.stack([at(row, column) for column in range(size[1])]) for row in range(size[0])])

    def total(padded: Array, change: Array) -> Array:
        if at_once == own:
            return part(padded, change)
        blocks = [array.reshape(-1, at_once, *array.shape[1:]) for array in (padded, change)]
        zero = jnp.zeros((*size, padded.shape[-1], features), jnp.float32)
        return lax.scan(lambda sum_, block: (sum_ + part(*block), None), zero, blocks)[0]

    if shares == 1:
        return total(padded, change)
    by_share = [array.reshape(shares, own, *array.shape[1:]) for array in (padded, change)]
    return jnp.sum(jax.vmap(total)(*by_share), axis=0)
