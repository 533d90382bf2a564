"""Attention ahead of a decoder stage, shapes preserved: CPAM, and CBAM as its rival in the ablation.

Sources: Lin and Lai, the Siamese U-Net for anomaly detection, section 3.1.2 (CPAM, eqs. 3-5); its two halves are
DANet's channel attention (Fu et al., CVPR 2019, arXiv:1809.02983) and SAGAN's self-attention (Zhang et al., ICML 2019,
arXiv:1805.08318), each in its code's arithmetic. CBAM: Woo et al., ECCV 2018, arXiv:1807.06521.

    F_c = X + g_c (X M_c^T)      M_c = softmax of X^T X over channels, C x C                       eq. 3
    F_p = X + g_p (M_p V')       M_p = softmax of Q K^T over positions, N x N                      eq. 4
    CPAM(X) = X * F_c * F_p      elementwise                                                       eq. 5

Eqs. 3-4 as printed add maps (C x C, N x N) to features (C x N) and name no softmax; the above is what the modules that
they cite do, g_c and g_p learnable scalars from 0. Here N = h w positions, M of them after pooling the keys.

Logits, softmax, residual sums and RMS are float32 whatever the dtype (float64 in float64). Without 1/sqrt(d) and with
sums over thousands of terms, a logit rounded to bfloat16 would be off by whole units.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxad.models.layers import BatchNorm, conv, torch_uniform
from jaxad.types import Array, UserError

ATTENTIONS = ("cpam", "cbam", "none")
FUSIONS = ("mul_rms", "mul", "gated", "sum")
CHANNEL_SOFTMAXES = ("danet", "plain", "cosine")

# PyTorch's default for Conv2d and Linear, uniform in +-1/sqrt(C_in): what DANet's code and SAGAN's PyTorch ports use.
# He-normal by fan_out, this library's other convolutions, would spread the logits of eq. 4 by sqrt(C/8) 16 E[x^2] (128
# at 2048 channels of ReLU noise) instead of sqrt(C/8) E[x^2] / 3 (2.7): one-hot maps, hence no gradient to Q and K. The
# greatest weight of a query at 8x8x2048 is 0.31 in the mean from here, 0.98 from there.


def channel_attention(x: Array, softmax: str = "danet", temperature: Array | float = 1.0) -> Array:
    """X M_c^T of eq. 3, no convolution: every channel becomes a mean of all channels. x: f[B, N, C] -> f[B, N, C].

    With E = X^T X (C x C), rows over the last axis:
    'danet': softmax(rowmax(E) - E), which favours dissimilar channels · 'plain': softmax(E); on ReLU noise E's diagonal
    leads by about N/3, and from 16x16 positions on this is the identity: F_c is then a multiple of X, and 'mul_rms'
    leaves g_c without a gradient · 'cosine': softmax(temperature * cosine), of the L2-normalised channels (XCiT,
    arXiv:2106.09681); near-uniform at temperature 1, which only this one reads. Raises UserError for another softmax.

    >>> x = jnp.array([[[4.0, 0.0], [0.0, 4.0]]])  # two orthogonal channels: each turns into the other
    >>> channel_attention(x, "danet").round(2).tolist()
    [[[0.0, 4.0], [4.0, 0.0]]]
    >>> channel_attention(x, "plain").round(2).tolist() == x.tolist()
    True
    """
    _choose(softmax, CHANNEL_SOFTMAXES, "cpam.channel_softmax")
    wide = _wide(x)
    tokens = x
    if softmax == "cosine":
        tokens = x.astype(wide)  # a channel that ReLU has silenced stays 0, and has gradient 0 rather than NaN
        tokens = tokens * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(tokens), 1, keepdims=True), 1e-12))
    # Full precision for float32 features: the sums reach thousands, and accelerators default to 8 or 11 bits.
    energy = jnp.einsum("bnc,bnd->bcd", tokens, tokens, preferred_element_type=wide, precision="highest")
    if softmax == "danet":
        energy = -energy  # softmax ignores what is constant along a row, so rowmax(E) need not be added
    elif softmax == "cosine":
        energy = jnp.asarray(temperature, wide) * energy
    weights = nn.softmax(energy).astype(x.dtype)
    return jnp.einsum("bcd,bnd->bnc", weights, x, preferred_element_type=wide).astype(x.dtype)


def positional_attention(q: Array, k: Array, v: Array, block: int = 512) -> Array:
    """M_p V' of eq. 4, M_p = softmax(Q K^T) over the keys, without 1/sqrt(d).

    q: f[B, N, D], k: f[B, M, D], v: f[B, M, E] -> f[B, N, E]. From N >= 2 block on it is computed over blocks of
    queries, each against all keys and once more in the backward pass, so that no N x M map is ever kept; the values are
    the same, N need not be a multiple. block = 0: never. Measured for one image, N = M = 4096, C = 256 (the compiled
    gradient of CPAM on CPU): 59 MiB of temporaries with blocks, 282 without.

    >>> q, v = jnp.arange(6.0).reshape(1, 6, 1), jnp.array([[[1.0], [3.0]]])
    >>> k = jnp.zeros((1, 2, 1))  # keys all equal: every query gets the mean value
    >>> positional_attention(q, k, v, block=2)[0, :, 0].tolist()
    [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    """
    wide = _wide(q)

    def attend(queries: Array) -> Array:
        logits = jnp.einsum("bnd,bmd->bnm", queries, k, preferred_element_type=wide, precision="highest")
        weights = nn.softmax(logits).astype(v.dtype)
        return jnp.einsum("bnm,bme->bne", weights, v, preferred_element_type=wide).astype(v.dtype)

    batch, count, depth = q.shape
    if block == 0 or count < 2 * block:
        return attend(q)
    blocks = -(-count // block)
    queries = jnp.pad(q, ((0, 0), (0, blocks * block - count), (0, 0)))  # zeros attend evenly, and are cut off below
    queries = queries.reshape(batch, blocks, block, depth).swapaxes(0, 1)
    # A loop's body is not merged with its own recomputation, so the guard against that would only cost time.
    found = lax.map(jax.checkpoint(attend, prevent_cse=False), queries)
    return found.swapaxes(0, 1).reshape(batch, blocks * block, v.shape[-1])[:, :count]


def fuse(x: Array, f_c: Array, f_p: Array, fusion: str = "mul_rms") -> Array:
    """Eq. 5: the input and its two refinements, each f[B, ..., C], in one f[B, ..., C] of x's dtype.

    'mul': X * F_c * F_p, as printed. It is X^3 at the start (g = 0): heavy tails, kurtosis about 100 on ReLU noise,
    5.5 for X · 'mul_rms': the same with F_c and F_p divided by their root mean square over the sample (eps 1e-6), which
    is 'mul' up to one positive factor per sample · 'gated': X * 2 sigmoid(F_c) * 2 sigmoid(F_p), kurtosis 11 ·
    'sum': F_c + F_p, as in DANet. Raises UserError for another fusion.
    Departure: the default is 'mul_rms'. Consumers are convolutions before BatchNorm, which removes a common factor, and
    the cube's scale would run away where features grow.

    >>> x = jnp.array([[1.0, 7.0]])  # its root mean square is 5: 'mul_rms' gives x^3 / 25
    >>> fuse(x, x, x, "mul").tolist(), [round(float(v), 2) for v in fuse(x, 3 * x, 9 * x, "mul_rms")[0]]
    ([[1.0, 343.0]], [0.04, 13.72])
    """
    _choose(fusion, FUSIONS, "cpam.fusion")
    wide = _wide(x)
    value, f_c, f_p = (array.astype(wide) for array in (x, f_c, f_p))
    if fusion == "sum":
        return (f_c + f_p).astype(x.dtype)
    if fusion == "gated":
        return (value * (2 * nn.sigmoid(f_c)) * (2 * nn.sigmoid(f_p))).astype(x.dtype)
    if fusion == "mul_rms":
        axes = tuple(range(1, x.ndim))
        f_c, f_p = (f * lax.rsqrt(jnp.mean(jnp.square(f), axes, keepdims=True) + 1e-6) for f in (f_c, f_p))
    return (value * f_c * f_p).astype(x.dtype)


class CPAM(nn.Module):
    """Channel-positional attention (section 3.1.2, eqs. 3-5): f[B, h, w, C] -> f[B, h, w, C] of `dtype`.

    fusion: of eq. 5, see `fuse` · channel_softmax: of eq. 3, see `channel_attention`; 'cosine' learns its temperature,
    from 1 · block: queries at a time, see `positional_attention` · kv_pool: 2 max-pools K and V' by 2x2, as SAGAN's
    TensorFlow code does, a map of a quarter · value_reduction: 8 takes V' in C/8 channels and projects back by 1x1,
    again as there; 1 is SAGAN's PyTorch ports and DANet · dtype: of the computation, None = that of the input.
    Reduced widths are rounded down, and at least 1. `train` and `mask` are CBAM's and change nothing here.

    Parameters carry DANet's names (query_conv, key_conv, value_conv, kernels f32[C_in, C_out]); kernels start from
    `torch_uniform`, biases and both gammas from 0. The key's bias adds the same to all logits of a query: its gradient
    is 0, and it is kept for the published parameter count.
    The channel map of C = 2048 is 16 MiB per image and kept for the backward pass unless built as nn.remat(CPAM).

    >>> module = CPAM(block=0)
    >>> y, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((2, 4, 6, 16)))
    >>> y.shape
    (2, 4, 6, 16)
    """

    fusion: str = "mul_rms"
    channel_softmax: str = "danet"
    block: int = 512
    kv_pool: int = 1
    value_reduction: int = 1
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None) -> Array:
        def project(array: Array, features: int, name: str) -> Array:  # a 1x1 convolution, as one matrix product
            return nn.Dense(features, dtype=x.dtype, kernel_init=torch_uniform, name=name)(array)

        def pool(array: Array) -> Array:  # SAME: -inf beside an odd size, so that every position counts
            window = (self.kv_pool, self.kv_pool)
            return array if self.kv_pool == 1 else nn.max_pool(array, window, window, "SAME")

        def tokens(array: Array) -> Array:
            return array.reshape(array.shape[0], -1, array.shape[-1])

        x = x.astype(self.dtype or x.dtype)
        channels = x.shape[-1]

        temperature = self.param("temperature", nn.initializers.ones, ()) if self.channel_softmax == "cosine" else 1.0
        attended = channel_attention(tokens(x), self.channel_softmax, temperature)
        f_c = self._add(x, "gamma_channel", attended)  # eq. 3

        narrow, middle = max(channels // 8, 1), max(channels // self.value_reduction, 1)
        q, k = project(x, narrow, "query_conv"), pool(project(x, narrow, "key_conv"))
        v = pool(project(x, middle, "value_conv"))
        attended = positional_attention(tokens(q), tokens(k), tokens(v), self.block)
        if self.value_reduction > 1:
            attended = project(attended, channels, "output_conv")
        f_p = self._add(x, "gamma_position", attended)  # eq. 4

        return fuse(x, f_c, f_p, self.fusion)  # eq. 5

    def _add(self, x: Array, name: str, attended: Array) -> Array:
        """X + gamma * attended in float32: in bfloat16 a young gamma's share would be rounded away."""
        gamma, wide = self.param(name, nn.initializers.zeros, ()), _wide(x)
        return x.astype(wide) + gamma.astype(wide) * attended.reshape(x.shape).astype(wide)


