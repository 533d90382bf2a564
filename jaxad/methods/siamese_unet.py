"""The Siamese U-Net (Lin and Lai, "Siamese U-Net for Image Anomaly Detection and Segmentation with Contrastive
Learning"): Reverse Distillation with attention in the decoder, and two ways to tell it what an anomaly is.

Stage 'contrast' (3.2.1): the student restores the teacher's features of normal images and of their rotated copies, and
keeps its features of anomalies away from both. Stage 'deviate' (3.2.2): what scores an image at test time is pulled to
0 for normal images and above p for the same anomalies. Anomalies are real ones, moved from the test set, or synthetic.

The three copies of the network in the paper's figure share their weights, so here they are one pass over 3 B images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxad.errors import Checks
from jaxad.losses import contrastive, deviation, distillation
from jaxad.methods import features
from jaxad.methods.reverse_distillation import Pair, teacher_student
from jaxad.models.attention import attention
from jaxad.models.reverse_distillation import LAYERS
from jaxad.optim import optimiser
from jaxad.types import AXIS, Array, Batch, DataSpec, Feed, Stage, TrainState, Tree, UserError, View
from jaxad.updates import Aux, Update, descend, masked_mean, weighted_sum

BN_STATS = ("normal", "joint", "separate")
MOMENTUM = 0.9  # of the running moments of 'zscore'


def stages(config: Any, spec: DataSpec) -> tuple[Stage, ...]:
    """'contrast', and 'deviate' unless config.siamese_unet.deviation is off. Raises UserError for options at odds."""
    options, steps = config.siamese_unet, config.train.steps
    _check(options, spec)
    refine = attention(options.attention, features.compute_dtype(config), **options.cpam)
    pair = teacher_student(config, spec, attention=refine, attention_at=options.attention_at)

    size = config.data.batch_size
    rotated = View("rotated", "rotated", {"degrees": options.degrees, "mode": options.rotation})
    views = (rotated, _anomaly(options, spec)) if options.contrastive else ()
    contrast = Stage(
        "contrast",
        Feed(size, split="train_normal", views=views),
        steps.contrast,
        pair.init,
        descend(_contrast(options, pair), optimiser(config.optim, steps.contrast), wrt="student"),
        predict=pair.predict,
    )
    if not options.deviation:
        return (contrast,)
    # "All sampled from the anomalies employed in stage 1": the first images and anomalies of its stream.
    again = ("contrast", max(steps.contrast, 1) * size)
    deviate = Stage(
        "deviate",
        Feed(options.deviate.batch_size, split="train_normal", views=(_anomaly(options, spec),), replay=again),
        steps.deviate,
        _carry_on(options),
        _deviate(config, pair),
        predict=pair.predict,
    )
    return contrast, deviate


def _anomaly(options: Any, spec: DataSpec) -> View:
    if options.anomalies == "real":
        return View("anomaly", "real_anomaly")
    chosen = {name: list(value) if isinstance(value, tuple) else value for name, value in options.synthesis.items()}
    return View("anomaly", "nsa", {"dataset": spec.dataset, "category": spec.category, **chosen})


def _contrast(options: Any, pair: Pair):
    """The objective of stage 1."""
    branches = ("n", "naug", "a") if options.contrastive else ("n",)
    restored = [branches.index(name) for name in options.cossim_on if name in branches]

    def answer(params: Tree, stats: Tree, targets: dict[str, Array]) -> tuple[dict[str, Array], Tree]:
        if options.bn_stats == "separate" and len(branches) > 1:  # three calls, as PyTorch code would make them
            answers = []
            for part in _split(targets, len(branches)):
                found, stats = pair.answer(params, stats, part)
                answers.append(found)
            return _join(answers), stats
        mask = None
        if options.bn_stats == "normal" and len(branches) > 1:
            rows = len(next(iter(targets.values()))) // len(branches)
            mask = _join([jnp.full(rows, name != "a") for name in branches])
        return pair.answer(params, stats, targets, mask=mask)

    def objective(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        images = [batch.image, *(batch.views[name] for name in ("rotated", "anomaly") if options.contrastive)]
        targets = pair.teach(state, _join(images))
        answers, stats = answer(params, state.stats["student"], targets)
        wanted, given = _split(targets, len(branches)), _split(answers, len(branches))
        # eq. 1. Never on the anomaly: the student would learn to restore what it should fail at.
        cossim = sum(
            distillation.distillation(wanted[i], given[i], options.cos_reduce, layers="mean") for i in restored
        ) / len(restored)
        terms = {"cossim": (options.lambda_cos, masked_mean(cossim, batch.valid))}
        metrics = {}
        if options.contrastive:
            positive, negative = (
                contrastive.similarities(given[0], given[i], options.con_reduce, options.con_stop) for i in (1, 2)
            )
            hinge = contrastive.hinge(positive, negative, options.margin)  # eq. 6
            terms["contrastive"] = (options.lambda_con, masked_mean(hinge, batch.valid))
            for layer in LAYERS:
                metrics[f"cos_positive/{layer}"] = masked_mean(positive[layer], batch.valid)
                metrics[f"cos_negative/{layer}"] = masked_mean(negative[layer], batch.valid)
        value, parts = weighted_sum(terms)  # eq. 7
        return value, Aux(stats={"student": stats}, metrics=parts | metrics)

    return objective


def _carry_on(options: Any):
    """Stage 2 starts from what stage 1 left."""

    def init(key: Array, spec: DataSpec, carry: TrainState | None) -> TrainState:
        memory = {}
        if options.score == "zscore":
            memory = {name: {layer: jnp.zeros(()) for layer in LAYERS} for name in ("mean", "var")}
        return TrainState.create(params=carry.params, stats=carry.stats, frozen=carry.frozen, memory=memory)

    return init


def _deviate(config: Any, pair: Pair) -> Update:
    """The update of stage 2. BatchNorm keeps the averages of stage 1: half of these batches is anomalous."""
    options = config.siamese_unet
    own = {key: value for key, value in options.deviate.items() if key != "batch_size"}
    tx = optimiser(ConfigDict({**config.optim, **own}), config.train.steps.deviate)

    def objective(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        targets = pair.teach(state, _join([batch.image, batch.views["anomaly"]]))
        answers, _ = pair.answer(params, state.stats["student"], targets, train=False)
        label = _join([jnp.zeros_like(batch.label), jnp.ones_like(batch.label)])
        scores = {}
        for layer in LAYERS:
            mask = None
            if options.masked:  # an anomaly by what lies in its mask, a normal image by all of it
                inside = _shrink(batch.views["anomaly_mask"], targets[layer].shape[1:3])
                mask = _join([jnp.ones_like(inside), inside])
            scores[layer] = deviation.layer_score(targets[layer], answers[layer], options.score, options.k, mask)
        memory = {}
        if options.score == "zscore":
            memory = _moments(state, {layer: _split(score, 2)[0] for layer, score in scores.items()})
            scores = deviation.standardise(scores, memory["mean"], memory["var"])
        valid = _join([batch.valid, batch.valid])
        terms = {"deviation": (1.0, masked_mean(deviation.deviation(scores, label, options.p), valid))}  # eq. 8
        if options.keep:
            # Departure: not in the paper, whose stage 2 can damage localisation (Table 4, third row; Table 3, foam):
            # eq. 1 on the normal images goes on. keep=0 is the paper's.
            wanted, given = _split(targets, 2)[0], _split(answers, 2)[0]
            cossim = distillation.distillation(wanted, given, options.cos_reduce, layers="mean")
            terms["cossim"] = (options.keep, masked_mean(cossim, batch.valid))
        value, metrics = weighted_sum(terms)
        for layer, score in scores.items():
            normal, anomalous = _split(score, 2)
            metrics[f"score_normal/{layer}"] = masked_mean(normal, batch.valid)
            metrics[f"score_anomalous/{layer}"] = masked_mean(anomalous, batch.valid)
        return value, Aux(memory=memory, metrics=metrics)

    return descend(objective, tx, wrt="student")


def _moments(state: TrainState, scores: dict[str, Array]) -> dict[str, dict[str, Array]]:
    """Running mean and variance of the scores of normal images, per layer; at first those of the first batch."""
    new = {"mean": jax.tree.map(jnp.mean, scores), "var": jax.tree.map(jnp.var, scores)}

    def moved(old: Array, value: Array) -> Array:
        value = jax.lax.stop_gradient(value)
        return jnp.where(state.step == 0, value, MOMENTUM * old + (1 - MOMENTUM) * value)

    return {name: jax.tree.map(moved, dict(state.memory[name]), new[name]) for name in new}


def _shares(rows: int) -> int:
    """Into how many shares the mesh in force splits a batch."""
    devices = jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)
    return devices if rows % devices == 0 else 1


def _join(parts: Sequence[Tree]) -> Tree:
    """k trees of [B, ...] -> [k B, ...]: end to end within each device's share, so that no row changes its device.

    >>> _join([jnp.array([1, 2]), jnp.array([10, 20])]).tolist()
    [1, 2, 10, 20]
    """

    def join(*leaves: Array) -> Array:
        rows, *rest = leaves[0].shape
        shares = _shares(rows)
        return jnp.stack([leaf.reshape(shares, -1, *rest) for leaf in leaves], 1).reshape(-1, *rest)

    return jax.tree.map(join, *parts)


def _split(tree: Tree, k: int) -> list[Tree]:
    """The inverse of `_join`.

    >>> [part.tolist() for part in _split(jnp.array([1, 2, 10, 20]), 2)]
    [[1, 2], [10, 20]]
    """

    def part(leaf: Array, i: int) -> Array:
        rows, *rest = leaf.shape
        return leaf.reshape(_shares(rows // k), k, -1, *rest)[:, i].reshape(-1, *rest)

    return [jax.tree.map(lambda leaf, i=i: part(leaf, i), tree) for i in range(k)]


def _shrink(mask: Array, grid: tuple[int, int]) -> Array:
    """bool[B, H, W] -> bool[B, h, w]: True where any pixel of the cell is."""
    (height, width), (h, w) = mask.shape[1:], grid
    return jnp.any(mask.reshape(-1, h, height // h, w, width // w), axis=(2, 4))


def _check(options: Any, spec: DataSpec) -> None:
    """Raises UserError for values that make no sense, before anything is loaded."""

    check = Checks(options, "config.siamese_unet")
    check.one_of("attention_at", ("pre", "post"))
    check.one_of("anomalies", ("real", "synthetic"))
    check.one_of("rotation", ("small", "k90", "any"))
    check.one_of("cos_reduce", distillation.REDUCTIONS)
    check.one_of("con_reduce", contrastive.REDUCTIONS)
    check.one_of("con_stop", contrastive.STOPS)
    check.one_of("bn_stats", BN_STATS)
    check.one_of("score", deviation.SCORES)
    known = set(options.cossim_on) <= {"n", "naug"} and "n" in options.cossim_on
    check.demand(known, "cossim_on", "('n',) or ('n', 'naug')")
    check.not_negative("margin", "lambda_con", "keep")
    check.demand(options.lambda_cos > 0, "lambda_cos", "more than 0: without it the student restores nothing")
    check.demand(0 < options.k <= 1, "k", "in (0, 1]")
    check.demand(options.p > 0, "p", "more than 0")
    if options.score in ("topk", "mean"):
        check.demand(options.p <= 1, "p", f"at most 1, the largest score of an image under score={options.score!r}")
    check.demand(options.deviate.batch_size >= 1, "deviate.batch_size", "1 or more")
    check.demand(
        not options.masked or options.score in ("topk", "zscore"), "masked", "False unless score is topk or zscore"
    )
    if not (options.contrastive or options.deviation):
        return  # nothing needs an anomaly
    if options.anomalies == "real" and not spec.n_train_anomalous:
        raise UserError(
            f"{spec.category}: config.siamese_unet.anomalies='real', but no anomaly is moved into training; "
            f"set --config.data.n_anomalies=10, or anomalies=synthetic"
        )
    if options.masked and options.anomalies == "real" and not spec.has_masks:
        raise UserError(
            f"{spec.category}: config.siamese_unet.masked=True, but its anomalies have no masks; draw them all, set "
            f"masked=False, or anomalies=synthetic"
        )
    if options.anomalies == "synthetic" and spec.n_train_normal < 2:
        raise UserError(
            f"{spec.category}: synthetic anomalies need two normal training images, there is {spec.n_train_normal}; "
            f"add images or lower data.holdout"
        )
