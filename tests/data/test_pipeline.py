import subprocess
import sys

import numpy as np
import pytest
from fake_data import FakeSource, assert_same, config, flat, take

from jaxad.data import images, order, pipeline, store
from jaxad.data.pipeline import Pipeline
from jaxad.types import Feed, UserError, View

ROTATED = View("rotated", "rotated", {"degrees": 20.0})


def open_fake(source=None, **data):
    return Pipeline(config(**data), source or FakeSource())


MIXED = View("mixed", "fake_data:mixed")


def test_batches_hold_what_the_source_holds():
    source = FakeSource()
    data = open_fake(source, n_anomalies=2)
    for split in ("train", "test"):
        for batch in take(data, Feed(5, split, shuffle=False), 0, Feed(5).one_pass(len(data.records(split)))):
            for row in np.flatnonzero(batch.valid):
                record = data.records(split)[batch.index[row]]
                where = next(
                    (part, i) for part in ("train", "test") for i, r in enumerate(source.records(part)) if r == record
                )
                image = images.resize_image(source.images[where], 32)
                assert np.array_equal(batch.image[row], image / np.float32(255))
                assert np.array_equal(data.image(split, batch.index[row]), image)
                assert np.array_equal(batch.mask[row], images.resize_mask(source.masks[where], 32))
                assert batch.label[row] == record.label == batch.mask[row].any()


def test_an_ordered_feed_is_one_pass_whose_end_is_padded():
    data = open_fake()
    first, second, last = take(data, Feed(5, shuffle=False), 0, 3)
    assert np.concatenate([first.index, second.index, last.index]).tolist() == list(range(15))
    assert last.valid.tolist() == [True, False, False, False, False]
    assert first.valid.all() and second.valid.all()
    assert not last.image[1:].any() and not last.mask[1:].any() and not last.label[1:].any()
    with pytest.raises(ValueError, match="3"):
        take(data, Feed(5, shuffle=False), 0, 4)


def test_a_shuffled_feed_is_permutations_end_to_end():
    data = open_fake()  # 11 images
    batches = take(data, Feed(4), 0, 11)
    stream = np.concatenate([batch.index for batch in batches])
    epochs = stream.reshape(4, 11)
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    assert all(batch.valid.all() for batch in batches)


def test_a_batch_larger_than_the_set_repeats_it():
    (batch,) = take(open_fake(FakeSource(n_train=3)), Feed(8), 1, 2)
    assert batch.image.shape == (8, 32, 32, 3) and batch.valid.all()
    assert set(batch.index.tolist()) == {0, 1, 2}


def test_the_order_is_the_same_in_every_version():
    # Literal values: a resumed run must not change with NumPy or with this code.
    index, _ = order.rows_of(Feed(4), 11, seed=1, stage="fit", n=2)
    seeds = order.example_seeds(Feed(2), "rotated", seed=1, stage="fit", n=3)
    assert index.tolist() == [4, 9, 10, 1]
    assert seeds.tolist() == [[1102475866, 1480268710], [404869068, -1224378284]]


def test_permutations_are_uniform():
    places = np.zeros((6, 6))
    for epoch in range(1200):
        places[np.arange(6), order.permutation(2, "fit", epoch, 6)] += 1
    assert np.abs(places / 1200 - 1 / 6).max() < 0.05  # more than four standard deviations


def test_seed_stage_and_view_name_each_change_the_stream():
    def seeds(view="a", seed=1, stage="fit", n=0):
        return order.example_seeds(Feed(3), view, seed=seed, stage=stage, n=n).tolist()

    assert len({str(s) for s in (seeds(), seeds("b"), seeds(seed=2), seeds(stage="other"), seeds(n=1))}) == 5
    orders = {str(order.permutation(seed, stage, 0, 20)) for seed in (1, 2) for stage in ("fit", "other")}
    assert len(orders) == 4


def test_seeds_belong_to_positions_whatever_the_batch_size():
    few = [order.example_seeds(Feed(2), "v", seed=0, stage="s", n=n) for n in range(6)]
    many = [order.example_seeds(Feed(3), "v", seed=0, stage="s", n=n) for n in range(4)]
    assert np.array_equal(np.concatenate(few), np.concatenate(many))


def test_a_replay_serves_the_images_and_views_of_another_stage_again_and_again():
    data = open_fake()
    first = take(data, Feed(4, views=(MIXED, ROTATED)), 0, 5, stage="contrast")
    replayed = take(data, Feed(3, views=(MIXED,), replay=("contrast", 14)), 0, 8, stage="deviate")

    def stream(batches, key):
        return np.concatenate([flat(batch)[key] for batch in batches])

    for key in ("image", "index", "views.mixed", "views.mixed_mask"):
        expected = stream(first, key)[:14]  # the fourth batch ends in the middle of the replay, then it begins again
        assert np.array_equal(stream(replayed, key), np.concatenate([expected, expected])[:24])
    own = take(data, Feed(3, views=(MIXED,)), 0, 8, stage="deviate")
    assert not np.array_equal(stream(own, "index"), stream(replayed, "index"))


