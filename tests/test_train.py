import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxad import sharding, train
from jaxad.config import default
from jaxad.errors import NonFiniteLoss
from jaxad.log import Log


def config(devices=1, steps=6, **options):
    options = {"scale": 1.0, "lr": 0.05, "optimiser": "adam", "dtype": "float32", **options}
    made = default("toy", steps={"learn": steps}, **options)
    made.data.batch_size = 8
    made.mesh.devices = devices
    made.train.log_every = 2
    return made


def run(folder, made, data=None, steps=None):
    """Both stages; `steps` shortens the first."""
    data = data or toy.ArrayData()
    mesh = sharding.start(made.mesh)
    carry = None
    with jax.set_mesh(mesh), Log(str(folder)) as log:
        for stage in toy.stages(made, data.spec):
            carry, _ = train.train(
                stage, data, carry, seed=3, mesh=mesh, folder=str(folder / stage.name), config=made, log=log
            )
    return jax.tree.map(np.asarray, carry)


def assert_same(one, other):
    paths = jax.tree_util.tree_flatten_with_path(one)[0]
    others = jax.tree_util.tree_flatten_with_path(other)[0]
    assert [path for path, _ in paths] == [path for path, _ in others]
    for (path, left), (_, right) in zip(paths, others, strict=True):
        np.testing.assert_array_equal(left, right, err_msg=jax.tree_util.keystr(path))


class Interrupted(toy.ArrayData):
    """Presses Ctrl-C while batch `at` is being made."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def batches(self, feed, **options):
        for number, batch in enumerate(super().batches(feed, **options), options["start"]):
            if feed.shuffle and number == self.at:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch


def test_resume_equals_uninterrupted_bit_for_bit(tmp_path):
    whole = run(tmp_path / "whole", config())
    with pytest.raises(KeyboardInterrupt, match="after step 4 of 6"):
        run(tmp_path / "parts", config(), data=Interrupted(3))
    assert_same(run(tmp_path / "parts", config()), whole)
    assert whole.memory["seen"] == 13  # padding was not counted


def test_a_finished_run_trains_nothing_and_returns_the_same(tmp_path):
    first = run(tmp_path, config())
    traces = dict(toy.TRACES)
    rows = (tmp_path / "metrics.jsonl").read_text()
    assert_same(run(tmp_path, config()), first)
    assert (tmp_path / "metrics.jsonl").read_text() == rows
    # eval_shape of `init` and `finish` does not run an update, so nothing was traced again
    assert toy.TRACES == traces


def test_one_compile_per_stage(tmp_path):
    before = dict(toy.TRACES)
    run(tmp_path, config(steps=9))
    assert toy.TRACES["learn"] - before["learn"] == 1
    assert toy.TRACES["bank"] - before["bank"] == 1


def test_one_device_equals_eight_with_sgd(tmp_path):
    one = run(tmp_path / "one", config(1, optimiser="sgd"))
    eight = run(tmp_path / "eight", config(8, optimiser="sgd"))
    # the same sums in another order: float32 rounding, through 6 steps and a BatchNorm
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(left, right, rtol=2e-4, atol=2e-5)


def test_a_checkpoint_of_eight_devices_resumes_on_one(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, config(8, optimiser="sgd"), data=Interrupted(3))
    mixed = run(tmp_path, config(1, optimiser="sgd"))
    one = run(tmp_path / "one", config(1, optimiser="sgd"))
    for left, right in zip(jax.tree.leaves(mixed), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(left, right, rtol=2e-4, atol=2e-5)


def test_a_loss_that_is_not_finite_stops_with_its_step_and_terms(tmp_path):
    made = config(steps=40, lr=1e18, optimiser="sgd")
    made.checkpoint.every = 1
    made.train.log_every = 5
    with pytest.raises(NonFiniteLoss, match=r"learn: net/loss is not finite at step \d+ .*mean="):
        run(tmp_path, made)
    assert not any(name.isdigit() for name in os.listdir(tmp_path / "learn" / "final"))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))


def test_parameters_that_are_not_finite_are_never_saved_though_the_loss_was(tmp_path):
    data, made = toy.ArrayData(), config()
    made.checkpoint.every = 1
    stage = toy.stages(made, data.spec)[0]

    def apply(state, batch, key):
        step = state.step
        state, metrics = stage.update.apply(state, batch, key)
        broken = jax.tree.map(lambda leaf: jnp.where(step == 2, jnp.inf, leaf), state.params["net"])
        return state.replace(params={**state.params, "net": broken}), metrics

    breaking = dataclasses.replace(stage, update=stage.update._replace(apply=apply))
    mesh = sharding.start(made.mesh)
    with jax.set_mesh(mesh), pytest.raises(NonFiniteLoss, match="parameters are not finite after step 3"):
        options = {"seed": 3, "mesh": mesh, "config": made, "log": Log(str(tmp_path), main=False)}
        train.train(breaking, data, None, folder=str(tmp_path / "learn"), **options)
    assert sorted(name for name in os.listdir(tmp_path / "learn" / "steps") if name.isdigit()) == ["1", "2"]


def test_metrics_of_a_resumed_run_are_those_of_the_uninterrupted_one(tmp_path):
    def rows(folder):
        found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return {(row["stage"], row["step"]): row["net/loss"] for row in found if "net/loss" in row}

    run(tmp_path / "whole", config())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", config(), data=Interrupted(3))
    run(tmp_path / "parts", config())
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_evaluation_every_k_steps_is_logged_and_changes_nothing(tmp_path):
    data, made = toy.ArrayData(), config()
    made.eval.every = 2
    mesh = sharding.start(made.mesh)
    seen = []
    stage = toy.stages(made, data.spec)[0]

    def evaluate(state, step):
        seen.append((step, int(state.step)))
        return {"test/image_auroc": 0.5}

    with jax.set_mesh(mesh), Log(str(tmp_path / "watched")) as log:
        options = {"seed": 3, "mesh": mesh, "config": made}
        watched, _ = train.train(
            stage, data, None, folder=str(tmp_path / "watched" / "learn"), log=log, evaluate=evaluate, **options
        )
        plain, _ = train.train(
            stage, data, None, folder=str(tmp_path / "plain"), log=Log(str(tmp_path), main=False), **options
        )
    assert seen == [(2, 2), (4, 4)]
    assert "test/image_auroc" in (tmp_path / "watched" / "metrics.jsonl").read_text()
    assert_same(jax.tree.map(np.asarray, watched), jax.tree.map(np.asarray, plain))


def test_one_device_equals_eight_in_x64(tmp_path):
    """The same arithmetic: in float64 what is left of the reduction order is below 1e-12, with Adam too."""
    script = """
        import sys, pathlib, jax, numpy as np
        jax.config.update("jax_enable_x64", True)
        import toy
        from test_train import config, run
        data = toy.ArrayData(dtype="float64")
        folder = pathlib.Path(sys.argv[1])
        one, eight = (run(folder / str(n), config(n, dtype="float64"), data=data) for n in (1, 8))
        assert one.frozen["net"]["params"]["Conv_0"]["kernel"].dtype == np.float64
        worst = max(np.max(np.abs(a - b)) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight)))
        print("worst", worst)
    """
    done = _python(script, str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    worst = float(done.stdout.split("worst")[1])
    assert worst < 1e-12


def _python(script, *arguments):
    tests = os.path.dirname(os.path.abspath(__file__))
    environment = {**os.environ, "PYTHONPATH": tests}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


KILLED = """
    import os, pathlib, signal, sys, threading
    from test_train import config, run
    made = config()
    made.checkpoint.every = 2
    folder = pathlib.Path(sys.argv[1])
    # die in the middle of writing the checkpoint of step 4: its files exist, its name does not yet
    def watch():
        steps = folder / "learn" / "steps"
        while True:
            if steps.is_dir() and any(name.startswith("4") and name != "4" for name in os.listdir(steps)):
                os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=watch, daemon=True).start()
    run(folder, made)
