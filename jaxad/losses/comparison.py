"""What the networks of pattern generation pay: the predicted patch (eq. 6), the score and the mask of a pair (eq. 4).

Source: Huang et al., "Unsupervised Industrial Anomaly Detection via Pattern Generative and Contrastive Networks",
sections III-B and IV-B.

Eq. 4 is printed as 1 / (1 + exp(e)) + max(0, 1 - y P) with e = ||I_o - I_g||_1. Its first term falls as the error e of
the mask grows: what minimises it is the inverted mask, 0 where the images differ. Here its sign is corrected, and it is
moved to 0 at e = 0: 1 - 2 / (1 + exp(e)) = tanh(e / 2). 'as_printed' keeps what is printed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxad.errors import UserError
from jaxad.losses import segmentation
from jaxad.types import Array

MASK_LOSSES = ("sigmoid_l1", "l1", "bce_dice", "as_printed")
NORMS = ("mean", "sum")
HINGES = ("score", "prob")
MASK_POOLS = ("max", "mean")
CELL = 4  # pixels of a patch per cell of its mask, on either axis
SMOOTH = 1.0  # cells added to both sums of Dice, so that an empty mask that is drawn empty costs nothing


def mask_loss(logits: Array, truth: Array, kind: str = "sigmoid_l1", norm: str = "mean") -> Array:
    """First term of eq. 4: logits f32[B, h, w] of a mask, 1 = different, and the true one, in [0, 1] -> f32[B].

    kind, of the error e, the norm of I_o - I_g:
      'sigmoid_l1'  tanh(e / 2), in [0, 1): the sign corrected
      'l1'          e
      'bce_dice'    binary cross entropy + 1 - soft Dice: small defects do not vanish, as they do in an L1 norm
      'as_printed'  sigmoid(-e), in (0, 0.5]: descends to the inverted mask
    norm: of e, over the h w cells: 'mean', or 'sum', as printed, under which a bad mask gets no gradient (the slope of
    tanh(e / 2) at e = 20 is 4e-9).
    Raises UserError for another kind or norm.

    >>> logits, truth = jnp.array([[[50.0, -50.0]]]), jnp.array([[[1.0, 1.0]]])  # half of the mask is wrong: e = 0.5
    >>> [round(float(mask_loss(logits, truth, kind)[0]), 3) for kind in ("sigmoid_l1", "l1", "as_printed")]
    [0.245, 0.5, 0.378]
    """
    _one_of("compare.mask_loss", kind, MASK_LOSSES)
    _one_of("compare.mask_norm", norm, NORMS)
    if kind == "bce_dice":
        logits, truth = logits[..., None], truth[..., None]
        overlap, areas = segmentation.dice(logits, truth)
        return segmentation.bce(logits, truth) + 1.0 - (overlap + SMOOTH) / (areas + SMOOTH)
    # |t - p| as |t (1 - p) - (1 - t) p|, p = sigmoid(z): 1 - p would round to 0 long before sigmoid(-z) does
    difference = truth * jax.nn.sigmoid(-logits) - (1.0 - truth) * jax.nn.sigmoid(logits)
    error = (jnp.mean if norm == "mean" else jnp.sum)(jnp.abs(difference), axis=(1, 2))
    if kind == "l1":
        return error
    return jax.nn.sigmoid(-error) if kind == "as_printed" else jnp.tanh(0.5 * error)


def hinge(score: Array, match: Array, on: str = "score") -> Array:
    """Second term of eq. 4, max(0, 1 - y P): f32[B] and bool[B], True (y = 1) = a matching pair -> f32[B].

    on: 'score', of the raw score s in place of P, as in the siamese networks that the paper builds on · 'prob', as
    printed, of P = sigmoid(s): 1 - P of a matching pair and 1 + P of another, in (0, 2), which is never 0.
    Raises UserError for another name.

    >>> score, match = jnp.array([0.0, 3.0, 3.0]), jnp.array([True, True, False])
    >>> [[round(float(value), 3) for value in hinge(score, match, on)] for on in HINGES]
    [[1.0, 0.0, 4.0], [0.5, 0.047, 1.953]]
    """
    _one_of("compare.hinge_on", on, HINGES)
    if on == "prob":
        return jnp.where(match, jax.nn.sigmoid(-score), 1.0 + jax.nn.sigmoid(score))
    return jnp.maximum(1.0 - jnp.where(match, score, -score), 0.0)


def patch_error(predicted: Array, target: Array) -> Array:
    """Eq. 6: squared distance of two colours, mean over pixels: f32[..., p, p, 3] twice -> f32[...].

    Three times the mean over all values.

    >>> float(patch_error(jnp.zeros((1, 2, 2, 3)), jnp.full((1, 2, 2, 3), 0.5))[0])
    0.75
    """
    return jnp.mean(jnp.sum(jnp.square(predicted - target), axis=-1), axis=(-2, -1))


def patch_variance(target: Array) -> Array:
    """`patch_error` of the patch's own mean colour, f32[..., p, p, 3] -> f32[...]: the unit of the normalised error.

    NMSE is the sum of `patch_error` over patches divided by the sum of this: 1 for a generator that knows the mean
    colour of what it cannot see, and nothing else.

    >>> patch = jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1) * jnp.ones((1, 1, 1, 3))
    >>> float(patch_variance(patch)[0])
    0.75
    """
    return patch_error(jnp.mean(target, axis=(-3, -2), keepdims=True), target)


def pool_mask(mask: Array, how: str = "max") -> Array:
    """A mask bool or f32[..., p, p] of pixels as the network draws it: f32[..., p / 4, p / 4].

    how: 'max', different where any pixel of a cell is: thin scratches stay · 'mean', the share of its pixels.
    Raises UserError for another name.

    >>> pixel = jnp.zeros((1, 8, 4), bool).at[0, 5, 2].set(True)
    >>> [pool_mask(pixel, how)[0, :, 0].tolist() for how in MASK_POOLS]
    [[0.0, 1.0], [0.0, 0.0625]]
    """
    _one_of("pairs.mask_pool", how, MASK_POOLS)
    *batch, height, width = mask.shape
    cells = mask.astype(jnp.float32).reshape(*batch, height // CELL, CELL, width // CELL, CELL)
    return (jnp.max if how == "max" else jnp.mean)(cells, axis=(-3, -1))


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"config.pattern_generation.{key}={value!r}: it must be one of {', '.join(allowed)}")
