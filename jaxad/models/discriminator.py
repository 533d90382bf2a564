"""The discriminator of AnoSeg (Table 6): DCGAN's, two layers deeper, on an image and its map side by side.

Written for 256 pixels, where eight convolutions of stride 2 end at one value. A smaller image has fewer layers of 512
channels (128 pixels: without Conv 6; 64: without Conv 5 and 6; 32: without Conv 4 to 6), a larger one more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from jaxad.models.anoseg import dcgan_normal, dcgan_scale, scaled
from jaxad.models.layers import BatchNorm, Conv
from jaxad.types import Array, UserError

SLOPE = 0.2  # of LeakyReLU: DCGAN's, for Table 6 does not say
FIRST, WIDE, LAST = (64, 128, 256), 512, 128


class Judgement(NamedTuple):
    """logit: f32[B], > 0 = real · features: f32[B, 2, 2, C], f of eq. 5, what the last convolution sees."""

    logit: Array
    features: Array


def channels(size: int, width_mult: float = 1.0) -> tuple[int, ...]:
    """Channels of the convolutions up to the one before the last (Conv 1 to Conv 7) for images of `size` pixels.

    Raises UserError where halving does not end at 2 x 2.

    >>> channels(256)
    (64, 128, 256, 512, 512, 512, 128)
    >>> channels(64)
    (64, 128, 256, 512, 128)
    """
    depth = round(math.log2(size)) if size > 0 else 0
    if depth < 5 or 2**depth != size:
        near = 2 ** max(5, depth)
        raise UserError(
            f"the discriminator needs square images of 32, 64, 128, 256, ... pixels, not {size}; "
            f"set config.data.image_size={near}"
        )
    return tuple(scaled(features, width_mult) for features in (*FIRST, *(WIDE,) * (depth - 5), LAST))


class Discriminator(nn.Module):
    """planes f[B, S, S, C], an image in [0, 1] with its map -> `Judgement`. S is a power of two, 32 or more.

    pre_activation: take the features before BatchNorm and LeakyReLU of Conv 7 instead of after them.
    """

    width_mult: float = 1.0
    dtype: jnp.dtype | None = None
    pre_activation: bool = False

    @nn.compact
    def __call__(self, planes: Array, train: bool = False) -> Judgement:
        x = planes
        for i, features in enumerate(channels(planes.shape[1], self.width_mult), 1):
            x = before = _conv(features, self.dtype, use_bias=i == 1, name=f"conv{i}")(x)
            if i > 1:
                x = BatchNorm(self.dtype, scale_init=dcgan_scale, name=f"bn{i}")(x, train)
            x = nn.leaky_relu(x, SLOPE)
        features = (before if self.pre_activation else x).astype(jnp.float32)
        # Conv 8 sees 2 x 2, padded to 4 x 4: its outer taps meet zeros only.
        logit = _conv(1, jnp.float32, use_bias=True, name="last")(x.astype(jnp.float32))
        return Judgement(logit[:, 0, 0, 0], features)


def _conv(features: int, dtype, *, use_bias: bool, name: str) -> nn.Module:
    return Conv(features, 4, 2, 1, use_bias, dtype, dcgan_normal, name=name)
