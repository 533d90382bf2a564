"""All categories as one: the rows are those of the categories, whoever serves them."""

import types

import numpy as np
import pytest
from fake_data import FakeSource, assert_same, config, take

from jaxad import methods
from jaxad.data import catalog, joint, materialize, pipeline
from jaxad.types import Feed, Record, Stage, UserError, View

VIEWS = (View("mixed", "fake_data:mixed"),)
FEED = Feed(4, "train_normal", views=VIEWS)
SPLITTING = dict(n_anomalies=2, holdout=0.2)
N_TRAIN = {"bolt": 11, "nut": 7, "pin": 5}


def source(name):
    """A category whose images are no other category's."""
    made = FakeSource(name=name, n_train=N_TRAIN[name])
    made.images = {key: image + np.uint8(ord(name[0])) for key, image in made.images.items()}  # modulo 256
    return made


def opened(**data):
    made = config(**SPLITTING | data)
    return {name: pipeline.Pipeline(made, source(name)) for name in N_TRAIN}


def joined(parts, **data):
    return joint.join(config(joint=True, **SPLITTING | data), parts)


def by_hand(parts, split):
    """[(category, index)]: the normals of all categories, then the anomalies."""
    rows = [(name, i, record) for name, part in parts.items() for i, record in enumerate(part.records(split))]
    return [row[:2] for label in (False, True) for row in rows if row[2].label == label]


@pytest.mark.parametrize("memory_mb", [4096, 0])
def test_splits_are_those_of_the_categories_normals_first(memory_mb):
    parts = opened()
    data = joined(parts, memory_mb=memory_mb)
    for split in ("train", "train_normal", "holdout", "test"):
        rows = by_hand(parts, split)
        assert data.records(split) == tuple(parts[name].records(split)[i] for name, i in rows)
        batches = take(data, Feed(7, split, shuffle=False), 0, -(-len(rows) // 7))
        index, image, mask, valid, label = (
            np.concatenate([getattr(batch, key) for batch in batches])
            for key in ("index", "image", "mask", "valid", "label")
        )
        assert valid.sum() == len(rows) and index[valid].tolist() == list(range(len(rows)))
        for row, (name, i) in enumerate(rows):
            np.testing.assert_array_equal(image[row], parts[name].image(split, i) / np.float32(255))
            np.testing.assert_array_equal(mask[row], parts[name].load(split, i)[1])
            assert label[row] == parts[name].records(split)[i].label == mask[row].any()
    assert not data.records("train_normal")[-1].label and data.records("train")[-6:] == tuple(
        record for part in parts.values() for record in part.records("train") if record.label
    )


def test_the_spec_adds_up_and_the_manifest_is_that_of_each():
    parts = opened()
    data, specs = joined(parts), [part.spec for part in parts.values()]
    assert data.spec.category == "joint" and data.spec.has_masks and data.spec.image_size == 32
    for count in ("n_train", "n_train_normal", "n_train_anomalous", "n_holdout", "n_test_normal", "n_test_anomalous"):
        assert getattr(data.spec, count) == sum(getattr(spec, count) for spec in specs) > 0
    assert data.manifest() == {name: part.manifest() for name, part in parts.items()}


def test_a_view_draws_among_the_normals_of_all_categories_but_the_image_itself():
    parts = opened()
    data = joined(parts)
    normals = [parts[name].image("train", i) / np.float32(255) for name, i in by_hand(parts, "train_normal")]
    drawn = set()
    for batch in take(data, Feed(8, "train_normal", views=VIEWS), 0, 16):
        for source, index in zip(batch.views["mixed_source"], batch.index, strict=True):
            (row,) = [i for i, normal in enumerate(normals) if np.array_equal(normal, source)]
            assert row != index
            drawn.add(row)
    assert drawn == set(range(len(normals)))  # (17/18)^128 < 0.001 that one is missing


def test_classes_and_foregrounds_are_those_of_the_categories(monkeypatch):
    parts = opened(n_anomalies=0, holdout=0.0)
    for number, part in enumerate(parts.values()):
        part._records = {
            split: tuple(Record(*row[:3], kind=f"kind {(i + number) % 2}") for i, row in enumerate(rows))
            for split, rows in part._records.items()
        }
        monkeypatch.setattr(part, "_foreground", lambda i, number=number: np.full((32, 32), 10 * number + i == 12))
    data = joined(parts, n_anomalies=0, holdout=0.0)
    assert data.spec.kinds == ("kind 0", "kind 1")
    (batch,) = take(data, Feed(23, views=(View("class", "class"),), shuffle=False), 0, 1)
    assert batch.views["class"].tolist() == [i % 2 for i in range(11)] + [(i + 1) % 2 for i in range(7)] + [
        i % 2 for i in range(5)
    ]
    assert [i for i in range(30) if data.foreground(i).any()] == [11 + 2]  # row 2 of the second; none of the padding


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("bolt",), r"config.data.category names one \(bolt\)"),
        (("bolt", "joint"), "one of them is called so"),
        (("bolt", "tiny"), "bolt has 32 pixels and tiny 48; use --config.data.resize=square"),
    ],
)
def test_what_cannot_be_joined_is_one_line(names, said):
    sizes = {name: 48 if name == "tiny" else 32 for name in names}
    parts = {
        name: pipeline.Pipeline(config(image_size=side), FakeSource(name=name, n_train=3))
        for name, side in sizes.items()
    }
    with pytest.raises(UserError, match=said) as error:
        joint.feeds(config(joint=True), parts)
    assert "\n" not in str(error.value)


