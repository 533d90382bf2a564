"""Layers with torchvision's arithmetic: NHWC, explicit padding, BatchNorm with PyTorch's constants.

Where Flax's own layers would differ: `padding="SAME"` pads stride-2 convolutions on one side only, max pooling must pad
with -inf, and PyTorch keeps the unbiased running variance. Parameters and statistics are float32; `dtype` is the dtype
of the computation (bfloat16 on accelerators), None = that of the input.

Kernels are f32[kh, kw, C_in, C_out]: PyTorch's Conv2d weight [C_out, C_in, kh, kw] transposed by (2, 3, 1, 0), its
ConvTranspose2d weight [C_in, C_out, kh, kw] by (2, 3, 0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxad.models.convolution import NHWC, convolve
from jaxad.types import Array

FEW_PRODUCTS = 2**18  # of a channel of a position with a kernel's value, per place of the kernel
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's, of what has no other
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # torchvision's init of all its convolutions


def conv(
    features: int, kernel: int, stride: int = 1, dtype=None, *, use_bias: bool = False, name: str | None = None
) -> nn.Module:
    """A square convolution padded by kernel // 2 on every side: [B, H, W, C] -> [B, H/stride, W/stride, features].

    >>> layer = conv(8, 3, stride=2)
    >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 6, 8, 4)))[0].shape
    (1, 3, 4, 8)
    """
    if kernel == 1:
        return PointwiseConv(features, stride, use_bias, dtype, name=name)
    return Conv(features, kernel, stride, kernel // 2, use_bias, dtype, name=name)


class Conv(nn.Module):
    """PyTorch's Conv2d, square and padded by `padding` zeros on every side; `convolve` gives its gradient."""

    features: int
    kernel: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = False
    dtype: jnp.dtype | None = None
    kernel_init: nn.initializers.Initializer = he_normal

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (self.kernel, self.kernel, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = convolve(x, kernel, (self.stride, self.stride), ((self.padding, self.padding),) * 2)
        return y if bias is None else y + bias[None, None, None]


def conv_transpose(features: int, dtype=None, *, name: str | None = None) -> nn.Module:
    """A 2x2 transposed convolution of stride 2 without bias: [B, h, w, C] -> [B, 2h, 2w, features]."""
    return ConvTranspose2x2(features, dtype, name=name)


def batch_norm(dtype=None, *, groups: int = 1, name: str | None = None) -> nn.Module:
    """BatchNorm over B, H, W with torchvision's constants (eps 1e-5, PyTorch momentum 0.1), in training of each of
    `groups` groups of rows alone; call it with (x, train, mask)."""
    return BatchNorm(dtype, groups=groups, name=name)


def max_pool(x: Array) -> Array:
    """3x3 max pooling of stride 2 with one row of -inf around: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C]."""
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


class PointwiseConv(nn.Module):
    """A 1x1 convolution as one matrix product over positions; the kernel keeps its shape f32[1, 1, C, features].

    Measured on 2 CPU cores, 8 x 64 x 64 x 256 -> 128: XLA's convolution reaches 87 GFLOP/s forward and 37 in the
    kernel gradient, this one 365 and 229; at 8 x 16 x 16 x 1024 -> 512 they reach 354 and 86, 472 and 300.
    """

    features: int
    stride: int = 1
    use_bias: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", he_normal, (1, 1, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = x[:, :: self.stride, :: self.stride]
        y = (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], self.features)
        return y if bias is None else y + bias[None, None, None]


