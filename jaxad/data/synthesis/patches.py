"""Where patches are cut and where they are put: NSA's draws of boxes, as stateless TensorFlow ops.

A box is i32[4]: top, left, height, width. Shares of a side become pixels as NSA rounds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxad.data.synthesis.classes import Settings
from jaxad.data.synthesis.poisson import SMALLEST

if TYPE_CHECKING:
    import tensorflow as tf

TRIES = 200  # places looked at before a patch is given up
# Half of a patch's side is 0.03 + Gamma(2, 0.05) of the image's: 0.13 on average, 0.08 most often.
GAMMA_SHIFT, GAMMA_SCALE = 0.03, 0.05
# A patch is scaled by Normal(1, 0.5), clipped.
SCALE_DEVIATION, SCALE_BOUNDS = 0.5, {"object": (0.7, 1.3), "texture": (0.5, 2.0)}


class Foreground(NamedTuple):
    """mask: bool[H, W] · sums: f32[>H, >W], at [y, x] the sum of the mask's pixels above y and left of x."""

    mask: tf.Tensor
    sums: tf.Tensor


def summed(mask: tf.Tensor) -> Foreground:
    """The mask with its summed-area table: the foreground of any box is then four look-ups."""
    import tensorflow as tf

    sums = tf.cast(mask, tf.float32)  # whole numbers, exact
    for axis in (0, 1):
        sums = _running(sums, axis)
    return Foreground(mask, sums)


def _running(x: tf.Tensor, axis: int) -> tf.Tensor:
    """f32[H, W] -> its running sums along an axis, a zero before them; the axis is padded to blocks of 16.

    Sums within blocks and sums of blocks, as products with triangles of ones: a third of the time of tf.cumsum.
    """
    import tensorflow as tf

    side, block = x.shape[axis], 16
    n = side // block + 1  # a zero goes before, so one more than the side
    padding = [(0, 0), (0, 0)]
    padding[axis] = (1, n * block - side - 1)
    x = tf.pad(x, padding)
    inside, before = (np.tri(size, k=k, dtype=np.float32) for size, k in ((block, 0), (n, -1)))
    if axis == 0:
        x = tf.matmul(inside, tf.reshape(x, (n, block, -1)))
        return tf.reshape(x + (before @ x[:, -1])[:, None], (n * block, -1))
    x = tf.reshape(tf.reshape(x, (-1, block)) @ inside.T, (-1, n, block))
    return tf.reshape(x + (x[:, :, -1] @ before.T)[..., None], (-1, n * block))


def within(foreground: Foreground, boxes: tf.Tensor) -> tf.Tensor:
    """f32[N], the foreground pixels of i32[N, 4] boxes."""
    import tensorflow as tf

    top, left, height, width = tf.unstack(boxes, axis=1)
    stride = foreground.sums.shape[1]
    bottom, right = (top + height) * stride, left + width
    corners = tf.stack([bottom + right, top * stride + left, top * stride + right, bottom + left])
    a, b, c, d = tf.unstack(tf.gather(tf.reshape(foreground.sums, [-1]), corners))
    return a + b - c - d


def number(seed: tf.Tensor, settings: Settings) -> tf.Tensor:
    """i32[], patches of an image: the first always, each of the others with probability 1/2."""
    import tensorflow as tf

    coins = tf.random.stateless_uniform((settings.patches - 1,), seed) < 0.5
    return 1 + tf.reduce_sum(tf.cast(coins, tf.int32))


