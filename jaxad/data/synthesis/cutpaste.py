"""AnoSeg's anomalies as a view: a crop of a hard-augmented normal image is pasted into this one.

It is CutPaste (Li et al. 2021) after hard augmentation. The image is the normal one outside the paste, bit for bit.
What the paper leaves open follows public code of CutPaste and CSI: rectangles of 2 to 15 % of the area, or thin turned
scars.

Departure, off by default: mask_mode='diff' and min_change keep what a paste did not visibly change from being called an
anomaly, as on plain backgrounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxad.data.synthesis import hard_augment as augment
from jaxad.data.synthesis.nsa import visible
from jaxad.data.views import Context, one_of, to_uint8
from jaxad.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

LEVELS = ("image", "patch")
VARIANTS = ("normal", "scar", "union")
MASK_MODES = ("paste", "diff")
SOURCES = ("same", "other")
SCAR_WIDTH, SCAR_HEIGHT, SCAR_DEGREES = (2, 16), (10, 25), 45.0  # pixels of an image of SCAR_SIDE
SCAR_SIDE, SCAR_THINNEST = 256, 2
GEOMETRY_DRAWS = 10  # uniform numbers that one takes
CANDIDATES = 8  # drawn until one changes enough; the last is kept
SMALLEST_IMAGE = 16  # pixels: a scar of the largest size, turned, would not fit into much smaller ones


def cutpaste(
    image: tf.Tensor,
    context: Context,
    seed: tf.Tensor,
    *,
    hard: bool = True,
    level: str = "image",
    perm_mode: str = "halves",
    variant: str = "normal",
    mask_mode: str = "paste",
    min_change: float = 0.0,
    source: str = "same",
    allow_identity: bool = False,
    area: Sequence[float] = (0.02, 0.15),
    aspect: float = 0.3,
    jitter: float = 0.1,
) -> dict[str, tf.Tensor]:
    """The image with a crop pasted somewhere else: {'image': u8[H, W, 3], 'mask': bool[H, W], True where pasted}.

    hard: the crop is hard-augmented (`hard_augment`), or not · level: 'image', the whole image is augmented, then
    cropped; 'patch', the crop is augmented · perm_mode: 'halves', 'quadrants' · variant: 'normal', a rectangle; 'scar',
    a thin one, turned; 'union', either, as likely · mask_mode: 'paste', all of what is pasted; 'diff', where that
    changed the image visibly, as `nsa.visible` has it · min_change: in [0, 1), the mean change over the paste below
    which another is drawn, up to CANDIDATES · source: 'same', the crop is of this image; 'other', of another normal one
    · allow_identity: see `hard_augment` · area: (low, high), share of the image that a rectangle covers, uniform ·
    aspect: in (0, 1], height to width of a rectangle is log-uniform between that and 1 / aspect · jitter: in [0, 1],
    strength of the colour jitter of the crop, which is always done.

    With 'diff' the mask may be empty, and pixels outside it have changed by a grey level. UserError, when the graph is
    built, for other options, for hard augmentation of images that are not square, for images under SMALLEST_IMAGE
    pixels and, with source='other', for a training split with one normal image.
    """
    import tensorflow as tf

    _check(image, hard, level, perm_mode, variant, mask_mode, min_change, source, area, aspect, jitter)
    # As to_uint8, without its clipping: that would take longer than the paste, and the image has 256 levels in [0, 1].
    before = tf.cast(tf.round(image * 255.0), tf.uint8)
    shape = tuple(image.shape[:2])

    n = GEOMETRY_DRAWS, augment.HARD_DRAWS, augment.COLOUR_DRAWS
    uniform = tf.random.stateless_uniform((CANDIDATES if min_change else 1, sum(n)), seed)

    def candidate(k):
        here, for_hard, for_colour = tf.split(uniform[k], n)
        size, angle, corners = geometry(here, shape, variant, area, aspect)
        original = context.draw(tf.random.fold_in(seed, k)) if source == "other" else image
        drawn = augment.draw(for_hard, perm_mode=perm_mode, allow_identity=allow_identity) if hard else None
        patch = crop(original, size, corners[0], drawn, level, perm_mode)
        if jitter:
            # Departure: as CSI's. Code of CutPaste has torchvision's, with contrast about the mean of the grey image.
            colour = augment.draw_colour(for_colour, augment.Strengths(jitter, jitter, jitter, jitter))
            patch = augment.colour_jitter(patch, colour)
        patch, inside = (patch, None) if angle is None else turned(patch, angle)
        return paste(before, to_uint8(patch), inside, corners[1])

    if min_change:
        _, after, mask, _ = tf.while_loop(
            lambda k, after, mask, change: (k < CANDIDATES) & (change < min_change),
            lambda k, *_: (k + 1, *candidate(k)),
            (0, before, tf.zeros(shape, bool), -1.0),
            parallel_iterations=1,
        )
    else:
        after, mask, _ = candidate(0)
    if mask_mode == "diff":
        mask &= visible(before, after, mask)
    return {"image": after, "mask": mask}


def geometry(
    drawn: tf.Tensor, shape: tuple[int, int], variant: str, area: Sequence[float], aspect: float
) -> tuple[tf.Tensor, tf.Tensor | None, tf.Tensor]:
    """(i32[2] height and width to crop, f32[] radians that a scar is turned by, None where there are no scars,
    f32[2, 2] where to crop and where to paste, in [0, 1) of the room there is). drawn: f32[GEOMETRY_DRAWS].
    """
    import tensorflow as tf

    corners = tf.reshape(drawn[:4], (2, 2))
    pixels = shape[0] * shape[1] * (area[0] + (area[1] - area[0]) * drawn[4])
    ratio = tf.exp((2.0 * drawn[5] - 1.0) * -math.log(aspect))
    # Neither side may be longer than the image's; the width makes up for the rounding of the height.
    ratio = tf.clip_by_value(ratio, pixels / shape[1] ** 2, shape[0] ** 2 / pixels)
    height = tf.clip_by_value(tf.round(tf.sqrt(pixels * ratio)), 1.0, shape[0])
    width = tf.clip_by_value(tf.round(pixels / height), 1.0, shape[1])
    size = tf.cast(tf.stack([height, width]), tf.int32)
    if variant == "normal":
        return size, None, corners
    low, high = (tf.constant([SCAR_HEIGHT[i], SCAR_WIDTH[i]], tf.float32) for i in (0, 1))
    scar = (low + (high - low) * drawn[6:8]) * (min(shape) / SCAR_SIDE)
    scar = tf.maximum(tf.cast(tf.round(scar), tf.int32), SCAR_THINNEST)
    angle = (2.0 * drawn[8] - 1.0) * math.radians(SCAR_DEGREES)
    if variant == "scar":
        return scar, angle, corners
    thin = drawn[9] < 0.5
    return tf.where(thin, scar, size), tf.where(thin, angle, 0.0), corners


def crop(
    image: tf.Tensor,
    size: tf.Tensor,
    corner: tf.Tensor,
    hard: augment.Hard | None,
    level: str,
    perm_mode: str,
) -> tf.Tensor:
    """f32[h, w, 3] in [0, 1]: a crop of the augmented image, or an augmented crop, by `level`.

    image: f32[H, W, 3] in [0, 1] · size: i32[2], before the turn of a crop · corner: f32[2], its top left corner, in
    [0, 1) of the room there is · hard: what is done; None, nothing.
    """
    import tensorflow as tf

    shape = tuple(image.shape[:2])
    top, left = tf.unstack(corner_of(corner, size, shape))
    height, width = tf.unstack(size)
    if hard is None:
        return tf.slice(image, [top, left, 0], [height, width, 3])
    if level == "image":
        rows, columns = top + tf.range(height), left + tf.range(width)
        table = augment.places(rows, columns, shape, shape[1], hard.quarters, hard.state, perm_mode)
    else:
        odd = hard.quarters % 2 == 1
        rows, columns = tf.range(tf.where(odd, width, height)), tf.range(tf.where(odd, height, width))
        table = augment.places(rows, columns, (height, width), shape[1], hard.quarters, hard.state, perm_mode)
        table += top * shape[1] + left
    patch = tf.gather(tf.reshape(image, (-1, 3)), table)

    def jittered():
        # Turning and permuting leave the pixels what they are, so the means of the copy are those of the image.
        return augment.colour_jitter(patch, hard.colour, augment.sample(image) if level == "image" else None)

    return tf.cond(hard.jittered, jittered, lambda: patch)


def turned(patch: tf.Tensor, angle: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(f32[h', w', 3], the box around f32[h, w, 3] turned by `angle` f32[] radians; bool[h', w'], where it lies there).

    The nearest pixel is taken, as Pillow's `rotate(expand=True)` does.
    """
    import tensorflow as tf

    size = tf.shape(patch)[:2]
    height, width = tf.unstack(tf.cast(size, tf.float32))
    cos, sin = tf.cos(angle), tf.sin(angle)
    # A hair is taken off, for rounding must not add an empty row.
    tall = tf.math.ceil(height * tf.abs(cos) + width * tf.abs(sin) - 1e-3)
    wide = tf.math.ceil(width * tf.abs(cos) + height * tf.abs(sin) - 1e-3)
    y = (tf.range(tall) - (tall - 1.0) / 2.0)[:, None]
    x = tf.range(wide) - (wide - 1.0) / 2.0
    row = tf.cast(tf.floor(y * cos + x * sin + height / 2.0), tf.int32)
    column = tf.cast(tf.floor(x * cos - y * sin + width / 2.0), tf.int32)
    inside = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
    place = tf.where(inside, row * size[1] + column, 0)
    return tf.gather(tf.reshape(patch, (-1, 3)), place), inside


