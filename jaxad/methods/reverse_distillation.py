"""Reverse Distillation (Deng and Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022).

One stage: a student, which sees nothing but a compressed embedding of a frozen teacher's features, learns to give these
features back on normal images. Where it fails, there is an anomaly. The arithmetic is that of the authors' code RD4AD.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxad.losses import distillation
from jaxad.methods import features
from jaxad.models import reverse_distillation
from jaxad.models.reverse_distillation import LAYERS
from jaxad.optim import optimiser
from jaxad.scoring import maps
from jaxad.types import AnomalyMap, Array, Batch, DataSpec, Feed, Stage, TrainState, Tree, UserError
from jaxad.updates import Aux, descend, masked_mean


def stages(config: Any, spec: DataSpec) -> tuple[Stage, ...]:
    """One stage, 'distil'. Raises UserError where backbone, loss or image size make no sense."""
    reduce, score, steps = config.reverse_distillation.cos_reduce, config.score, config.train.steps.distil
    if reduce not in distillation.REDUCTIONS:
        known = ", ".join(distillation.REDUCTIONS)
        raise UserError(f"config.reverse_distillation.cos_reduce={reduce!r} is not one of: {known}")
    if spec.image_size % 32:
        size = spec.image_size
        raise UserError(f"{size} pixels cannot be halved five times; set config.data.image_size to a multiple of 32")
    student = reverse_distillation.student(config.backbone.name, features.compute_dtype(config))
    teacher = features.extractor(config, LAYERS, spec.image_size)

    def teach(state: TrainState, batch: Batch) -> dict[str, Array]:
        found = teacher.apply(state.frozen["teacher"], batch.image)
        return dict(zip(LAYERS, jax.lax.stop_gradient(found), strict=True))

    def init(key: Array, spec: DataSpec, carry: TrainState | None) -> TrainState:
        blank = {layer: jnp.zeros((1, 8 >> i, 8 >> i, teacher.shapes[i][-1])) for i, layer in enumerate(LAYERS)}
        # The hundred draws of the default generator, threefry, would take four times as long to compile.
        key = jax.random.wrap_key_data(jax.random.bits(key, (4,), jnp.uint32), impl="rbg")
        variables = jax.jit(student.init)(key, blank)
        return TrainState.create(
            params={"student": variables["params"]},
            stats={"student": variables["batch_stats"]},
            frozen={"teacher": teacher.load()},
        )

    def objective(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        targets = teach(state, batch)
        variables = {"params": params, "batch_stats": state.stats["student"]}
        answers, new = student.apply(variables, targets, train=True, mutable=["batch_stats"])
        distance = distillation.distillation(targets, answers, reduce)  # eq. 2
        return masked_mean(distance, batch.valid), Aux(stats={"student": new["batch_stats"]})

    def predict(state: TrainState, batch: Batch) -> AnomalyMap:
        targets = teach(state, batch)
        answers = student.apply({"params": state.params["student"], "batch_stats": state.stats["student"]}, targets)
        size, options = batch.image.shape[1:3], dict(interpolation=score.interpolation, sigma=score.sigma)
        distances = {layer: distillation.distance_map(targets[layer], answers[layer]) for layer in LAYERS}  # eq. 1
        pixel = sum(maps.anomaly_map(distance, size, **options) for distance in distances.values())  # eq. 3
        return AnomalyMap(pixel, maps.image_score(pixel, score.reduction))

    update = descend(objective, optimiser(config.optim, steps), wrt="student")
    return (Stage("distil", Feed(config.data.batch_size, split="train_normal"), steps, init, update, predict=predict),)