@pytest.mark.parametrize("options", [dict(shuffle=False, replay=("contrast", 5)), dict(replay=("contrast", 0))])
def test_a_replay_of_nothing_or_of_an_ordered_feed_is_refused(options):
    with pytest.raises(ValueError, match="must be shuffled"):
        Feed(4, **options)


def test_a_replay_resumes_like_any_other_stream():
    feed = Feed(5, views=(ROTATED,), replay=("contrast", 7))
    whole = take(open_fake(), feed, 0, 6, stage="deviate")
    assert_same(take(open_fake(), feed, 2, 6, stage="deviate"), whole[2:])


@pytest.mark.parametrize("feed", [Feed(4), Feed(4, views=(ROTATED, MIXED)), Feed(4, shuffle=False, views=(ROTATED,))])
def test_a_restart_equals_the_tail_of_an_uninterrupted_run(feed):
    stop = 3 if not feed.shuffle else 7
    whole = take(open_fake(), feed, 0, stop)
    assert_same(take(open_fake(), feed, 2, stop), whole[2:])
    assert_same(take(open_fake(), feed, stop - 1, stop), whole[-1:])


@pytest.mark.parametrize("feed", [Feed(6), Feed(6, views=(ROTATED, MIXED)), Feed(6, shuffle=False)])
def test_the_shares_of_the_processes_make_the_global_batch(feed):
    data = open_fake()
    whole = take(data, feed, 0, 2)
    shares = [take(data, feed, 0, 2, rows=rows) for rows in (slice(0, 2), slice(2, 6))]
    for batch, *parts in zip(whole, *shares, strict=True):
        parts = [flat(part) for part in parts]
        for key, array in flat(batch).items():
            assert np.array_equal(np.concatenate([part[key] for part in parts]), array), key


@pytest.mark.parametrize("feed", [Feed(4), Feed(4, "test", shuffle=False), Feed(4, views=(ROTATED, MIXED))])
def test_a_set_too_large_for_memory_gives_the_same_batches(feed):
    small, large = FakeSource(), FakeSource()
    batches = [take(open_fake(source, memory_mb=mb), feed, 0, 3) for source, mb in ((small, 4096), (large, 0))]
    assert_same(*batches)
    assert small.loads == len(small.records(feed.split))  # decoded once


def test_memory_is_shared_between_categories_and_the_oldest_goes_first():
    # 128-pixel images: a's training split takes 0.69 MiB, its test split 0.75, b's training split 0.69.
    settings = config(memory_mb=2)
    settings.data.image_size = 128
    a, b = (Pipeline(settings, FakeSource(name=name)) for name in "ab")
    before = take(a, Feed(4), 0, 2)
    take(a, Feed(4, "test"), 0, 1)
    take(b, Feed(4), 0, 1)  # now a's train and test and b's train do not fit together
    assert a._stores["train"].kept is None and b._stores["train"].kept is not None
    assert_same(take(a, Feed(4), 0, 2), before)
    kept = [s for data in (a, b) for s in data._stores.values() if s.kept is not None]
    assert sum({id(s): s.nbytes for s in kept}.values()) <= 2 * 2**20


def test_images_are_the_same_bits_as_numpys_division():
    source = FakeSource(n_train=2, sizes=((16, 16),))
    source.images["train", 0][:] = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    (batch,) = list(
        Pipeline(config(resize="none"), source).batches(
            Feed(1, shuffle=False), seed=0, stage="s", start=0, stop=1, rows=slice(None)
        )
    )
    expected = np.arange(256, dtype=np.float32).reshape(16, 16) / np.float32(255)
    assert batch.image[0, ..., 1].tobytes() == expected.tobytes()
    assert store.to_float(np.arange(256, dtype=np.uint8)).tobytes() == expected.tobytes()


def test_views_differ_per_epoch_and_belong_to_their_image():
    data = open_fake(FakeSource(n_train=4))
    batches = take(data, Feed(4, views=(ROTATED,)), 0, 2)
    turned = [{int(i): view for i, view in zip(b.index, b.views["rotated"], strict=True)} for b in batches]
    for i in range(4):
        assert not np.array_equal(turned[0][i], turned[1][i])
        plain = data.image("train", i).astype(np.float32) / 255
        distances = [np.abs(plain - view)[8:24, 8:24].mean() for view in turned[0].values()]
        assert list(turned[0])[int(np.argmin(distances))] == i


