"""The small networks on a pooled representation that self-supervised and supervised pre-training stand on.

All map f[B, C] -> f[B, D]. The layers are those of the authors' code, as the papers' text leaves them out: SimSiam
(Chen and He 2021, arXiv:2011.10566), SimCLR (Chen et al. 2020, arXiv:2002.05709; its TF2 code), MoCo v1 and v2 (He et
al. 2020, arXiv:1911.05722; Chen et al. 2020, arXiv:2003.04297). `dtype` is that of the computation, None: the input's;
parameters and statistics are float32.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from jaxad.models.layers import BatchNorm, Dense
from jaxad.types import Array


class SimSiamProjector(nn.Module):
    """f[B, C] -> z f[B, dim]: C - C - C - dim, dense without bias and BatchNorm each, ReLU after all but the last.

    The last BatchNorm has no parameters. The authors' code has a bias before it that is never trained; BatchNorm
    takes it away again, so there is none here.

    >>> import jax
    >>> shapes = jax.eval_shape(SimSiamProjector().init, jax.random.key(0), jnp.zeros((2, 2048)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    12591104
    """

    dim: int = 2048
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        width = x.shape[-1]
        for number in (1, 2):
            x = Dense(width, use_bias=False, dtype=self.dtype, name=f"dense{number}")(x)
            x = nn.relu(BatchNorm(self.dtype, name=f"bn{number}")(x, train))
        x = Dense(self.dim, use_bias=False, dtype=self.dtype, name="dense3")(x)
        return BatchNorm(self.dtype, use_scale=False, use_bias=False, name="bn3")(x, train)


class SimSiamPredictor(nn.Module):
    """z f[B, C] -> p f[B, C] through a bottleneck: dense without bias, BatchNorm, ReLU, dense.

    >>> import jax
    >>> shapes = jax.eval_shape(SimSiamPredictor().init, jax.random.key(0), jnp.zeros((2, 2048)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    2100224
    """

    hidden: int = 512
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        width = x.shape[-1]
        x = Dense(self.hidden, use_bias=False, dtype=self.dtype, name="dense1")(x)
        x = nn.relu(BatchNorm(self.dtype, name="bn1")(x, train))
        return Dense(width, dtype=self.dtype, name="dense2")(x)


class SimCLRProjector(nn.Module):
    """f[B, C] -> z f[B, dim], not normalised: dense without bias and BatchNorm in each of `layers`, ReLU between them.

    Hidden layers are as wide as the input; the last BatchNorm has no offset; kernels begin as N(0, 0.01^2). Three
    layers are the code's default, two the paper's.

    >>> import jax
    >>> shapes = jax.eval_shape(SimCLRProjector().init, jax.random.key(0), jnp.zeros((2, 2048)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    8659072
    """

    dim: int = 128
    layers: int = 3
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        width = x.shape[-1]
        options = dict(use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01))
        for number in range(1, self.layers):
            x = Dense(width, name=f"dense{number}", **options)(x)
            x = nn.relu(BatchNorm(self.dtype, name=f"bn{number}")(x, train))
        x = Dense(self.dim, name=f"dense{self.layers}", **options)(x)
        return BatchNorm(self.dtype, use_bias=False, name=f"bn{self.layers}")(x, train)


class MoCoHead(nn.Module):
    """f[B, C] -> f[B, dim], not normalised: one dense layer (v1), or dense to `hidden`, ReLU, dense (v2, hidden = C).

    It has no BatchNorm, which would tell keys of this batch from those in the queue.

    >>> import jax
    >>> shapes = jax.eval_shape(MoCoHead(hidden=2048).init, jax.random.key(0), jnp.zeros((2, 2048)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    4458624
    """

    dim: int = 128
    hidden: int = 0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        del train  # no BatchNorm: there is nothing to switch
        if self.hidden:
            x = nn.relu(Dense(self.hidden, dtype=self.dtype, name="dense1")(x))
        return Dense(self.dim, dtype=self.dtype, name="dense2" if self.hidden else "dense1")(x)


class Linear(nn.Module):
    """A linear classifier: f[B, C] -> logits f[B, classes].

    >>> import jax
    >>> logits, _ = Linear(3).init_with_output(jax.random.key(0), jnp.ones((2, 5)))
    >>> logits.shape
    (2, 3)
    """

    classes: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        del train  # no BatchNorm: there is nothing to switch
        return Dense(self.classes, dtype=self.dtype, name="dense")(x)
