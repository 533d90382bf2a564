"""Whose a workdir is, what made it, and what is already in it: the files of a run that are not its results."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from ml_collections import ConfigDict

from jaxad import sharding
from jaxad.errors import UserError
from jaxad.flags import keys
from jaxad.report import files
from jaxad.types import Predictions, Stage

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


def taken(config: ConfigDict, stages: Sequence[Stage]) -> list[str]:
    """The stages that come from the run config.start.run: all up to config.start.stage."""
    names = [stage.name for stage in stages]
    return names[: names.index(config.start.stage) + 1] if config.start.run else []


def check_start(config: ConfigDict, names: dict[str, list[str]]) -> None:
    """Raises UserError where config.start names a stage that there is not, or that the other run has not finished."""
    start = config.start
    for category, stages in names.items() if start.run else ():
        if start.stage not in stages:
            raise UserError(
                f"config.start.stage={start.stage!r} is not a stage of {config.method}: {', '.join(stages)}"
            )
        for stage in stages[: stages.index(start.stage) + 1]:
            folder = os.path.join(start.run, category, stage, "final")
            if not os.path.isdir(folder) or not os.listdir(folder):
                raise UserError(
                    f"config.start.run={start.run!r} has no finished stage {stage!r} of {category} ({folder})"
                )


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
