"""The story of a run: mesh, data, stages, train each, evaluate, report. Nothing calls back into config."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import (
    decision,
    evaluate,
    inference,
    methods,
    pretrained,
    report,
    representation,
    sharding,
    train,
    workdirs,
)
from jaxad.data import pipeline
from jaxad.log import Log
from jaxad.report import files, pretraining
from jaxad.types import Data, Predictions, Stage, TrainState


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains and evaluates `config.method` on every category and writes the report; returns what results.json holds."""
    mesh = sharding.start(config.mesh)
    method = methods.resolve(config.method)
    with jax.set_mesh(mesh):
        opened = {category: pipeline.open(config, category) for category in pipeline.categories(config)}
        spec = next(iter(opened.values())).spec
        # Mistakes show here, before anything is written or compiled.
        stages = {category: method.stages(config, data.spec) for category, data in opened.items()}
        for stage in stages[spec.category]:
            rows = sharding.my_rows(mesh, stage.feed.batch_size)
            if stage.feed.views:  # builds the graph, and with it every view
                first = opened[spec.category]
                first.batches(stage.feed, seed=config.seed, stage=stage.name, start=0, stop=0, rows=rows)
        jax.eval_shape(lambda: train.build(stages[spec.category][0], spec, None, config.seed))
        workdirs.check_start(config, {category: [stage.name for stage in some] for category, some in stages.items()})
        workdirs.claim(workdir, config)
        entries = {}
        for category, data in opened.items():
            entries[category] = run_category(config, workdir, mesh, data, stages[category])
        if not sharding.is_main():
            return {}
        kind = report if stages[spec.category][-1].predict else pretraining
        results = kind.write(workdir, config.to_dict(), entries, workdirs.commit())
        kind.show(results)
        return results


def run_category(
    config: ConfigDict, workdir: str, mesh: jax.sharding.Mesh, data: Data, stages: tuple[Stage, ...]
) -> report.Entry | dict[str, Any] | None:
    """Trains every stage on one category, scores its normals and its test set, draws its pictures.

    Where the last stage predicts nothing it pre-trains a backbone: that is saved and judged instead.
    """
    spec, main = data.spec, sharding.is_main()
    folder = os.path.join(workdir, spec.category)
    size = sharding.round_up(config.eval.batch_size, mesh)
    how = dict(
        batch_size=size,
        seed=config.seed,
        rows=sharding.my_rows(mesh, size),
        place=lambda batch: sharding.place_batch(batch, mesh),
        collect=sharding.to_host,
    )

    def predict(stage: Stage, state: TrainState, split: str) -> Predictions:
        return inference.predictions(stage, state, data, split=split, **how)

    def judge(stage: Stage, state: TrainState, linear: bool) -> dict[str, Any]:
        def embed(split: str, limit: int):
            return inference.embeddings(stage, state, data, split=split, limit=limit, **how)

        probe = configs.section(config).get("probe", representation.PROBE)
        return representation.judge(embed, data, probe, linear=linear, seed=config.seed)

    with Log(folder, main) as log:
        log.say(
            f"{spec.category}: {spec.n_train} training images, {spec.n_holdout} held out, "
            f"{spec.n_test_normal} normal and {spec.n_test_anomalous} anomalous test images"
        )
        for note in data.notes:
            log.say(f"{spec.category}: {note}")
        if main:
            files.write_json(os.path.join(folder, "splits.json"), data.manifest())
        carry, seconds, reached = None, 0.0, {}
        log.rewind("test", -1)
        taken = workdirs.taken(config, stages)
        for stage in stages:
            watch = functools.partial(_watch, predict, stage) if stage.predict else None
            if stage.embed:
                watch = functools.partial(_watch_features, judge, stage)
            where = os.path.join(config.start.run if stage.name in taken else workdir, spec.category, stage.name)
            carry, spent = train.train(
                stage, data, carry, seed=config.seed, mesh=mesh, folder=where, config=config, log=log, evaluate=watch
            )
            seconds += spent
            if stage.predict and stage is not stages[-1]:
                reached[stage.name] = _tell(log, stage, data, predict(stage, carry, "test"))
        if not stages[-1].predict:
            return _pretrained(folder, log, stages[-1], carry, data, judge, seconds)
        log.say(f"{spec.category}: predicts")
        normals = predict(stages[-1], carry, decision.threshold_split(spec))
        test = predict(stages[-1], carry, "test")
        if reached:
            reached[stages[-1].name] = _tell(log, stages[-1], data, test)
    if not main:
        return None
    test = workdirs.keep_time(os.path.join(folder, "timing.json"), test, seconds)
    return report.category(workdir, config.to_dict(), data, normals, test, fit_seconds=seconds, stages=reached)


def _watch(predict: Callable, stage: Stage, state: TrainState, step: int) -> dict[str, float]:
    """Test metrics in the middle of training: to look at, never to choose a step by."""
    values = evaluate.glance(predict(stage, state, "test"))
    return {f"test/{name}": value for name, value in values.items() if value is not None}


def _watch_features(judge: Callable, stage: Stage, state: TrainState, step: int) -> dict[str, float]:
    """k-NN accuracy in the middle of pre-training: to look at, never to choose a step by."""
    values = judge(stage, state, linear=False)
    return {f"probe/{name}": values[name] for name in ("knn_top1", "spread") if values[name] is not None}


def _pretrained(
    folder: str, log: Log, stage: Stage, state: TrainState, data: Data, judge: Callable, seconds: float
) -> dict[str, Any] | None:
    """Saves the backbone and says how good it is: its part of results.json."""
    path = os.path.join(folder, pretrained.BACKBONE)
    name, variables = stage.backbone(state)
    variables = sharding.to_host(variables)
    log.say(f"{data.spec.category}: judges the backbone")
    result = judge(stage, state, linear=True)
    if not sharding.is_main():
        return None
    pretrained.save(path, variables, name)
    return {"n_train": data.spec.n_train_normal, "fit_seconds": seconds, "backbone": name, "file": path, **result}


def _tell(log: Log, stage: Stage, data: Data, found: Predictions) -> dict[str, float | None]:
    """Logs what the test metrics are after a stage, where several stages predict."""
    values = evaluate.glance(found)
    words = (f"{name} {'n/a' if value is None else f'{value:.4f}'}" for name, value in values.items())
    log.say(f"{stage.name}: {', '.join(words)}")
    log.write("test", train.steps_of(stage, data), {f"{stage.name}/{name}": value for name, value in values.items()})
    return values
