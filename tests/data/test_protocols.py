"""VisA's two-class protocols: the counts of its files, our own division of other data, and the five draws."""

import fake_layouts as layouts
import numpy as np
import pytest
from fake_data import FakeSource, assert_same, config, take

from jaxad.data import catalog, materialize, pipeline, protocols
from jaxad.data.pipeline import Pipeline
from jaxad.data.protocols import Settings
from jaxad.types import Feed, Record, UserError

# VisA's split files: normals; high_shot training and test normals; few_shot pool and test normals.
# Anomalies are 100 everywhere: 60 and 40, 20 and 80.
VISA = {
    "candle": (1000, 600, 400, 200, 800),
    "capsules": (602, 361, 241, 120, 482),
    "cashew": (500, 300, 200, 100, 400),
    "chewinggum": (503, 302, 201, 101, 402),
    "fryum": (500, 300, 200, 100, 400),
    "macaroni1": (1000, 600, 400, 200, 800),
    "macaroni2": (1000, 600, 400, 200, 800),
    "pcb1": (1004, 602, 402, 201, 803),
    "pcb2": (1001, 601, 400, 200, 801),
    "pcb3": (1006, 604, 402, 201, 805),
    "pcb4": (1005, 603, 402, 201, 804),
    "pipe_fryum": (500, 300, 200, 100, 400),
}


def records(n_normal, n_anomalous, n_tested=3):
    """Training normals, and a test set of `n_tested` normals and all anomalies."""
    train = tuple(Record(f"train/good/{i:04d}.png", False, "good") for i in range(n_normal - n_tested))
    test = [Record(f"test/crack/{i:04d}.png", True, "crack") for i in range(n_anomalous)]
    return train, tuple(test + [Record(f"test/good/{i:04d}.png", False, "good") for i in range(n_tested)])


def own(rows):
    return [repr(row).encode() for row in rows]


def divide(protocol, n_normal=50, n_anomalous=20, k_shot=2, draw=0, digests=own, **options):
    settings = Settings(protocol, k_shot, draw)
    options = dict(category="c", seed=0, digests=digests) | options
    return protocols.split(*records(n_normal, n_anomalous), settings, **options)


def paths(rows, label=None):
    return [row.record.path for row in rows if label is None or row.record.label == label]


def count(rows):
    return len(paths(rows, False)), len(paths(rows, True))


@pytest.mark.parametrize("name", VISA)
def test_counts_are_those_of_visas_files(name):
    n, high_train, high_test, few_train, few_test = VISA[name]
    high = divide("high_shot", n, 100)
    assert (count(high.train), count(high.test)) == ((high_train, 60), (high_test, 40))
    few = divide("few_shot", n, 100, k_shot=10)
    pool = [*few.train, *few.unused]
    assert (count(pool), count(few.test)) == ((few_train, 20), (few_test, 80))
    assert count(few.train) == (10, 10)
    assert set(pool) < set(high.train) and set(high.test) < set(few.test)  # as in VisA's files
    everything = [*few.train, *few.unused, *few.test]
    assert len(set(everything)) == len(everything) == n + 100


def test_the_pool_lies_within_the_training_images_of_high_shot_for_all_sizes():
    for n in range(2, 200):
        assert 0 < protocols.n_train("high_shot", n) < n and protocols.n_train("few_shot", n) < n / 2
        assert protocols.n_train("high_shot", n) == round(0.6 * n) and protocols.n_train("few_shot", n) == round(
            0.2 * n
        )


def test_training_has_normals_first_and_rows_of_both_source_splits():
    parts = divide("high_shot")
    labels = [row.record.label for row in parts.train]
    assert labels == [False] * 30 + [True] * 12
    assert paths(parts.train, False) == sorted(paths(parts.train, False))
    assert paths(parts.train, True) == sorted(paths(parts.train, True)) and paths(parts.test) == sorted(
        paths(parts.test)
    )
    train, test = records(50, 20)
    for row in (*parts.train, *parts.test):
        assert {"train": train, "test": test}[row.split][row.index] == row.record
    assert {row.split for row in parts.test if not row.record.label} >= {"train"}