class CBAM(nn.Module):
    """Convolutional block attention (Woo et al., section 3): f[B, h, w, C] -> f[B, h, w, C] of `dtype`, no residual.

    reduction: of the channel gate's shared hidden layer (C/16, rounded down, at least 1) · dtype: of the computation,
    None = that of the input. `mask`: bool[B], the rows whose statistics BatchNorm takes in training, None = all.
    Initial values as in the authors' model_resnet.py: the shared layers PyTorch's default with biases 0, the 7x7 kernel
    he-normal. Departure: their BatchNorm scale starts at 0, the library's at 1 - from 0 the spatial gate is one half
    everywhere, and its kernel sees no gradient until the scale has moved.

    >>> module = CBAM()
    >>> y, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((2, 4, 6, 64)))
    >>> y.shape, sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    ((2, 4, 6, 64), 680)
    """

    reduction: int = 16
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None) -> Array:
        x = x.astype(self.dtype or x.dtype)
        channels = x.shape[-1]
        # Channel gate, eq. 2: sigmoid(MLP(average) + MLP(maximum)), one MLP for both.
        options = dict(dtype=x.dtype, kernel_init=torch_uniform)
        inner = nn.Dense(max(channels // self.reduction, 1), name="mlp_1", **options)
        outer = nn.Dense(channels, name="mlp_3", **options)
        pooled = jnp.mean(x, (1, 2), keepdims=True), jnp.max(x, (1, 2), keepdims=True)
        average, maximum = (outer(nn.relu(inner(array))) for array in pooled)
        x = x * nn.sigmoid(average + maximum)
        # Spatial gate, eq. 3; the paper writes [average, maximum], the code has them in this order.
        pooled = jnp.concatenate([jnp.max(x, -1, keepdims=True), jnp.mean(x, -1, keepdims=True)], -1)
        gate = conv(1, 7, 1, x.dtype, name="spatial_conv")(pooled)
        norm = BatchNorm(x.dtype, momentum=0.99, name="spatial_bn")
        return x * nn.sigmoid(norm(gate, train, mask))


def attention(name: str, dtype=None, **options) -> Callable[..., nn.Module] | None:
    """What builds the attention `name`: 'cpam', 'cbam', or 'none' -> None. Call it with the module's name, if any.

    options: CPAM's fields; a config carries them always, and the others ignore them.
    Raises UserError for a name, a fusion, a channel softmax or a number that is not allowed, TypeError for an option
    that CPAM lacks.

    >>> attention("cpam", fusion="gated")(name="cpam_layer3").fusion
    'gated'
    >>> attention("none") is None
    True
    """
    _choose(name, ATTENTIONS, "attention")
    unknown = set(options) - ({field.name for field in dataclasses.fields(CPAM)} - {"name", "parent"})
    if unknown:
        raise TypeError(f"CPAM has no field {', '.join(sorted(unknown))}")
    _choose(options.get("fusion", CPAM.fusion), FUSIONS, "cpam.fusion")
    _choose(options.get("channel_softmax", CPAM.channel_softmax), CHANNEL_SOFTMAXES, "cpam.channel_softmax")
    for option, least in (("block", 0), ("kv_pool", 1), ("value_reduction", 1)):
        value = options.get(option, getattr(CPAM, option))
        if value < least:
            raise UserError(f"config.siamese_unet.cpam.{option} is {value}; set it to {least} or more")
    if name == "none":
        return None
    return functools.partial(CPAM, dtype=dtype, **options) if name == "cpam" else functools.partial(CBAM, dtype=dtype)


def _choose(value: str, known: tuple[str, ...], key: str) -> None:
    if value not in known:
        raise UserError(f"unknown {key} {value!r}; set config.siamese_unet.{key} to {', '.join(known)}")


def _wide(x: Array) -> jnp.dtype:
    """At least float32, as BatchNorm's statistics."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32
