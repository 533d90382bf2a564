"""NSA's anomalies as a view: patches of another normal image, resized and Poisson-blended into this one.

Departure: the label is the binary mask; NSA also grades it by how much changed. Patches are masked by 'or'; NSA lets a
later patch erase the mask of an earlier one where their boxes overlap, although the anomaly stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jaxad.config import DATASETS
from jaxad.data.synthesis import classes, patches, poisson
from jaxad.data.synthesis import foreground as masks
from jaxad.data.views import Context, one_of, to_uint8
from jaxad.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

FOREGROUNDS = ("auto", "brightness", "xyz", "all")
GRADIENTS = ("auto", "normal", "mixed")
KINDS = ("auto", *classes.KINDS)
DESTINATIONS = ("own", "other")
OTHER = 1 << 20  # the seed that draws the other destination is folded with: no other draw's
REDRAWS = 5  # of an image in which nothing changed; what is left then has an empty mask
SMALLEST_IMAGE = 32  # pixels: in smaller ones the median removes what a patch of the largest bounds may change
VISIBLE = 1  # grey levels, mean over R, G and B, by which a pixel must have changed to be labelled


def nsa(
    image: tf.Tensor,
    context: Context,
    seed: tf.Tensor,
    *,
    dataset: str = "",
    category: str = "",
    kind: str = "auto",
    foreground: str = "auto",
    gradients: str = "auto",
    patches: int = 0,
    height: Sequence[float] = (),
    width: Sequence[float] = (),
    min_object: float = -1.0,
    min_overlap: float = -1.0,
    destination: str = "own",
) -> dict[str, tf.Tensor]:
    """The image with anomalies of another normal image blended in: {'image': u8[H, W, 3], 'mask': bool[H, W]}.

    dataset, category: whose settings (`classes.settings`) the other options change · kind: 'auto', 'object',
    'texture' · foreground: where patches are cut and put, 'auto' (by the settings), 'brightness' (measured on the
    training normals), 'xyz' (MVTec 3D-AD's point images), 'all' · gradients: 'auto', 'normal', 'mixed' · patches: at
    most; 0: of the settings · height, width: (low, high) shares of the side, (): of the settings · min_object,
    min_overlap: shares in [0, 1); -1: of the settings · destination: 'own', anomalies are put into this image; 'other',
    into another normal image, as if drawn from a pool of anomalies.

    The mask is where the image changed visibly. It is empty where nothing could be placed in 1 + REDRAWS draws; such
    an image equals the normal one or nearly so. UserError, when the graph is built, for other options, for a training
    split with one normal image, and for images under SMALLEST_IMAGE pixels.
    """
    import tensorflow as tf

    chosen = choose(dataset, category, kind, gradients, patches, height, width, min_object, min_overlap)
    if min(image.shape[:2]) < SMALLEST_IMAGE:
        raise UserError(
            f"op 'nsa' needs images of {SMALLEST_IMAGE} pixels or more, these have {min(image.shape[:2])}; raise "
            "data.image_size"
        )
    one_of("nsa", "destination", destination, DESTINATIONS)
    find = finder(context, chosen, foreground)
    if destination == "own":
        return synthesise(to_uint8(image), context, seed, chosen, find)
    row = context.draw_row(tf.random.fold_in(seed, OTHER))
    return synthesise(context.load(row)[0], dataclasses.replace(context, index=row), seed, chosen, find)


def choose(
    dataset: str,
    category: str,
    kind: str,
    gradients: str,
    patches: int,
    height: Sequence[float],
    width: Sequence[float],
    min_object: float,
    min_overlap: float,
) -> classes.Settings:
    """The category's settings, with the options that are not left to them. UserError for values that cannot be."""
    one_of("nsa", "dataset", dataset, ("", *DATASETS))
    one_of("nsa", "kind", kind, KINDS)
    one_of("nsa", "gradients", gradients, GRADIENTS)
    chosen = classes.settings(dataset, category, kind)
    if patches < 0:
        raise UserError(f"op 'nsa': patches={patches}; it must be 1 or more, or 0 for the category's own")
    changed = {"patches": patches} if patches else {}
    for name, bounds in (("height", height), ("width", width)):
        if len(bounds):
            if len(bounds) != 2 or not 0 < bounds[0] < 0.5 or not bounds[0] <= bounds[1] <= 0.9:
                raise UserError(
                    f"op 'nsa': {name}={tuple(bounds)}; it must be (low, high) with 0 < low < 0.5 and low <= high <= "
                    "0.9, or () for the category's own"
                )
            changed[name] = tuple(bounds)
    for name, share in (("min_object", min_object), ("min_overlap", min_overlap)):
        if share != -1 and not 0 <= share < 1:
            raise UserError(f"op 'nsa': {name}={share}; it must be in [0, 1), or -1 for the category's own")
        changed |= {} if share == -1 else {name: share}
    if gradients != "auto":
        changed["gradients"] = gradients
    return chosen._replace(**changed)


def finder(context: Context, settings: classes.Settings, foreground: str) -> Callable | None:
    """(image u8[H, W, 3], its row i32[] in the training split) -> bool[H, W]; None where everything is foreground."""
    one_of("nsa", "foreground", foreground, FOREGROUNDS)
    if foreground == "xyz":
        return lambda image, index: context.foreground(index)
    pairs = settings.background
    if foreground == "brightness" or foreground == "auto" and pairs is None:
        measured = (masks.measure(context.normals()),)
        return lambda image, index: masks.by_brightness(image, measured, measured=True)
    if foreground == "auto" and pairs:
        return lambda image, index: masks.by_brightness(image, pairs, measured=False)
    return None


def synthesise(
    image: tf.Tensor, context: Context, seed: tf.Tensor, settings: classes.Settings, find: Callable | None
) -> dict[str, tf.Tensor]:
    """The op, with its options settled: `image` u8[H, W, 3]."""
    import tensorflow as tf

    shape = tuple(image.shape[:2])
    below = patches.summed(find(image, context.index)) if find else None

    def draw(k, *_):
        here = tf.random.fold_in(seed, k)
        row = context.draw_row(tf.random.fold_in(here, 0))
        source, _ = context.load(row)
        above = patches.summed(find(source, row)) if find else None
        count = patches.number(tf.random.fold_in(here, 1), settings)

        def patch(i, picture, mask):
            picture, mask = blend(source, picture, mask, above, below, tf.random.fold_in(here, 2 + i), settings)
            return i + 1, picture, mask

        start = (0, image, tf.zeros(shape, bool))
        _, picture, mask = tf.while_loop(lambda i, *_: i < count, patch, start, parallel_iterations=1)
        return k + 1, picture, visible(image, picture, mask)

    _, picture, mask = tf.while_loop(
        lambda k, _, mask: (k <= REDRAWS) & ~tf.reduce_any(mask),
        draw,
        (0, image, tf.zeros(shape, bool)),
        parallel_iterations=1,
    )
    return {"image": picture, "mask": mask}


def blend(
    source: tf.Tensor,
    picture: tf.Tensor,
    mask: tf.Tensor,
    above: patches.Foreground | None,
    below: patches.Foreground | None,
    seed: tf.Tensor,
    settings: classes.Settings,
) -> tuple[tf.Tensor, tf.Tensor]:
    """`picture` u8[H, W, 3] and its `mask` bool[H, W] with one more patch; as they were where none can be placed.

    source: u8[H, W, 3] · above, below: the foregrounds of the source and of the untouched destination.
    """
    import tensorflow as tf

    shape = tuple(picture.shape[:2])
    cut, cut_found = patches.source_box(tf.random.fold_in(seed, 0), settings, shape, above)
    size = patches.blended_size(tf.random.fold_in(seed, 1), settings, shape, cut)
    solid = _resized(tf.slice(above.mask, cut[:2], cut[2:])[..., None], size)[..., 0] >= 0.5 if above else None
    put, put_found = patches.destination_box(tf.random.fold_in(seed, 2), settings, shape, size, solid, below)

    def placed():
        patch = tf.round(_resized(tf.slice(source, [*tf.unstack(cut[:2]), 0], [*tf.unstack(cut[2:]), 3]), size))
        before = tf.slice(picture, [*tf.unstack(put[:2]), 0], [*tf.unstack(size), 3])
        inside = tf.ones(size, bool) if above is None else solid | tf.slice(below.mask, put[:2], size)
        after = poisson.clone(patch, before, mixed=settings.gradients == "mixed")
        return _with(picture, after, put), _with(mask, inside | tf.slice(mask, put[:2], size), put)

    return tf.cond(cut_found & put_found, placed, lambda: (picture, mask))


def visible(before: tf.Tensor, after: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """bool[H, W]: inside `mask`, u8[H, W, 3] changed by more than `VISIBLE` grey levels; 5x5 median."""
    import tensorflow as tf

    change = tf.add_n(tf.unstack(tf.abs(tf.cast(before, tf.int16) - tf.cast(after, tf.int16)), axis=-1))
    return masks.majority((change > 3 * VISIBLE) & mask, 5)


def _resized(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """f32[h, w, C], bilinear without antialiasing, as cv2.resize does it."""
    import tensorflow as tf

    image = tf.cast(image, tf.uint8)[None]
    return tf.raw_ops.ResizeBilinear(images=image, size=size, half_pixel_centers=True)[0]


def _with(whole: tf.Tensor, part: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """`whole` [H, W, ...] with `part` [h, w, ...] at the box."""
    import tensorflow as tf

    end = box[:2] + box[2:]
    updated = tf.raw_ops.TensorStridedSliceUpdate(
        input=whole, begin=box[:2], end=end, strides=tf.ones(2, tf.int32), value=part
    )
    return tf.ensure_shape(updated, whole.shape)