def source_box(
    seed: tf.Tensor, settings: Settings, shape: tuple[int, int], foreground: Foreground | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """(box to cut, bool[]: it was found). Half sides from the gamma distribution, the centre uniform, clipped to the
    image of `shape`; with a foreground the first of `TRIES` centres whose box holds enough of it.
    """
    import tensorflow as tf

    tries = TRIES if foreground is not None else 1
    drawn = tf.random.stateless_uniform((2 + tries, 2), seed)
    # The product of two uniform draws has the negative logarithm of a Gamma(2) one. 1 - u is never 0.
    gamma = -tf.math.log((1.0 - drawn[0]) * (1.0 - drawn[1])) * GAMMA_SCALE
    boxes = []
    for axis, (side, bounds) in enumerate(zip(shape, (settings.height, settings.width), strict=True)):
        low, high = _pixels(bounds, side)
        half = tf.cast(tf.clip_by_value((GAMMA_SHIFT + gamma[axis]) * side, low, high), tf.int32)
        centre = low + tf.cast(drawn[2:, axis] * (side - 2 * low), tf.int32)
        start = tf.maximum(centre - half, 0)
        boxes.append((start, tf.minimum(centre + half, side) - start))
    (top, height), (left, width) = boxes
    boxes = tf.stack([top, left, height, width], axis=1)
    if foreground is None:
        return boxes[0], tf.constant(True)
    share = within(foreground, boxes) / tf.cast(height * width, tf.float32)
    good = share > settings.min_object
    return boxes[tf.argmax(good)], tf.reduce_any(good)


def blended_size(seed: tf.Tensor, settings: Settings, shape: tuple[int, int], box: tf.Tensor) -> tf.Tensor:
    """i32[2], height and width at which the patch is blended: scaled, its aspect kept where the bounds allow it.

    The bounds of half a side when cut bound the whole side now: that is how NSA's code is, and what its results are
    of. Departure: sides of at least `poisson.SMALLEST` pixels; OpenCV refuses smaller ones, and NSA then blends
    nothing.
    """
    import tensorflow as tf

    (low_y, high_y), (low_x, high_x) = (
        tuple(float(max(pixels, SMALLEST)) for pixels in _pixels(bounds, side))
        for bounds, side in zip((settings.height, settings.width), shape, strict=True)
    )
    height, width = (tf.cast(side, tf.float32) for side in (box[2], box[3]))
    scale = 1.0 + SCALE_DEVIATION * tf.random.stateless_normal((), seed)
    scale = tf.clip_by_value(scale, *SCALE_BOUNDS[settings.kind])
    new = tf.clip_by_value(scale * height, low_y, high_y)
    across = tf.clip_by_value(tf.floor(new / height * width), low_x, high_x)
    new = tf.clip_by_value(tf.floor(across / width * height), low_y, high_y)
    return tf.cast(tf.stack([new, across]), tf.int32)


def destination_box(
    seed: tf.Tensor,
    settings: Settings,
    shape: tuple[int, int],
    size: tf.Tensor,
    patch: tf.Tensor | None,
    foreground: Foreground | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """(box of i32[2] `size` in the destination, bool[]: it was found), uniform inside the image.

    With foregrounds, `patch` bool[h, w] the patch's own: the first of `TRIES` places where enough of it covers
    foreground of the destination. Departure: NSA leaves a free pixel at the image's border, for OpenCV's sake.
    """
    import tensorflow as tf

    tries = TRIES if foreground is not None else 1
    room = tf.cast(tf.constant(shape) - size + 1, tf.float32)
    corners = tf.cast(tf.random.stateless_uniform((tries, 2), seed) * room, tf.int32)
    boxes = tf.concat([corners, tf.broadcast_to(size, (tries, 2))], axis=1)
    if foreground is None:
        return boxes[0], tf.constant(True)
    solid = tf.cast(tf.math.count_nonzero(patch), tf.float32)
    needed = settings.min_overlap * solid
    enough = solid > settings.min_object * tf.cast(size[0] * size[1], tf.float32)
    # A box with too little foreground cannot overlap enough; the others, few, are looked at one after the other.
    candidates = tf.where((within(foreground, boxes) > needed) & enough)[:, 0]
    n = tf.size(candidates)

    def look(i, _):
        top, left = tf.unstack(boxes[candidates[i]][:2])
        shared = tf.math.count_nonzero(tf.slice(foreground.mask, [top, left], size) & patch)
        return i + 1, tf.cast(shared, tf.float32) > needed

    last, found = tf.while_loop(lambda i, found: (i < n) & ~found, look, (0, tf.constant(False)))
    chosen = tf.cond(found, lambda: candidates[last - 1], lambda: tf.constant(0, tf.int64))
    return boxes[chosen], found


def _pixels(bounds: tuple[float, float], side: int) -> tuple[int, int]:
    low, high = (round(bound * side) for bound in bounds)
    return max(low, 1), max(high, 1)