def test_draws_differ_stay_in_the_pool_and_do_not_depend_on_the_seed():
    draws = [divide("few_shot", 200, 100, k_shot=10, draw=draw) for draw in range(5)]
    for label in (False, True):
        drawn = [frozenset(paths(parts.train, label)) for parts in draws]
        assert len(set(drawn)) == 5 and all(len(names) == 10 for names in drawn)
    assert len({tuple(parts.test) for parts in draws}) == 1
    assert len({frozenset((*parts.train, *parts.unused)) for parts in draws}) == 1
    for protocol in ("few_shot", "high_shot"):
        assert divide(protocol, seed=5) == divide(protocol, seed=0)


def test_ten_shots_contain_the_five_of_the_same_draw():
    for draw in range(5):
        five, ten = (divide("few_shot", 100, 100, k_shot=k, draw=draw) for k in (5, 10))
        assert set(five.train) < set(ten.train) and five.test == ten.test


def test_division_and_draws_are_the_same_in_every_version():
    # Literal values: published numbers are of these draws.
    assert protocols.order("normal", 10).tolist() == [4, 3, 9, 1, 5, 8, 7, 2, 0, 6]
    assert protocols.order("anomalous", 10).tolist() == [1, 0, 7, 8, 3, 5, 9, 6, 2, 4]
    draws = [protocols.drawn("anomalous", 20, 3, draw).tolist() for draw in range(5)]
    assert draws == [[4, 5, 14], [0, 8, 19], [0, 5, 19], [3, 16, 18], [4, 15, 18]]


def test_the_division_is_not_by_position():
    for label in ("normal", "anomalous"):
        first = protocols.order(label, 1000)[:200]
        assert abs(first.mean() - 500) < 80 and not np.array_equal(np.sort(first), np.arange(200))
    assert protocols.order("normal", 100).tolist() != protocols.order("anomalous", 100).tolist()


def test_held_out_normals_are_training_normals_and_follow_the_seed():
    whole, parts, other = (
        divide("high_shot"),
        divide("high_shot", holdout=0.2),
        divide("high_shot", holdout=0.2, seed=1),
    )
    assert count(parts.train) == (24, 12) and count(parts.holdout) == (6, 0)
    assert set(parts.train) | set(parts.holdout) == set(whole.train) and parts.test == whole.test
    assert parts.holdout != other.holdout


def test_test_images_with_the_pixels_of_training_images_are_removed():
    whole = divide("high_shot", holdout=0.2)
    twins = {whole.train[2]: whole.test[-1], whole.holdout[0]: whole.test[-2], whole.train[-1]: whole.test[0]}
    twins_of_tests = {whole.test[3]: whole.test[4]}
    names = {other: row for row, other in (twins | twins_of_tests).items()}
    parts = divide("high_shot", holdout=0.2, digests=lambda rows: own([names.get(row, row) for row in rows]))
    assert set(parts.removed) == set(twins.values())
    assert parts.test == tuple(row for row in whole.test if row not in twins.values())
    assert parts.train == whole.train and "3 test images removed" in parts.notes[0]


def test_an_official_division_is_taken_as_it_is():
    train, test = records(12, 8)
    train += (Record("train/crack/0.png", True, "crack"), Record("train/crack/1.png", True, "crack"))

    def divided(protocol, k=1):
        settings = Settings(protocol, k, draw=3, official=True)
        return protocols.split(train, test, settings, category="c", seed=0)  # no digests: nothing is removed

    high, few = divided("high_shot"), divided("few_shot")
    assert set(paths(high.train)) == {record.path for record in train} and count(high.train) == (9, 2)
    assert {row.record for row in high.test} == {row.record for row in few.test} == set(test)
    assert count(few.train) == (1, 1) and count(few.unused) == (8, 1)
    assert all(row.split == "train" for row in few.train)


@pytest.mark.parametrize(
    "protocol, options, said",
    [
        ("high_shot", dict(n_anomalies=1), "data.n_anomalies=1 is of protocol one_class; set it to 0 for high_shot"),
        ("few_shot", dict(n_shot=4), "data.n_shot=4 is of protocol one_class"),
        ("few_shot", dict(holdout=0.1), "set --config.data.holdout=0"),
        ("few_shot", dict(k_shot=5), "the few_shot pool has 4 of 20 anomalous images; set --config.data.k_shot=4"),
        ("few_shot", dict(n_anomalous=2), "pool has 0 of 2 anomalous images"),
        ("high_shot", dict(n_anomalous=0), "c has no anomalous images; .* use one_class"),
        ("high_shot", dict(n_anomalous=1), "c has 1 anomalous image;"),
        ("high_shot", dict(n_normal=3, holdout=0.9), "leaves none of 2 normals"),
    ],
)
def test_what_a_protocol_cannot_do_is_refused_in_one_line(protocol, options, said):
    with pytest.raises(UserError, match=said) as caught:
        divide(protocol, **options)
    assert "\n" not in str(caught.value)


