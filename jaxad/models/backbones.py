"""The pretrained networks a method can stand on: build one by name, and what its stages look like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flax import linen as nn

from jaxad.models import resnet, vgg
from jaxad.types import Array, UserError

NAMES = (*resnet.ARCHITECTURES, "vgg16")

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalise(image: Array) -> Array:
    """RGB f[..., 3] in [0, 1] -> (image - mean) / standard deviation of ImageNet, which torchvision's networks expect.

    >>> [round(float(v), 3) for v in normalise(np.full((1, 1, 1, 3), 0.5, np.float32))[0, 0, 0]]
    [0.066, 0.196, 0.418]
    """
    shape = (1,) * (image.ndim - 1) + (3,)
    return (image - IMAGENET_MEAN.reshape(shape).astype(image.dtype)) / IMAGENET_STD.reshape(shape).astype(image.dtype)


def build(name: str, stages: Sequence[str], dtype=None, groups: int = 1, **changes) -> nn.Module:
    """The backbone `name` as a module: apply(variables, normalised f[B, H, W, 3], train) -> {stage: f[B, h, w, C]}.

    It computes only up to the last of `stages`. groups: of rows, whose statistics BatchNorm takes apart in training
    (`layers.BatchNorm`); VGG16 has none. `changes` shrink it for tests: fields of `resnet.Architecture`, or
    `widths` of VGG16.
    Raises UserError for a name or a stage that does not exist.
    """
    _known(name)
    if name == "vgg16":
        return vgg.vgg16(stages, dtype, **changes)
    return resnet.resnet(name, stages, dtype, groups, **changes)


def stages(name: str) -> tuple[str, ...]:
    """All stages of the backbone `name`, from the image on.

    >>> stages("resnet18")
    ('stem', 'layer1', 'layer2', 'layer3', 'layer4')
    """
    return vgg.STAGES if _known(name) == "vgg16" else resnet.STAGES


def channels(name: str, stage: str) -> int:
    """Channels of a stage's features.

    >>> channels("wide_resnet50_2", "layer3"), channels("resnet18", "layer3"), channels("vgg16", "relu3_3")
    (1024, 256, 256)
    """
    index = _position(name, stage)
    return vgg.WIDTHS[int(stage[4]) - 1] if name == "vgg16" else resnet.ARCHITECTURES[name].features(index)


def stride(name: str, stage: str) -> int:
    """Image pixels per feature position, along one side.

    >>> stride("resnet50", "layer2"), stride("vgg16", "relu3_3")
    (8, 4)
    """
    index = _position(name, stage)
    return 2 ** (int(stage[4]) - 1) if name == "vgg16" else 2 ** (index + 1)


def _known(name: str) -> str:
    if name not in NAMES:
        raise UserError(f"unknown backbone {name!r}; set config.backbone.name to one of {', '.join(NAMES)}")
    return name


def _position(name: str, stage: str) -> int:
    if stage not in stages(name):
        raise UserError(f"{name} has no stage {stage!r}; its stages: {', '.join(stages(name))}")
    return stages(name).index(stage)
