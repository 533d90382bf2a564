"""ResNet-18, -34, -50 and WideResNet-50-2 that return the features of named stages (He et al. 2016, arXiv:1512.03385;
Zagoruyko and Komodakis 2016, arXiv:1605.07146), in torchvision's arithmetic: the stride sits on the 3x3 convolution.

Stages: 'stem' (conv1, bn1, ReLU; before the max pooling), 'layer1' ... 'layer4' (after the block's addition and ReLU,
so features are >= 0). The module tree carries torchvision's names with '_' for '.': layer1_0/conv1/kernel is
layer1.0.conv1.weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from jaxad.models.layers import batch_norm, conv, conv_transpose, max_pool
from jaxad.types import Array, UserError

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


def _shortcut(
    x: Array, features: int, stride: int, up: bool, dtype, groups: int, train: bool, mask: Array | None
) -> Array:
    """In a block's scope: `x`, or where the shape changes its projection: downsample_0, _1 (upsample_0, _1 if up)."""
    if up:
        x = conv_transpose(features, dtype, name="upsample_0")(x)
        return batch_norm(dtype, groups=groups, name="upsample_1")(x, train, mask)
    if stride != 1 or x.shape[-1] != features:
        x = conv(features, 1, stride, dtype, name="downsample_0")(x)
        return batch_norm(dtype, groups=groups, name="downsample_1")(x, train, mask)
    return x


class BasicBlock(nn.Module):
    """3x3, 3x3, add, ReLU: [B, h, w, C] -> [B, h/stride, w/stride, features]; a projection where the shape changes.

    up: a decoder's first block, conv1 a 2x2 transposed convolution of stride 2 (RD4AD) -> [B, 2h, 2w, features].
    mask: bool[B], the rows that BatchNorm takes its statistics from; None: all · groups: BatchNorm's, no mask beside.
    """

    features: int
    stride: int = 1
    up: bool = False
    dtype: jnp.dtype | None = None
    groups: int = 1

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None) -> Array:
        first = conv_transpose(self.features, self.dtype, name="conv1") if self.up else None
        y = (first or conv(self.features, 3, self.stride, self.dtype, name="conv1"))(x)
        y = nn.relu(batch_norm(self.dtype, groups=self.groups, name="bn1")(y, train, mask))
        y = conv(self.features, 3, 1, self.dtype, name="conv2")(y)
        y = batch_norm(self.dtype, groups=self.groups, name="bn2")(y, train, mask)
        return nn.relu(y + _shortcut(x, self.features, self.stride, self.up, self.dtype, self.groups, train, mask))


class Bottleneck(nn.Module):
    """1x1 to width, 3x3, 1x1 to features, add, ReLU: [B, h, w, C] -> [B, h/stride, w/stride, features].

    up: a decoder's first block, conv2 a 2x2 transposed convolution of stride 2 (RD4AD) -> [B, 2h, 2w, features].
    mask, groups: as BasicBlock's.
    """

    width: int
    features: int
    stride: int = 1
    up: bool = False
    dtype: jnp.dtype | None = None
    groups: int = 1

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None) -> Array:
        y = conv(self.width, 1, 1, self.dtype, name="conv1")(x)
        y = nn.relu(batch_norm(self.dtype, groups=self.groups, name="bn1")(y, train, mask))
        middle = conv_transpose(self.width, self.dtype, name="conv2") if self.up else None
        y = (middle or conv(self.width, 3, self.stride, self.dtype, name="conv2"))(y)
        y = nn.relu(batch_norm(self.dtype, groups=self.groups, name="bn2")(y, train, mask))
        y = conv(self.features, 1, 1, self.dtype, name="conv3")(y)
        y = batch_norm(self.dtype, groups=self.groups, name="bn3")(y, train, mask)
        return nn.relu(y + _shortcut(x, self.features, self.stride, self.up, self.dtype, self.groups, train, mask))


class Architecture(NamedTuple):
    """What tells one ResNet from another.

    blocks: per stage layer1 ... layer4 · base: channels of the stem · bottleneck: which block · widen: factor on the
    width inside bottlenecks (2 for WideResNet-50-2), which leaves their outputs as they are.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    base: int = 64
    widen: int = 1

    def width(self, stage: int) -> int:
        """Inner width of the blocks of layer `stage` = 1 ... 4."""
        return self.base * 2 ** (stage - 1) * self.widen

    def features(self, stage: int) -> int:
        """Output channels of layer `stage` = 1 ... 4, of the stem at 0."""
        return self.base if stage == 0 else self.base * 2 ** (stage - 1) * (4 if self.bottleneck else 1)


ARCHITECTURES = {
    "resnet18": Architecture((2, 2, 2, 2), bottleneck=False),
    "resnet34": Architecture((3, 4, 6, 3), bottleneck=False),
    "resnet50": Architecture((3, 4, 6, 3), bottleneck=True),
    "wide_resnet50_2": Architecture((3, 4, 6, 3), bottleneck=True, widen=2),
}


class ResNet(nn.Module):
    """images f[B, H, W, 3], normalised -> {stage: f[B, h, w, C]}, computed up to the last stage that is asked for.

    groups: in training every BatchNorm takes the statistics of so many groups of rows apart (`layers.BatchNorm`).
    """

    architecture: Architecture
    stages: tuple[str, ...]
    dtype: jnp.dtype | None = None
    groups: int = 1

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        arch = self.architecture
        last = max(STAGES.index(stage) for stage in self.stages)
        x = conv(arch.features(0), 7, 2, self.dtype, name="conv1")(images)
        x = nn.relu(batch_norm(self.dtype, groups=self.groups, name="bn1")(x, train))
        found = {"stem": x}
        if last > 0:
            x = max_pool(x)
        for stage in range(1, last + 1):
            for block in range(arch.blocks[stage - 1]):
                stride = 2 if block == 0 and stage > 1 else 1
                options = dict(stride=stride, dtype=self.dtype, groups=self.groups, name=f"layer{stage}_{block}")
                if arch.bottleneck:
                    x = Bottleneck(arch.width(stage), arch.features(stage), **options)(x, train)
                else:
                    x = BasicBlock(arch.features(stage), **options)(x, train)
            found[f"layer{stage}"] = x
        return {stage: found[stage] for stage in self.stages}


def resnet(
    name: str, stages: Sequence[str] = ("layer1", "layer2", "layer3"), dtype=None, groups: int = 1, **changes
) -> ResNet:
    """The ResNet `name` that returns `stages`; `changes` replace fields of its Architecture (tiny ones for tests).

    groups: of rows, whose statistics BatchNorm takes apart in training. Raises UserError for an unknown name or stage.

    >>> module = resnet("resnet18", ("layer1", "layer2"), base=8, blocks=(1, 1))
    >>> import jax
    >>> features, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 32, 3)))
    >>> {stage: feature.shape for stage, feature in features.items()}
    {'layer1': (2, 8, 8, 8), 'layer2': (2, 4, 4, 16)}
    """
    if name not in ARCHITECTURES:
        raise UserError(f"unknown ResNet {name!r}; known: {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]._replace(**changes)
    known = STAGES[: 1 + len(architecture.blocks)]
    unknown = [stage for stage in stages if stage not in known]
    if unknown:
        raise UserError(f"{name} has no stage {unknown[0]!r}; its stages: {', '.join(known)}")
    if not stages:
        raise UserError(f"{name}: name at least one stage of {', '.join(known)}")
    return ResNet(architecture, tuple(stages), dtype, groups)
