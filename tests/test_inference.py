"""What a stage says of a whole split."""

from __future__ import annotations

import dataclasses
import time

import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import evaluate, inference
from jaxad.types import AnomalyMap, Batch, DataSpec, Feed, Record, Stage, TrainState, UserError

SIZE = 6


class Served:
    """n images whose every pixel is 0.01 times their row, served in a shuffled order, padding filled with NaN."""

    notes = ()

    def __init__(self, n: int, drop: int | None = None, slow: float = 0.0):
        self.n, self.drop, self.slow = n, drop, slow
        self.spec = DataSpec("set", "cat", SIZE, n, 0, n, 0, True)
        self.asked = []

    def records(self, split):
        return tuple(Record(f"cat/{split}/{row:03}.png", row % 3 == 0, "dent") for row in range(self.n))

    def batches(self, feed, *, seed, stage, start, stop, rows):
        self.asked.append((feed, seed, stage, start, stop, rows))
        order = np.random.default_rng(0).permutation(self.n)
        for step in range(start, stop):
            time.sleep(self.slow)
            chosen = order[step * feed.batch_size : (step + 1) * feed.batch_size]
            index = np.zeros(feed.batch_size, np.int32)
            index[: len(chosen)] = chosen
            valid = np.arange(feed.batch_size) < len(chosen)
            valid &= index != (-1 if self.drop is None else self.drop)
            value = np.where(valid, index * np.float32(0.01), np.nan).astype(np.float32)
            image = np.broadcast_to(value[:, None, None, None], (feed.batch_size, SIZE, SIZE, 3))
            mask = np.zeros((feed.batch_size, SIZE, SIZE), bool)
            mask[:, 0, 0] = index % 3 == 0
            yield Batch(image, mask, index % 3 == 0, index, valid)


def stage(predict=None):
    def plain(state, batch):
        pixel = batch.image[..., 0] * state.memory["factor"]
        return AnomalyMap(pixel, jnp.max(pixel, axis=(1, 2)))

    return Stage("score", Feed(2), 0, None, None, predict=predict or plain)


STATE = TrainState.create(memory={"factor": np.float32(2)})


def test_rows_come_back_in_index_order_without_padding():
    data = Served(11)
    found = inference.predictions(stage(), STATE, data, batch_size=4, seed=5)
    np.testing.assert_allclose(found.scores, np.arange(11) * 0.02, rtol=1e-6)
    np.testing.assert_array_equal(found.maps, np.broadcast_to(found.scores[:, None, None], (11, SIZE, SIZE)))
    np.testing.assert_array_equal(found.masks[:, 0, 0], found.labels)
    assert found.records == data.records("test")
    feed, seed, name, start, stop, rows = data.asked[0]
    assert (feed, seed, name, start, stop, rows) == (Feed(4, "test", False), 5, "score", 0, 3, slice(0, 4))


def test_predict_is_traced_once_however_often_a_split_is_scored():
    traces = []

    def predict(state, batch):
        traces.append(batch.image.shape)
        return AnomalyMap(batch.image[..., 0], batch.image[:, 0, 0, 0])

    scored = stage(predict)
    for split in ("test", "train"):
        inference.predictions(scored, STATE, Served(9), split=split, batch_size=4, seed=0)
    assert traces == [(4, SIZE, SIZE, 3)]


def test_time_per_image_leaves_loading_out():
    found = inference.predictions(stage(), STATE, Served(8, slow=0.3), batch_size=4, seed=0)
    assert 0 < found.ms_per_image < 30


def test_placing_and_collecting_are_the_callers():
    placed, collected = [], []

    def place(batch):
        placed.append(batch.index)
        return batch

    def collect(tree):
        collected.append(len(tree))
        return tuple(np.asarray(leaf) for leaf in tree)

    found = inference.predictions(stage(), STATE, Served(5), batch_size=4, seed=0, place=place, collect=collect)
    assert len(placed) == len(collected) == 2 and len(found.scores) == 5


def test_scores_that_are_not_finite_say_how_many():
    def predict(state, batch):
        broken = jnp.where(batch.index % 4 == 1, jnp.nan, 1.0)
        return AnomalyMap(jnp.broadcast_to(broken[:, None, None], batch.mask.shape), jnp.ones(batch.index.shape))

    with pytest.raises(RuntimeError, match=r"3 of 11 images .*not finite, the first is cat/test/001.png"):
        inference.predictions(stage(predict), STATE, Served(11), batch_size=4, seed=0)


def with_extras(state, batch):
    pixel = batch.image[..., 0]
    picture = jnp.stack([batch.image[..., 0] * 3.0, pixel * 0.0 + 2.0, pixel - 1.0], axis=-1)
    return AnomalyMap(pixel, pixel[:, 0, 0], {"sum": jnp.sum(pixel, axis=(1, 2)), "picture": picture})