"""


def test_a_run_killed_in_the_middle_of_a_save_resumes_to_the_same(tmp_path):
    done = _python(KILLED, str(tmp_path / "killed"))
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    left = os.listdir(tmp_path / "killed" / "learn" / "steps")
    assert "2" in left and "4" not in left and any(name.startswith("4") for name in left)
    made = config()
    made.checkpoint.every = 2
    assert_same(run(tmp_path / "killed", made), run(tmp_path / "whole", made))


def test_step_keys_depend_on_seed_and_stage():
    keys = [train.stage_keys(seed, stage)[part] for seed in (0, 1) for stage in ("a", "b") for part in (0, 1)]
    assert len({tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}) == 8


def test_sigterm_of_a_scheduler_also_leaves_a_checkpoint(tmp_path):
    class Scheduled(toy.ArrayData):
        def batches(self, feed, **options):
            for number, batch in enumerate(super().batches(feed, **options)):
                if number == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(KeyboardInterrupt, match="after step 3"):
        run(tmp_path, config(), data=Scheduled())
    assert os.path.isdir(tmp_path / "learn" / "steps" / "3")


def test_a_stage_fed_in_order_takes_one_pass_whatever_its_steps_say():
    data, made = toy.ArrayData(), config()
    stage = toy.stages(made, data.spec)[1]
    assert stage.steps == 0 and train.steps_of(stage, data) == 2


def test_an_update_that_changes_a_type_is_named_before_the_second_step(tmp_path):
    data, made = toy.ArrayData(), config()
    stage = toy.stages(made, data.spec)[0]

    def apply(state, batch, key):
        state, metrics = stage.update.apply(state, batch, key)
        return state.replace(memory={"half": jnp.zeros((2,), jnp.float16)}), metrics

    wrong = dataclasses.replace(stage, update=stage.update._replace(apply=apply))
    mesh = sharding.start(made.mesh)
    with jax.set_mesh(mesh), pytest.raises(TypeError, match=r"stage 'learn'.*memory.*half"):
        options = {"seed": 3, "mesh": mesh, "config": made, "log": Log(str(tmp_path), main=False)}
        train.train(wrong, data, None, folder=str(tmp_path / "learn"), **options)
