"""Real anomalies as a view: what trains beside or instead of synthetic ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxad.data.views import Context, to_uint8

if TYPE_CHECKING:
    import tensorflow as tf


def real_anomaly(image: tf.Tensor, context: Context, seed: tf.Tensor) -> dict[str, tf.Tensor]:
    """A real anomaly of the training split, drawn uniformly: {'image': u8[H, W, 3], 'mask': bool[H, W]}.

    The image that the view is of plays no part. UserError where no anomaly was moved into training.
    """
    drawn, mask = context.draw_anomaly(seed)
    return {"image": to_uint8(drawn), "mask": mask}
