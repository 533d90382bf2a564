"""The loop: every stage of every method is trained here, and nothing here knows which.

Batch n and the random keys are functions of (seed, stage, n), so the step in the state is the whole position of a run:
resuming from a checkpoint gives, bit for bit, what the uninterrupted run gives.
"""

from __future__ import annotations

import os
import signal
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxad import checkpoint, sharding
from jaxad.errors import NonFiniteLoss
from jaxad.log import Log, Meter
from jaxad.types import SKIPPED, Array, Batch, Data, DataSpec, Metrics, Stage, TrainState


def stage_keys(seed: int, stage: str) -> tuple[Array, Array]:
    """(key for init, key that each step folds its number into) of a stage."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stage.encode()) & 0x7FFFFFFF)
    return jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)


def build(stage: Stage, spec: DataSpec, carry: TrainState | None, seed: int) -> TrainState:
    """The state of a stage at step 0."""
    return stage.update.init(stage.init(stage_keys(seed, stage.name)[0], spec, carry))


def one_step(stage: Stage) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """The step of a stage: (state, batch, the second of `stage_keys`) -> (state of the next step, metrics)."""

    def step_fn(state, batch, key):
        state, metrics = stage.update.apply(state, batch, jax.random.fold_in(key, state.step))
        return state.replace(step=state.step + 1), metrics

    return step_fn


def steps_of(stage: Stage, data: Data) -> int:
    """Steps of a stage; a feed in index order ends with its split, whatever the config says."""
    return stage.steps if stage.feed.shuffle else stage.feed.one_pass(len(data.records(stage.feed.split)))


class _Stop:
    """Turns the first Ctrl-C (or SIGTERM, which schedulers send) into a request to stop after the step at hand."""

    def __init__(self):
        self.asked = False
        self._before: dict[int, Any] = {}

    def _ask(self, number, frame):
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the second one stops at once

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not in the main thread: nobody can press Ctrl-C there
                pass
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _check_types(stage: str, before: TrainState, after: TrainState) -> None:
    """An update must hand back the state it was given: same slots, shapes and dtypes."""

    def described(tree):
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}

    old, new = described(before), described(after)
    for path in sorted(set(old) | set(new)):
        if old.get(path) != new.get(path):
            raise TypeError(
                f"the update of stage {stage!r} turns state{path} from {old.get(path)} into {new.get(path)}; "
                f"`init` must make it as `apply` returns it"
            )


def check_finite(stage: str, when: str, row: Mapping[str, float], fix: str) -> None:
    """Raises NonFiniteLoss, with all the terms, where a metric of a step is NaN or infinite."""
    bad = [name for name, value in row.items() if not np.isfinite(value)]
    if bad:
        terms = ", ".join(f"{name}={value:.6g}" for name, value in row.items() if value != SKIPPED)
        raise NonFiniteLoss(f"{stage}: {bad[0]} is not finite {when} ({terms}); {fix}")


def _check_finite(stage: str, first_step: int, rows: list[dict]) -> None:
    fix = "the last good checkpoint is kept: lower config.optim.lr, or look at the terms in metrics.jsonl"
    for step, row in enumerate(rows, first_step + 1):
        check_finite(stage, f"at step {step}", row, fix)


@jax.jit
def _finite(tree: Any) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def _check_state(stage: str, step: int, state: TrainState) -> None:
    """A loss is of the parameters before its step: a finite one may have led to parameters that are not."""
    if not _finite((state.params, state.stats)):
        raise NonFiniteLoss(
            f"{stage}: the parameters are not finite after step {step}, although the loss was; the last good "
            f"checkpoint is kept: lower config.optim.lr, or look at the terms in metrics.jsonl"
        )


def train(
    stage: Stage,
    data: Data,
    carry: TrainState | None,
    *,
    seed: int,
    mesh: jax.sharding.Mesh,
    folder: str,
    config: Any,
    log: Log,
    evaluate: Callable[[TrainState, int], dict] | None = None,
) -> tuple[TrainState, float]:
    """Trains one stage, or picks it up where it was left; returns (finished state, seconds of training in all).

    folder: WORKDIR/CATEGORY/STAGE · config: its train, checkpoint and eval are read · evaluate(state, step): called
    every config.eval.every steps; its numbers are logged and steer nothing. A non-finite loss raises `NonFiniteLoss`;
    Ctrl-C saves a checkpoint and raises `KeyboardInterrupt`.
    """
    steps = steps_of(stage, data)
    rows = sharding.my_rows(mesh, stage.feed.batch_size)
    step_fn, step_key = one_step(stage), stage_keys(seed, stage.name)[1]
    shapes = jax.eval_shape(lambda: build(stage, data.spec, carry, seed))
    target = checkpoint.abstract(shapes, mesh)
    finished = checkpoint.abstract(jax.eval_shape(stage.finish, shapes), mesh)
    places = sharding.state_shardings(shapes, mesh)
    finish = jax.jit(stage.finish, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, finished))

    with checkpoint.Checkpoints(os.path.join(folder, "final")) as final:
        done = final.restore(finished)
        if done is not None:
            log.say(f"{stage.name}: already done")
            return done[0], done[1]["seconds"]

        with checkpoint.Checkpoints(os.path.join(folder, "steps"), config.checkpoint.keep) as checkpoints:
            found = checkpoints.restore(target)
            if found is None:
                state, before = sharding.place_state(build(stage, data.spec, carry, seed), mesh), 0.0
            else:
                state, before = found[0], found[1]["seconds"]
                log.say(f"{stage.name}: resumes after step {int(state.step)} of {steps}")
            done_steps = saved = int(state.step)
            log.rewind(stage.name, done_steps)
            began = time.perf_counter()

            def save(step):
                _check_state(stage.name, step, state)
                checkpoints.save(step, state, {"seconds": before + time.perf_counter() - began})

            batches = data.batches(stage.feed, seed=seed, stage=stage.name, start=done_steps, stop=steps, rows=rows)
            compiled = None
            pending: list[dict] = []
            with _Stop() as stop, Meter(log, stage.name, steps, done_steps) as meter:
                mark, marked_step = time.perf_counter(), done_steps
                for step, host_batch in enumerate(batches, done_steps + 1):
                    batch = sharding.place_batch(host_batch, mesh)
                    if compiled is None:
                        started = time.perf_counter()
                        log.say(f"{stage.name}: compiling")
                        _check_types(stage.name, shapes, jax.eval_shape(step_fn, state, batch, step_key)[0])
                        jitted = jax.jit(step_fn, donate_argnums=0, out_shardings=(places, None))
                        compiled = jitted.lower(state, batch, step_key).compile()
                        seconds = time.perf_counter() - started
                        log.say(f"{stage.name}: compiled in {seconds:.1f} s")
                        log.write(stage.name, done_steps, {"compile_seconds": seconds})
                        mark = time.perf_counter()
                    state, metrics = compiled(state, batch, step_key)
                    pending.append(metrics)
                    due = {
                        "log": step % config.train.log_every == 0 or step == steps,
                        "save": bool(config.checkpoint.every) and step % config.checkpoint.every == 0,
                        "eval": bool(evaluate and config.eval.every) and step % config.eval.every == 0,
                    }
                    if any(due.values()) or stop.asked:
                        values = [{name: float(value) for name, value in row.items()} for row in pending]
                        _check_finite(stage.name, step - len(pending), values)  # before this state can be saved
                        pending = []
                        jax.block_until_ready(state.step)
                        now = time.perf_counter()
                        speed = (step - marked_step) * stage.feed.batch_size / (now - mark)
                        mark, marked_step = now, step
                        losses = [value for name, value in values[-1].items() if name.endswith("/loss")]
                        log.write(stage.name, step, {**values[-1], "images_per_second": speed})
                        meter.update(step, losses[0] if losses else None, speed)
                    if due["save"] and step < steps:
                        save(step)
                        saved = step
                    if due["eval"] and step < steps:
                        log.write(stage.name, step, evaluate(finish(state), step))
                        mark = time.perf_counter()
                    if stop.asked:
                        if step > saved:
                            save(step)
                        raise KeyboardInterrupt(f"stopped after step {step} of {steps}; the same command resumes")
            _check_state(stage.name, steps, state)
            started = time.perf_counter()
            state = jax.block_until_ready(finish(state))
            log.write(stage.name, steps, {"finish_seconds": time.perf_counter() - started})
            log.say(f"{stage.name}: finished in {time.perf_counter() - started:.1f} s")
            seconds = before + time.perf_counter() - began
        final.save(steps, state, {"seconds": seconds})
    checkpoint.remove(os.path.join(folder, "steps"))
    return state, seconds
