"""The benchmark: it times the programs of training and predicting, on nothing but made-up arrays."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import toy

from jaxad import benchmark, flags, methods, sharding, timing, train
from jaxad import config as configs
from jaxad.errors import NonFiniteLoss
from jaxad.types import SKIPPED, Feed, View

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOY = """
    from jaxad.config import default

    def get_config(variant=""):
        steps = dict(learn=3, bank=0)
        config = default("toy", steps=steps, scale=1.0, lr=0.01, optimiser="sgd", dtype="float32")
        config.data.dataset = "mvtec_ad"
        config.data.image_size = 16
        config.data.batch_size = 8
        config.data.n_shot = 20
        return config
"""


@pytest.fixture
def toy_config(tmp_path, monkeypatch):
    """--config of a method with two stages that compiles in a blink. There is no data set, and no TensorFlow."""
    for name in ("tensorflow", "tensorflow_datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "toy_config.py").write_text(textwrap.dedent(TOY))
    return f"--config={tmp_path}/toy_config.py"


def call(tmp_path, *argv):
    """What a command wrote with --json."""
    assert benchmark.main(["benchmark", *argv, f"--json={tmp_path}/speed.json"]) == 0
    return json.loads((tmp_path / "speed.json").read_text())


def plausible(row, timed, devices=1):
    assert row["timed"] == timed and row["compile_seconds"] > 0 and row["device_peak_bytes"] is None  # a CPU
    assert 0 < row["p10_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["p95_ms"]
    assert row["images_per_second"] == pytest.approx(1e3 * row["batch_size"] / row["p50_ms"])
    assert row["flops"] > 0 and row["flops_per_second"] == pytest.approx(1e3 * row["flops"] / row["p50_ms"])
    memory = row["memory_bytes"]
    kept = memory["arguments"] + memory["outputs"] - memory["aliased"]
    assert memory["peak"] >= kept + memory["temporaries"] > 0


def test_every_stage_and_predicting_are_timed_and_written(toy_config, tmp_path, capsys):
    found = call(tmp_path, toy_config, "--steps=4", "--config.mesh.devices=1")
    assert {"method", "image_size", "device", "commit", "versions", "config", "stages"} <= found.keys()
    assert (found["method"], found["image_size"], found["device"]) == ("toy", 16, "1 x cpu:cpu")
    learn, bank = found["stages"]
    assert [row["stage"] for row in (learn, bank)] == ["learn", "bank"]
    for row in (learn, bank):
        plausible(row, timed=4)
        assert (row["precision"], row["devices"], row["batch_size"]) == ("float32", 1, 8)
        assert row["finish_seconds"] > 0
    assert learn["memory_bytes"]["aliased"] > 0  # the state is donated
    assert "predict" not in learn and [row["batch_size"] for row in bank["predict"]] == [1, 8]
    for row in bank["predict"]:
        plausible(row, timed=4)
    assert sorted(os.listdir(tmp_path)) == ["speed.json", "toy_config.py"]

    out, progress = capsys.readouterr()
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len({len(line) for line in table}) == 1  # aligned
    first = [line.split("|")[1].strip() for line in table]
    assert first[0] == "program" and first[2:] == ["learn", "bank", "bank: predict", "bank: predict"]
    assert found["commit"] in out and "learn, float32: compiles and times the step" in progress


def test_both_precisions_are_timed_and_are_different_programs(shallow, monkeypatch):
    made = configs.default("patchcore")
    made.data.image_size, made.data.batch_size, made.data.n_shot = 32, 4, 4
    made.backbone.weights, made.mesh.devices, made.patchcore.ones_pass = "random", 1, False
    programs = []

    def watched(jitted, *args, compile_for=timing.compile_for):
        compiled, seconds = compile_for(jitted, *args)
        programs.append(compiled.as_text())
        return compiled, seconds

    monkeypatch.setattr(timing, "compile_for", watched)
    monkeypatch.setattr(timing, "_finish", lambda stage, state, mesh: state)  # neither is looked at here
    monkeypatch.setattr(timing, "_predict", lambda *args: {})
    found = benchmark.run(made, ["bfloat16", "float32", "auto"], steps=2)  # auto is float32 here, and timed once
    assert [row["precision"] for row in found["stages"]] == ["bfloat16", "float32"]
    assert ["bf16[" in program for program in programs] == [True, False]
    for row in found["stages"]:
        plausible(row, timed=2)


def test_a_stage_alone_follows_the_untrained_ones_before_it(toy_config, tmp_path, monkeypatch):
    built = []

    def build(stage, spec, carry, seed, build=train.build):
        built.append((stage.name, None if carry is None else int(carry.step)))
        return build(stage, spec, carry, seed)

    monkeypatch.setattr(train, "build", build)
    options = (toy_config, "--steps=1", "--config.mesh.devices=1")
    (bank,) = call(tmp_path, *options, "--stage=bank")["stages"]
    assert bank["stage"] == "bank" and len(bank["predict"]) == 2
    assert built == [("learn", None), ("bank", 0)]
    (learn,) = call(tmp_path, *options, "--stage=learn")["stages"]
    assert learn["stage"] == "learn" and not {"predict", "finish_seconds"} & learn.keys()
    assert built[2:] == [("learn", None)]


def test_devices_share_a_batch_and_its_operations_add_up(toy_config, tmp_path):
    options = (toy_config, "--stage=bank", "--steps=1", "--config.eval.batch_size=6")
    one, four = (call(tmp_path, *options, f"--config.mesh.devices={n}") for n in (1, 4))
    assert (one["device"], four["device"]) == ("1 x cpu:cpu", "4 x cpu:cpu")
    (one,), (four,) = one["stages"], four["stages"]
    assert four["flops"] == pytest.approx(one["flops"], rel=0.2)
    assert four["memory_bytes"]["arguments"] < one["memory_bytes"]["arguments"] / 2
    assert [row["batch_size"] for row in four["predict"]] == [4, 8]  # one per device, and rounded up


def test_minutes_bound_the_calls_that_are_timed_and_one_always_is(toy_config, tmp_path):
    found = call(tmp_path, toy_config, "--steps=1000000", "--minutes=0", "--config.mesh.devices=1")
    assert [row["timed"] for row in (*found["stages"], *found["stages"][1]["predict"])] == [1, 1, 1, 1]
    clock = timing._Clock(steps=3, deadline=math.inf)
    seen = []
    assert clock.seconds(lambda: seen.append(1)).shape == (3,)
    assert len(seen) == 3 + timing.WARM_UP


def test_a_batch_has_a_picture_and_a_mask_for_every_view():
    made = configs.default("patchcore")
    made.data.image_size, made.data.n_anomalies, made.data.category = 32, 3, "screw"
    spec = timing.spec_of(made)
    assert (spec.category, spec.n_train, spec.n_train_normal, spec.image_size) == ("screw", 203, 200, 32)
    batch = timing.batch_of(spec, 4, (View("anomaly", "nsa"), View("rotated", "rotated")))
    assert set(batch.views) == {"anomaly", "anomaly_mask", "rotated", "rotated_mask"}
    for images in (batch.image, batch.views["anomaly"], batch.views["rotated"]):
        assert images.shape == (4, 32, 32, 3) and images.dtype == np.float32 and 0 <= images.min() < images.max() < 1
    mask = batch.views["anomaly_mask"]
    assert mask.shape == (4, 32, 32) and mask.dtype == bool and 0 < mask.sum() < mask.size
    assert not batch.mask.any() and not batch.label.any() and batch.valid.all()
    made.data.category = "screw,tile"
    assert timing.spec_of(made).category == "generated"


def test_batches_of_patches_have_what_their_ops_make():
    made = configs.default("patchcore")
    made.data.image_size = 32
    ops = {"triple": {"patch": 12, "n": [4]}, "pattern_pair": {"patch": 12}}
    asked = tuple(View(f"a_{op}", op, options) for op, options in ops.items())
    images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    from_images = toy.views(Feed(4, views=asked), images, np.zeros((4, 32, 32), bool))
    for views in (timing.batch_of(timing.spec_of(made), 4, asked).views, from_images):
        shapes = {name: (value.shape[1:], str(value.dtype)) for name, value in views.items()}
        pictures = ((12, 12, 3), "float32")
        assert shapes == {
            **{f"a_{op}_{name}": pictures for op in ops for name in ("far", "near", "target")},
            "a_pattern_pair_observed": pictures,
            "a_pattern_pair_mask": ((12, 12), "bool"),
            "a_pattern_pair_match": ((), "bool"),
            "a_pattern_pair_masked": ((), "bool"),
            "a_pattern_pair_kind": ((), "int32"),
        }
        assert views["a_pattern_pair_match"].tolist() == [True, False, True, False]
        assert views["a_pattern_pair_masked"].all() and views["a_pattern_pair_mask"][1].any()
    spoilt = (from_images["a_pattern_pair_observed"] != from_images["a_pattern_pair_target"]).any(axis=-1)
    np.testing.assert_array_equal(spoilt, from_images["a_pattern_pair_mask"])
    assert spoilt.any(axis=(1, 2)).tolist() == [False, True, False, True]
    exact = toy.views(Feed(4, views=(View("a", "triple", {"patch": 8}),)), images, None)
    row = np.concatenate([exact[f"a_{name}"] for name in ("far", "near", "target")], axis=2)
    np.testing.assert_array_equal(row, images[:, :8, :24])


def test_what_a_method_counts_is_counted_when_it_predicts_and_only_then(toy_config, tmp_path, monkeypatch, capsys):
    def stages(config, spec, stages=toy.stages):
        learn, bank = stages(config, spec)
        return learn, dataclasses.replace(bank, work={"triples": 32, "pairs": 3})

    options = (toy_config, "--stage=bank", "--steps=1", "--config.mesh.devices=1", "--config.eval.batch_size=4")
    (bank,) = call(tmp_path, *options)["stages"]
    assert [part["work_per_second"] for part in bank["predict"]] == [
        {},
        {},
    ] and "triples" not in capsys.readouterr().out
    monkeypatch.setattr(toy, "stages", stages)
    (bank,) = call(tmp_path, *options)["stages"]
    assert "work_per_second" not in bank
    for part in bank["predict"]:
        rates = part["work_per_second"]
        assert rates["triples"] == pytest.approx(32 * part["images_per_second"])
        assert rates["pairs"] == pytest.approx(3 * part["images_per_second"])
    out = capsys.readouterr().out
    shown = [benchmark._number(rate) for rate in bank["predict"][1]["work_per_second"].values()]
    assert f"bank: predict, float32, batch 4: {shown[0]} triples/s, {shown[1]} pairs/s" in out.splitlines()


def test_several_processes_agree_on_what_the_main_one_says():
    assert sharding.agreed(True) is True and sharding.agreed(False) is False  # one process: what it says itself


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--precision=float16"], "--precision=float16: there is no 'float16'; the nearest is 'bfloat16'"),
        (["--stage=bonk"], "--stage=bonk: method 'toy' has no such stage; the nearest is 'bank'"),
        (["--json=/none/speed.json"], "'/none' is no folder that can be written to; choose another"),
        (["--steps=0"], "--steps"),
        (["--minutes=-1"], "--minutes"),
        (["--config.mesh.devices=3"], "batch size 8 does not divide over 3 devices"),
        (["--config.toy.scal=1"], "the nearest is 'toy.scale'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(toy_config, capsys, argv, said):
    assert benchmark.main(["benchmark", toy_config, *argv]) == 2
    out, errors = capsys.readouterr()
    told = [line for line in errors.splitlines() if line.startswith("jaxad: ")]
    assert len(told) == 1 and said in told[0] and not out and "Traceback" not in errors


def test_metrics_that_are_not_finite_are_told():
    metrics = {"student/loss": np.float32(np.nan), "cossim": np.float32(0.5), "now and then": np.float32(SKIPPED)}
    with pytest.raises(NonFiniteLoss, match=r"student/loss is not finite after 12 .* \(student/loss=nan, cossim=0.5\)"):
        train.check_finite("distil", "after 12 steps", metrics, "lower the rate")


def test_help_answers_without_jax():
    script = "import sys; sys.modules['jax'] = None; from jaxad import benchmark; sys.exit(benchmark.main())"
    done = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--precision" in done.stdout and "--config" in done.stdout


@pytest.mark.parametrize(
    ("file", "views"),
    [
        ("spd.py:supervised", {"spd_first": 224, "spd_local": 224, "class": 0}),
        ("spd.py:moco_v2+base+small", {"spd_first": 64, "spd_second": 64}),
        ("two_class.py", {"augmented": 256, "augmented_mask": 256}),
        ("pattern_generation.py:small", {"triple_far": 32, "triple_near": 32, "triple_target": 32}),
    ],
)
def test_made_up_batches_have_what_a_stage_asks_for(monkeypatch, file, views):
    monkeypatch.chdir(pathlib.Path(__file__).parents[1])
    config = flags.load(f"configs/{file}")
    config.backbone.weights = "random"
    spec = timing.spec_of(config)
    stage = methods.resolve(config.method).stages(config, spec)[0]  # which checks counts and classes
    batch = timing.batch_of(spec, 2, stage.feed.views)
    assert {name: value.shape[1] if value.ndim > 1 else 0 for name, value in batch.views.items()} == views
