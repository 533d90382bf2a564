"""The comparison network of pattern generation: how similar a generated patch is to the observed one, and where not.

Source: Huang et al., "Unsupervised Industrial Anomaly Detection via Pattern Generative and Contrastive Networks",
section III-B and fig. 3, after the pseudo-siamese network of Zagoruyko and Komodakis 2015, arXiv:1504.03641. The paper
gives the order of the layers, which of them are shared, and that a mask is a quarter as large as its patch, so only the
two poolings have a stride. Kernel sizes are those of the pseudo-siamese network; the widths are chosen.

Convolutions that a BatchNorm follows have no bias. The last layers are computed in float32 whatever the dtype, for
scores that are rounded to bfloat16 rank patches with ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from jaxad.errors import UserError
from jaxad.models.layers import Dense, batch_norm, conv
from jaxad.types import Array

REDUCTION = 4  # pixels of a patch per cell of its mask, on either axis: two poolings
SIM_POOLS = ("mean_max", "flatten")
HIDDEN = 256  # units between the pooled features and the score


class Compared(NamedTuple):
    """score: f32[B], larger = more similar; P of the paper is its sigmoid · mask: logits f32[B, h, w], > 0 = different,
    h and w a quarter of the patch."""

    score: Array
    mask: Array


def check(sides: Sequence[int], sim_pool: str = "mean_max") -> None:
    """Raises UserError where a patch of these sides, in pixels, cannot be compared.

    >>> try: check((56, 30))
    ... except UserError as error: print(error)
    patches are compared if their sides are multiples of 4 pixels, not 30; set config.pattern_generation.patch=32
    """
    if sim_pool not in SIM_POOLS:
        raise UserError(
            f"config.pattern_generation.compare.sim_pool={sim_pool!r}: it must be one of {', '.join(SIM_POOLS)}"
        )
    for side in sides:
        if side < REDUCTION or side % REDUCTION:
            near = -(-max(side, 1) // REDUCTION) * REDUCTION
            raise UserError(
                f"patches are compared if their sides are multiples of {REDUCTION} pixels, not {side}; "
                f"set config.pattern_generation.patch={near}"
            )


class Comparator(nn.Module):
    """generated, observed f[B, p, p, 3] in [0, 1] -> `Compared`. p is a multiple of 4; the sides may differ.

    widths: of the three convolution blocks · sim_pool: what the score sees of the features, 'mean_max': mean and
    maximum over positions, of a patch of any size, or 'flatten': all of them, of patches of one size · diff_feature:
    |f_G - f_O| beside the features of both branches.
    Raises UserError for another size or pooling.

    >>> import jax
    >>> patch = jnp.zeros((1, 56, 56, 3))
    >>> found, variables = jax.eval_shape(Comparator().init_with_output, jax.random.key(0), patch, patch)
    >>> found.mask.shape, sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    ((1, 14, 14), 1578498)
    """

    widths: Sequence[int] = (64, 128, 256)
    sim_pool: str = "mean_max"
    diff_feature: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, generated: Array, observed: Array, train: bool = False) -> Compared:
        check(generated.shape[1:3], self.sim_pool)
        first, second, third = self.widths
        branches = []
        for name, x in (("generated", generated), ("observed", observed)):
            x = halved(Block(first, 7, self.dtype, name=f"{name}1")(x, train))
            branches.append(halved(Block(second, 5, self.dtype, name=f"{name}2")(x, train)))
        # Pairs side by side, not one branch after the other: no row of a batch that is split changes its device.
        pairs = jnp.stack(branches, axis=1)
        x = Block(third, 3, self.dtype, name="shared3")(pairs.reshape(-1, *pairs.shape[2:]), train)
        both = x.reshape(len(pairs), 2, *x.shape[1:])
        parts = [both[:, 0], both[:, 1]]
        if self.diff_feature:
            parts.append(jnp.abs(parts[0] - parts[1]))
        features = jnp.concatenate(parts, axis=-1)
        return Compared(self._score(features), self._mask(features, train))

    def _score(self, features: Array) -> Array:
        """f[B, h, w, C] -> f32[B]: two fully connected layers."""
        if self.sim_pool == "flatten":
            x = features.reshape(len(features), -1)
        else:
            mean = jnp.mean(features, axis=(1, 2), dtype=jnp.float32).astype(features.dtype)
            x = jnp.concatenate([mean, jnp.max(features, axis=(1, 2))], axis=-1)
        x = nn.relu(Dense(HIDDEN, dtype=self.dtype, name="score1")(x)).astype(jnp.float32)
        return Dense(1, dtype=jnp.float32, name="score2")(x)[:, 0]

    def _mask(self, features: Array, train: bool) -> Array:
        """f[B, h, w, C] -> f32[B, h, w]: two convolutions."""
        x = Block(self.widths[-1] // 2, 3, self.dtype, name="mask1")(features, train)
        return conv(1, 3, dtype=jnp.float32, use_bias=True, name="mask2")(x.astype(jnp.float32))[..., 0]


class Block(nn.Module):
    """A convolution of stride 1, BatchNorm, ReLU: f[B, H, W, C] -> f[B, H, W, features]."""

    features: int
    kernel: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = conv(self.features, self.kernel, dtype=self.dtype, name="conv")(x)
        return nn.relu(batch_norm(self.dtype, name="bn")(x, train))


def halved(x: Array) -> Array:
    """2x2 max pooling of stride 2: f[B, H, W, C] -> f[B, H / 2, W / 2, C]; H and W even.

    As two maxima: the gradient of a window's maximum takes four to twelve times as long on CPU (64 x 56 x 56 x 64 and
    64 x 28 x 28 x 128, 2 cores). Among equals the gradient is split; behind a ReLU these are zeros, which pass none on.
    """
    x = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])