class Dense(nn.Module):
    """A linear layer over channels, f[..., C] -> f[..., features], as one product of matrices whatever the rank.

    bias_init: None, uniform in +-1/sqrt(C), which with `torch_uniform` kernels is PyTorch's Linear.
    On a grid the gradients of nn.Dense are sums over three axes, slow on CPU: the MLP of a Swin block of 24 channels
    takes 0.09 s there and back for 16 x 56 x 56 tokens on one core, 0.04 s with this.
    """

    features: int
    use_bias: bool = True
    dtype: jnp.dtype | None = None
    kernel_init: nn.initializers.Initializer = torch_uniform
    bias_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def uniform(key, shape, dtype=jnp.float32):
            bound = 1 / math.sqrt(x.shape[-1])
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init or uniform, (self.features,)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = x.reshape(-1, x.shape[-1]) @ kernel
        y = y if bias is None else y + bias[None]
        return y.reshape(*x.shape[:-1], self.features)


class ConvTranspose2x2(nn.Module):
    """PyTorch's ConvTranspose2d(kernel_size=2, stride=2, bias=False). Its outputs never overlap: one matrix product."""

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def torch_default(key, shape, dtype=jnp.float32):  # uniform in +-1/sqrt(4 C_out), what PyTorch does if not told
            bound = 1 / math.sqrt(4 * shape[-1])
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        batch, height, width, channels = x.shape
        kernel = self.param("kernel", torch_default, (2, 2, channels, self.features))
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        matrix = kernel.transpose(2, 0, 1, 3).reshape(channels, 4 * self.features)
        return depth_to_space((x.reshape(-1, channels) @ matrix).reshape(batch, height, width, -1), 2)


class ConvTranspose4x4(nn.Module):
    """PyTorch's ConvTranspose2d(kernel_size=4, stride=2, padding=1, bias=False): [B, h, w, C] -> [B, 2h, 2w, features].

    Each of the four phases of the output sees a 2x2 part of the kernel. On CPU these are four plain convolutions, for
    the gradient of a dilated one crawls there: 4 GFLOP/s at 8 x 64 x 64 x 128, on 2 cores. The smallest stay as they
    are, which compiles faster.
    """

    features: int
    dtype: jnp.dtype | None = None
    kernel_init: nn.initializers.Initializer = he_normal

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (4, 4, x.shape[-1], self.features))
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        kernel = kernel[::-1, ::-1]  # a transposed convolution runs the kernel backwards
        if x.size * self.features < FEW_PRODUCTS:
            return _dilated(x, kernel)
        return lax.platform_dependent(x, kernel, cpu=_by_phases, default=_dilated)


def _dilated(x: Array, kernel: Array) -> Array:
    return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=NHWC)


def _by_phases(x: Array, kernel: Array) -> Array:
    def phase(row: int, column: int) -> Array:
        return convolve(x, kernel[row::2, column::2], (1, 1), ((1 - row, row), (1 - column, column)))

    return interleaved(phase)


def interleaved(phase: Callable[[int, int], Array]) -> Array:
    """f[B, 2h, 2w, C] of its four phases: places (row + 2i, column + 2j) are phase(row, column), f[B, h, w, C]."""
    rows = jnp.stack([jnp.stack([phase(row, column) for column in (0, 1)], axis=3) for row in (0, 1)], axis=2)
    batch, height, _, width, _, channels = rows.shape
    return rows.reshape(batch, 2 * height, 2 * width, channels)


def depth_to_space(x: Array, n: int) -> Array:
    """f[B, h, w, n n C] -> f[B, n h, n w, C]: channels are those of n rows of n cells.

    >>> depth_to_space(jnp.arange(8).reshape(1, 1, 2, 4), 2)[0, :, :, 0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height, width, n, n, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, n * height, n * width, -1)


def space_to_depth(x: Array, n: int) -> Array:
    """f[B, n h, n w, C] -> f[B, h, w, n n C]: what `depth_to_space` was given."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // n, n, width // n, n, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // n, width // n, n * n * channels)


def gelu(x: Array) -> Array:
    """x times the normal distribution's cumulative at x, exactly; by erf, for erfc, which jax.nn takes, is slower."""
    return 0.5 * x * (1 + lax.erf(x * jnp.asarray(math.sqrt(0.5), x.dtype)))


