"""Hard augmentation as AnoSeg takes it from CSI (Tack et al. 2020): a quarter turn, a permutation, a colour jitter.

Each is a function that is told what to do; `draw` draws that, and `hard_augment` does all three. Turning and permuting
move whole pixels: `places` says where each pixel of the copy is from, also for a crop of a copy that is never made.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxad.errors import UserError
from jaxad.flags import nearest

if TYPE_CHECKING:
    import tensorflow as tf

# Per mode and state, which quadrant of the image is put top left, top right, bottom left, bottom right; state 0 leaves
# them where they are. halves: CSI's CutPerm, 1 swaps left and right, 2 top and bottom, 3 both · quadrants: any order.
STATES = {
    "halves": tuple(tuple(quadrant ^ state for quadrant in range(4)) for state in range(4)),
    "quadrants": tuple(itertools.permutations(range(4))),
}
HUE_UNIT = 255 / 360  # of the circle: what CSI multiplies a drawn hue with
SAMPLE = 1000  # pixels, about: enough for a mean to two grey levels
COLOUR_DRAWS, HARD_DRAWS = 5, 10  # uniform numbers that one takes


class Strengths(NamedTuple):
    """How far factors are drawn from 1, and the hue from 0."""

    brightness: float
    contrast: float
    saturation: float
    hue: float


SIMCLR = Strengths(0.4, 0.4, 0.4, 0.1)  # CSI's


class Colour(NamedTuple):
    """One colour jitter. contrast: f32[2], factors before and after the change in HSV, one of them 1 · hsv: f32[3],
    what is added to the hue, a share of the circle, and the factors of saturation and value.
    """

    contrast: tf.Tensor
    hsv: tf.Tensor


class Hard(NamedTuple):
    """One hard augmentation. quarters: i32[], of a turn, counter-clockwise · state: i32[], of `STATES` · jittered:
    bool[] · colour: what is done where it is jittered.
    """

    quarters: tf.Tensor
    state: tf.Tensor
    jittered: tf.Tensor
    colour: Colour


def hard_augment(
    image: tf.Tensor,
    seed: tf.Tensor,
    *,
    perm_mode: str = "halves",
    probability: float = 0.5,
    allow_identity: bool = False,
) -> tf.Tensor:
    """f32[H, W, 3] in [0, 1]: the image turned, then permuted, then its colours jittered, each with `probability`.

    image: f32[H, W, 3] in [0, 1] · perm_mode: 'halves', 'quadrants' · allow_identity: turns and permutations are drawn
    that change nothing, as CSI's are. UserError for another mode, a probability outside [0, 1], an image not square.
    """
    import tensorflow as tf

    check_square(image.shape)
    uniform = tf.random.stateless_uniform((HARD_DRAWS,), seed)
    drawn = draw(uniform, perm_mode=perm_mode, probability=probability, allow_identity=allow_identity)
    copy = _moved(image, drawn.quarters, drawn.state, perm_mode)
    return tf.cond(drawn.jittered, lambda: colour_jitter(copy, drawn.colour, sample(image)), lambda: copy)


def draw(
    uniform: tf.Tensor, *, perm_mode: str = "halves", probability: float = 0.5, allow_identity: bool = False
) -> Hard:
    """What `hard_augment` does, made of f32[HARD_DRAWS] drawn uniformly from [0, 1): each of the three with
    `probability`, independently of the others.

    Departure: CSI turns and permutes a whole batch alike and keeps each image as it was with probability 1/2; here each
    image has its own draw, and one that changes nothing is not drawn unless `allow_identity`.
    """
    import tensorflow as tf

    if not 0 <= probability <= 1:
        raise UserError(f"hard augmentation: probability={probability}; it must be in [0, 1]")
    first = 0 if allow_identity else 1
    choices = np.float32([4 - first, len(states(perm_mode)) - first])
    fires = uniform[:3] < probability
    quarters, state = tf.unstack(tf.where(fires[:2], first + tf.cast(uniform[3:5] * choices, tf.int32), 0))
    return Hard(quarters, state, fires[2], draw_colour(uniform[5:], SIMCLR))


def draw_colour(uniform: tf.Tensor, strengths: Strengths) -> Colour:
    """A colour jitter, made of f32[COLOUR_DRAWS] drawn uniformly from [0, 1); strengths of zero change nothing."""
    import tensorflow as tf

    reach = np.float32([strengths.contrast, strengths.hue * HUE_UNIT, strengths.saturation, strengths.brightness])
    drawn = np.float32([1.0, 0.0, 1.0, 1.0]) + (2.0 * uniform[:4] - 1.0) * reach
    return Colour(tf.where([uniform[4] < 0.5, uniform[4] >= 0.5], drawn[0], 1.0), drawn[1:])


def rotate(image: tf.Tensor, quarters: tf.Tensor | int) -> tf.Tensor:
    """[S, S, C] turned counter-clockwise by `quarters` i32[] times 90 degrees. UserError where it is not square."""
    import tensorflow as tf

    check_square(image.shape)
    return _moved(image, tf.math.floormod(quarters, 4), 0, "halves")


def permute(image: tf.Tensor, state: tf.Tensor | int, mode: str = "halves") -> tf.Tensor:
    """[H, W, C] with its quadrants put where `STATES[mode][state]` says. UserError for another mode.

    Of an odd side the middle stays between the halves, which are equal.
    """
    return _moved(image, 0, state, mode)


def _moved(image: tf.Tensor, quarters: tf.Tensor | int, state: tf.Tensor | int, mode: str) -> tf.Tensor:
    import tensorflow as tf

    height, width, channels = image.shape
    table = places(tf.range(height), tf.range(width), (height, width), width, quarters, state, mode)
    return tf.ensure_shape(tf.gather(tf.reshape(image, (-1, channels)), table), image.shape)


def places(
    rows: tf.Tensor,
    columns: tf.Tensor,
    size: tuple[tf.Tensor | int, tf.Tensor | int],
    stride: int,
    quarters: tf.Tensor | int,
    state: tf.Tensor | int,
    mode: str = "halves",
) -> tf.Tensor:
    """i32[r, c]: where the pixels at these `rows` i32[r] and `columns` i32[c] of the turned, then permuted copy are in
    the original, counted row by row from its first pixel.

    size: height and width of the original · stride: pixels from one of its rows to the next, more than its width where
    it is a crop · quarters: 0 .. 3. UserError for another mode.
    """
    import tensorflow as tf

    height, width = size
    # Where the first pixel of the turned copy is in the original, and which way down and right in the copy lead there.
    start, down, right = tf.unstack(
        tf.gather(
            [
                [0, stride, 1],
                [width - 1, -1, stride],
                [(height - 1) * stride + width - 1, -stride, -1],
                [(height - 1) * stride, 1, -stride],
            ],
            quarters,
        )
    )
    tall, wide = tf.unstack(tf.gather([[height, width], [width, height]], quarters % 2))
    # Along a side a first half (0), of odd sides a middle (1), a second half (2): nine cells, each moved as a whole.
    row, column = (
        tf.cast(at >= n // 2, tf.int32) + tf.cast(at >= n - n // 2, tf.int32)
        for at, n in ((rows, tall), (columns, wide))
    )
    vertical, horizontal = tf.unstack(tf.gather(_moves(mode), state))
    moved = vertical * ((tall - tall // 2) * down) + horizontal * ((wide - wide // 2) * right)
    return (start + rows[:, None] * down + columns * right) + tf.gather(moved, 3 * row[:, None] + column)


def _moves(mode: str) -> np.ndarray:
    """i32[states, 2, 9]: by how many halves, down and right, what is put into each of the nine cells was moved."""
    moves = np.zeros((len(states(mode)), 2, 3, 3), np.int32)
    for state, quadrants in enumerate(states(mode)):
        for to, source in enumerate(quadrants):
            moves[state, :, to // 2 * 2, to % 2 * 2] = source // 2 - to // 2, source % 2 - to % 2
    # What is between two quadrants goes with them where they move alike, else it stays.
    for between in (moves[:, 0], moves[:, 1].swapaxes(1, 2)):
        between[:, :, 1] = np.where(between[:, :, 0] == between[:, :, 2], between[:, :, 0], 0)
    return moves.reshape(-1, 2, 9)


def colour_jitter(image: tf.Tensor, colour: Colour, whole: tf.Tensor | None = None) -> tf.Tensor:
    """f32[..., 3] in [0, 1]: contrast about the mean of each channel, and saturation, value and hue in HSV.

    image: f32[..., 3] in [0, 1] · whole: f32[n, 3], the pixels that the means are of, where they are not the image's:
    it is changed as the image is. Clipped to [0, 1] after each of the two.
    Departure: hue is HSV's own, on a hexagon; CSI's is an angle, up to 1.2 degrees from it.
    """
    import tensorflow as tf

    pixels = tf.reshape(image, (-1, 3))
    n = tf.shape(pixels)[0]
    planes = tf.transpose(pixels if whole is None else tf.concat([pixels, whole], axis=0))

    def contrast(planes, factor):
        mean = tf.reduce_mean(planes if whole is None else planes[:, n:], axis=1, keepdims=True)
        return tf.clip_by_value(planes * factor + mean * (1.0 - factor), 0.0, 1.0)

    # Twice, once with a factor of 1: as fast as a tf.cond, and half the graph.
    first, last = tf.unstack(colour.contrast)
    changed = contrast(changed_in_hsv(contrast(planes, first), colour.hsv), last)
    changed = changed if whole is None else changed[:, :n]
    return tf.ensure_shape(tf.reshape(tf.transpose(changed), tf.shape(image)), image.shape)


def changed_in_hsv(planes: tf.Tensor, by: tf.Tensor) -> tf.Tensor:
    """f32[3, n] in [0, 1], changed by f32[3] as in `Colour.hsv`. TensorFlow's own HSV ops take twice the time."""
    import tensorflow as tf

    tiny = 1e-12  # below it everything is grey or black, and the numerators are smaller still
    red, green, blue = tf.unstack(planes)
    turn, saturate, brighten = tf.unstack(by)
    value = tf.maximum(tf.maximum(red, green), blue)
    chroma = value - tf.minimum(tf.minimum(red, green), blue)
    inverse = 1.0 / tf.maximum(chroma, tiny)
    hue = tf.where(value == green, (blue - red) * inverse + 2.0, (red - green) * inverse + 4.0)
    hue = tf.where(value == red, (green - blue) * inverse, hue) + 6.0 * turn  # in sixths of the circle
    hue -= 6.0 * tf.floor(hue / 6.0)
    saturation = tf.minimum(chroma / tf.maximum(value, tiny) * saturate, 1.0)
    value = tf.minimum(value * brighten, 1.0)
    # How much of the chroma a channel lacks: none up to one sixth from its own hue, all of it from two sixths on.
    away = 3.0 - tf.abs(3.0 - tf.abs(hue - np.float32([[0.0], [2.0], [4.0]])))
    return value - value * saturation * tf.clip_by_value(away - 1.0, 0.0, 1.0)


def sample(image: tf.Tensor) -> tf.Tensor:
    """f32[n, 3]: every k-th pixel of f32[H, W, 3], about `SAMPLE` of them, all where there are no more.

    Departure: the mean about which hard augmentation changes the contrast is theirs, not that of all pixels, for which
    the HSV of the whole image would have to be found. k is odd, lest it meet the same columns in every row.
    """
    import tensorflow as tf

    pixels = tf.reshape(image, (-1, 3))
    return tf.gather(pixels, tf.range(0, pixels.shape[0], max(pixels.shape[0] // SAMPLE, 1) | 1))


def states(mode: str) -> tuple[tuple[int, ...], ...]:
    """`STATES` of a mode. UserError where there is no such mode."""
    if mode not in STATES:
        known = tuple(STATES)
        raise UserError(
            f"hard augmentation: perm_mode={mode!r} is unknown{nearest(mode, known)}; use {', '.join(known)}"
        )
    return STATES[mode]


def check_square(shape: tuple[int, ...]) -> None:
    """UserError where a quarter turn would change the shape of the image."""
    if shape[0] != shape[1]:
        raise UserError(
            f"hard augmentation turns square images, not {shape[0]}x{shape[1]}; crop them, or do without it"
        )
