"""What the stages of a method cost: the programs that training and evaluation run, timed on made-up images.

The batch is on the devices before the clock starts and every call is waited for: neither loading nor copying is timed.
XLA counts the floating-point operations and the bytes of a compiled program; it counts the body of a loop once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxad import methods, sharding, train
from jaxad.errors import UserError
from jaxad.flags import nearest
from jaxad.methods import features
from jaxad.types import Batch, DataSpec, Metrics, Stage, TrainState, View

# Made-up counts of images, where config.data.n_shot or k_shot says nothing else.
N_NORMAL, N_ANOMALOUS, N_HOLDOUT, N_TEST = 200, 30, 20, 50
WARM_UP = 2  # calls that are not timed
PERCENTILES = (10, 50, 90, 95)

Row = dict[str, Any]


def spec_of(config: ConfigDict) -> DataSpec:
    """A category that could be: the config's data set, sizes and shots, with made-up counts."""
    data = config.data
    named = data.category not in ("", "all") and "," not in data.category
    normal, anomalous = data.n_shot or max(N_NORMAL, data.batch_size), data.n_anomalies
    if data.protocol != "one_class":
        normal, anomalous = (data.k_shot, data.k_shot) if data.protocol == "few_shot" else (normal, N_ANOMALOUS)
    return DataSpec(
        dataset=data.dataset,
        category=data.category if named else "generated",
        image_size=data.crop_size or data.image_size,
        n_train=normal + anomalous,
        n_holdout=N_HOLDOUT,
        n_test_normal=N_TEST,
        n_test_anomalous=N_TEST,
        has_masks=True,
        n_train_anomalous=anomalous,
        kinds=("one", "other") if data.dataset in ("images", "tfds") else (),
    )