def test_a_path_in_both_splits_is_refused():
    record = Record("a.png", False, "good")
    with pytest.raises(UserError, match="listed for training and for testing"):
        protocols.split((record,), (record,), Settings("high_shot", 1, 0), category="c", seed=0)


def test_the_pipeline_trains_on_masked_anomalies_and_tells_all_in_spec_and_manifest():
    source = FakeSource()  # 11 + 4 normals, 8 anomalies
    data = Pipeline(config(protocol="high_shot", holdout=0.2), source)
    spec, manifest = data.spec, data.manifest()
    assert (spec.n_train, spec.n_train_anomalous, spec.n_train_normal, spec.n_holdout) == (12, 5, 7, 2)
    assert (spec.n_test_normal, spec.n_test_anomalous, spec.has_masks) == (6, 3, True)
    assert manifest["protocol"] == "high_shot" and manifest["moved"] == []
    for split in ("train", "holdout", "test"):
        assert manifest[split] == [record.path for record in data.records(split)]
    (batch,) = take(data, Feed(12, shuffle=False), 0, 1)
    assert batch.label.tolist() == [False] * 7 + [True] * 5
    assert np.array_equal(batch.mask.any((1, 2)), batch.label)
    assert [record.label for record in data.records("train_normal")] == [False] * 7


def test_a_draw_is_stored_with_the_run_whatever_its_seed():
    source = FakeSource(n_train=26, n_anomalous=20)
    opened = [Pipeline(config(protocol="few_shot", k_shot=3, draw=2, seed=seed), source) for seed in (0, 9)]
    manifests = [data.manifest() | {"seed": None} for data in opened]
    assert manifests[0] == manifests[1] and manifests[0]["draw"] == 2 and manifests[0]["k_shot"] == 3
    other = Pipeline(config(protocol="few_shot", k_shot=3, draw=1), source).manifest()
    assert other["train"] != manifests[0]["train"] and other["test"] == manifests[0]["test"]
    assert sorted(other["train"] + other["unused"]) == sorted(manifests[0]["train"] + manifests[0]["unused"])
    assert (opened[0].spec.n_train, opened[0].spec.n_train_anomalous, opened[0].spec.n_test_anomalous) == (6, 3, 16)


def test_copies_are_found_among_decoded_images_of_both_source_splits():
    source = FakeSource()
    whole = Pipeline(config(protocol="high_shot"), source)
    places = {record.path: (split, i) for split in ("train", "test") for i, record in enumerate(source.records(split))}
    trained, tested = whole.records("train")[0].path, whole.records("test")[-1].path
    source.images[places[tested]] = source.images[places[trained]].copy()
    data = Pipeline(config(protocol="high_shot"), source)
    assert data.manifest()["removed"] == [tested] and data.spec.n_test_normal == whole.spec.n_test_normal - 1


def test_pixel_metrics_need_masks_of_training_anomalies_too():
    source = FakeSource()
    source.has_all_masks = False
    assert not Pipeline(config(protocol="high_shot"), source).spec.has_masks
    assert Pipeline(config(), source).spec.has_masks


def test_one_class_leaves_out_anomalies_that_are_listed_for_training_and_says_so():
    source = FakeSource()
    source._records["train"] += (Record("bolt/train/crack/0.png", True, "crack"),)
    data = Pipeline(config(), source)
    assert data.spec.n_train == 11 and data.spec.n_train_anomalous == 0
    assert data.notes == ("left out of training, as data.protocol is one_class: the 1 anomalies listed for it",)


def visa(tmp_path, category, protocol, **data):
    if not (tmp_path / "data").exists():
        layouts.visa(tmp_path / "data")
    data = dict(category=category, protocol=protocol, cache_dir=str(tmp_path / "cache")) | data
    return config(dataset="visa", root=str(tmp_path / "data"), **data)


