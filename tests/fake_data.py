"""A data source made of arrays: no files, no preparation, images of unequal and unsquare size."""

from __future__ import annotations

import numpy as np

from jaxad import config as configs
from jaxad.types import Record


class FakeSource:
    """`n_train` normal training images, `n_normal` and `n_anomalous` test images, all different."""

    root = ""
    notes = ()
    has_masks = has_all_masks = True
    protocol = ""

    def __init__(self, n_train=11, n_normal=4, n_anomalous=8, sizes=((40, 56), (36, 30)), name="bolt"):
        self.name = name
        self.loads = 0
        self._records = {
            "train": tuple(Record(f"{name}/train/good/{i:03d}.png", False, "good") for i in range(n_train)),
            "test": tuple(
                [Record(f"{name}/test/crack/{i:03d}.png", True, "crack") for i in range(n_anomalous)]
                + [Record(f"{name}/test/good/{i:03d}.png", False, "good") for i in range(n_normal)]
            ),
        }
        generator = np.random.default_rng(5)
        self.images, self.masks = {}, {}
        for split, records in self._records.items():
            for i, record in enumerate(records):
                size = sizes[i % len(sizes)]
                self.images[split, i] = generator.integers(0, 256, (*size, 3), np.uint8)
                self.masks[split, i] = np.zeros(size, bool)
                if record.label:
                    self.masks[split, i][3 : 12 + i, 5:21] = True

    def records(self, split):
        return self._records[split]

    def load(self, split, i):
        self.loads += 1
        return self.images[split, i], self.masks[split, i]


def mixed(image, context, seed):
    """A view op that returns an image, a mask, integers, and a float image that is not rounded to 256 levels."""
    import tensorflow as tf

    from jaxad.data import views

    source = context.draw(tf.random.fold_in(seed, 1))
    mask = tf.random.stateless_uniform(image.shape[:2], seed) > 0.5
    pasted = tf.where(mask[..., None], source, image)
    return {"image": views.to_uint8(pasted), "mask": mask, "seed": seed, "source": source}


def config(**data):
    """A default config with 32-pixel images, nothing held out, and these `data` keys; `seed` too."""
    result = configs.default("patchcore")
    result.seed = data.pop("seed", 3)
    result.data.update({"image_size": 32, "batch_size": 4, "holdout": 0.0, **data})
    return result


def take(data, feed, start, stop, rows=slice(None), seed=1, stage="fit"):
    """The batches start .. stop - 1 as a list."""
    return list(data.batches(feed, seed=seed, stage=stage, start=start, stop=stop, rows=rows))


def flat(batch):
    """{name: array} of a batch, views as 'views.NAME'."""
    fields = {key: np.asarray(getattr(batch, key)) for key in ("image", "mask", "label", "index", "valid")}
    return fields | {f"views.{key}": np.asarray(array) for key, array in batch.views.items()}


def assert_same(ours, theirs):
    """Two lists of batches are equal bit for bit, dtypes included."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        one, other = flat(one), flat(other)
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype and one[key].shape == other[key].shape, key
            assert one[key].tobytes() == other[key].tobytes(), key
