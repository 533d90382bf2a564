"""Where the object is: masks by brightness, as NSA makes them, and how their thresholds are measured.

Brightness is the mean of R, G and B on 0 to 255; sums of the three are whole numbers and keep comparisons exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

BORDER = 10 / 256  # of the side: the strip that shows the background
PLAUSIBLE = (0.05, 0.95)  # shares of foreground outside which a measured threshold has found no object


def by_brightness(image: tf.Tensor, background: tuple[tuple[float, float], ...], *, measured: bool) -> tf.Tensor:
    """bool[H, W]: u8[H, W, 3] differs from every (brightness, threshold) by more than the threshold; 7x7 median.

    measured: the pairs come from `measure`, and an image whose foreground is an implausible share is all foreground.
    """
    import tensorflow as tf

    total = tf.add_n(tf.unstack(tf.cast(image, tf.float32), axis=-1))
    mask = tf.ones(image.shape[:2], bool)
    for brightness, threshold in background:
        mask &= tf.abs(total - 3.0 * brightness) > 3.0 * threshold
    mask = majority(mask, 7)
    if measured:
        share = tf.reduce_mean(tf.cast(mask, tf.float32))
        mask |= (share < PLAUSIBLE[0]) | (share > PLAUSIBLE[1])
    return mask


def majority(mask: tf.Tensor, size: int) -> tf.Tensor:
    """bool[H, W], its median over size x size pixels, size odd and at most 15, border pixels repeated.

    Exact: the median of yes and no is what most say.
    """
    import tensorflow as tf

    count, reach = tf.cast(mask, tf.uint8), size // 2  # at most 225 votes: bytes are enough
    for axis in (0, 1):
        n = mask.shape[axis]
        first, last = (count[:1], count[-1:]) if axis == 0 else (count[:, :1], count[:, -1:])
        padded = tf.concat([first] * reach + [count] + [last] * reach, axis)
        count = tf.add_n([padded[i : i + n] if axis == 0 else padded[:, i : i + n] for i in range(size)])
    return count > size * size // 2


def measure(normals: np.ndarray) -> tuple[float, float]:
    """(brightness, threshold) of the background of u8[n, H, W, 3]: the median brightness of the images' borders, and
    Otsu's threshold on the distance from it.

    >>> image = np.full((1, 64, 64, 3), 200, np.uint8)
    >>> image[:, 20:40, 20:40] = 80
    >>> brightness, threshold = measure(image)
    >>> brightness, 0 < threshold < 120
    (200.0, True)
    """
    total = normals.astype(np.int32).sum(axis=-1)
    brightness = float(np.median(total[:, border(total.shape[1:])])) / 3.0
    distance = np.rint(np.abs(total / 3.0 - brightness)).astype(np.int64)
    return brightness, otsu(np.bincount(distance.ravel(), minlength=256))


def border(shape: tuple[int, ...]) -> np.ndarray:
    """bool[H, W], the strip along the image's border."""
    mask = np.ones(shape, bool)
    rows, columns = (max(1, round(BORDER * side)) for side in shape)
    mask[rows:-rows, columns:-columns] = False
    return mask


def otsu(histogram: np.ndarray) -> float:
    """The threshold between two levels of i64[256] that parts it into the two classes farthest apart (Otsu 1979).

    Where a gap between the classes lets many thresholds part them alike, its middle: other images are noisier.
    Where there is one level only, nothing is larger than the threshold.

    >>> otsu(np.bincount([3, 4, 4, 90, 91], minlength=256))
    47.0
    """
    levels = np.arange(len(histogram))
    below = np.cumsum(histogram)[:-1].astype(np.float64)
    above = below[-1] + histogram[-1] - below
    moment = np.cumsum(histogram * levels).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = below * above * (moment[:-1] / below - (moment[-1] - moment[:-1]) / above) ** 2
    apart = np.nan_to_num(apart, nan=0.0, posinf=0.0)
    if not apart.any():  # one level: nothing to part, so everything is at or below the threshold
        return float(np.flatnonzero(histogram).max()) + 0.5
    best = np.flatnonzero(apart >= apart.max() * (1.0 - 1e-12))  # equal but for rounding
    return float(best[0] + best[-1]) / 2.0 + 0.5
