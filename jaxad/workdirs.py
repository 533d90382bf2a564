"""Whose a workdir is, what made it, and what is already in it: the files of a run that are not its results."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jaxad import checkpoint, sharding, train
from jaxad.errors import UserError
from jaxad.flags import keys
from jaxad.report import files
from jaxad.types import Data, DataSpec, Predictions, Stage, TrainState

Stages = Callable[[ConfigDict, DataSpec], tuple[Stage, ...]]  # a method

# What may change between two runs of one workdir: it changes how a run is watched, not what it computes.
FREE = ("report", "eval", "checkpoint", "mesh", "train.log_every", "data.cache_dir", "data.memory_mb")


def commit() -> str:
    """The git commit of this jaxad, '+' appended when the tree differs from it; its version where there is no git."""
    here = os.path.dirname(os.path.abspath(__file__))

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", here, *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if os.path.realpath(git("rev-parse", "--show-toplevel")) != os.path.dirname(os.path.realpath(here)):
            raise OSError("installed inside somebody else's repository")
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return metadata.version("jaxad")


def environment() -> dict[str, Any]:
    """Versions, devices and command of this process."""
    names = (
        "jaxad",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
        "scipy",
        "pillow",
        "ml-collections",
    )
    installed = {name: _version(name) for name in names}
    return {
        "command": sys.argv,
        "commit": commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        **sharding.describe(),
        "versions": installed,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def claim(workdir: str, config: ConfigDict) -> None:
    """Makes `workdir` this config's own. Raises `UserError` where it belongs to another."""
    path = os.path.join(workdir, "config.json")
    ours = json.loads(config.to_json())
    if os.path.exists(path):
        try:
            with open(path, encoding="utf-8") as file:
                theirs = json.load(file)
        except ValueError as error:
            raise UserError(f"{path} is not readable; remove it or choose another --workdir") from error
        for key in sorted(set(keys(ConfigDict(ours))) | set(keys(ConfigDict(theirs)))):
            if any(key == free or key.startswith(free + ".") for free in FREE):
                continue
            mine, other = _at(ours, key), _at(theirs, key)
            if mine != other and not (isinstance(mine, dict) and isinstance(other, dict)):
                raise UserError(
                    f"workdir {workdir!r} belongs to a run with config.{key}={other!r}, now it is {mine!r}: "
                    f"choose another --workdir, or remove this one"
                )
    elif os.path.isdir(workdir) and os.listdir(workdir):
        raise UserError(f"workdir {workdir!r} holds files that are not a jaxad run's: choose another --workdir")
    sharding.barrier("claim: looked")  # nobody writes while another still looks
    try:
        os.makedirs(workdir, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make workdir {workdir!r}: {error.strerror}") from error
    if sharding.is_main():
        files.write_json(path, ours)
        files.write_json(os.path.join(workdir, "environment.json"), environment())
    sharding.barrier("claim: written")


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


class Planned(NamedTuple):
    """A stage of a run, and where it is.

    spec: of the data that it is trained on, or was · folder: WORKDIR/CATEGORY/STAGE · taken: from another run.
    """

    stage: Stage
    spec: DataSpec
    folder: str
    taken: bool


def plan(config: ConfigDict, workdir: str, stages: Stages, spec: DataSpec) -> tuple[Planned, ...]:
    """The stages of one model, trained on data of `spec`; all up to config.start.stage are taken from another run.

    What is taken is built for the data that it was trained on there, of which config.start.category is the name; only
    the size of images is that of today. Raises UserError where config.start names what there is not.
    """
    own = [
        Planned(stage, spec, os.path.join(workdir, spec.category, stage.name), False) for stage in stages(config, spec)
    ]
    start, category = config.start, config.start.category or spec.category
    if not start.run:
        return tuple(own)
    n = _check_start(config, category, [planned.stage.name for planned in own])
    folder = os.path.join(start.run, category)
    theirs = dataclasses.replace(_spec(folder) or spec, image_size=spec.image_size)
    taken = [Planned(stage, theirs, os.path.join(folder, stage.name), True) for stage in stages(config, theirs)[:n]]
    return (*taken, *own[n:])


def _check_start(config: ConfigDict, category: str, names: Sequence[str]) -> int:
    """How many stages are taken; UserError where there is no such stage, or the other run has not finished it."""
    start = config.start
    if start.stage not in names:
        raise UserError(f"config.start.stage={start.stage!r} is not a stage of {config.method}: {', '.join(names)}")
    n = names.index(start.stage) + 1
    for stage in names[:n]:
        folder = os.path.join(start.run, category, stage, "final")
        if not _holds(folder):
            others = sorted(path.parts[-3] for path in Path(start.run).glob(f"*/{stage}/final") if _holds(path))
            hint = f"; set config.start.category to one that has it: {', '.join(others)}" if others else ""
            raise UserError(
                f"config.start.run={start.run!r} has no finished stage {stage!r} of {category} ({folder}){hint}"
            )
    return n


def _holds(folder: str | Path) -> bool:
    return os.path.isdir(folder) and bool(os.listdir(folder))


def take(planned: Planned, carry: TrainState | None, *, seed: int, mesh: jax.sharding.Mesh) -> tuple[TrainState, float]:
    """(finished state, seconds of training) of a stage of another run."""
    state = jax.eval_shape(lambda: planned.stage.finish(train.build(planned.stage, planned.spec, carry, seed)))
    with checkpoint.Checkpoints(os.path.join(planned.folder, "final")) as final:
        found = final.restore(checkpoint.abstract(state, mesh))
    if found is None:
        raise UserError(f"{planned.folder} holds no finished state; run again what config.start.run names")
    return found[0], found[1]["seconds"]


def describe(workdir: str, data: Data) -> None:
    """Writes what `data` are into their folder: splits.json, which image is where, and spec.json, for `plan`."""
    if sharding.is_main():
        folder = os.path.join(workdir, data.spec.category)
        files.write_json(os.path.join(folder, "splits.json"), data.manifest())
        files.write_json(os.path.join(folder, "spec.json"), dataclasses.asdict(data.spec))


def _spec(folder: str) -> DataSpec | None:
    """What `describe` wrote; None for a run that wrote none, as they once did."""
    path = os.path.join(folder, "spec.json")
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            held = json.load(file)
        return DataSpec(**held | {"kinds": tuple(held["kinds"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not readable; remove it, or choose another config.start.run") from error


def keep_time(path: str, test: Predictions, seconds: float) -> Predictions:
    """A finished run that is run again reports the time that it measured first, so that its results stay the same."""
    try:
        with open(path, encoding="utf-8") as file:
            measured = json.load(file)
        if measured["fit_seconds"] == seconds:
            return dataclasses.replace(test, ms_per_image=measured["predict_ms_per_image"])
    except (OSError, ValueError, KeyError):
        pass  # none yet, or not readable: measured now
    files.write_json(path, {"fit_seconds": seconds, "predict_ms_per_image": test.ms_per_image})
    return test