def batch_of(spec: DataSpec, batch_size: int, views: Sequence[View] = ()) -> Batch:
    """A NumPy batch of random normal images; each view is one more, and beside it a rectangle as NAME_mask.

    Views whose op makes something else have the entries of that op, in its shapes.
    """
    rng, side = np.random.default_rng(0), spec.image_size

    def images(side: int = side) -> np.ndarray:
        return rng.random((batch_size, side, side, 3), np.float32)

    def rectangle(side: int = side) -> np.ndarray:
        mask = np.zeros((batch_size, side, side), bool)
        mask[:, side // 4 : side // 2, side // 4 : side // 2] = True
        return mask

    none = np.zeros((batch_size, side, side), bool)
    index = np.arange(batch_size, dtype=np.int32) % spec.n_train
    made = Batch(images(), none, none[:, 0, 0], index, np.ones(batch_size, bool))
    extra: dict[str, np.ndarray] = {}
    for view in views:
        if view.op == "class":
            extra[view.name] = np.zeros(batch_size, np.int32)
        elif view.op == "spot_the_difference":
            extra |= {f"{view.name}_{name}": images(view.options["size"] or side) for name in view.options["views"]}
        elif view.op in ("triple", "pattern_pair"):
            patch = view.options["patch"]
            parts = {name: images(patch) for name in ("far", "near", "target")}
            if view.op == "pattern_pair":
                parts |= {"observed": images(patch), "mask": rectangle(patch), "masked": np.ones(batch_size, bool)}
                parts |= {"match": np.arange(batch_size) % 2 == 0, "kind": np.zeros(batch_size, np.int32)}
            extra |= {f"{view.name}_{name}": part for name, part in parts.items()}
        else:
            extra |= {view.name: images(), f"{view.name}_mask": rectangle()}
    return made.replace(views=extra)


def measure(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    *,
    stage: str = "",
    steps: int = 10,
    minutes: float = math.inf,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """What each stage costs under `config`, in order; the last one also tells what predicting does.

    Args:
      config: its data and weights are not read from disk: set backbone.weights to random.
      mesh: in force (`jax.set_mesh`).
      stage: the only stage to time; those before it are finished untrained, and carried on. Empty: all.
      steps: calls to time of each program.
      minutes: no further call is timed once a stage, or predicting at one size, has taken longer; one always is.
      say: told what goes on, in lines.

    Returns:
      Per stage 'stage', 'precision', 'devices' and what `_row` says of a step; 'finish_seconds', compiling included,
      where it was run; of the last stage 'predict': rows at one image per device and at eval.batch_size, each with
      'work_per_second', {name: rate} of what `Stage.work` counts.

    Raises UserError for a stage that there is not and a batch that does not divide, NonFiniteLoss for such metrics.
    """
    spec, precision = spec_of(config), features.compute_dtype(config).name
    made = methods.resolve(config.method).stages(config, spec)
    names = [one.name for one in made]
    if stage and stage not in names:
        raise UserError(f"--stage={stage}: method {config.method!r} has no such stage{nearest(stage, names)}")
    for one in made:
        if stage in ("", one.name):
            sharding.my_rows(mesh, one.feed.batch_size)  # raises before anything is compiled
    rows, carry = [], None
    for one in made:
        began = time.perf_counter()
        asked = stage in ("", one.name)
        say(f"{one.name}, {precision}: builds the state")
        state = sharding.place_state(train.build(one, spec, carry, config.seed), mesh)
        if asked:
            say(f"{one.name}, {precision}: compiles and times the step")
            key = train.stage_keys(config.seed, one.name)[1]
            row, state = _train(one, state, spec, mesh, key, _Clock(steps, began + 60 * minutes))
            rows.append({"stage": one.name, "precision": precision, "devices": mesh.size, **row})
        last = one is made[-1] and one.predict is not None
        if last or (one is not made[-1] and one.name != stage):  # else nobody needs it
            began = time.perf_counter()
            carry = _finish(one, state, mesh)
            if asked:
                rows[-1]["finish_seconds"] = time.perf_counter() - began
        if last:
            say(f"{one.name}, {precision}: compiles and times predicting")
            rows[-1]["predict"] = []
            for size in dict.fromkeys(sharding.round_up(size, mesh) for size in (1, config.eval.batch_size)):
                clock = _Clock(steps, time.perf_counter() + 60 * minutes)
                rows[-1]["predict"].append(_predict(one, carry, spec, mesh, size, clock))
        if one.name == stage:
            break
    return rows


class _Clock:
    """Times calls: up to `steps` of them after warming up, fewer where `deadline` (perf_counter) passes."""

    def __init__(self, steps: int, deadline: float):
        self.steps, self.deadline = steps, deadline

    def _late(self) -> bool:
        return math.isfinite(self.deadline) and sharding.agreed(time.perf_counter() > self.deadline)

    def seconds(self, call: Callable[[], Any]) -> np.ndarray:
        """f64[up to `steps`, at least 1]. `call` is run at least twice, and what it returns is waited for."""
        taken: list[float] = []
        while len(taken) < 2 or (len(taken) < WARM_UP + self.steps and not self._late()):
            start = time.perf_counter()
            jax.block_until_ready(call())
            taken.append(time.perf_counter() - start)
        return np.array(taken[min(WARM_UP, len(taken) - 1) :])


def _place(batch: Batch, mesh: jax.sharding.Mesh) -> Batch:
    rows = sharding.my_rows(mesh, len(batch.image))
    return jax.block_until_ready(sharding.place_batch(jax.tree.map(lambda leaf: leaf[rows], batch), mesh))


def _train(
    stage: Stage, state: TrainState, spec: DataSpec, mesh: jax.sharding.Mesh, key: jax.Array, clock: _Clock
) -> tuple[Row, TrainState]:
    """(what a step costs, the state after the last one). A feed in index order repeats its first batch too."""
    batch = _place(batch_of(spec, stage.feed.batch_size, stage.feed.views), mesh)
    places = sharding.state_shardings(state, mesh)
    jitted = jax.jit(train.one_step(stage), donate_argnums=0, out_shardings=(places, None))  # as in train.py
    compiled, compile_seconds = compile_for(jitted, state, batch, key)
    metrics = {}

    def call() -> tuple[TrainState, Metrics]:
        nonlocal state, metrics
        state, metrics = compiled(state, batch, key)
        return state, metrics

    row = _row(compiled, compile_seconds, clock.seconds(call), stage.feed.batch_size, mesh)
    values = {name: float(value) for name, value in metrics.items()}
    fix = "lower config.optim.lr, or look whether training on real ones says the same"
    train.check_finite(stage.name, f"after {int(state.step)} steps on random images", values, fix)
    return row, state


def _predict(
    stage: Stage, state: TrainState, spec: DataSpec, mesh: jax.sharding.Mesh, batch_size: int, clock: _Clock
) -> Row:
    batch = _place(batch_of(spec, batch_size), mesh)
    compiled, compile_seconds = compile_for(jax.jit(stage.predict), state, batch)
    row = _row(compiled, compile_seconds, clock.seconds(lambda: compiled(state, batch)), batch_size, mesh)
    return row | {"work_per_second": {name: n * row["images_per_second"] for name, n in stage.work.items()}}


def _finish(stage: Stage, state: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
    places = sharding.state_shardings(jax.eval_shape(stage.finish, state), mesh)
    return jax.block_until_ready(jax.jit(stage.finish, out_shardings=places)(state))


def compile_for(jitted: jax.stages.Wrapped, *args: Any) -> tuple[jax.stages.Compiled, float]:
    """(the program for these arguments, seconds it took to trace and compile)."""
    start = time.perf_counter()
    return jitted.lower(*args).compile(), time.perf_counter() - start


def _row(
    compiled: jax.stages.Compiled, compile_seconds: float, seconds: np.ndarray, batch_size: int, mesh: jax.sharding.Mesh
) -> Row:
    """What a program costs. flops are those of all devices, bytes those of one."""
    parts = np.percentile(seconds, PERCENTILES)
    median = float(parts[PERCENTILES.index(50)])
    operations = float((compiled.cost_analysis() or {}).get("flops", 0)) * mesh.size
    return {
        "batch_size": batch_size,
        "timed": len(seconds),
        "compile_seconds": compile_seconds,
        **{f"p{n}_ms": 1e3 * float(part) for n, part in zip(PERCENTILES, parts, strict=True)},
        "images_per_second": batch_size / median,
        "flops": operations if operations > 0 else None,
        "flops_per_second": operations / median if operations > 0 else None,
        "memory_bytes": _memory(compiled),
        "device_peak_bytes": sharding.peak_bytes(mesh),
    }


def _memory(compiled: jax.stages.Compiled) -> dict[str, int | None] | None:
    """Bytes that a program takes on a device, as XLA planned them; None where the backend does not say.

    peak: what it holds while it runs: arguments, temporaries and outputs, those in a donated argument once ·
    xla_peak: XLA's own number, where it has one; on CPU it leaves the temporaries out, so it counts only if larger.
    """
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    sizes = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
    }
    total = sizes["arguments"] + sizes["outputs"] + sizes["temporaries"] - sizes["aliased"]
    own = getattr(stats, "peak_memory_in_bytes", 0)
    return {**sizes, "xla_peak": own or None, "peak": max(own, total)}
