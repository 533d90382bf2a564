"""The generator of pattern generation (Huang et al., arXiv:2207.09792, section III-B): a patch from the two before it.

Two Swin encoders, one for the far patch and one for the near, a Swin decoder that joins their stages, and a fusion of
all stages of the decoder. Tokens are single pixels (embed_stride 1): only so do all sizes that the paper prints agree,
H x W being the image and H/4 x W/4 one of its 4 x 4 patches. With Swin's own stride of 4 a prediction would have a
quarter of the patch's side; there the last layer predicts all 4 x 4 pixels of a token.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxad.errors import Checks
from jaxad.models.layers import LayerNorm, depth_to_space, gelu, space_to_depth
from jaxad.models.swin import PatchExpanding, PatchMerging, SwinBlock, linear
from jaxad.types import Array

STAGES = 4
WHERE = "config.pattern_generation.swin"


class Stage(nn.Module):
    """Swin blocks, one for each of `drop_path`, every second with shifted windows: f[B, h, w, C] -> the same shape."""

    heads: int
    window: int
    drop_path: tuple[float, ...]
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        block = nn.remat(SwinBlock, static_argnums=(2,)) if self.remat else SwinBlock
        for i, rate in enumerate(self.drop_path):
            shift = self.window // 2 if i % 2 else 0
            x = block(self.heads, self.window, shift, rate, self.dtype, name=f"block{i + 1}")(x, train)
        return x


class Encoder(nn.Module):
    """patches f[B, p, p, 3] -> the four stages' features, f[B, g, g, C] to f[B, g/8, g/8, 8C]; g = p / embed_stride.

    A feature is what leaves the blocks of a stage, before it is merged for the next.
    """

    embed_stride: int
    window: int
    embed_dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    drop_path: float
    dtype: jnp.dtype | None
    remat: bool

    @nn.compact
    def __call__(self, patches: Array, train: bool = False) -> list[Array]:
        x = linear(self.embed_dim, self.dtype, name="embed")(space_to_depth(patches, self.embed_stride))
        x = LayerNorm(self.dtype, name="embed_norm")(x)
        features = []
        for i, rates in enumerate(_rates(self.drop_path, self.depths)):
            if i:
                x = PatchMerging(self.dtype, name=f"merge{i}")(x)
            stage = Stage(self.heads[i], self.window, rates, self.dtype, self.remat, name=f"stage{i + 1}")
            x = stage(x, train)
            features.append(x)
        return features


class PatternGenerator(nn.Module):
    """far, near f[B, p, p, 3] in [0, 1] -> the patch behind them f32[B, p, p, 3], not clipped.

    embed_stride: pixels a token's side has; divides p · window: tokens a window's side has · embed_dim: C, channels of
    the first stage; every stage of the encoders doubles them · enc_depths, dec_depths: blocks of the stages, those of
    the decoder from the coarsest · heads: of the encoders' stages; the decoder has (third, second, first, first) ·
    share_encoders: one for both patches · head_norm: LayerNorm before the fusion · drop_path: of the deepest blocks;
    it rises evenly in the encoders and falls in the decoder · remat: keep what enters a block, compute the rest again
    when going back. Options are taken as `check` accepts them.

    >>> generator = PatternGenerator()
    >>> patch = jax.ShapeDtypeStruct((2, 56, 56, 3), jnp.float32)
    >>> found, variables = jax.eval_shape(generator.init_with_output, jax.random.key(0), patch, patch)
    >>> found.shape, sum(leaf.size for leaf in jax.tree.leaves(variables))
    ((2, 56, 56, 3), 3967995)
    """

    embed_stride: int = 1
    window: int = 7
    embed_dim: int = 24
    enc_depths: tuple[int, ...] = (2, 2, 6, 2)
    dec_depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    share_encoders: bool = False
    head_norm: bool = False
    drop_path: float = 0.0
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, far: Array, near: Array, train: bool = False) -> Array:
        shared = (self.embed_stride, self.window, self.embed_dim, self.enc_depths, self.heads, self.drop_path)
        first = Encoder(*shared, self.dtype, self.remat, name="encoder1")
        second = first if self.share_encoders else Encoder(*shared, self.dtype, self.remat, name="encoder2")
        stages = self._decode(first(far, train), second(near, train), train)
        x = self._fuse(stages)
        x = linear(3 * self.embed_stride**2, jnp.float32, name="pixels")(x.astype(jnp.float32))
        return depth_to_space(x, self.embed_stride)

    def _decode(self, first: list[Array], second: list[Array], train: bool) -> list[Array]:
        """The features of the decoder's stages, coarsest first, from those of both encoders."""
        x = first[3] + second[3]  # eq. 1
        found = []
        rates = _rates(self.drop_path, self.dec_depths, falling=True)
        for i, (skip, own) in enumerate(zip((2, 1, 0, 0), rates, strict=True), 1):
            if i < STAGES:
                x = PatchExpanding(first[skip].shape[1:3], self.dtype, name=f"expand{i}")(x)
            else:  # eq. 3, its indices lost in the text: the only features of 3C channels in all
                joined = jnp.concatenate([first[0], second[0], x], axis=-1)
                x = linear(self.embed_dim, self.dtype, name="join")(joined)
            x = Stage(self.heads[skip], self.window, own, self.dtype, self.remat, name=f"decode{i}")(x, train)
            found.append(x)
            if i < STAGES - 1:
                x = first[skip] + second[skip] + x  # eq. 2
        return found

    def _fuse(self, stages: list[Array]) -> Array:
        """f[B, g, g, 4C]: all stages at the finest one's grid, SegFormer's way (arXiv:2105.15203, section 3.2)."""
        grid = stages[-1].shape[1:3]
        parts = []
        for i, x in enumerate(stages, 1):
            if self.head_norm:
                x = LayerNorm(self.dtype, name=f"head_norm{i}")(x)
            x = linear(self.embed_dim, self.dtype, name=f"lateral{i}")(x)
            parts.append(jax.image.resize(x, (x.shape[0], *grid, x.shape[3]), "bilinear").astype(x.dtype))
        x = linear(STAGES * self.embed_dim, self.dtype, name="fuse")(jnp.concatenate(parts, axis=-1))
        return gelu(x)


def check(options: Any) -> None:
    """Raises UserError for options of config.pattern_generation.swin that make no generator."""
    checks = Checks(options, WHERE)
    for name in ("embed_stride", "embed_dim"):
        checks.demand(options[name] >= 1, name, "1 or more")
    checks.demand(options["window"] >= 2, "window", "2 or more")
    for name in ("enc_depths", "dec_depths", "heads"):
        whole = len(options[name]) == STAGES and min(options[name]) >= 1
        checks.demand(whole, name, f"{STAGES} numbers of 1 or more, one for each stage")
    widths = [options["embed_dim"] * 2**i for i in range(STAGES)]
    divide = all(width % heads == 0 for width, heads in zip(widths, options["heads"], strict=True))
    checks.demand(divide, "heads", f"divisors of the stages' channels {', '.join(map(str, widths))}")
    checks.demand(0 <= options["drop_path"] < 1, "drop_path", "in [0, 1)")


def _rates(drop_path: float, depths: tuple[int, ...], falling: bool = False) -> list[tuple[float, ...]]:
    """The probabilities of drop path, block by block in each stage, evenly from 0 to `drop_path` or back."""
    rates = np.linspace(0.0, drop_path, sum(depths))[:: -1 if falling else 1]
    return [tuple(map(float, part)) for part in np.split(rates, np.cumsum(depths)[:-1])]
