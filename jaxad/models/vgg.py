"""VGG16 without BatchNorm that returns the features of named stages (Simonyan and Zisserman 2015, arXiv:1409.1556).

Stages: 'relu1_1' ... 'relu5_3', each the output of that convolution's ReLU (features >= 0). The convolutions carry
torchvision's names with '_' for '.': features_0/kernel is features.0.weight. The three dense layers are not part of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from jaxad.models.layers import conv
from jaxad.types import Array, UserError

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = (2, 2, 3, 3, 3)  # convolutions per block; between blocks a 2x2 max pooling of stride 2
STAGES = tuple(f"relu{block}_{i}" for block, depth in enumerate(DEPTHS, 1) for i in range(1, depth + 1))


class VGG16(nn.Module):
    """images f[B, H, W, 3], normalised -> {stage: f[B, H/s, W/s, C]}, s = 2^(block - 1), up to the last stage asked."""

    stages: tuple[str, ...]
    widths: tuple[int, ...] = WIDTHS
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        del train  # no BatchNorm, no dropout: there is nothing to switch
        last = max(STAGES.index(stage) for stage in self.stages)
        found, x, index = {}, images, 0
        for stage in STAGES[: last + 1]:
            block, position = int(stage[4]), int(stage[6])
            if position == 1 and block > 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
                index += 1
            x = conv(self.widths[block - 1], 3, dtype=self.dtype, use_bias=True, name=f"features_{index}")(x)
            x = found[stage] = nn.relu(x)
            index += 2  # torchvision counts the ReLU and the pooling as layers
        return {stage: found[stage] for stage in self.stages}


def vgg16(stages: Sequence[str] = ("relu2_2", "relu3_3", "relu4_3"), dtype=None, *, widths=WIDTHS) -> VGG16:
    """The VGG16 that returns `stages`; other `widths` make a narrow one for tests. UserError for an unknown stage.

    >>> import jax
    >>> module = vgg16(("relu1_2", "relu3_3"), widths=(2, 4, 8, 8, 8))
    >>> features, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 32, 3)))
    >>> {stage: feature.shape for stage, feature in features.items()}
    {'relu1_2': (2, 32, 32, 2), 'relu3_3': (2, 8, 8, 8)}
    """
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise UserError(f"vgg16 has no stage {unknown[0]!r}; its stages: {', '.join(STAGES)}")
    if not stages:
        raise UserError(f"vgg16: name at least one stage of {', '.join(STAGES)}")
    return VGG16(tuple(stages), tuple(widths), dtype)
