"""The command line as a user meets it: exit codes, one line on standard error, and how long the answer takes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
QUICKSTART = f"--config={ROOT}/configs/quickstart.py"


def call(*argv, folder=None, **environment):
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "jaxad.main", *argv],
        capture_output=True,
        text=True,
        cwd=folder or ROOT,
        env={**os.environ, "XLA_FLAGS": "", **environment},
        timeout=600,
    )
    done.seconds = time.monotonic() - started
    return done


def best_seconds(*argv):
    return min(call(*argv).seconds for _ in range(3))


def test_help_answers_within_a_second_and_exits_0():
    assert call("--help").returncode == 0
    assert best_seconds("--help") < 1.0


def test_a_bad_config_answers_within_a_second_and_exits_2():
    done = call("--config=configs/none.py")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"jaxad: no config file 'configs/none.py' (looked in {ROOT})"]
    assert best_seconds("--config=configs/none.py") < 1.0
    assert best_seconds(QUICKSTART, "--config.data.categry=x") < 1.0


def test_nothing_heavy_is_imported_before_flags_are_parsed():
    heavy = ("jax", "flax", "numpy", "tensorflow")
    script = f"import sys, jaxad.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "argument, says",
    [
        ("--config.mesh.platform=tpu", "jax finds only: cpu"),
        ("--config.mesh.devices=64", "there are"),
        ("--config.data.category=wheel", "wheel"),
    ],
)
def test_mistakes_that_need_jax_or_data_are_one_line_too(tmp_path, argument, says):
    done = call(QUICKSTART, argument, f"--workdir={tmp_path}/w", JAXAD_CACHE=str(tmp_path / "cache"), JAX_PLATFORMS="")
    assert done.returncode == 2, done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not os.path.exists(tmp_path / "w")


def test_debug_shows_the_traceback(tmp_path):
    done = call(QUICKSTART, "--config.mesh.devices=64", "--debug", f"--workdir={tmp_path}/w")
    assert done.returncode == 2 and "Traceback" in done.stderr


def test_ctrl_c_exits_130_and_the_same_command_finishes_the_run(tmp_path):
    argv = [
        f"--config={ROOT}/configs/reverse_distillation.py:small",
        f"--workdir={tmp_path}/w",
        "--config.data.category=weave",
        "--config.data.image_size=32",
        "--config.data.batch_size=2",
        "--config.train.steps=60",
        "--config.train.log_every=1",
        "--config.report.overlays=2",
        "--config.report.curves=False",
    ]
    metrics = tmp_path / "w" / "weave" / "metrics.jsonl"
    command = [sys.executable, "-m", "jaxad.main", *argv]
    environment = {**os.environ, "XLA_FLAGS": "", "JAXAD_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (metrics.exists() and '"step": 3' in metrics.read_text()) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("jaxad: stopped after step") and "Traceback" not in errors
    assert not (tmp_path / "w" / "results.json").exists()

    done = call(*argv, JAXAD_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert "resumes after step" in done.stderr
    results = json.loads((tmp_path / "w" / "results.json").read_text())
    assert 0 <= results["categories"]["weave"]["image_auroc"] <= 1
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if "student/loss" in line]
    assert steps == list(range(1, 61))  # every step once: none lost, none twice
