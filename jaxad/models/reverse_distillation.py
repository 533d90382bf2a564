"""The trainable networks of Reverse Distillation: the bottleneck (OCBE) and the decoder, together the student.

Source: Deng and Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022, section 3, in the
arithmetic of the authors' code RD4AD. The student has no connection to the teacher but the embedding.

    T_1, T_2, T_3 = the teacher's layer1, layer2, layer3      [H/4], [H/8], [H/16]
    phi = OCBE(T_1, T_2, T_3)                                 [H/32]
    S_3, S_2, S_1 = the decoder's layers 1, 2, 3 from phi     [H/16], [H/8], [H/4]

The trees carry RD4AD's names with '_' for '.' (ocbe/bn_layer_0/conv1/kernel, decoder/layer1_0/upsample_0/kernel).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from flax import linen as nn

from jaxad.models.layers import batch_norm, conv
from jaxad.models.resnet import ARCHITECTURES, Architecture, BasicBlock, Bottleneck
from jaxad.types import Array, UserError

LAYERS = ("layer1", "layer2", "layer3")  # of the teacher, which the student answers by the same names


class OCBE(nn.Module):
    """One-class bottleneck embedding: the teacher's three features, fused to the size of the deepest, then compressed.

    {'layer1': f[B, 4h, 4w, C_1], 'layer2': f[B, 2h, 2w, C_2], 'layer3': f[B, h, w, C_3]} -> f[B, h/2, w/2, C_4], >= 0.
    Departure: RD4AD's module also owns a 1x1 convolution and its BatchNorm that it never calls; they are left out.
    """

    architecture: Architecture
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, features: Mapping[str, Array], train: bool = False, mask: Array | None = None) -> Array:
        def halve(x: Array, channels: int, number: int) -> Array:
            x = conv(channels, 3, 2, self.dtype, name=f"conv{number}")(x)
            return nn.relu(batch_norm(self.dtype, name=f"bn{number}")(x, train, mask))

        arch = self.architecture
        first, second, third = (features[layer] for layer in LAYERS)
        first = halve(halve(first, arch.features(2), 1), arch.features(3), 2)
        second = halve(second, arch.features(3), 3)
        x = jnp.concatenate([first, second, third.astype(second.dtype)], -1)  # multi-scale feature fusion
        for number in range(arch.blocks[3]):  # one-class embedding: the teacher's layer4, on 3 C_3 channels
            x = _block(arch, 4, f"bn_layer_{number}", self.dtype, stride=2 if number == 0 else 1)(x, train, mask)
        return x


class Decoder(nn.Module):
    """The teacher turned round: f[B, h/2, w/2, C_4] -> the teacher's features' names and shapes (see OCBE), >= 0.

    Its layer i answers the teacher's layer 4 - i, with as many blocks as the teacher's layer i, as in RD4AD; the first
    block of each opens with a transposed convolution.

    attention(name=...) makes a module (x, train, mask) -> the shape of x, one for each layer: 'pre' at its input, where
    the feature that is answered stays as it was, or 'post' at its output, which then is the answer.
    """

    architecture: Architecture
    dtype: jnp.dtype | None = None
    attention: Callable[..., nn.Module] | None = None
    attention_at: str = "pre"

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None) -> dict[str, Array]:
        found = {}
        for layer, answered in ((1, 3), (2, 2), (3, 1)):
            refine = self.attention and self.attention(name=f"attention{layer}")
            if refine and self.attention_at == "pre":
                x = refine(x, train, mask)
            for number in range(self.architecture.blocks[layer - 1]):
                name = f"layer{layer}_{number}"
                x = _block(self.architecture, answered, name, self.dtype, up=number == 0)(x, train, mask)
            if refine and self.attention_at == "post":
                x = refine(x, train, mask)
            found[f"layer{answered}"] = x
        return {layer: found[layer] for layer in LAYERS}


class Student(nn.Module):
    """OCBE and decoder in one: the teacher's {'layer1', 'layer2', 'layer3'} -> the same names and shapes.

    attention, attention_at: the decoder's · mask: bool[B], the rows BatchNorm takes its statistics from; None: all.
    """

    architecture: Architecture
    dtype: jnp.dtype | None = None
    attention: Callable[..., nn.Module] | None = None
    attention_at: str = "pre"

    @nn.compact
    def __call__(self, features: Mapping[str, Array], train: bool = False, mask: Array | None = None):
        embedding = OCBE(self.architecture, self.dtype, name="ocbe")(features, train, mask)
        decoder = Decoder(self.architecture, self.dtype, self.attention, self.attention_at, name="decoder")
        return decoder(embedding, train, mask)


def student(
    backbone: str,
    dtype=None,
    *,
    attention: Callable[..., nn.Module] | None = None,
    attention_at: str = "pre",
    **changes,
) -> Student:
    """The student of a ResNet teacher; `changes` replace fields of its Architecture (tiny ones for tests).

    Raises UserError for a backbone that is not a ResNet.

    >>> import jax
    >>> shapes = {"layer1": (1, 16, 24, 8), "layer2": (1, 8, 12, 16), "layer3": (1, 4, 6, 32)}
    >>> features = {layer: jnp.zeros(shape) for layer, shape in shapes.items()}
    >>> module = student("resnet18", base=8, blocks=(1, 1, 1, 1))
    >>> answer, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), features)
    >>> {layer: feature.shape for layer, feature in answer.items()} == shapes
    True
    """
    if backbone not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"reverse distillation needs a ResNet teacher, not {backbone!r}; set config.backbone.name to {known}"
        )
    return Student(ARCHITECTURES[backbone]._replace(**changes), dtype, attention, attention_at)


def _block(arch: Architecture, stage: int, name: str, dtype, stride: int = 1, up: bool = False) -> nn.Module:
    """A block as those of the ResNet's layer `stage` = 1 ... 4."""
    options = dict(stride=stride, up=up, dtype=dtype, name=name)
    if arch.bottleneck:
        return Bottleneck(arch.width(stage), arch.features(stage), **options)
    return BasicBlock(arch.features(stage), **options)
