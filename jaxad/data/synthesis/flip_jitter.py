"""Flips and a light colour jitter: the same image again, for networks that learn from few of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxad.data.synthesis import hard_augment as augment
from jaxad.data.views import Context, to_uint8
from jaxad.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf


def flip_jitter(
    image: tf.Tensor, context: Context, seed: tf.Tensor, *, flip: bool = True, jitter: float = 0.1
) -> dict[str, tf.Tensor]:
    """{'image': u8[H, W, 3], 'mask': bool[H, W]}: the image and its mask flipped together, the image's colours changed.

    flip: left to right and top to bottom, each with probability 1/2 · jitter: in [0, 1], how far the factors of
    brightness, contrast and saturation are drawn from 1; the hue moves by up to half of it, as in weak augmentations.
    UserError, when the graph is built, for another jitter.
    """
    import tensorflow as tf

    if not 0 <= jitter <= 1:
        raise UserError(f"op 'flip_jitter': jitter={jitter}; it must be in [0, 1], 0 for none")
    mask = context.mask
    uniform = tf.random.stateless_uniform((2 + augment.COLOUR_DRAWS,), seed)
    if flip:
        for axis in (0, 1):
            image, mask = (tf.where(uniform[axis] < 0.5, tf.reverse(of, [axis]), of) for of in (image, mask))
    if jitter:
        strengths = augment.Strengths(jitter, jitter, jitter, jitter / 2)
        image = augment.colour_jitter(image, augment.draw_colour(uniform[2:], strengths))
    return {"image": to_uint8(image), "mask": mask}