def test_without_the_option_every_category_is_by_itself():
    parts = opened()
    assert joint.feeds(config(), parts) is parts


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Three categories and, with joint=True, the bank of all of them together."""
    sources = {name: source(name) for name in N_TRAIN}
    path = str(tmp_path_factory.mktemp("materialised") / "three.data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "categories", lambda config: tuple(sources))
        patch.setattr(catalog, "open_source", lambda config, category: sources[category])
        stages = (Stage("draw", FEED, 6, init=None, update=None),)
        patch.setattr(methods, "resolve", lambda method: types.SimpleNamespace(stages=lambda *_: stages))
        said = materialize.write(config(joint=True, **SPLITTING), path, n_bank=3)
    assert "joint: stage draw: a bank of 3 batches of 4" in said and "nut: stage draw" not in said
    return path


def of_file(file, names, **data):
    made = config(joint=True, source=file, category=",".join(names), **SPLITTING | data)
    return joint.join(made, {name: pipeline.open(made, name) for name in pipeline.categories(made)})


def test_a_file_serves_the_same_joined_batches_and_views(file):
    ours, theirs = joined(opened()), of_file(file, N_TRAIN)
    assert theirs.spec == ours.spec and theirs.manifest() == ours.manifest()
    for feed in (Feed(5), Feed(5, "test", shuffle=False), Feed(2, "holdout")):
        stop = 3 if feed.shuffle else feed.one_pass(len(ours.records(feed.split)))
        assert_same(take(theirs, feed, 0, stop), take(ours, feed, 0, stop))
    options = dict(seed=config().seed, stage="draw")
    expected = take(ours, FEED, 0, 3, **options)
    assert_same(take(theirs, FEED, 1, 5, **options), [expected[n % 3] for n in range(1, 5)])


def test_a_bank_of_other_categories_or_in_another_order_is_refused(file):
    some = of_file(file, ("nut", "bolt"))
    assert len(take(some, Feed(5), 0, 2)) == 2  # no bank is needed
    with pytest.raises(UserError, match=r"categories=\['bolt', 'nut', 'pin'\], this run has \['nut', 'bolt'\]"):
        some.batches(FEED, seed=config().seed, stage="draw", start=0, stop=1, rows=slice(None))
    with pytest.raises(UserError, match="no bank of views for stage 'other' of joint"):
        some.batches(FEED, seed=config().seed, stage="other", start=0, stop=1, rows=slice(None))
