"""Defects drawn on a whole image, in equal thirds: a pasted rectangle, a pasted scar, blobs of another material.

Rectangles and scars are CutPaste's (Li et al. 2021), a crop of the image in slightly other colours; the blobs are
DRAEM's (Zavrtanik et al. 2021), Perlin noise above a threshold through which another texture or a colour shows. In half
of the draws all are smaller, so that some fit into a patch of the image.

What cannot be seen is no defect: it is taken back, and the mask is where the image changed. A camera that sees no
colours sees none in a defect, so a grey image stays grey.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxad.data import images
from jaxad.data.listing import folders_in, images_in
from jaxad.data.synthesis import cutpaste
from jaxad.data.synthesis import hard_augment as augment
from jaxad.data.synthesis.perlin import perlin
from jaxad.data.views import Context, to_float, to_uint8
from jaxad.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

AREA, ASPECT = (0.02, 0.15), 0.3  # of a rectangle: share of the image, and height to width from that to its inverse
JITTER = augment.Strengths(0.1, 0.1, 0.1, 0.1)  # of what is pasted
SHRUNK, SMALLEST = 0.5, 0.1  # share of the draws whose area shrinks, log-uniformly, and to what at least
ABOVE = 0.5  # of Perlin noise: where a blob is
OPACITY = (0.2, 1.0)  # of what shows through it
TINT = (0.25, 0.75)  # of a colour that lies over another normal image
VISIBLE, AROUND = 6, 7  # grey levels, mean over R, G and B and 7 x 7 pixels of a defect, above which a change is seen
TEXTURES = 64  # images of a folder that are used; a constant of the graph
DRAWS = 3 + cutpaste.GEOMETRY_DRAWS + augment.COLOUR_DRAWS

Material = Callable  # (i64[K, 2] pixels of the image, i32[2] seed) -> f32[K, 3] in [0, 1], what shows through there


class Defect(NamedTuple):
    """An image with a defect. image: u8[S, S, 3] · mask: bool[S, S], where the defect is · excess: i32[S, S], by how
    much more than VISIBLE and its own variation from place to place the image changed there, 0 elsewhere.

    Where the excess is not positive in sum, nobody would call the image anomalous: as if a piece of a texture had been
    put elsewhere in it.
    """

    image: tf.Tensor
    mask: tf.Tensor
    excess: tf.Tensor


def defect(image: tf.Tensor, before: tf.Tensor, material: Material, seed: tf.Tensor, kind: tf.Tensor) -> Defect:
    """The image with a defect; its own, bit for bit, outside the mask, which is empty where nothing visible was drawn.

    image: f32[S, S, 3] in [0, 1] · before: the same, u8[S, S, 3] · material: see `materials` · kind: f32[] in [0, 1),
    blobs in its first third, a scar in the second, a rectangle in the last.
    UserError, when the graph is built, for images of fewer pixels than a scar needs.
    """
    import tensorflow as tf

    if image.shape[0] < cutpaste.SMALLEST_IMAGE:
        raise UserError(
            f"defects need images of {cutpaste.SMALLEST_IMAGE} pixels or more, these have {image.shape[0]}; raise "
            "config.data.image_size"
        )
    uniform = tf.random.stateless_uniform((DRAWS,), seed)
    smaller, by, opacity = tf.unstack(uniform[:3])
    shrink = tf.where(smaller < SHRUNK, tf.pow(SMALLEST, by), 1.0)

    def blobs():
        mask = blob(perlin(tf.random.fold_in(seed, 0), image.shape[0]), shrink)
        pixels = tf.where(mask)
        under, through = tf.gather_nd(image, pixels), material(pixels, tf.random.fold_in(seed, 1))
        mixed = under + (OPACITY[0] + (OPACITY[1] - OPACITY[0]) * opacity) * (through - under)
        return tf.tensor_scatter_nd_update(before, pixels, to_uint8(mixed)), mask

    after, mask = tf.cond(kind < 1 / 3, blobs, lambda: _pasted(image, before, kind < 2 / 3, shrink, uniform[3:]))
    change = tf.add_n(tf.unstack(tf.abs(tf.cast(after, tf.int32) - tf.cast(before, tf.int32)), axis=-1)) - 3 * VISIBLE
    mask &= summed(tf.where(mask, change, 0), AROUND) > 0
    excess = tf.where(mask, change - variation(before), 0)
    kept = tf.where(mask)  # a third of the time of a tf.where of whole images
    return Defect(tf.tensor_scatter_nd_update(before, kept, tf.gather_nd(after, kept)), mask, excess)


def _pasted(
    image: tf.Tensor, before: tf.Tensor, thin: tf.Tensor, shrink: tf.Tensor, uniform: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """(u8[S, S, 3], bool[S, S] where it was pasted): a scar where it is to be `thin`, else a rectangle."""
    import tensorflow as tf

    geometry, colour = tf.split(uniform, (cutpaste.GEOMETRY_DRAWS, augment.COLOUR_DRAWS))
    shape, area = tuple(image.shape[:2]), [shrink * share for share in AREA]
    rectangle, _, corners = cutpaste.geometry(geometry, shape, "normal", area, ASPECT)
    scar, angle, _ = cutpaste.geometry(geometry, shape, "scar", AREA, ASPECT)
    scar = tf.maximum(tf.cast(tf.round(tf.cast(scar, tf.float32) * tf.sqrt(shrink)), tf.int32), cutpaste.SCAR_THINNEST)
    patch = cutpaste.crop(image, tf.where(thin, scar, rectangle), corners[0], None, "image", "halves")
    patch = augment.colour_jitter(patch, augment.draw_colour(colour, JITTER))
    patch, inside = cutpaste.turned(patch, tf.where(thin, angle, 0.0))
    after, mask, _ = cutpaste.paste(before, to_uint8(patch), inside, corners[1])
    return after, mask


def blob(noise: tf.Tensor, shrink: tf.Tensor) -> tf.Tensor:
    """bool[S, S], where f32[S, S] `noise` exceeds ABOVE, or what more leaves f32[] `shrink` of that area."""
    import tensorflow as tf

    sample = tf.sort(tf.reshape(noise[::4, ::4], [-1]))
    n = tf.cast(tf.math.count_nonzero(sample > ABOVE), tf.float32)
    rank = sample.shape[0] - 1 - tf.cast(n * shrink, tf.int32)
    return noise > tf.maximum(sample[rank], ABOVE)


def variation(image: tf.Tensor) -> tf.Tensor:
    """i32[], the median difference of pixels of u8[S, S, 3] that are S / 16 apart, down and right, over R, G and B."""
    import tensorflow as tf

    step = max(image.shape[0] // 32, 1)
    some = tf.cast(image[::step, ::step], tf.int32)
    change = tf.sort(tf.reshape(tf.reduce_sum(tf.abs(some[2:, 2:] - some[:-2, :-2]), axis=-1), [-1]))
    return change[change.shape[0] // 2]


def summed(values: tf.Tensor, size: int) -> tf.Tensor:
    """[H, W], the sums over size x size pixels, size odd; 0 beyond the border."""
    import tensorflow as tf

    for axis in (0, 1):
        n = values.shape[axis]
        ends = [[size // 2] * 2 if axis == k else [0, 0] for k in (0, 1)]
        padded = tf.pad(values, ends)
        values = tf.add_n([padded[i : i + n] if axis == 0 else padded[:, i : i + n] for i in range(size)])
    return values


def materials(image: tf.Tensor, context: Context, folder: str) -> Material:
    """What shows through the blobs of an image: a texture of the folder; where it is '', another normal image or a
    colour, as likely, and a colour alone where there is no other image.

    UserError where the folder holds no images.
    """
    import tensorflow as tf

    colourless = tf.reduce_all(image[..., :1] == image[..., 1:])
    stock = tf.constant(textures(folder, image.shape[0])) if folder else None

    def texture(pixels, seed):
        row = tf.random.stateless_uniform((), tf.random.fold_in(seed, 0), 0, stock.shape[0], tf.int32)
        return _augmented(stock[row], pixels, tf.random.fold_in(seed, 1), 0.5)

    def flat(pixels, seed):
        colour = tf.random.stateless_uniform((1, 3), tf.random.fold_in(seed, 0))
        return tf.repeat(colour, tf.shape(pixels)[0], axis=0)

    def other(pixels, seed):
        # All of the augmentation, and a tint: this is to be seen as another.
        source, _ = context.load(context.draw_row(tf.random.fold_in(seed, 0)))
        drawn = _augmented(source, pixels, tf.random.fold_in(seed, 1), 1.0)
        uniform = tf.random.stateless_uniform((4,), tf.random.fold_in(seed, 2))
        return drawn + (TINT[0] + (TINT[1] - TINT[0]) * uniform[3]) * (uniform[:3] - drawn)

    def either(pixels, seed):
        share = tf.random.stateless_uniform((), tf.random.fold_in(seed, 3))
        return tf.cond(share < 0.5, lambda: other(pixels, seed), lambda: flat(pixels, seed))

    draw = texture if folder else either if context.n_normal > 1 else flat

    def material(pixels, seed):
        drawn = draw(pixels, seed)
        return tf.where(colourless, tf.reduce_mean(drawn, axis=-1, keepdims=True), drawn)

    return material


def _augmented(source: tf.Tensor, pixels: tf.Tensor, seed: tf.Tensor, probability: float) -> tf.Tensor:
    """f32[K, 3]: what hard augmentation of u8[S, S, 3] `source` shows at i64[K, 2] `pixels`, see `hard_augment`."""
    import tensorflow as tf

    uniform = tf.random.stateless_uniform((augment.HARD_DRAWS,), seed)
    hard = augment.draw(uniform, probability=probability)
    side = source.shape[0]
    lines = tf.range(side)
    places = tf.gather_nd(augment.places(lines, lines, (side, side), side, hard.quarters, hard.state), pixels)
    shown = to_float(tf.gather(tf.reshape(source, (-1, 3)), places))
    whole = to_float(augment.sample(source))
    return tf.cond(hard.jittered, lambda: augment.colour_jitter(shown, hard.colour, whole), lambda: shown)


@functools.lru_cache(maxsize=1)
def textures(folder: str, side: int) -> np.ndarray:
    """u8[n, side, side, 3]: up to TEXTURES images under the folder, evenly spaced by path. UserError for none."""
    found = _under(Path(folder).expanduser())
    if not found:
        raise UserError(
            f"config.pattern_generation.pairs.textures={folder!r} holds no images; name a folder of some, or leave it "
            "empty"
        )
    n = min(TEXTURES, len(found))
    chosen = [found[i] for i in np.arange(n) * len(found) // n]
    return np.stack([images.resize_image(images.decode(path), side) for path in chosen])


def _under(folder: Path) -> list[Path]:
    return images_in(folder) + [path for inner in folders_in(folder) for path in _under(inner)]
