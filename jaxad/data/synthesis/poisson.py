"""Poisson blending of a rectangle: what OpenCV's `seamlessClone` does for a box, in TensorFlow ops (Perez et al. 2003).

D is the destination inside the box, P the patch of the same size. The result U keeps D on and next to the border and
has the patch's gradients inside; the offset between the two is spread smoothly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf

SMALLEST = 9  # pixels; a shorter side would leave no gradient of the patch


def clone(patch: tf.Tensor, destination: tf.Tensor, *, mixed: bool) -> tf.Tensor:
    """u8[h, w, 3]: the patch, u8[h, w, 3], blended into `destination`, u8[h, w, 3]. Sides from `SMALLEST` on, dynamic.

    mixed=False: gradients of the patch · mixed=True: where |Px - Py| > |Dx - Dy|, of the patch, else of the
    destination, per pixel and channel (OpenCV compares the differences of the two derivatives, not their norms).
    Equals cv2.seamlessClone within one grey level. Departure: OpenCV puts patches of odd width one pixel to the right
    (opencv issue 21902); here the box stays where it is.

    >>> import tensorflow as tf
    >>> grey, brighter = tf.fill((9, 12, 3), tf.cast(90, tf.uint8)), tf.fill((9, 12, 3), tf.cast(200, tf.uint8))
    >>> bool(tf.reduce_all(clone(brighter, grey, mixed=False) == grey))  # an offset has no gradient
    True
    """
    import tensorflow as tf

    # OpenCV drops the outermost pixels of the mask (the rest is the region R), erodes it three times, and keeps D's
    # gradients where it is eroded: the patch acts on the pixels 4 .. h - 5 of the box alone.
    p, d = (tf.cast(image, tf.float32)[4:-3, 4:-3] for image in (patch, destination))
    difference = tf.transpose(p - d, (0, 2, 1))  # h, channels, w: all four products below are of plain matrices
    down, right = difference[1:, :, :-1] - difference[:-1, :, :-1], difference[:-1, :, 1:] - difference[:-1, :, :-1]
    if mixed:
        theirs, ours = (tf.abs(image[:-1, 1:] - image[1:, :-1]) for image in (p, d))  # |right - down|
        chosen = tf.transpose(tf.cast(theirs > ours, tf.float32), (0, 2, 1))
        down, right = down * chosen, right * chosen
    # U = D + W, and D's own laplacian cancels: laplacian(W) = divergence(v - grad D), W = 0 on the border of R. The
    # unknowns are the pixels 2 .. h - 3 of the box.
    before, after = (2, 2), (3, 1)
    divergence = (
        tf.pad(down, (before, (0, 0), before))
        - tf.pad(down, (after, (0, 0), before))
        + tf.pad(right, (before, (0, 0), before))
        - tf.pad(right, (before, (0, 0), after))
    )
    change = tf.transpose(_solve(divergence), (0, 2, 1))
    change = tf.pad(change, ((2, 2), (2, 2), (0, 0)))
    blended = tf.cast(destination, tf.float32) + change
    return tf.cast(tf.clip_by_value(blended, 0.0, 255.0), tf.uint8)  # truncated, as OpenCV does


def _solve(laplacian: tf.Tensor) -> tf.Tensor:
    """f32[n, C, m] -> f32[n, C, m] with this five-point laplacian and zeros around it; by two DST-I per axis."""
    import tensorflow as tf

    n, channels, m = tf.shape(laplacian)[0], laplacian.shape[1], tf.shape(laplacian)[2]
    (rows, row_values), (columns, column_values) = _sines(n), _sines(m)

    def transform(x):  # the transform is its own inverse but for the factor 4 / ((n + 1) (m + 1))
        x = rows @ tf.reshape(x, (n, channels * m))
        return tf.reshape(tf.reshape(x, (n * channels, m)) @ columns, (n, channels, m))

    scale = 4.0 / tf.cast((n + 1) * (m + 1), tf.float32)
    values = scale / (row_values[:, None] + column_values[None, :])
    return transform(transform(laplacian) * values[:, None, :])


def _sines(n: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(f32[n, n], f32[n]): sin(pi i j / (n + 1)) and its eigenvalues 2 cos(pi i / (n + 1)) - 2, i, j = 1 .. n."""
    import tensorflow as tf

    i = tf.range(1, n + 1)
    step = 3.141592653589793 / tf.cast(n + 1, tf.float32)
    turns = i[:, None] * i[None, :] % (2 * (n + 1))  # whole turns off first: sines of large angles are inexact
    half = tf.sin(tf.cast(i, tf.float32) * (step / 2.0))
    return tf.sin(tf.cast(turns, tf.float32) * step), -4.0 * half * half
