"""Global views for self-supervised pre-training: a random resized crop, a flip, colours, grey, a soft focus.

What each base method of SPD (Zou et al., SPot-the-Difference Self-supervised Pre-training, ECCV 2022) does to an image
stands in `STRENGTHS`, as their public code has it. Means and deviations of ImageNet are not subtracted here: the
network does that.

Departure: crops are cut out of the stored image, square and of data.image_size, not out of the file as photographed;
the finest crops are therefore magnified where theirs are not.
Departure: colours are real numbers until the view is finished, as torchvision's are for tensors; their code rounds to
256 levels after every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxad.data.synthesis.hard_augment import changed_in_hsv

if TYPE_CHECKING:
    import tensorflow as tf

# scale: share of the area that the crop covers · resize: how the crop becomes the view · flip, jitter_p, grey_p,
# blur_p: probabilities · jitter: how far brightness, contrast and saturation are drawn from 1, and the hue from 0, as a
# share of its circle · grey_first: before the jitter, not after · blur: least and largest deviation of the Gaussian, in
# pixels of an image of SIDE.
STRENGTHS: dict[str, dict[str, Any]] = {
    "simsiam": dict(  # and MoCo v2
        scale=(0.2, 1.0),
        resize="bilinear",
        flip=0.5,
        jitter=(0.4, 0.4, 0.4, 0.1),
        jitter_p=0.8,
        grey_p=0.2,
        grey_first=False,
        blur=(0.1, 2.0),
        blur_p=0.5,
    ),
    "moco_v1": dict(
        scale=(0.2, 1.0),
        resize="bilinear",
        flip=0.5,
        jitter=(0.4, 0.4, 0.4, 0.4),
        jitter_p=1.0,
        grey_p=0.2,
        grey_first=True,
        blur=(0.0, 0.0),
        blur_p=0.0,
    ),
    # Departure: TensorFlow's contrast, SimCLR's, is about the mean of each channel; here it is torchvision's for all.
    "simclr": dict(
        scale=(0.08, 1.0),
        resize="bicubic",
        flip=0.5,
        jitter=(0.8, 0.8, 0.8, 0.2),
        jitter_p=0.8,
        grey_p=0.2,
        grey_first=False,
        blur=(0.1, 2.0),
        blur_p=0.5,
    ),
    "supervised": dict(
        scale=(0.08, 1.0),
        resize="bilinear",
        flip=0.5,
        jitter=(0.0, 0.0, 0.0, 0.0),
        jitter_p=0.0,
        grey_p=0.0,
        grey_first=False,
        blur=(0.0, 0.0),
        blur_p=0.0,
    ),
    "weak": dict(  # SPD's x~+
        scale=(0.9, 1.0),
        resize="bilinear",
        flip=0.5,
        jitter=(0.1, 0.1, 0.1, 0.05),
        jitter_p=0.8,
        grey_p=0.0,
        grey_first=False,
        blur=(0.1, 0.3),
        blur_p=0.5,
    ),
}
SIDE = 224  # pixels of the images that deviations are given for
RATIO = (3 / 4, 4 / 3)  # width to height of a crop, log-uniform
TRIES = 10  # crops drawn until one fits
BOX_DRAWS, JITTER_DRAWS, LOOK_DRAWS = 2 * TRIES + 2, 8, 12  # uniform numbers that one takes
LUMA = np.float32([[0.299], [0.587], [0.114]])  # ITU-R BT.601, what Pillow and torchvision call grey
FAINTEST = 1 / 2550  # weight of the next pixel below which a soft focus changes no level of 256


class Place(NamedTuple):
    """What a view shows. box: i32[4], top, left, height, width of the crop · flip: bool[], left and right swapped."""

    box: tf.Tensor
    flip: tf.Tensor


class Jitter(NamedTuple):
    """One colour jitter. by: f32[4], factors of brightness, contrast and saturation, and the turn of the hue, a share
    of its circle · order: i32[4], in which they are done.
    """

    by: tf.Tensor
    order: tf.Tensor


def global_view(image: tf.Tensor, seed: tf.Tensor, *, size: int, strength: str) -> tf.Tensor:
    """f32[size, size, 3] in [0, 1]: a view of f32[H, W, 3] in [0, 1] by the recipe `STRENGTHS[strength]`.

    >>> import tensorflow as tf
    >>> global_view(tf.zeros((32, 48, 3)), tf.constant([1, 2]), size=16, strength="weak").shape
    TensorShape([16, 16, 3])
    """
    import tensorflow as tf

    recipe = STRENGTHS[strength]
    place = draw_place(tf.random.fold_in(seed, 0), whole(image), recipe)
    return look(resample(image, place, size, recipe["resize"]), tf.random.fold_in(seed, 1), recipe)


def whole(image: tf.Tensor) -> tf.Tensor:
    """i32[4], the box that is all of f32[H, W, 3]."""
    import tensorflow as tf

    return tf.constant([0, 0, image.shape[0], image.shape[1]], tf.int32)


def draw_place(seed: tf.Tensor, within: tf.Tensor, recipe: Mapping[str, Any], relative: bool = False) -> Place:
    """A crop inside the box `within`, and whether it is flipped; see `crop_box`."""
    import tensorflow as tf

    uniform = tf.random.stateless_uniform((BOX_DRAWS + 1,), seed)
    return Place(crop_box(uniform[:-1], within, recipe["scale"], relative=relative), uniform[-1] < recipe["flip"])


def crop_box(uniform: tf.Tensor, within: tf.Tensor, scale: Sequence[float], *, relative: bool = False) -> tf.Tensor:
    """i32[4], a random crop of the box `within` i32[4], as torchvision's RandomResizedCrop draws it.

    uniform: f32[BOX_DRAWS] in [0, 1) · scale: (low, high), the share of the box's area · relative: the aspect is as of
    a box that was made square, for a crop of a crop.
    The first of TRIES pairs of area (uniform) and aspect (log-uniform) that fits, at a uniform place; where none does,
    the largest crop in the middle whose aspect is within RATIO.

    >>> import tensorflow as tf
    >>> crop_box(tf.fill([BOX_DRAWS], 0.5), tf.constant([0, 10, 20, 20]), (0.25, 0.25)).numpy().tolist()
    [5, 15, 10, 10]
    """
    import tensorflow as tf

    top, left, height, width = tf.unstack(within)
    tall, wide = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    own = wide / tall if relative else 1.0
    low, high = (math.log(ratio) for ratio in RATIO)
    pixels = (scale[0] + (scale[1] - scale[0]) * uniform[:TRIES]) * (tall * wide)
    aspect = own * tf.exp(low + (high - low) * uniform[TRIES : 2 * TRIES])
    heights, widths = tf.round(tf.sqrt(pixels / aspect)), tf.round(tf.sqrt(pixels * aspect))
    fits = (heights > 0.0) & (heights <= tall) & (widths > 0.0) & (widths <= wide)
    first, found = tf.argmax(tf.cast(fits, tf.int32)), tf.reduce_any(fits)
    largest = tf.minimum([tall, wide], tf.round([wide / (RATIO[0] * own), tall * (RATIO[1] * own)]))
    size = tf.cast(tf.where(found, tf.stack([heights[first], widths[first]]), largest), tf.int32)
    room = tf.stack([height, width]) - size
    at = tf.cast(uniform[2 * TRIES :] * tf.cast(room + 1, tf.float32), tf.int32)
    corner = tf.stack([top, left]) + tf.where(found, at, room // 2)
    return tf.concat([corner, size], axis=0)


def resample(image: tf.Tensor, place: Place, size: int, how: str = "bilinear") -> tf.Tensor:
    """f32[size, size, 3] in [0, 1]: the crop of f32[H, W, 3], resized, then flipped. how: 'bilinear', 'bicubic'.

    A flip commutes with all that follows, so it is done here for every recipe.
    tf.image.resize of the slice, not crop_and_resize: that skips pixels where the crop shrinks, and takes four times as
    long where it does not. Antialiasing, which takes six times as long, is left out where nothing shrinks and it would
    change nothing.
    """
    import tensorflow as tf

    top, left, height, width = tf.unstack(place.box)
    crop = tf.slice(image, [top, left, 0], [height, width, 3])

    def resized(antialias: bool) -> tf.Tensor:
        return tf.ensure_shape(tf.image.resize(crop, (size, size), how, antialias=antialias), (size, size, 3))

    if max(image.shape[:2]) <= size:
        view = resized(False)
    else:
        view = tf.cond((height > size) | (width > size), lambda: resized(True), lambda: resized(False))
    if how == "bicubic":
        view = tf.clip_by_value(view, 0.0, 1.0)
    return tf.cond(place.flip, lambda: view[:, ::-1], lambda: view)


def look(view: tf.Tensor, seed: tf.Tensor, recipe: Mapping[str, Any]) -> tf.Tensor:
    """f32[S, S, 3] in [0, 1] with other colours and focus: jitter, grey and blur of the recipe, each as likely as it
    says.

    Departure: deviations of the Gaussian are scaled with the side, from views of SIDE pixels; as they are, they would
    leave little of a small one.
    """
    import tensorflow as tf

    uniform = tf.random.stateless_uniform((LOOK_DRAWS,), seed)
    for_jitter, (p_jitter, p_grey, p_blur, u) = uniform[:JITTER_DRAWS], tf.unstack(uniform[JITTER_DRAWS:])
    size = view.shape[0]
    low, high = (deviation * size / SIDE for deviation in recipe["blur"])
    sharp = not recipe["blur_p"] or math.exp(-0.5 / high**2) < FAINTEST
    steps: list[tuple[float, tf.Tensor, Callable]] = [
        (recipe["jitter_p"], p_jitter, lambda planes: jitter(planes, draw_jitter(for_jitter, recipe["jitter"]))),
        (recipe["grey_p"], p_grey, lambda planes: tf.tile(grey(planes), (3, 1))),
    ]
    if recipe["grey_first"]:
        steps.reverse()
    steps.append((0.0 if sharp else recipe["blur_p"], p_blur, lambda p: softened(p, low + (high - low) * u, size)))
    if not any(probability for probability, *_ in steps):
        return view
    planes = to_planes(view)
    for probability, drawn, change in steps:
        if probability >= 1.0:
            planes = change(planes)
        elif probability:
            planes = tf.cond(drawn < probability, lambda p=planes, f=change: f(p), lambda p=planes: p)
    return tf.reshape(from_planes(planes), (size, size, 3))


def to_planes(pixels: tf.Tensor) -> tf.Tensor:
    """f32[..., 3] -> f32[3, n], the layout in which colours are fast to change."""
    import tensorflow as tf

    # Times the identity, which is exact: TensorFlow's transpose takes twice as long for small images.
    return tf.matmul(np.eye(3, dtype=np.float32), tf.reshape(pixels, (-1, 3)), transpose_b=True)


def from_planes(planes: tf.Tensor) -> tf.Tensor:
    """f32[3, n] -> f32[n, 3]."""
    import tensorflow as tf

    return tf.matmul(planes, np.eye(3, dtype=np.float32), transpose_a=True)


def draw_jitter(uniform: tf.Tensor, strengths: Sequence[float]) -> Jitter:
    """A colour jitter, made of f32[JITTER_DRAWS] in [0, 1); strengths as in `STRENGTHS`. Factors are not negative."""
    import tensorflow as tf

    low = np.float32([*(max(0.0, 1.0 - strength) for strength in strengths[:3]), -strengths[3]])
    high = np.float32([*(1.0 + strength for strength in strengths[:3]), strengths[3]])
    return Jitter(low + (high - low) * uniform[:4], tf.argsort(uniform[4:]))


def jitter(planes: tf.Tensor, drawn: Jitter, of: tf.Tensor | None = None) -> tf.Tensor:
    """f32[3, n] in [0, 1]: brightness, contrast, saturation and hue in the order drawn, clipped after each.

    As torchvision's ColorJitter: the mix of the image with black, with the mean of its grey, with its grey, and HSV's
    hue turned. of: f32[n], the weights of the pixels in that mean; none, all alike.
    """
    import tensorflow as tf

    brightness, contrast, saturation, hue = tf.unstack(drawn.by)

    def mixed(planes, factor, other):
        return tf.clip_by_value(planes * factor + other * (1.0 - factor), 0.0, 1.0)

    def mean(planes):
        brightnesses = grey(planes)
        return tf.reduce_mean(brightnesses) if of is None else tf.tensordot(brightnesses[0], of, 1) / tf.reduce_sum(of)

    def step(k, planes):
        changes = [
            lambda: mixed(planes, brightness, 0.0),
            lambda: mixed(planes, contrast, mean(planes)),
            lambda: mixed(planes, saturation, grey(planes)),
            lambda: changed_in_hsv(planes, tf.stack([hue, 1.0, 1.0])),
        ]
        return k + 1, tf.switch_case(drawn.order[k], changes)

    # A loop, so that the graph has each of the four once and not at every place of the order.
    return tf.while_loop(lambda k, _: k < 4, step, (0, planes), parallel_iterations=1)[1]


def grey(planes: tf.Tensor) -> tf.Tensor:
    """f32[3, n] -> f32[1, n], the brightness of each pixel."""
    import tensorflow as tf

    return tf.matmul(LUMA, planes, transpose_a=True)


def softened(planes: tf.Tensor, sigma: tf.Tensor, size: int) -> tf.Tensor:
    """f32[3, size * size] convolved with a Gaussian of `sigma` f32[] pixels; beyond the border nothing has weight.

    As products with two banded matrices: two thirds of the time of two depthwise convolutions, for any sigma.
    """
    import tensorflow as tf

    squares = np.square(np.arange(size)[:, None] - np.arange(size)).astype(np.float32)
    weights = tf.exp(squares * (-0.5 / tf.square(sigma)))
    weights /= tf.reduce_sum(weights, axis=1, keepdims=True)
    across = tf.matmul(tf.reshape(planes, (3 * size, size)), weights, transpose_b=True)
    return tf.reshape(tf.matmul(weights, tf.reshape(across, (3, size, size))), (3, size * size))