def test_extras_come_back_in_index_order_without_padding_and_pictures_as_bytes():
    ranged = dataclasses.replace(stage(with_extras), map_range=(0.0, 1.0))
    found = inference.predictions(ranged, STATE, Served(11), batch_size=4, seed=5)
    assert found.map_range == (0.0, 1.0) and set(found.extras) == {"sum", "picture"}
    values = np.arange(11, dtype=np.float32) * np.float32(0.01)
    assert found.extras["sum"].dtype == np.float32 and found.extras["picture"].dtype == np.uint8
    np.testing.assert_allclose(found.extras["sum"], values * SIZE**2, rtol=1e-6)
    assert found.extras["picture"].shape == (11, SIZE, SIZE, 3)
    red = np.rint(255 * values * np.float32(3))[:, None, None]
    np.testing.assert_array_equal(found.extras["picture"][..., 0], np.broadcast_to(red, (11, SIZE, SIZE)))
    assert (found.extras["picture"][..., 1] == 255).all() and (found.extras["picture"][..., 2] == 0).all()  # clipped
    left = evaluate.without_drawn(found, 0, 1)
    keep = [record in left.records for record in found.records]
    assert left.map_range == (0.0, 1.0) and len(left.extras["sum"]) == sum(keep) == 10
    np.testing.assert_array_equal(left.extras["picture"], found.extras["picture"][keep])


@pytest.mark.parametrize("name", ["sum", "picture"])
def test_extras_that_are_not_finite_are_named(name):
    def predict(state, batch):
        made = with_extras(state, batch)
        rows = (batch.index % 4 == 1).reshape((-1,) + (1,) * (made.extras[name].ndim - 1))
        return made._replace(extras={**made.extras, name: jnp.where(rows, jnp.nan, made.extras[name])})

    with pytest.raises(RuntimeError, match=rf"3 of 11 images .* got {name} that is not finite.*cat/test/001.png"):
        inference.predictions(stage(predict), STATE, Served(11), batch_size=4, seed=0)


@pytest.mark.parametrize("shape, said", [((4, 6), r"\[4, 6\]"), ((4, 6, 6, 1), r"\[4, 6, 6, 1\]"), ((), r"\[\]")])
def test_an_extra_of_another_rank_is_named(shape, said):
    def predict(state, batch):
        return AnomalyMap(batch.image[..., 0], batch.image[:, 0, 0, 0], {"odd": jnp.zeros(shape)})

    with pytest.raises(TypeError, match=rf"the extra 'odd' of an AnomalyMap is {said}: make it \[B\]"):
        inference.predictions(stage(predict), STATE, Served(11), batch_size=4, seed=0)


def test_an_image_that_is_never_served_is_an_error():
    with pytest.raises(RuntimeError, match="1 images were never served"):
        inference.predictions(stage(), STATE, Served(5, drop=3), batch_size=4, seed=0)


def test_an_empty_split_is_the_users_mistake():
    with pytest.raises(UserError, match="no images in split 'test' of 'cat'"):
        inference.predictions(stage(), STATE, Served(0), batch_size=4, seed=0)


def embedding(scale=1.0):
    def embed(state, batch):
        return jnp.stack([batch.image[:, 0, 0, 0] * scale, jnp.ones(len(batch.image))], axis=1)

    return dataclasses.replace(stage(), predict=None, embed=embed)


def test_embeddings_come_with_the_records_that_they_belong_to():
    found, rows = inference.embeddings(
        embedding(), STATE, Served(11), split="holdout", batch_size=4, seed=3, collect=lambda tree: tree
    )
    assert sorted(rows.tolist()) == list(range(11))
    np.testing.assert_allclose(found[:, 0], 0.01 * rows, rtol=1e-6)
    assert found.shape == (11, 2)


def test_of_a_large_split_a_drawn_part_is_embedded():
    data = Served(11)
    found, _ = inference.embeddings(embedding(), STATE, data, split="train_normal", batch_size=2, seed=3, limit=5)
    feed, seed, name, start, stop, _ = data.asked[0]
    assert feed.shuffle and (seed, name, start, stop) == (3, "score", 0, 2) and len(found) == 4
    inference.embeddings(embedding(), STATE, data, split="train_normal", batch_size=2, seed=3, limit=11)
    assert not data.asked[1][0].shuffle and data.asked[1][4] == 6


def test_features_that_are_not_finite_and_empty_splits_are_refused():
    with pytest.raises(RuntimeError, match="split 'holdout' of 'cat' are not finite"):
        inference.embeddings(embedding(np.inf), STATE, Served(3), split="holdout", batch_size=2, seed=0)
    with pytest.raises(UserError, match="no images in split 'holdout' of 'cat'; set config.data.holdout above 0"):
        inference.embeddings(embedding(), STATE, Served(0), split="holdout", batch_size=2, seed=0)
