"""The tf.data graph: batch numbers in, batches out, as the stateless schedule of `jaxad.data.order` says.

    batch numbers -> rows, images and seeds (NumPy) -> one example at a time, with its views -> batches -> prefetch

Images travel as uint8 and become f32 last. The graph holds no random state and no shuffle buffer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxad.data import views as ops
from jaxad.data.store import Fetch, cores
from jaxad.errors import UserError
from jaxad.types import Batch, View

FIELDS = ("image", "mask", "label", "index", "valid")


class Others(NamedTuple):
    """The training split: normals first, then anomalies. same_split: the batches' own rows are rows of it ·
    foreground: row -> bool[H, W], where the image shows the object; UserError where the data set does not say ·
    kinds() -> i32[N], each row's position in `DataSpec.kinds`; UserError where the data set has no classes.
    """

    fetch: Fetch
    n_normal: int
    n_anomalous: int
    same_split: bool
    foreground: Callable[[int], np.ndarray]
    kinds: Callable[[], np.ndarray]


def tensorflow() -> Any:
    """TensorFlow, kept to the CPU: the accelerator's memory is JAX's."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # no banner, and results that do not depend on the processor
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        if tf.config.get_visible_devices(kind):
            try:
                tf.config.set_visible_devices([], kind)
            except RuntimeError as error:
                raise UserError(f"TensorFlow already holds a {kind}; use jaxad before other TensorFlow code") from error
    return tf


def batches(
    read: Callable[[int], tuple[Batch, list[np.ndarray]]],
    views: tuple[View, ...],
    *,
    start: int,
    stop: int,
    shape: tuple[int, int],
    others: Others | None,
    as_float: bool,
) -> Iterator[Batch]:
    """Batches start .. stop - 1.

    read(n) -> (the batch, its images u8, and for each view i32[b, 2], the seeds) · shape: (b, side) · others: where
    views find other images, needed if there are views · as_float=False leaves uint8 images as they are.
    """
    tf = tensorflow()
    resolved = [ops.resolve(view) for view in views]
    size, side = shape
    errors: list[UserError] = []

    def noting_errors(function: Callable) -> Callable:  # TensorFlow would wrap them in its own
        def call(*arguments):
            try:
                return function(*arguments)
            except UserError as error:
                errors.append(error)
                raise

        return call

    def from_numpy(function: Callable, argument, signature: list[tuple[Any, tuple[int, ...]]]):
        types, shapes = zip(*signature, strict=True)
        tensors = tf.numpy_function(noting_errors(function), [argument], types, stateful=False)
        return [tf.ensure_shape(tensor, shape) for tensor, shape in zip(tensors, shapes, strict=True)]

    def read_batch(n):
        def call(n):
            batch, seeds = read(int(n))
            return *(getattr(batch, field) for field in FIELDS), *seeds

        image, mask, row = (tf.uint8, (size, side, side, 3)), (tf.bool, (size, side, side)), (size,)
        signature = [image, mask, (tf.bool, row), (tf.int32, row), (tf.bool, row)]
        tensors = from_numpy(call, n, signature + [(tf.int32, (size, 2))] * len(views))
        return dict(zip(FIELDS, tensors, strict=False)), tuple(tensors[len(FIELDS) :])

    def load(index):
        def call(index):
            image, mask = others.fetch(index[None])
            return image[0], mask[0]

        return from_numpy(call, index, [(tf.uint8, (side, side, 3)), (tf.bool, (side, side))])

    def foreground(index):
        if not others.same_split:
            raise UserError("this view needs the object's foreground, which is known of training images alone")
        others.foreground(0)  # raises now, not in the middle of the first batch
        (mask,) = from_numpy(lambda i: others.foreground(int(i)), index, [(tf.bool, (side, side))])
        return mask

    def kinds():
        if not others.same_split:
            raise UserError("this view needs the image's class, which is known of training images alone")
        return others.kinds()

    def add_views(fields, seeds):
        image = ops.to_float(fields["image"])
        row = fields["index"] if others.same_split else tf.constant(-1, tf.int32)
        counts = others.n_normal, others.n_anomalous
        context = ops.Context(row, fields["label"], fields["mask"], *counts, load, others.fetch, foreground, kinds)
        made = {}
        for view, op, seed in zip(views, resolved, seeds, strict=True):
            named = ops.named(view, op(image, context, seed))
            if twice := sorted(set(made) & set(named)):
                raise UserError(f"two views are named {twice[0]!r}; rename one of them")
            made |= named
        return fields, made

    def finish(fields, made):
        def served(tensor):
            return ops.to_float(tensor) if as_float and tensor.dtype == tf.uint8 else tensor

        return {key: served(tensor) for key, tensor in fields.items()}, {key: served(made[key]) for key in made}

    plain = tf.autograph.experimental.do_not_convert  # ops are TensorFlow already, and their errors keep their type
    with tf.device("/CPU:0"):
        graph = tf.data.Dataset.range(start, stop)
        graph = graph.map(plain(read_batch), num_parallel_calls=2, deterministic=True)
        if views:
            graph = graph.unbatch().map(plain(add_views), num_parallel_calls=cores(), deterministic=True)
            graph = graph.batch(size, drop_remainder=True)
        else:
            graph = graph.map(plain(lambda fields, _: (fields, {})))
        graph = graph.map(plain(finish), num_parallel_calls=2, deterministic=True)
        options = tf.data.Options()
        options.deterministic = True
        options.threading.private_threadpool_size = cores()
        options.threading.max_intra_op_parallelism = 1
        graph = graph.prefetch(2).with_options(options)
    return _served(tf, graph, errors)


def _served(tf: Any, graph: Any, errors: list[UserError]) -> Iterator[Batch]:
    try:
        for fields, made in graph.as_numpy_iterator():
            yield Batch(**fields, views=made)
    except tf.errors.OpError:
        if errors:
            raise errors[0] from None
        raise
