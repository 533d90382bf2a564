"""How pattern generation reads an image: the generators to choose from, and all triples of an image in one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxad.methods import features
from jaxad.models.cyclegan import BLOCKS, ResnetGenerator
from jaxad.models.pattern_generator import PatternGenerator
from jaxad.scoring import maps
from jaxad.scoring.triples import DIRECTIONS, Triples, assemble, combine, partition, take, triples, turn_back
from jaxad.types import Array, Tree

GENERATORS = ("swin", *BLOCKS, "copy_near")
CELL = 4  # pixels, of a blanked square of the context
UNREAD = 0.9  # the grey of a picture where a direction predicts no patch


class Generator(NamedTuple):
    """What predicts a patch from two, each f32[B, p, p, 3] in [0, 1].

    init(key) -> parameters · apply(params, far, near, train, key) -> f32[B, p, p, 3], unbounded; key: of what training
    draws. learns: False for `copy_near`, which has no parameters.
    """

    init: Callable[[Array], Tree]
    apply: Callable[..., Array]
    learns: bool


def generator(config: Any, patch: int) -> Generator:
    """The generator of config.pattern_generation for patches of `patch` pixels."""
    options, dtype = config.pattern_generation, features.compute_dtype(config)
    if options.generator == "copy_near":
        return Generator(lambda key: {}, lambda params, far, near, train=False, key=None: near, learns=False)
    module: nn.Module
    if options.generator == "swin":
        module = PatternGenerator(**options.swin, dtype=dtype, remat=options.remat)
    else:
        module = ResnetGenerator(BLOCKS[options.generator], **options.cnn, dtype=dtype, remat=options.remat)

    def init(key: Array) -> Tree:
        two = jnp.zeros((2, 1, patch, patch, 3), jnp.float32)
        return jax.jit(module.init)(key, *two)["params"]

    def apply(params: Tree, far: Array, near: Array, train: bool = False, key: Array | None = None) -> Array:
        drop = train and options.generator == "swin" and options.swin.drop_path > 0
        return module.apply({"params": params}, far, near, train, rngs={"drop_path": key} if drop else {})

    return Generator(init, apply, learns=True)


def blank(key: Array, context: Array, share: float) -> Array:
    """f32[B, p, p, 3] with a drawn `share` of its cells of 4x4 pixels set to 0, as a masked autoencoder's input has."""
    batch, side = context.shape[:2]
    kept = jax.random.bernoulli(key, 1.0 - share, (batch, -(-side // CELL), -(-side // CELL)))
    grown = jnp.repeat(jnp.repeat(kept, CELL, axis=1), CELL, axis=2)[:, :side, :side, None]
    return context * grown.astype(context.dtype)


class Read(NamedTuple):
    """All triples of B images, f32[B, T, p, p, 3] in [0, 1] each; turned to be read from left to right where canonical.

    predicted: what the generator takes target for, from far and near.
    """

    far: Array
    near: Array
    target: Array
    predicted: Array


class Reader(NamedTuple):
    """An image as n x n patches of `patch` pixels, read by the triples of a coverage."""

    n: int
    patch: int
    found: Triples
    canonical: bool

    def read(self, generate: Callable[[Array, Array], Array], image: Array) -> Read:
        """image: f32[B, H, W, 3] in [0, 1], of any size · generate(far, near): `Generator.apply`, parameters bound."""
        side = self.n * self.patch
        if image.shape[1:3] != (side, side):
            image = jax.image.resize(image, (len(image), side, side, 3), "linear", antialias=True)
        patches = partition(image, self.n)
        number = (self.found.far, self.found.near, self.found.target)
        far, near, target = (take(patches, which, self.found, self.canonical) for which in number)
        predicted = generate(flat(far), flat(near)).reshape(far.shape)
        return Read(far, near, target, jnp.clip(predicted, 0.0, 1.0))

    def upright(self, patches: Array) -> Array:
        """f[B, T, q, q, C] of triples, as they lie in the image."""
        return turn_back(patches, self.found) if self.canonical else patches

    def combine(self, values: Array, options: Any) -> Array:
        """f32[B, T, ...] of triples -> f32[B, n * n, ...] of patches, by options.combine and options.axis_combine."""
        return combine(values, self.found, self.n, options.combine, options.axis_combine)

    def image_map(self, patches: Array, size: tuple[int, int], score: Any) -> Array:
        """f32[B, n * n, q, q] -> f32[B, *size]: each patch bilinearly enlarged to its pixels, put together, resized.

        score: config.score, for the resizing and the smoothing.
        """
        batch, count, q = patches.shape[:3]
        grown = maps.upsample(patches.reshape(batch * count, q, q), (self.patch, self.patch))
        whole = assemble(grown.reshape(batch, count, self.patch, self.patch, 1), self.n)[..., 0]
        return maps.anomaly_map(whole, size, interpolation=score.interpolation, sigma=score.sigma)

    def pictures(self, name: str, patches: Array, size: tuple[int, int]) -> dict[str, Array]:
        """{NAME_DIRECTION: f32[B, *size, 3] in [0, 1]} of f32[B, T, q, q, C], upright; UNREAD where no patch was."""
        made, count = {}, self.n * self.n
        for place, direction in enumerate(DIRECTIONS):
            of = self.found.direction == place
            if of.any():
                board = jnp.full((len(patches), count, *patches.shape[2:]), UNREAD, patches.dtype)
                board = board.at[:, self.found.target[of]].set(patches[:, of])
                whole = assemble(board, self.n)
                whole = jax.image.resize(whole, (len(whole), *size, whole.shape[-1]), "linear")
                made[f"{name}_{direction}"] = jnp.broadcast_to(jnp.clip(whole, 0.0, 1.0), (*whole.shape[:3], 3))
        return made


def reader(options: Any, n: int, patch: int) -> Reader:
    """options: config.pattern_generation."""
    return Reader(n, patch, triples(n, options.coverage), options.canonicalize)


def flat(values: Array) -> Array:
    """f[B, T, ...] -> f[B * T, ...]"""
    return values.reshape(-1, *values.shape[2:])
