"""Reverse Distillation (Deng and Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022).

One stage: a student, which sees nothing but a compressed embedding of a frozen teacher's features, learns to give these
features back on normal images. Where it fails, there is an anomaly. The arithmetic is that of the authors' code RD4AD.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

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
    reduce, steps = config.reverse_distillation.cos_reduce, config.train.steps.distil
    if reduce not in distillation.REDUCTIONS:
        known = ", ".join(distillation.REDUCTIONS)
        raise UserError(f"config.reverse_distillation.cos_reduce={reduce!r} is not one of: {known}")
    pair = teacher_student(config, spec)

    def objective(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        targets = pair.teach(state, batch.image)
        answers, stats = pair.answer(params, state.stats["student"], targets)
        distance = distillation.distillation(targets, answers, reduce)  # eq. 2
        return masked_mean(distance, batch.valid), Aux(stats={"student": stats})

    update = descend(objective, optimiser(config.optim, steps), wrt="student")
    feed = Feed(config.data.batch_size, split="train_normal")
    return (Stage("distil", feed, steps, pair.init, update, predict=pair.predict),)


class Pair(NamedTuple):
    """A frozen teacher and its student, as the methods that descend from Reverse Distillation share them.

    init(key, spec, carry) -> a state with params['student'], stats['student'], frozen['teacher'] ·
    teach(state, image: f32[B, H, W, 3]) -> {layer: f32[B, h, w, C]}, without gradient ·
    answer(params, stats, targets, train=True, mask=None) -> ({layer: f[B, h, w, C]}, new stats); train=False leaves the
    stats as they are; mask: bool[B], the rows that they are taken from ·
    predict(state, batch) -> AnomalyMap, the sum of the layers' cosine distances (eq. 3).
    """

    init: Callable[[Array, DataSpec, TrainState | None], TrainState]
    teach: Callable[[TrainState, Array], dict[str, Array]]
    answer: Callable[..., tuple[dict[str, Array], Tree]]
    predict: Callable[[TrainState, Batch], AnomalyMap]


def teacher_student(
    config: Any, spec: DataSpec, *, attention: Callable[..., nn.Module] | None = None, attention_at: str = "pre"
) -> Pair:
    """The pair of config.backbone; `attention` and where it stands in the decoder: see models.reverse_distillation.

    Raises UserError where backbone or image size make no sense.
    """
    if spec.image_size % 32:
        size = spec.image_size
        raise UserError(f"{size} pixels cannot be halved five times; set config.data.image_size to a multiple of 32")
    dtype, score = features.compute_dtype(config), config.score
    student = reverse_distillation.student(config.backbone.name, dtype, attention=attention, attention_at=attention_at)
    teacher = features.extractor(config, LAYERS, spec.image_size)

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

    def teach(state: TrainState, image: Array) -> dict[str, Array]:
        found = teacher.apply(state.frozen["teacher"], image)
        return dict(zip(LAYERS, jax.lax.stop_gradient(found), strict=True))

    def answer(params: Tree, stats: Tree, targets: dict[str, Array], train: bool = True, mask: Array | None = None):
        variables = {"params": params, "batch_stats": stats}
        if not train:
            return student.apply(variables, targets), stats
        answers, new = student.apply(variables, targets, True, mask, mutable=["batch_stats"])
        return answers, new["batch_stats"]

    def predict(state: TrainState, batch: Batch) -> AnomalyMap:
        targets = teach(state, batch.image)
        answers, _ = answer(state.params["student"], state.stats["student"], targets, train=False)
        size, options = batch.image.shape[1:3], dict(interpolation=score.interpolation, sigma=score.sigma)
        distances = {layer: distillation.distance_map(targets[layer], answers[layer]) for layer in LAYERS}  # eq. 1
        pixel = sum(maps.anomaly_map(distance, size, **options) for distance in distances.values())  # eq. 3
        return AnomalyMap(pixel, maps.image_score(pixel, score.reduction))

    return Pair(init, teach, answer, predict)
