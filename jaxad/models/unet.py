"""The decoder of a U-Net (Ronneberger et al. 2015, arXiv:1505.04597) over the stages of a ResNet.

From layer4 up, each step doubles the grid bilinearly, joins the features of the stage that has this grid, and takes two
3x3 convolutions with BatchNorm and ReLU. VisA's authors name no decoder; channels and skips are the specification's.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxad.models.layers import batch_norm, conv
from jaxad.types import Array

SKIPS = ("layer3", "layer2", "layer1", "stem")
LAYERS = ("layer4", *SKIPS)  # the stages that a decoder sees, in its order


class Block(nn.Module):
    """Twice a 3x3 convolution, BatchNorm, ReLU: f[B, h, w, C] -> f[B, h, w, features]."""

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        for i in (1, 2):
            x = conv(self.features, 3, 1, self.dtype, name=f"conv{i}")(x)
            x = nn.relu(batch_norm(self.dtype, name=f"bn{i}")(x, train))
        return x


class Decoder(nn.Module):
    """Features f[B, h, w, C] of `LAYERS`, deepest first -> one logit per pixel, f32[B, *size].

    channels: of the steps, one for each of `SKIPS` · size: (H, W) of the image. Each step goes to its skip's own grid,
    so a side need not be a multiple of 32: of 50 pixels the grids are 2, 4, 7, 13 and 25.

    >>> grids = [jnp.zeros((2, side, side, 8)) for side in (2, 4, 7, 13, 25)]
    >>> decoder = Decoder((16, 8, 8, 4), (50, 50))
    >>> jax.eval_shape(decoder.init_with_output, jax.random.key(0), grids)[0].shape
    (2, 50, 50)
    """

    channels: tuple[int, ...]
    size: tuple[int, int]
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, features: Sequence[Array], train: bool = False) -> Array:
        x, *skips = features
        for name, skip, width in zip(SKIPS, skips, self.channels, strict=True):
            joined = jnp.concatenate([_resize(x, skip.shape[1:3]).astype(skip.dtype), skip], axis=-1)
            x = Block(width, self.dtype, name=f"up_{name}")(joined, train)
        # In float32: a map that is rounded to bfloat16 ranks pixels with ties. Before the last resize, with which a 1x1
        # convolution commutes.
        logit = conv(1, 1, 1, jnp.float32, use_bias=True, name="logit")(x.astype(jnp.float32))
        return _resize(logit, self.size)[..., 0]


def _resize(x: Array, grid: tuple[int, int]) -> Array:
    """Bilinear at half-pixel centres: [B, h, w, C] -> [B, *grid, C]."""
    return jax.image.resize(x, (x.shape[0], *grid, x.shape[3]), "bilinear")
