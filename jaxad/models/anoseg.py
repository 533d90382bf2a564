"""The generators of AnoSeg (Song et al., "AnoSeg: Anomaly Segmentation Network Using Self-Supervised Learning",
Table 6): a ResNet encoder that also sees coordinates, and one decoder for each thing that is to be drawn.

No skip connections: Table 6 starts from the 8x8x512 features and lists no concatenation. Convolutions that a BatchNorm
follows have no bias. The last convolution is computed in float32 whatever the dtype, for a map that is rounded to
bfloat16 ranks pixels with ties.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxad.models.layers import BatchNorm, Conv, ConvTranspose4x4
from jaxad.models.resnet import resnet
from jaxad.types import Array

CHANNELS = (512, 256, 128, 128, 128)  # of Conv i and ConvTr i, i = 1 ... 5; Conv 6 has the last
STRIDE = 32  # pixels of an image per position of layer4: what five ConvTr make up for
dcgan_normal = nn.initializers.normal(0.02)  # Radford et al. 2016; the paper does not say


def dcgan_scale(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """BatchNorm scales from N(1, 0.02), as DCGAN draws them."""
    return 1.0 + dcgan_normal(key, shape, dtype)


def coordinates(height: int, width: int) -> np.ndarray:
    """f32[1, height, width, 2], x and y in [-1, 1]: planes of rank 1, -1 and 1 at the borders (CoordConv; 3.3).

    >>> coordinates(3, 2)[0, 0, :, 0].tolist(), coordinates(3, 2)[0, :, 0, 1].tolist()
    ([-1.0, 1.0], [-1.0, 0.0, 1.0])
    """
    y, x = (np.linspace(-1.0, 1.0, side, dtype=np.float32) for side in (height, width))
    return np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1)[None]


class Up(nn.Module):
    """Conv i, ConvTr i, a BatchNorm and a ReLU behind each: f[B, h, w, C] -> f[B, 2h, 2w, features]."""

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = _conv(self.features, self.dtype, name="conv")(x)
        x = nn.relu(_batch_norm(self.dtype, name="conv_bn")(x, train))
        x = ConvTranspose4x4(self.features, self.dtype, dcgan_normal, name="conv_transpose")(x)
        return nn.relu(_batch_norm(self.dtype, name="conv_transpose_bn")(x, train))


class Decoder(nn.Module):
    """Table 6, Conv 1 to Conv 7: f[B, h, w, C] -> logits f32[B, 32h, 32w, out]; their sigmoid is what is drawn.

    width_mult: factor on the channels of all layers but the last · remat: keep one activation per Up, compute the
    others again when going back.
    """

    out: int
    width_mult: float = 1.0
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        up = nn.remat(Up, static_argnums=(2,)) if self.remat else Up
        channels = [scaled(features, self.width_mult) for features in CHANNELS]
        for i, features in enumerate(channels, 1):
            x = up(features, self.dtype, name=f"up{i}")(x, train)
        x = _conv(channels[-1], self.dtype, name="conv6")(x)
        x = nn.relu(_batch_norm(self.dtype, name="conv6_bn")(x, train))
        x = x.astype(jnp.float32)
        return _conv(self.out, jnp.float32, use_bias=True, name="conv7")(x)


class Generator(nn.Module):
    """G of the paper: planes f[B, H, W, P] -> {name: logits f32[B, H, W, channels]}.

    H and W are multiples of 32. P is free: RGB, RGB with coordinates (5), RGB with a map and coordinates (6).
    decoders: {name: output channels}, drawn from the same features · backbone: a ResNet · width_mult: factor on the
    channels of encoder and decoders · remat: see `Decoder`; the encoder is computed again as a whole.
    """

    decoders: Mapping[str, int]
    backbone: str = "resnet18"
    width_mult: float = 1.0
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, planes: Array, train: bool = False) -> dict[str, Array]:
        encoder = encoder_of(self.backbone, self.width_mult, self.dtype)
        module = nn.remat(type(encoder), static_argnums=(2,)) if self.remat else type(encoder)
        encode = module(encoder.architecture, encoder.stages, encoder.dtype, name="encoder")
        features = encode(planes, train)["layer4"]
        return {
            name: Decoder(out, self.width_mult, self.dtype, self.remat, name=name)(features, train)
            for name, out in self.decoders.items()
        }


def encoder_of(backbone: str, width_mult: float = 1.0, dtype=None) -> nn.Module:
    """The encoder: `backbone` up to layer4, its width scaled. Raises UserError for what is not a ResNet."""
    if width_mult == 1.0:
        return resnet(backbone, ("layer4",), dtype)
    base = resnet(backbone, ("layer4",)).architecture.base
    return resnet(backbone, ("layer4",), dtype, base=scaled(base, width_mult))


def scaled(features: int, width_mult: float) -> int:
    """Channels of a layer, at least 4.

    >>> scaled(512, 0.25), scaled(64, 0.01)
    (128, 4)
    """
    return max(4, round(features * width_mult))


def with_extra_planes(kernel: Array, planes: int) -> Array:
    """A pretrained stem f32[7, 7, 3, C] for `planes` inputs: zeros for the new ones, so it computes what it did."""
    return np.concatenate(
        [kernel, np.zeros((*kernel.shape[:2], planes - kernel.shape[2], kernel.shape[3]), np.float32)], 2
    )


def _conv(features: int, dtype, *, use_bias: bool = False, name: str) -> nn.Module:
    return Conv(features, 3, 1, 1, use_bias, dtype, dcgan_normal, name=name)


def _batch_norm(dtype, *, name: str) -> nn.Module:
    return BatchNorm(dtype, scale_init=dcgan_scale, name=name)