def test_a_views_result_does_not_depend_on_the_other_views():
    alone = take(open_fake(), Feed(4, views=(ROTATED,)), 0, 2)
    beside = take(open_fake(), Feed(4, views=(MIXED, ROTATED)), 0, 2)
    for one, other in zip(alone, beside, strict=True):
        assert np.array_equal(one.views["rotated"], other.views["rotated"])


def test_an_op_may_return_several_tensors_and_see_other_images():
    data = open_fake(n_anomalies=2)
    (batch,) = take(data, Feed(6, "train_normal", views=(MIXED,)), 0, 1)
    assert set(batch.views) == {"mixed", "mixed_mask", "mixed_seed", "mixed_source"}
    assert batch.views["mixed"].dtype == np.float32 and batch.views["mixed_mask"].dtype == bool
    assert batch.views["mixed_seed"].shape == (6, 2)
    normals = [data.image("train_normal", i).astype(np.float32) / 255 for i in range(11)]
    for row in range(6):
        mask, source = batch.views["mixed_mask"][row], batch.views["mixed_source"][row]
        which = [i for i, image in enumerate(normals) if np.allclose(image, source)]
        assert len(which) == 1 and which[0] != batch.index[row]
        pasted = np.where(mask[..., None], source, batch.image[row])
        np.testing.assert_allclose(batch.views["mixed"][row], pasted, atol=1e-6)


def test_views_of_held_out_images_draw_from_the_training_split():
    data = open_fake(holdout=0.5)
    (batch,) = take(data, Feed(5, "holdout", views=(MIXED,)), 0, 1)
    normals = [data.image("train", i).astype(np.float32) / 255 for i in range(data.spec.n_train)]
    for source in batch.views["mixed_source"]:
        assert any(np.allclose(source, image) for image in normals)


def test_train_normal_leaves_the_moved_anomalies_out():
    data = open_fake(n_anomalies=3)
    with_them, without = (take(data, Feed(7, s, shuffle=False), 0, 2) for s in ("train", "train_normal"))
    assert np.concatenate([b.label for b in with_them]).sum() == 3
    assert not np.concatenate([b.label for b in without]).any()
    assert np.concatenate([b.valid for b in without]).sum() == 11
    assert np.array_equal(with_them[0].image, without[0].image)


def test_mode_none_takes_the_common_size_and_refuses_unequal_ones():
    data = open_fake(FakeSource(sizes=((24, 24),)), resize="none")
    assert data.spec.image_size == 24 and take(data, Feed(2), 0, 1)[0].image.shape == (2, 24, 24, 3)
    with pytest.raises(UserError, match=r"000.png is 56x40 and bolt/train/good/001.png is 30x36"):
        open_fake(resize="none")
    with pytest.raises(UserError, match="square"):
        open_fake(FakeSource(sizes=((24, 30),)), resize="none")


def test_short_crop_serves_the_crop_size():
    data = open_fake(resize="short_crop", crop_size=28)
    assert data.spec.image_size == 28
    assert take(data, Feed(2), 0, 1)[0].image.shape == (2, 28, 28, 3)


@pytest.mark.parametrize("mb", [4096, 0])
def test_an_unreadable_image_is_the_users_error_also_inside_the_graph(mb):
    class Broken(FakeSource):
        def load(self, split, i):
            if i == 7:
                raise UserError("train/good/007.png is truncated; restore or remove it")
            return super().load(split, i)

    with pytest.raises(UserError, match="^train/good/007.png is truncated; restore or remove it$"):
        take(open_fake(Broken(), memory_mb=mb), Feed(4), 0, 4)


@pytest.mark.parametrize(
    "feed, said",
    [
        (Feed(4, views=(View("v", "rotatd"),)), "rotated"),
        (Feed(4, views=(View("a", "rotated"), View("a", "rotated"))), "two views are named 'a'"),
        (Feed(4, "holdout"), "'holdout' has no images"),
        (Feed(4, "trian"), "'train'"),
    ],
)
def test_a_feed_that_cannot_be_served_is_refused_before_the_first_batch(feed, said):
    with pytest.raises(UserError, match=said):
        open_fake().batches(feed, seed=0, stage="s", start=0, stop=1, rows=slice(None))


def test_a_view_that_needs_another_image_is_refused_where_there_is_one():
    with pytest.raises(UserError, match="another normal image"):
        take(open_fake(n_shot=1), Feed(2, views=(MIXED,)), 0, 1)


def test_importing_the_pipeline_needs_no_tensorflow():
    code = "import sys; sys.modules['tensorflow'] = None; import jaxad.data.pipeline, jaxad.data.materialize"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_open_serves_the_demo(demo_cache):
    demo = config(cache_dir=demo_cache)
    for category in pipeline.categories(demo):
        data = pipeline.open(demo, category)
        batch = take(data, Feed(3), 0, 1)[0]
        assert batch.image.shape == (3, 32, 32, 3) and 0 < batch.image.mean() < 1
        assert data.spec.has_masks and data.spec.n_train > 0
