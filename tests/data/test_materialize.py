import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
from fake_data import FakeSource, assert_same, config, take

from jaxad import methods
from jaxad.data import archive, catalog, materialize, pipeline
from jaxad.types import Feed, Stage, UserError, View

TWO_VIEWS = (View("rotated", "rotated", {"degrees": 9.0}), View("mixed", "fake_data:mixed"))
FEEDS = {
    "contrast": Feed(4, views=TWO_VIEWS),
    "fit": Feed(4, shuffle=False),
    "normal": Feed(3, "train_normal", views=TWO_VIEWS),
}
SPLITTING = dict(n_anomalies=2, holdout=0.2)


def test_the_command_writes_a_file_that_the_demo_runs_from(tmp_path, demo_cache):
    out, file = str(tmp_path / "demo.data"), tmp_path / "configuration.py"
    file.write_text(
        "from jaxad import config\n"
        "def get_config(variant=None):\n"
        "    result = config.default('patchcore')\n"
        f"    result.data.update(image_size=32, holdout=0.0, cache_dir={demo_cache!r})\n"
        "    return result\n"
    )
    assert materialize.main(["materialize", f"--config={file}", f"--out={out}", "--bank=0"]) == 0
    assert pipeline.categories(config(source=out)) == catalog.categories(config())
    data = pipeline.open(config(source=out), pipeline.categories(config(source=out))[0])
    original = pipeline.open(config(cache_dir=demo_cache), data.spec.category)
    assert_same(take(data, Feed(4), 0, 3), take(original, Feed(4), 0, 3))


@pytest.fixture(scope="module")
def fakes():
    """Two categories without files, and a method whose stages have the FEEDS."""
    sources = {name: FakeSource(name=name, n_train=n) for name, n in (("bolt", 11), ("nut", 7))}

    def stages(config, spec):
        return tuple(Stage(name, feed, 6, init=None, update=None) for name, feed in FEEDS.items())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "categories", lambda config: tuple(sources))
        patch.setattr(catalog, "open_source", lambda config, category: sources[category])
        patch.setattr(methods, "resolve", lambda method: types.SimpleNamespace(stages=stages))
        yield sources


@pytest.fixture(scope="module")
def file(fakes, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("materialised") / "two.data")
    materialize.write(config(**SPLITTING), path, n_bank=5)
    return path


def both(file, category, **options):
    options = SPLITTING | options
    return (pipeline.open(config(**options, source=source), category) for source in ("", file))


@pytest.mark.parametrize("memory_mb", [4096, 0])
@pytest.mark.parametrize("feed", [Feed(5), Feed(5, "test", shuffle=False), Feed(2, "holdout"), Feed(5, "train_normal")])
def test_a_file_serves_the_same_batches_as_the_source(file, feed, memory_mb):
    for category in ("bolt", "nut"):
        ours, theirs = both(file, category, memory_mb=memory_mb)
        stop = 5 if feed.shuffle else feed.one_pass(len(ours.records(feed.split)))
        for rows in (slice(None), slice(1, 2)):
            assert_same(take(theirs, feed, 0, stop, rows, seed=9), take(ours, feed, 0, stop, rows, seed=9))


def test_a_file_tells_the_same_of_the_data(file):
    for category in ("bolt", "nut"):
        ours, theirs = both(file, category)
        assert theirs.spec == ours.spec and theirs.notes == ours.notes and theirs.manifest() == ours.manifest()
        for split in ("train", "train_normal", "holdout", "test"):
            assert theirs.records(split) == ours.records(split)
        assert np.array_equal(theirs.image("test", 3), ours.image("test", 3))


@pytest.mark.parametrize("stage", ["contrast", "normal"])
def test_a_bank_serves_the_same_views_and_then_repeats(file, stage):
    ours, theirs = both(file, "bolt")
    options = dict(seed=config().seed, stage=stage)
    expected = take(ours, FEEDS[stage], 0, 5, **options)
    assert_same(take(theirs, FEEDS[stage], 0, 5, **options), expected)
    assert_same(take(theirs, FEEDS[stage], 3, 12, **options), [expected[n % 5] for n in range(3, 12)])
    shares = [take(theirs, FEEDS[stage], 2, 3, rows=rows, **options)[0] for rows in (slice(0, 1), slice(1, None))]
    joined = np.concatenate([share.views["mixed"] for share in shares])
    assert np.array_equal(joined, expected[2].views["mixed"])


def test_the_summary_states_the_sizes_of_the_banks(fakes, tmp_path):
    path = str(tmp_path / "f.data")
    said = materialize.write(config(), path, stages=["contrast"], n_bank=99)
    assert "stage contrast: a bank of 6 batches of 4" in said and "batch n is bank entry n mod 6" in said
    assert "stage normal" not in said and f"--config.data.source={path}" in said


