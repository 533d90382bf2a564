"""The story of a run: mesh, data, stages, train each, evaluate, report. Nothing calls back into config."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxad import decision, evaluate, methods, pretrained, report, sharding, train, workdirs
from jaxad.data import joint, pipeline
from jaxad.judge import Judge
from jaxad.log import Log
from jaxad.report import pretraining
from jaxad.types import Data, Predictions, Stage, TrainState
from jaxad.workdirs import Planned


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains and evaluates `config.method` on every category and writes the report; returns what results.json holds."""
    mesh = sharding.start(config.mesh)
    method = methods.resolve(config.method)
    with jax.set_mesh(mesh):
        opened = {category: pipeline.open(config, category) for category in pipeline.categories(config)}
        feeds = joint.feeds(config, opened)
        # Mistakes show here, before anything is written or compiled.
        plans = {name: workdirs.plan(config, workdir, method.stages, data.spec) for name, data in feeds.items()}
        name, plan = next(iter(plans.items()))
        for stage, _, _, taken in plan:
            rows = sharding.my_rows(mesh, stage.feed.batch_size)
            if stage.feed.views and not taken:  # builds the graph, and with it every view
                feeds[name].batches(stage.feed, seed=config.seed, stage=stage.name, start=0, stop=0, rows=rows)
        jax.eval_shape(lambda: train.build(plan[0].stage, plan[0].spec, None, config.seed))
        workdirs.claim(workdir, config)
        for data in {**opened, **feeds}.values():
            workdirs.describe(workdir, data)
        kind = report if plan[-1].stage.predict else pretraining
        entries = {}
        if kind is report and config.data.joint:
            with Log(os.path.join(workdir, joint.NAME), sharding.is_main()) as log:
                for _ in fit(config, mesh, feeds[name], plan, log):  # the categories find it done
                    pass
        for category, data in (opened if kind is report else feeds).items():
            model = joint.NAME if config.data.joint else category
            entries[category] = run_category(config, workdir, mesh, data, feeds[model], plans[model])
        if not sharding.is_main():
            return {}
        results = kind.write(workdir, config.to_dict(), entries, workdirs.commit())
        kind.show(results)
        return results


class Finished(NamedTuple):
    """A finished stage: its state, the seconds of its training, and `Stage.facts`."""

    stage: Stage
    state: TrainState
    seconds: float
    facts: Mapping[str, float | None]


def fit(
    config: ConfigDict, mesh: jax.sharding.Mesh, data: Data, plan: Sequence[Planned], log: Log
) -> Iterator[Finished]:
    """Trains the stages of one model, or finds them done, and yields each."""
    judge, carry = Judge(config, mesh, data), None
    log.rewind("facts", -1)
    for planned in plan:
        stage, _, folder, taken = planned
        if taken:
            log.say(f"{stage.name}: taken from {folder}")
            carry, seconds = workdirs.take(planned, carry, seed=config.seed, mesh=mesh)
        else:
            how = dict(seed=config.seed, mesh=mesh, folder=folder, config=config, log=log)
            carry, seconds = train.train(stage, data, carry, evaluate=judge.watch(stage), **how)
        yield Finished(stage, carry, seconds, _facts(log, stage, carry) if stage.facts else {})


def run_category(
    config: ConfigDict, workdir: str, mesh: jax.sharding.Mesh, data: Data, feed: Data, plan: Sequence[Planned]
) -> report.Entry | dict[str, Any] | None:
    """Trains every stage on `feed`, scores the normals and the test set of one category, draws its pictures.

    Where the last stage predicts nothing it pre-trains: that is saved and judged instead.
    """
    spec, last = data.spec, plan[-1].stage
    folder = os.path.join(workdir, spec.category)
    judge = Judge(config, mesh, data)
    with Log(folder, sharding.is_main()) as log:
        log.say(
            f"{spec.category}: {spec.n_train} training images, {spec.n_holdout} held out, "
            f"{spec.n_test_normal} normal and {spec.n_test_anomalous} anomalous test images"
        )
        for note in data.notes:
            log.say(f"{spec.category}: {note}")
        log.rewind("test", -1)
        seconds, facts, reached = 0.0, {}, {}
        for stage, state, spent, told in fit(config, mesh, feed, plan, log):
            seconds += spent
            facts |= {stage.name: told} if told else {}
            if stage.predict and stage is not last:
                reached[stage.name] = _tell(log, stage, state, judge.predict(stage, state, "test"))
        if not last.predict:
            known = {"n_train": plan[-1].spec.n_train_normal, "fit_seconds": seconds}
            return known | _pretrained(folder, log, last, state, judge) | ({"facts": facts} if facts else {})
        log.say(f"{spec.category}: predicts")
        normals = judge.predict(last, state, decision.threshold_split(spec))
        test = judge.predict(last, state, "test")
        if reached:
            reached[last.name] = _tell(log, last, state, test)
    if not sharding.is_main():
        return None
    test = workdirs.keep_time(os.path.join(folder, "timing.json"), test, seconds)
    known = dict(n_train=plan[-1].spec.n_train, fit_seconds=seconds, stages=reached, facts=facts)
    return report.category(workdir, config.to_dict(), data, normals, test, **known)


def _pretrained(folder: str, log: Log, stage: Stage, state: TrainState, judge: Judge) -> dict[str, Any]:
    """Saves the backbone and says how good it is, where the stage has one."""
    known = {}
    if stage.backbone:
        name, variables = stage.backbone(state)
        variables = sharding.to_host(variables)
        known = {"backbone": name, "file": os.path.join(folder, pretrained.BACKBONE)}
        if sharding.is_main():
            pretrained.save(known["file"], variables, name)
    if stage.embed:
        log.say(f"{judge.data.spec.category}: judges the backbone")
        known |= judge.features(stage, state, linear=True)
    return known


def _facts(log: Log, stage: Stage, state: TrainState) -> dict[str, float | None]:
    """What a finished stage says of itself, logged; None for what is no number."""
    told = {name: float(sharding.to_host(value)) for name, value in stage.facts(state).items()}
    told = {name: value if np.isfinite(value) else None for name, value in told.items()}
    _log(log, "facts", stage, state, told)
    return told


def _tell(log: Log, stage: Stage, state: TrainState, found: Predictions) -> dict[str, float | None]:
    """Logs what the test metrics are after a stage, where several stages predict."""
    values = evaluate.glance(found)
    _log(log, "test", stage, state, values)
    return values


def _log(log: Log, what: str, stage: Stage, state: TrainState, values: Mapping[str, float | None]) -> None:
    words = (f"{name} {'n/a' if value is None else f'{value:.4g}'}" for name, value in values.items())
    log.say(f"{stage.name}: {', '.join(words)}")
    log.write(what, int(state.step), {f"{stage.name}/{name}": value for name, value in values.items()})