def paste(
    before: tf.Tensor, patch: tf.Tensor, inside: tf.Tensor | None, corner: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(u8[H, W, 3], bool[H, W] where it was pasted, f32[] the mean change there, in [0, 1]).

    before: u8[H, W, 3] · patch: u8[h, w, 3] · inside: bool[h, w], what of it is pasted; None, all · corner: f32[2], its
    top left corner, in [0, 1) of the room there is.
    """
    import tensorflow as tf

    size = tf.shape(patch)[:2]
    top, left = tf.unstack(corner_of(corner, size, tuple(before.shape[:2])))
    bottom, right = top + size[0], left + size[1]
    band = before[top:bottom]
    under = band[:, left:right]
    if inside is None:
        inside = tf.ones(size, bool)
    else:
        patch = tf.where(inside[..., None], patch, under)
    # Put together of what is around it: several times faster than updating a slice.
    band = tf.concat([band[:, :left], patch, band[:, right:]], axis=1)
    after = tf.concat([before[:top], band, before[bottom:]], axis=0)
    mask = tf.pad(inside, [[top, before.shape[0] - bottom], [left, before.shape[1] - right]])
    change = tf.reduce_sum(tf.abs(tf.cast(patch, tf.float32) - tf.cast(under, tf.float32)))
    n = 3.0 * 255.0 * tf.cast(tf.math.count_nonzero(inside), tf.float32)
    return tf.ensure_shape(after, before.shape), tf.ensure_shape(mask, before.shape[:2]), change / n


def corner_of(corner: tf.Tensor, size: tf.Tensor, shape: tuple[int, int]) -> tf.Tensor:
    """i32[2], top and left of a box of i32[2] `size` inside an image, each place as likely."""
    import tensorflow as tf

    room = tf.cast(tf.constant(shape) - size + 1, tf.float32)
    return tf.cast(corner * room, tf.int32)


def _check(
    image: tf.Tensor,
    hard: bool,
    level: str,
    perm_mode: str,
    variant: str,
    mask_mode: str,
    min_change: float,
    source: str,
    area: Sequence[float],
    aspect: float,
    jitter: float,
) -> None:
    for option, value, allowed in (
        ("level", level, LEVELS),
        ("perm_mode", perm_mode, tuple(augment.STATES)),
        ("variant", variant, VARIANTS),
        ("mask_mode", mask_mode, MASK_MODES),
        ("source", source, SOURCES),
    ):
        one_of("cutpaste", option, value, allowed)
    if len(area) != 2 or not 0 < area[0] <= area[1] < 1:
        raise UserError(f"op 'cutpaste': area={tuple(area)}; it must be (low, high) with 0 < low <= high < 1")
    if not 0 < aspect <= 1:
        raise UserError(f"op 'cutpaste': aspect={aspect}; it must be in (0, 1], 1 for squares")
    if not 0 <= jitter <= 1:
        raise UserError(f"op 'cutpaste': jitter={jitter}; it must be in [0, 1], 0 for none")
    if not 0 <= min_change < 1:
        raise UserError(f"op 'cutpaste': min_change={min_change}; it must be in [0, 1), 0 for any")
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_IMAGE:
        raise UserError(
            f"op 'cutpaste' needs images of {SMALLEST_IMAGE} pixels or more, these have {min(height, width)}; raise "
            "data.image_size"
        )
    if hard and height != width:
        raise UserError(f"op 'cutpaste': hard augmentation turns square images, not {height}x{width}; set hard=False")
