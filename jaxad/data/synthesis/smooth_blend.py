"""SmoothBlend, the strong local change of SPD: a small patch is copied elsewhere, without an edge that shows it.

Zou et al., SPot-the-Difference Self-supervised Pre-training for Anomaly Detection and Segmentation, ECCV 2022. As
CutPaste, but the patch covers 0.5 to 1 % of the image, its colours are jittered, and it is blended in through a mask
that a Gaussian has softened: x~ = (1 - alpha) x + alpha u.

The paper names no numbers. Area and aspect follow a public reimplementation; sigma, jitter and what lies around the
patch are chosen: a sigma of 4 pixels leaves 0.9 of a patch visible at its peak, 8 leave half of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxad.data.synthesis import global_views
from jaxad.data.synthesis.cutpaste import GEOMETRY_DRAWS, corner_of, geometry
from jaxad.data.views import Context, to_uint8
from jaxad.errors import UserError
from jaxad.flags import nearest

if TYPE_CHECKING:
    import tensorflow as tf

OUTSIDE = ("context", "zero", "edge")


class Options(NamedTuple):
    """area: (low, high), the share of the image that a patch covers, uniform · aspect: in (0, 1], height to width is
    log-uniform between that and 1 / aspect · jitter: of the patch's colours, brightness, contrast, saturation and hue
    as in `global_views.STRENGTHS`; all zero: none · alpha_sigma: deviation of the Gaussian, in pixels of an image of
    224; 0: a hard edge · fg_outside: what lies around the patch under the soft edge: 'context', what surrounds it where
    it is from; 'zero', black; 'edge', its outermost pixels · n_patches: one after the other · renormalise: alpha
    reaches 1.
    """

    area: Sequence[float] = (0.005, 0.01)
    aspect: float = 0.3
    jitter: Sequence[float] = (0.4, 0.4, 0.4, 0.1)
    alpha_sigma: float = 4.0
    fg_outside: str = "context"
    n_patches: int = 1
    renormalise: bool = False


def smooth_blend(image: tf.Tensor, context: Context, seed: tf.Tensor, **options: Any) -> dict[str, tf.Tensor]:
    """SmoothBlend as a synthetic anomaly: {'image': u8[H, W, 3], 'mask': bool[H, W]}; `Options` are its options.

    The mask is where a patch weighs more than half of what it weighs at most: about the patch itself, for every sigma.
    Beyond it pixels have changed, too, ever less. UserError, when the graph is built, for other options.
    """
    import tensorflow as tf

    changed, alphas = blend(image, seed, read_options("smooth_blend", options))
    mask = tf.reduce_any(alphas > 0.5 * tf.reduce_max(alphas, axis=(1, 2), keepdims=True), axis=0)
    return {"image": to_uint8(changed), "mask": mask}


def blend(image: tf.Tensor, seed: tf.Tensor, options: Options) -> tuple[tf.Tensor, tf.Tensor]:
    """(f32[H, W, 3] the changed image, f32[n_patches, H, W] in [0, 1] the alpha of each patch).

    image: f32[H, W, 3] in [0, 1]; a pixel whose alpha is 0 is the image's, bit for bit. Where a patch comes from and
    where it goes are independent and uniform; they may overlap.

    >>> import tensorflow as tf
    >>> grey = tf.fill((32, 32, 3), 0.25)
    >>> changed, alphas = blend(grey, tf.constant([3, 4]), Options(jitter=(0, 0, 0, 0), n_patches=2))
    >>> alphas.shape, bool(tf.reduce_all(changed == grey))  # a copy of grey on grey
    (TensorShape([2, 32, 32]), True)
    """
    import tensorflow as tf

    shape = tuple(image.shape[:2])
    # Departure: the paper's images have 224 pixels; with the side shrink the patches, so the soft edge must, too.
    sums = running_kernel(options.alpha_sigma * min(shape) / global_views.SIDE)
    alphas = []
    for k in range(options.n_patches):
        uniform = tf.random.stateless_uniform((GEOMETRY_DRAWS + global_views.JITTER_DRAWS,), tf.random.fold_in(seed, k))
        size, _, corners = geometry(uniform[:GEOMETRY_DRAWS], shape, "normal", options.area, options.aspect)
        source, target = (corner_of(corner, size, shape) for corner in tf.unstack(corners))
        # alpha = G * m of a box is the product of that of its rows and that of its columns.
        rows, columns = (soft_edge(target[i], size[i], shape[i], sums) for i in (0, 1))
        if options.renormalise:
            rows, columns = rows / tf.reduce_max(rows), columns / tf.reduce_max(columns)
        image = _blended(image, source, target, size, (rows, columns), uniform[GEOMETRY_DRAWS:], options)
        alphas.append(rows[:, None] * columns)
    return image, tf.stack(alphas)


def running_kernel(sigma: float) -> np.ndarray:
    """f32[2 r + 2]: the sums of the first 0, 1, .. 2 r + 1 taps of a Gaussian of radius r = int(4 sigma + 0.5)."""
    radius = int(4.0 * sigma + 0.5)
    taps = np.exp(-0.5 * np.square(np.arange(-radius, radius + 1) / sigma)) if radius else np.ones(1)
    return np.concatenate([[0.0], np.cumsum(taps[:-1]) / taps.sum(), [1.0]]).astype(np.float32)


def soft_edge(start: tf.Tensor, length: tf.Tensor, side: int, sums: np.ndarray) -> tf.Tensor:
    """f32[side] in [0, 1]: a box from `start` i32[], `length` i32[] pixels long, convolved with a Gaussian.

    sums: its `running_kernel`; what meets the box at a pixel is a difference of two of them, exactly 0 from its radius
    on.
    """
    import tensorflow as tf

    last = len(sums) - 1
    after = tf.range(side) - start + last // 2 + 1
    reach = tf.clip_by_value(tf.stack([after, after - length]), 0, last)
    upper, lower = tf.unstack(tf.gather(sums, reach))
    return upper - lower


def _blended(
    image: tf.Tensor,
    source: tf.Tensor,
    target: tf.Tensor,
    size: tf.Tensor,
    alpha: tuple[tf.Tensor, tf.Tensor],
    uniform: tf.Tensor,
    options: Options,
) -> tf.Tensor:
    """f32[H, W, 3] with the patch of i32[2] `size` at i32[2] `source` blended in at i32[2] `target`.

    alpha: f32[H] and f32[W], whose product it is · uniform: f32[JITTER_DRAWS] for its colours.
    """
    import tensorflow as tf

    bounds, places, inside = [], [], []
    for axis, side in enumerate(image.shape[:2]):
        seen = tf.where(alpha[axis] > 0.0)[:, 0]  # only there anything changes, so only there anything is done
        start, stop = tf.cast(seen[0], tf.int32), tf.cast(seen[-1], tf.int32) + 1
        at = tf.range(start, stop) - target[axis]
        bounds.append((start, stop))
        inside.append((at >= 0) & (at < size[axis]))
        # A patch at the image's border has surroundings on one side only: its last row is repeated beyond it.
        first, last = (source[axis], source[axis] + size[axis] - 1) if options.fg_outside == "edge" else (0, side - 1)
        places.append(tf.clip_by_value(at + source[axis], first, last))
    (top, bottom), (left, right) = bounds
    foreground = tf.gather(tf.gather(image, places[0]), places[1], axis=1)
    patch = tf.cast(inside[0][:, None] & inside[1], tf.float32)
    if any(options.jitter):
        drawn = global_views.draw_jitter(uniform, options.jitter)
        planes = global_views.jitter(global_views.to_planes(foreground), drawn, tf.reshape(patch, [-1]))
        foreground = tf.reshape(global_views.from_planes(planes), tf.shape(foreground))
    if options.fg_outside == "zero":
        foreground *= patch[..., None]
    weight = (alpha[0][top:bottom, None] * alpha[1][left:right])[..., None]
    band = image[top:bottom]
    mixed = (1.0 - weight) * band[:, left:right] + weight * foreground
    band = tf.concat([band[:, :left], mixed, band[:, right:]], axis=1)
    return tf.ensure_shape(tf.concat([image[:top], band, image[bottom:]], axis=0), image.shape)


def read_options(op: str, given: Mapping[str, Any]) -> Options:
    """`Options` of a mapping. UserError, that names `op`, for an unknown one and for a value that cannot be."""
    for name in given:
        if name not in Options._fields:
            raise UserError(f"op {op!r} has no option {name!r} of SmoothBlend{nearest(name, Options._fields)}")
    options = Options(**given)

    def demand(ok: bool, name: str, what: str) -> None:
        if not ok:
            value = getattr(options, name)
            value = tuple(value) if isinstance(value, (list, tuple)) else value
            raise UserError(f"op {op!r}: {name}={value!r}; it must be {what}")

    area, jitter = options.area, options.jitter
    demand(len(area) == 2 and 0 < area[0] <= area[1] < 1, "area", "(low, high) with 0 < low <= high < 1")
    demand(0 < options.aspect <= 1, "aspect", "in (0, 1], 1 for squares")
    demand(
        len(jitter) == 4 and min(jitter) >= 0 and jitter[3] <= 0.5,
        "jitter",
        "four strengths, brightness, contrast, saturation and hue, 0 or more, and the hue at most 0.5",
    )
    demand(0 <= options.alpha_sigma < 100, "alpha_sigma", "in [0, 100) pixels, 0 for a hard edge")
    demand(options.fg_outside in OUTSIDE, "fg_outside", f"one of {', '.join(OUTSIDE)}")
    demand(options.n_patches == int(options.n_patches) >= 1, "n_patches", "a whole number from 1 on")
    return options
