"""Perlin noise: smooth blobs of a drawn size, the shapes of many a synthetic defect.

Perlin, An Image Synthesizer, SIGGRAPH 1985, with the smoother fade of his Improving Noise, 2002. At every point of a
lattice stands a gradient; a pixel has the faded mean of what the gradients of the four points about it say. Number of
cells, threshold and turn are those of DRAEM and its kin (Zavrtanik et al. 2021).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jaxad.data.views import turn

if TYPE_CHECKING:
    import tensorflow as tf

FINEST = 5  # 2^0 .. 2^5 cells along the side of an image
DEGREES = 90.0
DRAWS = 3  # uniform numbers that the lattice and the turn take


def perlin(seed: tf.Tensor, side: int) -> tf.Tensor:
    """f32[side, side] in [-1, 1]: noise with 2^0 .. 2^FINEST cells along either axis, turned by up to DEGREES.

    Departure: a larger square is drawn, turned and cut; elsewhere what the turn uncovers is black, and blobs end there.

    >>> import tensorflow as tf
    >>> perlin(tf.constant([3, 4]), 32).shape
    TensorShape([32, 32])
    """
    import tensorflow as tf

    uniform = tf.random.stateless_uniform((DRAWS,), tf.random.fold_in(seed, 0))
    cells = tf.pow(2.0, tf.floor(uniform[:2] * (FINEST + 1)))
    margin = math.ceil(side * (math.sqrt(2.0) - 1.0) / 2.0)
    square = side + 2 * margin
    points = math.ceil(2**FINEST * square / side) + 1
    angles = tf.random.stateless_uniform((points, points), tf.random.fold_in(seed, 1), 0.0, 2.0 * math.pi)
    turned = turn(noise(angles, cells / side, square)[..., None], (2.0 * uniform[2] - 1.0) * math.radians(DEGREES))
    return turned[margin : margin + side, margin : margin + side, 0]


def noise(angles: tf.Tensor, per_pixel: tf.Tensor, side: int) -> tf.Tensor:
    """f32[side, side] in [-1, 1], noise of unit gradients with these angles.

    angles: f32[points, points], radians from the x axis towards larger y · per_pixel: f32[2], cells per pixel along y
    and x; pixel 0 lies on point 0, and `points` must reach beyond pixel `side` - 1.

    A gradient's part is a product of functions of y and of x, so all are two products of matrices.
    """
    import tensorflow as tf

    points = angles.shape[0]
    away = tf.range(side, dtype=tf.float32)[:, None] * per_pixel[:, None, None] - tf.range(points, dtype=tf.float32)
    near = tf.minimum(tf.abs(away), 1.0)
    fade = 1.0 - near**3 * (near * (near * 6.0 - 15.0) + 10.0)  # [axis, pixel, point], 0 from the next point on
    (fade_y, fade_x), (slope_y, slope_x) = tf.unstack(fade), tf.unstack(fade * away)
    from_x = tf.matmul(tf.matmul(fade_y, tf.cos(angles)), slope_x, transpose_b=True)
    from_y = tf.matmul(tf.matmul(slope_y, tf.sin(angles)), fade_x, transpose_b=True)
    return math.sqrt(2.0) * (from_x + from_y)