class LayerNorm(nn.Module):
    """Over the channels of each token, in float32, eps 1e-5: f[..., C] -> the same shape."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (1,) * (x.ndim - 1) + x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape[-1:]).reshape(shape)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:]).reshape(shape)
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, -1, keepdims=True)
        y = wide * lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + 1e-5) * scale + bias
        return y.astype(self.dtype or x.dtype)


class BatchNorm(nn.Module):
    """PyTorch's BatchNorm2d. train=True: statistics of the batch, and new averages (`mutable=["batch_stats"]`).

    Statistics are at least float32 whatever the dtype. Under `jit` with a sharded batch they are global. The running
    variance is the unbiased one, M / (M - 1) times the batch's with M = B H W, as PyTorch keeps it and Flax does not.
    mask: bool[B], the rows that statistics are taken from, at least one of them True; the other rows are normalised by
    these, too. None: all rows.
    groups: in training each of so many groups of B / groups consecutive rows is normalised by its own statistics, as
    rows on as many devices are without synchronisation ("ghost" BatchNorm, Hoffer et al. 2017, arXiv:1705.08741,
    algorithm 1); the averages move by the mean over groups, M the values of a group. Under `jit` a multiple of the
    number of devices keeps each group on one device. Raises ValueError, while tracing, where groups do not divide the
    rows or a mask is given too.
    use_scale, use_bias: with a learnt factor, with a learnt offset.
    """

    dtype: jnp.dtype | None = None
    momentum: float = 0.9  # the weight of the old average: 1 - PyTorch's
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    groups: int = 1
    use_scale: bool = True
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None) -> Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, shape) if self.use_scale else None
        bias = self.param("bias", nn.initializers.zeros, shape) if self.use_bias else None
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        dtype = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
        wide = x.astype(dtype)
        mean, var = running_mean.value.astype(dtype), running_var.value.astype(dtype)
        groups = self._groups(x, mask) if train else 1
        if groups > 1:
            wide = wide.reshape((groups, -1) + x.shape[1:])

        def beside(value: Array) -> Array:  # f[C], or f[groups, C], with the axes that broadcast over `wide`
            return value.reshape(value.shape[:-1] + (1,) * (wide.ndim - value.ndim) + shape)

        if train:
            axes = tuple(range(wide.ndim - x.ndim, wide.ndim - 1))
            where = None if mask is None else mask.reshape((-1,) + (1,) * (x.ndim - 1))
            mean = jnp.mean(wide, axes, where=where)
            var = jnp.mean(jnp.square(wide - beside(mean)), axes, where=where)
            if not self.is_initializing():
                rows = x.shape[0] // groups if mask is None else jnp.sum(mask).astype(dtype)
                count = math.prod(x.shape[1:-1]) * rows
                unbiased = var * (count / (max if mask is None else jnp.maximum)(count - 1, 1))
                for average, value in ((running_mean, mean), (running_var, unbiased)):
                    value = (jnp.mean(value, axis=0) if groups > 1 else value).astype(average.value.dtype)
                    average.value = self.momentum * average.value + (1 - self.momentum) * value
        factor = lax.rsqrt(var + self.epsilon)
        if scale is not None:
            factor = scale.astype(dtype).reshape((1,) * (factor.ndim - 1) + shape) * factor
        y = (wide - beside(mean)) * beside(factor)
        if bias is not None:
            y = y + beside(bias.astype(dtype))
        return y.reshape(x.shape).astype(self.dtype or x.dtype)

    def _groups(self, x: Array, mask: Array | None) -> int:
        if self.groups < 1 or x.shape[0] % self.groups:
            raise ValueError(f"BatchNorm: {self.groups} groups do not divide a batch of {x.shape[0]} rows")
        if self.groups > 1 and mask is not None:
            raise ValueError("BatchNorm: groups and a mask of rows do not go together")
        return self.groups