@pytest.mark.parametrize(
    "options, seed, stage, said",
    [
        ({}, 3, "contrast2", "no bank of views for stage 'contrast2'"),
        ({}, 4, "contrast", "seed=3, this run has 4"),
        ({"batch_size": 5}, 3, "contrast", "batch_size=4, this run has 5"),
        ({"views": TWO_VIEWS[:1]}, 3, "contrast", "views="),
    ],
)
def test_a_bank_for_another_feed_is_refused(file, options, seed, stage, said):
    _, theirs = both(file, "bolt")
    feed = Feed(**{"batch_size": 4, "views": TWO_VIEWS} | options)
    with pytest.raises(UserError, match=said):
        theirs.batches(feed, seed=seed, stage=stage, start=0, stop=1, rows=slice(None))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"n_anomalies": 1}, "data.n_anomalies=2, this run has 1; set --config.data.n_anomalies=2"),
        ({"resize": "short_crop"}, "data.resize=square"),
        ({"seed": 8}, "drawn with seed 3"),
    ],
)
def test_other_settings_than_the_files_are_refused(file, options, said):
    with pytest.raises(UserError, match=said):
        list(both(file, "bolt", **options))


def test_the_seed_is_free_where_nothing_was_drawn(fakes, tmp_path):
    path = str(tmp_path / "plain.data")
    materialize.write(config(), path, n_bank=0)
    assert pipeline.open(config(source=path, seed=77), "nut").spec.n_train == 7


def test_categories_are_those_of_the_file(file):
    def named(category):
        return pipeline.categories(config(source=file, category=category))

    assert named("") == named("all") == ("bolt", "nut") and named("nut") == ("nut",)
    with pytest.raises(UserError, match="'bolt'"):
        named("bolz")


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "x.data"
    path.write_bytes(b"no archive")
    with pytest.raises(UserError, match="not a file of python -m jaxad.data.materialize"):
        pipeline.categories(config(source=str(path)))
    with pytest.raises(UserError, match="absent.data"):
        pipeline.categories(config(source=str(tmp_path / "absent.data")))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(file, fakes, monkeypatch):
    before = open(file, "rb").read()

    def fail(split, i):
        raise UserError("truncated")

    monkeypatch.setattr(fakes["nut"], "load", fail)
    with pytest.raises(UserError, match="truncated"):
        materialize.write(config(), file)
    assert open(file, "rb").read() == before
    assert os.listdir(os.path.dirname(file)) == ["two.data"]


def test_a_place_that_cannot_be_written_is_refused(fakes, tmp_path):
    with pytest.raises(UserError, match="cannot write .*another --out"):
        materialize.write(config(), str(tmp_path / "no_such_folder" / "f.data"))


def test_a_stage_that_does_not_exist_is_refused(fakes, tmp_path):
    with pytest.raises(UserError, match="'contrast'"):
        materialize.write(config(), str(tmp_path / "f"), stages=["contrst"])
    with pytest.raises(UserError, match="needs no bank"):
        materialize.write(config(), str(tmp_path / "f"), stages=["fit"])
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "array",
    [
        np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8),
        (np.add.outer(np.arange(40), np.arange(30))[..., None] * [3, 1, 2]).astype(np.uint8),
        np.random.default_rng(0).random((3, 5, 2)) > 0.7,
        np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32),
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.array(5, np.int32),
        np.zeros((0, 4), bool),
    ],
)
def test_arrays_come_back_as_they_were(array):
    back = archive.decode(archive.encode(array))
    assert back.dtype == array.dtype and back.shape == array.shape and np.array_equal(back, array)


def test_smooth_images_compress_well():
    y, x = np.mgrid[0:128, 0:128]
    image = np.stack([100 + 50 * np.sin(x / 20 + c) + y / 4 for c in range(3)], -1).astype(np.uint8)
    assert len(archive.encode(image)) < image.size / 8


def test_a_run_from_a_file_needs_neither_tensorflow_nor_pillow(file, tmp_path):
    code = f"""
import sys, json
for name in ("tensorflow", "tensorflow_datasets", "PIL"):
    sys.modules[name] = None
from fake_data import config, take
from jaxad.data import pipeline
from jaxad.types import Feed
data = pipeline.open(config(source={file!r}, n_anomalies=2, holdout=0.2), "bolt")
print(json.dumps([float(b.image.sum(dtype="f8")) for b in take(data, Feed(4), 0, 3)]))
"""
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([tests, os.path.dirname(tests)])}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    ours, _ = both(file, "bolt")
    assert json.loads(done.stdout) == [float(b.image.sum(dtype="f8")) for b in take(ours, Feed(4), 0, 3)]


@pytest.mark.parametrize(
    "arguments, said", [([], "--out=FILE"), (["--ouut=x"], "ouut"), (["--out=x", "--bank=y"], "bank")]
)
def test_a_bad_command_line_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, said):
    file = tmp_path / "c.py"
    file.write_text("from jaxad import config\ndef get_config(variant=None):\n    return config.default('patchcore')\n")
    assert materialize.main(["materialize", f"--config={file}", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
