import numpy as np
import pytest
from fake_data import FakeSource, config

from jaxad.data import splits
from jaxad.data.pipeline import Pipeline
from jaxad.types import Record, UserError


def divide(n_train=20, n_anomalous=9, n_normal=5, digests=None, seed=0, **options):
    train = tuple(Record(f"train/good/{i}.png", False, "good") for i in range(n_train))
    test = tuple(Record(f"test/{d}/{i}.png", True, d) for i in range(n_anomalous) for d in ["hole"]) + tuple(
        Record(f"test/good/{i}.png", False, "good") for i in range(n_normal)
    )
    digests = digests or (lambda rows: [str(row.index).encode() for row in rows])
    return splits.split(train, test, category="c", seed=seed, digests=digests, **options)


def paths(rows):
    return [row.record.path for row in rows]


def test_splits_are_disjoint_by_path_and_complete():
    parts = divide(holdout=0.25, n_anomalies=3)
    together = paths(parts.train) + paths(parts.holdout) + paths(parts.test)
    assert len(set(together)) == len(together) == 20 + 9 + 5
    assert (len(parts.train), len(parts.holdout), len(parts.test)) == (15 + 3, 5, 11)


def test_moved_anomalies_come_after_the_normals_and_keep_their_label():
    parts = divide(n_anomalies=4)
    assert [row.record.label for row in parts.train] == [False] * 20 + [True] * 4
    assert parts.train[-4:] == parts.moved
    assert all(row.split == "test" for row in parts.moved)


def test_rows_say_where_the_source_keeps_the_image():
    parts = divide(n_anomalies=2, holdout=0.2)
    for row in (*parts.train, *parts.holdout, *parts.test):
        number = int(row.record.path.rpartition("/")[2].removesuffix(".png"))
        assert row.index == number + (9 if row.record.path.startswith("test/good") else 0)


def test_a_larger_draw_contains_the_smaller_ones_and_draws_do_not_disturb_each_other():
    few, more = divide(n_shot=3, n_anomalies=1), divide(n_shot=8, n_anomalies=3, holdout=0.2)
    assert set(paths(few.train)) < set(paths(more.train))
    assert paths(divide(n_shot=2, holdout=0.2).holdout) == paths(more.holdout)


def test_the_seed_decides_the_draw():
    draws = {tuple(paths(divide(n_anomalies=4, seed=seed).moved)) for seed in range(20)}
    assert len(draws) > 10
    assert divide(n_anomalies=4, seed=7) == divide(n_anomalies=4, seed=7)


def test_the_draw_is_the_same_in_every_version():
    # Literal values: a run's split must not change with NumPy or with this code.
    assert splits.shuffled(0, "anomalies", 8).tolist() == [4, 6, 5, 1, 2, 7, 0, 3]


def test_anomalies_are_drawn_uniformly():
    counts = np.zeros(9)
    for seed in range(600):
        for row in divide(n_anomalies=3, seed=seed).moved:
            counts[row.index] += 1
    assert np.abs(counts / 600 - 3 / 9).max() < 0.08  # four standard deviations


def test_copies_of_moved_images_leave_the_test_set_whatever_their_label():
    def digests(rows):  # anomaly 0 = anomaly 4, anomaly 1 = normal 0 (row 9)
        return [{4: b"0", 9: b"1"}.get(row.index, str(row.index).encode()) for row in rows]

    for seed in range(30):
        parts = divide(n_anomalies=2, seed=seed, digests=digests)
        moved = {row.index for row in parts.moved}
        expected = {b for a, b in ((0, 4), (4, 0), (1, 9)) if a in moved and b not in moved}
        assert {row.index for row in parts.removed} == expected
        assert not {row.index for row in parts.test} & (moved | expected)
        assert bool(parts.notes) == bool(expected)


def test_content_is_of_pixels_and_shape():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert splits.content(image) == splits.content(np.asfortranarray(image))
    assert splits.content(image) != splits.content(image.reshape(2, 8, 3))
    assert splits.content(image) != splits.content(image[::-1])


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(n_anomalies=5), "at most 4"),
        (dict(n_shot=21), "only 20 normals"),
        (dict(n_train=1, holdout=0.1), "leaves none of 1"),
        (dict(n_train=0), "no normal training images"),
        (dict(n_train=2, holdout=0.9), "leaves none of 2"),
    ],
)
def test_impossible_splits_are_refused_in_one_line(options, said):
    with pytest.raises(UserError, match=said) as caught:
        divide(**options)
    assert "\n" not in str(caught.value)


def test_holdout_is_at_least_one_and_never_all():
    assert len(divide(n_train=3, holdout=0.01).holdout) == 1
    assert len(divide(n_train=3, holdout=0.67).train) == 1


def test_a_path_in_both_splits_is_refused():
    record = Record("a.png", False, "good")
    with pytest.raises(UserError, match="a.png"):
        splits.split((record,), (record,), category="c", seed=0)


def test_the_pipeline_reports_the_split_in_spec_records_notes_and_manifest():
    source = FakeSource()
    source.images["test", 1] = source.images["test", 0].copy()  # a copy under another name
    seeds = range(20)
    opened = [Pipeline(config(n_anomalies=2, holdout=0.2, n_shot=5, seed=seed), source) for seed in seeds]
    split_pair = [data for data in opened if data.manifest()["removed"]]
    assert split_pair  # some seed moves one of the two
    data = split_pair[0]
    spec, manifest = data.spec, data.manifest()
    assert (spec.n_train, spec.n_holdout, spec.n_test_normal, spec.n_test_anomalous) == (7, 2, 4, 5)
    assert manifest["train"] == [record.path for record in data.records("train")]
    assert manifest["moved"] == [record.path for record in data.records("train") if record.label]
    assert any("removed" in note for note in data.notes)
    assert data.records("train_normal") == data.records("train")[:5]
