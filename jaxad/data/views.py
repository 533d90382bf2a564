"""Extra views of the training images, made by the pipeline: rotated copies, pasted defects, and whatever you add.

An op is a function in TensorFlow

    op(image, context, seed, **options) -> tensor, or {name: tensor}

  image    f32[H, W, 3] in [0, 1], one training image
  context  the rest of the training set: see `Context`
  seed     i32[2], another one for every view, image and epoch. Draw with tf.random.stateless_*, and make more seeds
           with tf.random.fold_in(seed, k): whatever else is drawn would not be the same after a resume
  options  from `View.options`

A tensor becomes `batch.views[view.name]`. Of a dict, 'image' becomes `batch.views[view.name]`, and any other entry
`batch.views[f"{view.name}_{entry}"]`: a mask, a box, a second image. A uint8 tensor is an image on 256 levels: it is
served as f32 in [0, 1], and takes a quarter of the memory and of a materialised file; every other dtype is served as it
is. End an op that makes images with `to_uint8`: synthetic images then have the levels that camera images have, and no
network can tell them by the values between. Shapes must not depend on the draw.

`View.op` is a name in `OPS` or 'my_package.my_module:function'; nothing needs registering.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxad.errors import UserError
from jaxad.flags import nearest
from jaxad.types import View

if TYPE_CHECKING:
    import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Context:
    """What an op may know beside the image. Draws are from the training split, its normals first, then its anomalies.

    index: i32[], the image's row there, -1 for an image of another split · label: bool[], True = a real anomaly moved
    into training · mask: bool[H, W], its mask · n_normal, n_anomalous: training images ·
    load: i32[] -> (u8[H, W, 3], bool[H, W]), a training image and its mask · fetch: the same in NumPy, for constants of
    the graph, i64[b] -> (u8[b, H, W, 3], bool[b, H, W]) · foreground: i32[] -> bool[H, W], where the training image
    shows the object; UserError, when the graph is built, where the data set does not say · kinds() -> i32[N], of every
    training image the position of its class in `DataSpec.kinds`; UserError, as well, where the data set has no classes.
    """

    index: tf.Tensor
    label: tf.Tensor
    mask: tf.Tensor
    n_normal: int
    n_anomalous: int
    load: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    fetch: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    foreground: Callable[[tf.Tensor], tf.Tensor] | None = None
    kinds: Callable[[], np.ndarray] | None = None

    def normals(self, limit: int = 64) -> np.ndarray:
        """u8[n, H, W, 3], up to `limit` training normals, evenly spaced; read now, while the graph is built."""
        n = min(limit, self.n_normal)
        return self.fetch(np.arange(n) * self.n_normal // n)[0]

    def draw(self, seed: tf.Tensor) -> tf.Tensor:
        """f32[H, W, 3], a normal image drawn uniformly from all but this one. UserError if there is no other."""
        return to_float(self.load(self.draw_row(seed))[0])

    def draw_row(self, seed: tf.Tensor) -> tf.Tensor:
        """i32[], the row of the image that `draw` gives."""
        import tensorflow as tf

        if self.n_normal < 2:
            raise UserError("this view needs another normal image, and the training split has one; add images")
        # An anomaly lies behind the normals: then, and for other splits and padding, all normals are others.
        here = (self.index >= 0) & (self.index < self.n_normal)
        others = tf.where(here, self.n_normal - 1, self.n_normal)
        j = tf.random.stateless_uniform((), seed, 0, others, tf.int32)
        return j + tf.cast(here & (j >= self.index), tf.int32)

    def draw_anomaly(self, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """(f32[H, W, 3], bool[H, W]), a real anomaly of the training split and its mask, drawn uniformly."""
        import tensorflow as tf

        if not self.n_anomalous:
            raise UserError("this view needs real anomalies in training; set data.n_anomalies")
        last = self.n_normal + self.n_anomalous
        image, mask = self.load(tf.random.stateless_uniform((), seed, self.n_normal, last, tf.int32))
        return to_float(image), mask


def to_float(image: tf.Tensor) -> tf.Tensor:
    """u8[...] -> f32[...] in [0, 1]."""
    import tensorflow as tf

    return tf.cast(image, tf.float32) / 255.0


def to_uint8(image: tf.Tensor) -> tf.Tensor:
    """f32[...], clipped to [0, 1] -> the nearest of 256 levels, u8[...]."""
    import tensorflow as tf

    return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 1.0) * 255.0), tf.uint8)


def one_of(op: str, option: str, value: str, allowed: Sequence[str]) -> None:
    """UserError where an option of an op is none of `allowed`; of these, '' is not told.

    >>> one_of("rotated", "mode", "any", ("small", "any"))
    """
    if value not in allowed:
        known = [name for name in allowed if name]
        hint = nearest(str(value), known)
        raise UserError(f"op {op!r}: {option}={value!r} is unknown{hint}; use {', '.join(known)}")


ROTATIONS = ("small", "k90", "any")


def rotated(
    image: tf.Tensor, context: Context, seed: tf.Tensor, *, degrees: float = 15.0, mode: str = "small"
) -> tf.Tensor:
    """u8[H, W, 3]: the image turned about its centre. UserError, when the graph is built, for another mode.

    mode 'small': by an angle uniform in [-degrees, degrees] · 'any': in [-180, 180] · 'k90': by 90, 180 or 270 degrees,
    each as likely; exact, for square images, no pixel is interpolated.
    Bilinear; beyond the border the nearest pixel is repeated, for black corners would be an anomaly learnt as normal.
    """
    import tensorflow as tf

    one_of("rotated", "mode", mode, ROTATIONS)
    if mode == "k90":
        if image.shape[0] != image.shape[1]:
            raise UserError(f"op 'rotated': mode='k90' needs square images, not {image.shape[0]}x{image.shape[1]}")
        quarters = tf.random.stateless_uniform((), seed, 1, 4, tf.int32)
        return tf.ensure_shape(to_uint8(tf.image.rot90(image, quarters)), image.shape)
    degrees = 180.0 if mode == "any" else degrees
    angle = tf.random.stateless_uniform((), seed, -1.0, 1.0) * (degrees * 3.141592653589793 / 180.0)
    return to_uint8(turn(image, angle))


def turn(image: tf.Tensor, angle: tf.Tensor) -> tf.Tensor:
    """f32[H, W, C] turned counter-clockwise by `angle` radians about its centre; bilinear, border repeated."""
    import tensorflow as tf

    height, width = image.shape[0], image.shape[1]
    y, x = (height - 1) / 2.0, (width - 1) / 2.0
    cos, sin = tf.cos(angle), tf.sin(angle)
    # Output (x, y) takes the input at [[a, b, c], [d, e, f]] (x, y, 1), which keeps the centre where it is.
    a, b, d, e = cos, -sin, sin, cos
    zero = tf.zeros_like(angle)
    matrix = tf.stack([a, b, x - a * x - b * y, d, e, y - d * x - e * y, zero, zero])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=matrix[None],
        output_shape=tf.constant([height, width], tf.int32),
        interpolation="BILINEAR",
        fill_mode="NEAREST",
        fill_value=0.0,
    )[0]


def position_of_class(image: tf.Tensor, context: Context, seed: tf.Tensor) -> tf.Tensor:
    """i32[], the position of the image's class in `DataSpec.kinds`; of padding, some class.

    UserError, when the graph is built, where the data set has no classes, and for images of another split.
    """
    import tensorflow as tf

    kinds = context.kinds()
    return tf.gather(tf.constant(kinds), tf.minimum(context.index, len(kinds) - 1))


# A function, or where it is: ops that import much are imported when they are asked for.
OPS: dict[str, Callable | str] = {
    "rotated": rotated,
    "class": position_of_class,
    "nsa": "jaxad.data.synthesis.nsa:nsa",
    "real_anomaly": "jaxad.data.synthesis.real:real_anomaly",
    "cutpaste": "jaxad.data.synthesis.cutpaste:cutpaste",
    "smooth_blend": "jaxad.data.synthesis.smooth_blend:smooth_blend",
    "spot_the_difference": "jaxad.data.synthesis.spot_the_difference:spot_the_difference",
    "flip_jitter": "jaxad.data.synthesis.flip_jitter:flip_jitter",
    "triple": "jaxad.data.synthesis.triple:triple",
    "pattern_pair": "jaxad.data.synthesis.pattern_pair:pattern_pair",
}


def resolve(view: View) -> Callable:
    """The op of a view as `f(image, context, seed)`, its options bound. UserError for an unknown op or option."""
    op = view.op if ":" in view.op else OPS.get(view.op)
    if op is None:
        raise UserError(f"view {view.name!r}: no op {view.op!r}{nearest(view.op, list(OPS))}")
    if isinstance(op, str):
        module, _, name = op.partition(":")
        try:
            op = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(f"view {view.name!r}: cannot import {view.op!r}: {error}") from error
    parameters = inspect.signature(op).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = list(parameters)[3:]
        for option in view.options:
            if option not in known:
                raise UserError(f"view {view.name!r}: op {view.op!r} has no option {option!r}{nearest(option, known)}")
    return lambda image, context, seed: op(image, context, seed, **view.options)


def named(view: View, result: Any) -> Mapping[str, Any]:
    """{key in Batch.views: tensor} of what an op returned."""
    import tensorflow as tf

    entries = result if isinstance(result, Mapping) else {"image": result}
    return {
        view.name if entry == "image" else f"{view.name}_{entry}": tf.convert_to_tensor(tensor)
        for entry, tensor in entries.items()
    }
