"""Three patches in a line, what the generator of pattern generation learns from: of far and near, target.

Huang et al., section III-A. An image is cut into N x N patches; `jaxad.scoring.triples` has the geometry. N is drawn
for each image, so that one generator serves every partition.

Patches are those of the image resized to N times their side, as the network is shown them when it is used, but only
what is asked for is resized.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxad.data.views import Context, one_of, to_uint8
from jaxad.errors import UserError
from jaxad.scoring import triples

if TYPE_CHECKING:
    import tensorflow as tf

PARTITIONS = (4, 5, 6, 7)
PARTS = ("far", "near", "target")


def triple(
    image: tf.Tensor,
    context: Context,
    seed: tf.Tensor,
    *,
    n: Sequence[int] = PARTITIONS,
    patch: int = 0,
    coverage: str = "rows_cols",
    canonicalize: bool = True,
) -> dict[str, tf.Tensor]:
    """A triple of the image, each as likely: {'far', 'near', 'target': u8[patch, patch, 3]}.

    n: patches per side of the image, one of them is drawn · patch: pixels of their sides; 0: what the first n leaves
    them · coverage: the triples there are, see `triples.triples` · canonicalize: the three are turned so that they are
    read from left to right.
    UserError, when the graph is built, for other options and for images that are not square.
    """
    import tensorflow as tf

    partitions = Partitions.of("triple", image, n, patch, coverage)
    uniform = tf.random.stateless_uniform((2,), seed)
    drawn = partitions.draw(uniform[0])
    row = drawn.row(uniform[1])
    parts = to_uint8(cut(image, drawn.corners(row[: len(PARTS)]), drawn.n, drawn.patch))
    parts = turned(parts, row[3]) if canonicalize else parts
    return dict(zip(PARTS, tf.unstack(parts, len(PARTS)), strict=True))


class Partition(NamedTuple):
    """One of `Partitions`. index: i32[], which · n: i32[], patches per side · rows: i32[T, 4], its triples: the patches
    far, near and target, and the direction · patch: pixels of a side.
    """

    index: tf.Tensor
    n: tf.Tensor
    rows: tf.Tensor
    patch: int

    def row(self, uniform: tf.Tensor) -> tf.Tensor:
        """i32[4], the triple that f32[] in [0, 1) says, each as likely."""
        import tensorflow as tf

        return self.rows[tf.cast(uniform * tf.cast(tf.shape(self.rows)[0], tf.float32), tf.int32)]

    def corners(self, numbers: tf.Tensor) -> tf.Tensor:
        """f32[K, 2], top and left of the patches i32[K] `numbers` in the resized image."""
        import tensorflow as tf

        return tf.cast(tf.stack([numbers // self.n, numbers % self.n], axis=1) * self.patch, tf.float32)


class Partitions(NamedTuple):
    """The partitions that may be drawn, constants of a graph.

    n: i32[G] · tables: of each i32[T, 4], see `Partition` · patch: pixels of a side, of all.
    """

    n: np.ndarray
    tables: tuple[np.ndarray, ...]
    patch: int

    @classmethod
    def of(cls, op: str, image: tf.Tensor, n: Sequence[int], patch: int, coverage: str) -> Partitions:
        """Those of the options that `triple` takes; UserError, that names `op`, where they cannot be."""
        one_of(op, "coverage", coverage, triples.COVERAGES)
        n = tuple(n) if isinstance(n, Sequence) else (n,)
        if not n or any(k != int(k) or k < triples.LEAST for k in n):
            raise UserError(f"op {op!r}: n={n}; it must be whole numbers from {triples.LEAST} on")
        height, width = image.shape[:2]
        if height != width:
            raise UserError(f"op {op!r} cuts square images, not {height}x{width}; set config.data.resize='square'")
        patch = patch or height // n[0]
        if patch != int(patch) or patch < 1:
            raise UserError(f"op {op!r}: patch={patch}; it must be a whole number of pixels, 0 for image_size / n")
        tables = tuple(np.stack(triples.triples(int(k), coverage), axis=-1) for k in n)
        return cls(np.int32(n), tables, int(patch))

    def draw(self, uniform: tf.Tensor) -> Partition:
        """The one that f32[] in [0, 1) says, each as likely."""
        import tensorflow as tf

        index = tf.cast(uniform * float(len(self.n)), tf.int32)
        ends = np.cumsum([0] + [len(table) for table in self.tables], dtype=np.int32)
        start, stop = (tf.gather(of, index) for of in (ends[:-1], ends[1:]))
        rows = tf.constant(np.concatenate(self.tables))[start:stop]
        return Partition(index, tf.gather(self.n, index), rows, self.patch)


def cut(image: tf.Tensor, corners: tf.Tensor, n: tf.Tensor, patch: int) -> tf.Tensor:
    """f32[K, patch, patch, C], in the units of [S, S, C] `image`: pieces of it, resized to n patches per side.

    corners: f32[K, 2], top and left of each in the resized image, where all of it must lie. Bilinear, averaging where
    it shrinks, as jax.image.resize; where nothing is resized, and corners are whole, the pixels are the image's own.
    """
    import tensorflow as tf

    scale = tf.fill([2], tf.cast(n * patch, tf.float32) / image.shape[0])
    pieces = [
        tf.raw_ops.ScaleAndTranslate(
            images=image[None],
            size=[patch, patch],
            scale=scale,
            translation=-corner,
            kernel_type="triangle",
            antialias=True,
        )
        for corner in tf.unstack(corners)
    ]
    return tf.concat(pieces, axis=0)


def turned(parts: tf.Tensor, quarters: tf.Tensor) -> tf.Tensor:
    """[K, p, p, C], each turned counter-clockwise by i32[] `quarters`, 0 to 3; tf.image.rot90 takes twice the time."""
    import tensorflow as tf

    odd = quarters % 2
    upright = tf.transpose(parts, tf.stack([0, 1 + odd, 2 - odd, 3]))
    flips = tf.stack([False, (quarters == 1) | (quarters == 2), quarters >= 2, False])
    return tf.ensure_shape(tf.raw_ops.Reverse(tensor=upright, dims=flips), parts.shape)