@pytest.mark.parametrize("category", ["cashew", "cashew_2cls_highshot"])
def test_visa_high_shot_is_its_own_file(tmp_path, category):
    asked = visa(tmp_path, category, "high_shot")
    assert catalog.categories(asked) == (category,)
    data = pipeline.open(asked, category)
    where = "cashew/Data/Images"
    manifest, spec = data.manifest(), data.spec
    assert manifest["train"] == [f"{where}/Normal/{i:03d}.JPG" for i in range(4)] + [
        f"{where}/Anomaly/{i:03d}.JPG" for i in range(2)
    ]
    assert manifest["test"] == [f"{where}/{kind}/{i:03d}.JPG" for kind, i in
                                (("Anomaly", 2), ("Anomaly", 3), ("Normal", 4), ("Normal", 5))]  # fmt: skip
    assert spec.category == category and spec.has_masks and spec.n_train_anomalous == 2
    (batch,) = take(data, Feed(6, shuffle=False), 0, 1)
    assert np.array_equal(batch.mask.any((1, 2)), batch.label)


def test_visa_few_shot_draws_from_the_pool_of_its_file(tmp_path):
    data = pipeline.open(visa(tmp_path, "candle", "few_shot", k_shot=1), "candle")
    manifest = data.manifest()
    assert {path.split("/")[3] for path in manifest["train"]} == {"Normal", "Anomaly"} and len(manifest["train"]) == 2
    pool = {f"candle/Data/Images/{name}.JPG" for name in ("Normal/000", "Normal/001", "Anomaly/000")}
    assert set(manifest["train"]) | set(manifest["unused"]) == pool and len(manifest["test"]) == 7
    with pytest.raises(UserError, match="data.k_shot=2 but the few_shot pool has 1 of 4 anomalous images"):
        pipeline.open(visa(tmp_path, "candle", "few_shot", k_shot=2), "candle")


def test_visa_one_class_is_as_before_and_protocols_are_never_mixed(tmp_path):
    assert pipeline.open(visa(tmp_path, "candle", "one_class"), "candle").spec.n_train == 5
    listed = pipeline.open(visa(tmp_path, "candle_2cls_highshot", "one_class"), "candle_2cls_highshot")
    assert (listed.spec.n_train, listed.spec.n_train_anomalous) == (4, 0) and "the 2 anomalies listed" in listed.notes[
        -1
    ]
    for category, protocol in (("candle_2cls_highshot", "few_shot"), ("candle_2cls_fewshot", "high_shot")):
        with pytest.raises(UserError, match=f"not of {protocol}; set --config.data.category=candle or --config"):
            pipeline.open(visa(tmp_path, category, protocol, k_shot=1), category)


def test_all_of_visa_under_a_protocol_are_its_objects(tmp_path):
    assert catalog.categories(visa(tmp_path, "all", "few_shot")) == ("candle", "cashew")


def test_a_materialised_file_keeps_its_protocol_and_its_draw(tmp_path, monkeypatch):
    source, path = FakeSource(n_train=26, n_anomalous=20), str(tmp_path / "f.data")
    monkeypatch.setattr(catalog, "categories", lambda config: ("bolt",))
    monkeypatch.setattr(catalog, "open_source", lambda config, category: source)
    asked = dict(protocol="few_shot", k_shot=2, draw=1)
    materialize.write(config(**asked), path, n_bank=0)
    ours, theirs = (pipeline.open(config(**asked, source=where), "bolt") for where in ("", path))
    assert theirs.manifest() == ours.manifest() and theirs.spec == ours.spec
    for feed in (Feed(4, shuffle=False), Feed(3), Feed(5, "test", shuffle=False)):
        assert_same(take(theirs, feed, 0, 1), take(ours, feed, 0, 1))
    assert pipeline.open(config(**asked, source=path, seed=77), "bolt").spec.n_train == 4
    for other in (dict(draw=0), dict(k_shot=1), dict(protocol="one_class")):
        with pytest.raises(UserError, match=f"set --config.data.{next(iter(other))}={asked[next(iter(other))]}"):
            pipeline.open(config(**asked | other, source=path), "bolt")
