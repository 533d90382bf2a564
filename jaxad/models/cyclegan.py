"""CycleGAN's ResNet generator (Zhu et al., ICCV 2017, arXiv:1703.10593, section 7.2), predicting a patch from two.

The rival of the Swin generator in Table 3 of Huang et al., who say no more than "CNN-based Cycle GAN network": both
patches enter as six channels, and there is no cycle to be consistent with.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxad.models.convolution import NHWC, convolve
from jaxad.models.layers import Conv, interleaved
from jaxad.types import Array, UserError

BLOCKS = {"cyclegan_resnet9": 9, "cyclegan_resnet6": 6}  # residual blocks, by the generator's name
SHRINK = 4  # pixels of a patch per position of the residual blocks
normal = nn.initializers.normal(0.02)


def instance_norm(x: Array) -> Array:
    """Every channel of every sample at mean 0 and variance 1 over its positions, in float32: f[B, h, w, C] -> the same.

    PyTorch's InstanceNorm2d without affine parameters, eps 1e-5.
    """
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, (1, 2), keepdims=True)
    return (wide * lax.rsqrt(jnp.mean(jnp.square(wide), (1, 2), keepdims=True) + 1e-5)).astype(x.dtype)


class ConvTranspose3x3(nn.Module):
    """PyTorch's ConvTranspose2d(3, stride=2, padding=1, output_padding=1): f[B, h, w, C] -> f[B, 2h, 2w, features].

    Of the four phases of the output one sees a single place of the kernel, two see two and one sees four. On CPU these
    are four plain convolutions, as in `layers.ConvTranspose4x4`.
    """

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", normal, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return lax.platform_dependent(x, kernel, cpu=_by_phases, default=_dilated) + bias[None, None, None]


def _dilated(x: Array, kernel: Array) -> Array:
    backwards = kernel[::-1, ::-1]
    return lax.conv_general_dilated(x, backwards, (1, 1), ((1, 2), (1, 2)), lhs_dilation=(2, 2), dimension_numbers=NHWC)


def _by_phases(x: Array, kernel: Array) -> Array:
    taps = (slice(1, 2), slice(2, None, -2))  # of an even and of an odd place of the output

    def phase(row: int, column: int) -> Array:
        return convolve(x, kernel[taps[row], taps[column]], (1, 1), ((0, row), (0, column)))

    return interleaved(phase)


class Residual(nn.Module):
    """x + (convolution, norm, ReLU, convolution, norm)(x), padded by reflection: f[B, h, w, C] -> the same shape."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.relu(instance_norm(_conv(x.shape[-1], 3, dtype=self.dtype, name="conv1")(_reflected(x, 1))))
        return x + instance_norm(_conv(x.shape[-1], 3, dtype=self.dtype, name="conv2")(_reflected(y, 1)))


class ResnetGenerator(nn.Module):
    """far, near f[B, p, p, 3] in [0, 1] -> the patch behind them f32[B, p, p, 3]; 4 divides p, 8 or more.

    blocks: residual ones, 9 or 6 in the paper · width: channels of the first convolution · tanh: the output is
    squeezed into (0, 1), the paper's tanh for images in [-1, 1]; otherwise it is not bounded.
    Departure: it is not by default, as the loss is a squared error (eq. 6 of Huang et al.).

    >>> import jax
    >>> generator = ResnetGenerator()
    >>> patch = jax.ShapeDtypeStruct((2, 56, 56, 3), jnp.float32)
    >>> found, variables = jax.eval_shape(generator.init_with_output, jax.random.key(0), patch, patch)
    >>> found.shape, sum(leaf.size for leaf in jax.tree.leaves(variables))
    ((2, 56, 56, 3), 11387587)
    """

    blocks: int = 9
    width: int = 64
    tanh: bool = False
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, far: Array, near: Array, train: bool = False) -> Array:
        residual = nn.remat(Residual) if self.remat else Residual
        x = _reflected(jnp.concatenate([far, near], axis=-1), 3)
        x = nn.relu(instance_norm(_conv(self.width, 7, dtype=self.dtype, name="conv1")(x)))
        for i in (2, 3):
            down = _conv(x.shape[-1] * 2, 3, 2, 1, self.dtype, name=f"conv{i}")
            x = nn.relu(instance_norm(down(x)))
        for i in range(1, self.blocks + 1):
            x = residual(self.dtype, name=f"block{i}")(x)
        for i in (1, 2):
            up = ConvTranspose3x3(x.shape[-1] // 2, self.dtype, name=f"up{i}")
            x = nn.relu(instance_norm(up(x)))
        x = _conv(3, 7, dtype=jnp.float32, name="pixels")(_reflected(x.astype(jnp.float32), 3))
        return 0.5 + 0.5 * jnp.tanh(x) if self.tanh else x


def check_patch(side: int) -> None:
    """Raises UserError where patches of `side` pixels cannot be halved twice."""
    if side % SHRINK or side < 2 * SHRINK:
        near = max(side // SHRINK, 2) * SHRINK
        raise UserError(
            f"the CycleGAN generators need patches whose side is a multiple of {SHRINK} and {2 * SHRINK} or more, "
            f"not {side}; set config.pattern_generation.patch={near}"
        )


def _conv(features: int, kernel: int, stride: int = 1, padding: int = 0, dtype=None, *, name: str) -> nn.Module:
    return Conv(features, kernel, stride, padding, True, dtype, normal, name=name)


def _reflected(x: Array, by: int) -> Array:
    return jnp.pad(x, ((0, 0), (by, by), (by, by), (0, 0)), mode="reflect")
