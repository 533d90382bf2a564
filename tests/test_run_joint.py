"""One model for several categories, models of another category's images, and stages that predict nothing.

The method is small enough to be done again by hand: 'learn' remembers in which order it saw images, 'measure' looks at
what is held out, and 'fit' keeps the mean colour of every normal training image, to which a test image has a distance.
"""

import csv
import json
import os
import shutil
import signal
import types

import jax.numpy as jnp
import numpy as np
import pytest
from fake_data import FakeSource

from jaxad import config as configs
from jaxad import methods, run
from jaxad.data import catalog, pipeline
from jaxad.errors import UserError
from jaxad.types import AnomalyMap, Feed, Stage, TrainState, View
from jaxad.updates import remember

N_TRAIN = {"bolt": 11, "nut": 7}
STAGES = ("learn", "measure", "fit")


def colour(images):
    return jnp.mean(images, axis=(1, 2))


def stages(config, spec):
    def begin(key, spec, carry):
        return TrainState.create(memory={"trace": jnp.zeros((), jnp.float32)})

    def trace(state, batch, key):
        return {"trace": 0.5 * state.memory["trace"] + jnp.mean(batch.views["turned"])}

    def init_measure(key, spec, carry):
        return TrainState.create(memory={**carry.memory, "sum": jnp.zeros(3), "n": jnp.zeros(())})

    def measure(state, batch, key):
        valid = batch.valid.astype(jnp.float32)
        more = jnp.sum(colour(batch.image) * valid[:, None], axis=0)
        return {"sum": state.memory["sum"] + more, "n": state.memory["n"] + jnp.sum(valid)}

    def facts(state):
        return {"n": state.memory["n"], "red": state.memory["sum"][0] / state.memory["n"], "none": jnp.float32(jnp.nan)}

    def init_fit(key, spec, carry):
        return TrainState.create(memory={**carry.memory, "bank": jnp.zeros((spec.n_train_normal, 3))})

    def write(state, batch, key):
        row = jnp.where(batch.valid, batch.index, spec.n_train_normal)
        return {"bank": state.memory["bank"].at[row].set(colour(batch.image), mode="drop")}

    def predict(state, batch):
        far = jnp.linalg.norm(colour(batch.image)[:, None] - state.memory["bank"][None], axis=-1)
        score = jnp.min(far, axis=1)
        return AnomalyMap(jnp.broadcast_to(score[:, None, None], batch.mask.shape), score)

    size, held = config.data.batch_size, "holdout" if spec.n_holdout else "train_normal"
    feed = Feed(size, "train_normal", views=(View("turned", "rotated"),))
    made = (
        Stage("learn", feed, config.train.steps.learn, begin, remember(trace), facts=lambda state: state.memory),
        Stage("measure", Feed(size, held, shuffle=False), 0, init_measure, remember(measure), facts=facts),
        Stage("fit", Feed(size, "train_normal", shuffle=False), 0, init_fit, remember(write), predict=predict),
    )
    return made[: STAGES.index(config.colours.last) + 1]


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    """The method, and two categories without files whose images differ."""
    sources = {name: FakeSource(name=name, n_train=n) for name, n in N_TRAIN.items()}
    sources["nut"].images = {key: image // 2 for key, image in sources["nut"].images.items()}
    asked = lambda config: tuple(config.data.category.split(","))  # noqa: E731
    monkeypatch.setattr(catalog, "categories", asked)
    monkeypatch.setattr(catalog, "open_source", lambda config, category: sources[category])
    monkeypatch.setattr(methods, "resolve", lambda method: types.SimpleNamespace(stages=stages))


def config(category, last="fit", start=None, **data):
    made = configs.default("colours", steps={"learn": 4, "measure": 0, "fit": 0}, last=last)
    made.data.update({"category": category, "image_size": 16, "batch_size": 4, "holdout": 0.3, **data})
    made.eval.batch_size, made.mesh.devices, made.train.log_every = 4, 1, 1
    made.report.overlays, made.report.curves = 0, False
    made.start.update(start or {})
    return made


def colours_of(made, category, split):
    data = pipeline.open(made, category)
    images = [data.image(split, i) / np.float32(255) for i in range(len(data.records(split)))]
    return np.stack([image.mean(axis=(0, 1)) for image in images])


def distances(seen, bank):
    return np.sqrt(((seen[:, None] - bank[None]) ** 2).sum(-1)).min(1)


def scores(work, category):
    rows = [row for row in csv.DictReader((work / "predictions.csv").open()) if row["category"] == category]
    return np.array([float(row["score"]) for row in rows])


def test_a_joint_model_is_that_of_the_union_and_each_category_has_its_own_threshold(tmp_path):
    made = config("bolt,nut", joint=True)
    results = run.run(made, str(tmp_path))
    bank = np.concatenate([colours_of(made, name, "train") for name in N_TRAIN])
    held = np.concatenate([colours_of(made, name, "holdout") for name in N_TRAIN])
    assert set(results["categories"]) == set(N_TRAIN) and len(bank) == 8 + 5
    for name in N_TRAIN:
        result = results["categories"][name]
        np.testing.assert_allclose(scores(tmp_path, name), distances(colours_of(made, name, "test"), bank), atol=1e-6)
        own = distances(colours_of(made, name, "holdout"), bank)
        assert result["threshold"]["value"] == pytest.approx(own.max(), rel=0.02)  # the 0.995 quantile of a few
        assert result["threshold"]["n_images"] == len(own) and result["n_train"] == len(bank)
        assert list(result["facts"]) == ["learn", "measure"]
        assert result["facts"]["measure"] == {"n": 5.0, "none": None, "red": pytest.approx(held[:, 0].mean())}
        assert sorted(os.listdir(tmp_path / name)) == sorted(
            ["metrics.jsonl", "spec.json", "splits.json", "tensorboard", "timing.json"]
        )
    assert {*STAGES, "metrics.jsonl", "spec.json", "splits.json"} <= set(os.listdir(tmp_path / "joint"))
    assert results["categories"]["bolt"]["fit_seconds"] == results["categories"]["nut"]["fit_seconds"] > 0
    rows = [json.loads(line) for line in (tmp_path / "joint" / "metrics.jsonl").read_text().splitlines()]
    assert [row["measure/n"] for row in rows if "measure/n" in row] == [5.0]
    # the same command on the finished run, as it was; and its stages in another run, of one category
    before = (tmp_path / "results.json").read_bytes()
    run.run(made, str(tmp_path))
    assert (tmp_path / "results.json").read_bytes() == before
    taken = config("nut", start=dict(run=str(tmp_path), stage="fit", category="joint"))
    again = run.run(taken, str(tmp_path / "again"))["categories"]["nut"]
    assert again["facts"] == results["categories"]["nut"]["facts"] and again["n_train"] == len(bank)
    np.testing.assert_array_equal(scores(tmp_path / "again", "nut"), scores(tmp_path, "nut"))
    taken.start.category = ""
    with pytest.raises(UserError, match=r"no finished stage 'learn' of nut .*start.category to one that has it: joint"):
        run.run(taken, str(tmp_path / "third"))


def test_a_joint_run_resumes_after_ctrl_c_as_if_it_had_not_been_stopped(tmp_path, monkeypatch):
    made, serve = config("bolt,nut", joint=True, holdout=0.0), pipeline.Graph.batches

    def interrupted(self, feed, **options):
        assert self.spec.category == "joint" or not feed.split.startswith("train_")
        for number, batch in enumerate(serve(self, feed, **options), options["start"]):
            if feed.shuffle and options["start"] == 0 and number == 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    whole = run.run(made, str(tmp_path / "whole"))
    monkeypatch.setattr(pipeline.Graph, "batches", interrupted)
    with pytest.raises(KeyboardInterrupt, match="after step . of 4; the same command resumes"):
        run.run(made, str(tmp_path / "parts"))
    parts = run.run(made, str(tmp_path / "parts"))
    for name in N_TRAIN:
        np.testing.assert_array_equal(scores(tmp_path / "parts", name), scores(tmp_path / "whole", name))
        assert parts["categories"][name]["facts"] == whole["categories"][name]["facts"]
    assert parts["categories"]["bolt"]["facts"]["measure"]["n"] == 18  # nothing is held out: of the training images


def test_a_model_of_one_category_is_judged_on_another_of_another_size(tmp_path):
    told = run.run(config("bolt"), str(tmp_path / "bolt"))["categories"]["bolt"]["facts"]
    made = config("nut", start=dict(run=str(tmp_path / "bolt"), stage="fit", category="bolt"))
    result = run.run(made, str(tmp_path / "w"))["categories"]["nut"]
    bank = colours_of(config("bolt"), "bolt", "train")
    assert len(bank) == result["n_train"] == 8 and result["threshold"]["n_images"] == 2 and result["facts"] == told
    wanted = distances(colours_of(made, "nut", "test"), bank)
    np.testing.assert_allclose(scores(tmp_path / "w", "nut"), wanted, atol=1e-6)
    assert not set(STAGES) & set(os.listdir(tmp_path / "w" / "nut"))
    made.start.stage = "measure"  # and from there on with images of its own
    result = run.run(made, str(tmp_path / "v"))["categories"]["nut"]
    assert result["n_train"] == 5 and result["facts"] == told
    own = distances(colours_of(made, "nut", "test"), colours_of(made, "nut", "train"))
    np.testing.assert_allclose(scores(tmp_path / "v", "nut"), own, atol=1e-6)
    assert set(STAGES) & set(os.listdir(tmp_path / "v" / "nut")) == {"fit"}
    for start, says in (
        (dict(category="screw"), "no finished stage 'learn' of screw .*set config.start.category to one .*: bolt"),
        (dict(category=""), "no finished stage 'learn' of nut .*set config.start.category to one .*: bolt"),
        (dict(stage="fid"), "'fid' is not a stage of colours: learn, measure, fit"),
    ):
        wrong = config("nut", start={**made.start, **start})
        with pytest.raises(UserError, match=says) as error:
            run.run(wrong, str(tmp_path / "wrong"))
        assert "\n" not in str(error.value) and not (tmp_path / "wrong").exists()


def test_an_older_run_that_does_not_say_what_it_was_trained_on_is_taken_for_the_same(tmp_path):
    bolt = tmp_path / "bolt"
    run.run(config("bolt"), str(bolt))
    (bolt / "bolt" / "spec.json").unlink()
    shutil.copytree(bolt / "bolt", bolt / "nut")
    start = dict(run=str(bolt), stage="fit")
    assert run.run(config("bolt", start=start), str(tmp_path / "same"))["categories"]["bolt"]["n_train"] == 8
    with pytest.raises(UserError, match="other arrays than this config builds") as error:
        run.run(config("nut", start=start), str(tmp_path / "other"))
    assert "\n" not in str(error.value)
    (bolt / "nut" / "spec.json").write_text("{}")
    with pytest.raises(UserError, match="spec.json is not readable"):
        run.run(config("nut", start=start), str(tmp_path / "third"))


@pytest.mark.parametrize("last", ["learn", "measure"])
def test_stages_that_predict_nothing_and_make_no_backbone_are_a_run(tmp_path, last, capsys):
    results = run.run(config("bolt,nut", last, joint=True), str(tmp_path / "joint"))
    assert json.loads((tmp_path / "joint" / "results.json").read_text()) == json.loads(json.dumps(results))
    entry = results["categories"]["joint"]
    assert set(results["categories"]) == {"joint"} and entry["n_train"] == 13 and entry["fit_seconds"] > 0
    assert entry.get("facts", {}).get("measure", {}).get("n") == (5.0 if last == "measure" else None)
    assert (tmp_path / "joint" / "joint" / last / "final").is_dir()
    assert "joint: pre-trained in" in capsys.readouterr().out
    apart = run.run(config("bolt,nut", last), str(tmp_path / "apart"))["categories"]
    assert {name: apart[name]["n_train"] for name in apart} == {"bolt": 8, "nut": 5}
    # and another run goes on from there
    start = dict(run=str(tmp_path / "joint"), stage=last, category="joint")
    found = run.run(config("nut", start=start), str(tmp_path / "on"))["categories"]["nut"]
    assert found["n_train"] == 5 and found["facts"]["measure"]["n"] == (5.0 if last == "measure" else 2.0)


def test_a_model_of_the_demo_s_cloth_judges_its_washers(tmp_path, monkeypatch, demo_cache):
    monkeypatch.undo()
    monkeypatch.setattr(methods, "resolve", lambda method: types.SimpleNamespace(stages=stages))
    how = dict(n_shot=6, cache_dir=demo_cache)
    run.run(config("weave", **how), str(tmp_path / "weave"))
    made = config("washer", start=dict(run=str(tmp_path / "weave"), stage="fit", category="weave"), **how)
    result = run.run(made, str(tmp_path / "washer"))["categories"]["washer"]
    bank = colours_of(config("weave", **how), "weave", "train")
    assert result["n_train"] == len(bank)
    wanted = distances(colours_of(made, "washer", "test"), bank)
    np.testing.assert_allclose(scores(tmp_path / "washer", "washer"), wanted, atol=1e-6)
