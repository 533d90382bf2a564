"""Pattern generation and comparison (Huang et al., "Unsupervised Industrial Anomaly Detection via Pattern Generative
and Contrastive Networks"): a texture goes on as it has begun, and where it does not, there is an anomaly.

Stage 'generate' (III-A): from two neighbouring patches the generator learns to draw the third. Stage 'measure', one
pass over held-out normal images, says how well, beside two predictions that need no network; with n_select='nmse' it
chooses how many patches there are. Stage 'compare' (III-B): a network learns to tell what the frozen generator has
drawn from a patch with a defect, and where they differ. At test time every patch is drawn from several sides, and what
is wrong with it is what all of them say (III-C).

'pretrain' is 'generate' on any images at all: `pattern_generation.pretrain` trains that alone, and a run with
start.stage=pretrain begins with what it left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxad.losses import comparison
from jaxad.methods import features
from jaxad.methods.adversarial import variables
from jaxad.methods.pattern_reader import Generator, Read, Reader, blank, flat, generator, reader
from jaxad.methods.pattern_recipe import MOST, check
from jaxad.models.comparator import Comparator
from jaxad.optim import optimiser
from jaxad.types import AnomalyMap, Array, Batch, DataSpec, Feed, Stage, TrainState, Tree, View
from jaxad.updates import Aux, Update, descend, masked_mean, weighted_sum

SUMS = ("model", "copy_near", "mean_patch")  # whose errors stage 'measure' sums, beside the variance


def stages(config: Any, spec: DataSpec) -> tuple[Stage, ...]:
    """'generate', 'measure' and 'compare', or 'pretrain' and 'measure'. Raises UserError for options at odds."""
    options, steps = config.pattern_generation, config.train.steps
    patch = check(config, spec)
    net = generator(config, patch)
    readers = {n: reader(options, n, patch) for n in sorted({*options.train_n, options.n})}
    fixed = readers[options.n] if options.n_select == "fixed" else None
    drawn = {"n": list(options.train_n), "patch": patch, "coverage": options.coverage}
    drawn["canonicalize"] = options.canonicalize

    def generate(name: str, length: int) -> Stage:
        feed = Feed(config.data.batch_size, split="train_normal", views=(View("triple", "triple", drawn),))
        optim = config.optim if length else ConfigDict({**config.optim, "warmup": 0})  # it stays as it was carried on
        update = descend(_generate(options, net), optimiser(optim, length), wrt="generator")
        return Stage(name, feed, length, _begin(net), update, finish=lambda state: state.replace(opt={}))

    measure = Stage(
        "measure",
        Feed(config.eval.batch_size, split="holdout" if spec.n_holdout else "train_normal", shuffle=False),
        0,
        _init_measure,
        _measure(net, readers),
        facts=_facts(readers, fixed),
        predict=None if options.compare.enabled or options.pretrain else _predict_error(config, net, readers, fixed),
        work={"triples": len(fixed.found.target)} if fixed else {},
    )
    if options.pretrain:
        return generate("pretrain", steps.pretrain), measure
    before = (generate("pretrain", steps.pretrain),) if config.start.stage == "pretrain" else ()
    before += (generate("generate", steps.generate),) if net.learns else ()
    if not options.compare.enabled:
        return *before, measure

    own = {"name": "adam", "clip": 0.0, "warmup": 0, "lr": options.compare.lr}
    own["weight_decay"] = options.compare.weight_decay
    pairs = {name: value for name, value in options.pairs.items() if name != "mask_pool"}
    judge = Comparator(
        tuple(options.compare.widths),
        options.compare.sim_pool,
        options.compare.diff_feature,
        features.compute_dtype(config),
    )
    compare = Stage(
        "compare",
        Feed(options.compare.batch_size, split="train_normal", views=(View("pair", "pattern_pair", drawn | pairs),)),
        steps.compare,
        _init_compare(judge, patch),
        descend(
            _compare(options, net, judge),
            optimiser(ConfigDict({**config.optim, **own}), steps.compare),
            wrt="comparator",
        ),
        finish=lambda state: state.replace(opt={}),
        predict=_predict(config, net, judge, readers, fixed),
        map_range=(0.0, 1.0),
        work=measure.work,
    )
    return *before, measure, compare


def _begin(net: Generator):
    """A new generator, or the one that pre-training has left."""

    def init(key: Array, spec: DataSpec, carry: TrainState | None) -> TrainState:
        return TrainState.create(params={"generator": carry.params["generator"] if carry else net.init(key)})

    return init


def _generate(options: Any, net: Generator):
    """The objective of 'generate': eq. 6."""

    def objective(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        far, near, target = (batch.views[f"triple_{name}"] for name in ("far", "near", "target"))
        if options.context_mask_ratio:
            far, near = (
                blank(jax.random.fold_in(key, i), part, options.context_mask_ratio)
                for i, part in enumerate((far, near))
            )
        predicted = net.apply(params, far, near, True, jax.random.fold_in(key, 2))
        error = masked_mean(comparison.patch_error(predicted, target), batch.valid)
        copied = masked_mean(comparison.patch_error(batch.views["triple_near"], target), batch.valid)
        return error, Aux(metrics={"mse": error, "mse_copy_near": copied})

    return objective


def _init_measure(key: Array, spec: DataSpec, carry: TrainState | None) -> TrainState:
    # A row per number of patches, measured or not, so that a run that measures others can take the stages of this one.
    errors = jnp.zeros((MOST + 1, len(SUMS) + 1), jnp.float32)
    return TrainState.create(
        frozen={"generator": carry.params["generator"] if carry else {}}, memory={"errors": errors}
    )


def _bound(net: Generator, state: TrainState):
    return lambda far, near: net.apply(state.frozen["generator"], far, near)


def _measure(net: Generator, readers: Mapping[int, Reader]) -> Update:
    """Sums eq. 6 over all triples of normal images: of the prediction, of the near patch, of the mean colour of the
    context, and of the target's own mean colour, which is its variance."""

    def sums(one: Reader, state: TrainState, batch: Batch) -> Array:
        seen = one.read(_bound(net, state), batch.image)
        context = jnp.mean(jnp.stack([seen.far, seen.near]), axis=(0, 3, 4), keepdims=True)[0]
        guesses = (seen.predicted, seen.near, jnp.broadcast_to(context, seen.target.shape))
        errors = [comparison.patch_error(flat(guess), flat(seen.target)) for guess in guesses]
        errors.append(comparison.patch_variance(flat(seen.target)))
        rows = jnp.stack(errors, axis=-1).reshape(len(batch.image), -1, len(errors))
        return jnp.sum(jnp.where(batch.valid[:, None, None], rows, 0.0), axis=(0, 1))

    def apply(state: TrainState, batch: Batch, key: Array):
        errors = state.memory["errors"]
        for n, one in readers.items():
            errors = errors.at[n].add(sums(one, state, batch))
        return state.replace(memory={"errors": errors}), {"nmse": _nmse(errors)[min(readers), 0]}

    return Update(lambda state: state, apply)


def _nmse(errors: Array) -> Array:
    """f32[K, 4] sums -> f32[K, 3], each but the last as a share of the last; no number where nothing was measured."""
    return errors[:, :-1] / errors[:, -1:]


def _place(state: TrainState, readers: Mapping[int, Reader]) -> Array:
    """i32[], which of the readers predicts best; one whose number of patches was not measured never does."""
    nmse = _nmse(state.memory["errors"])[np.array(list(readers)), 0]
    return jnp.argmin(jnp.where(jnp.isnan(nmse), jnp.inf, nmse))


def _facts(readers: Mapping[int, Reader], fixed: Reader | None):
    """What 'measure' has found: the number of patches, and the normalised errors with it and with every other."""
    numbers = np.array(list(readers))

    def facts(state: TrainState) -> dict[str, Array]:
        nmse = _nmse(state.memory["errors"])
        n = jnp.asarray(fixed.n if fixed else jnp.asarray(numbers)[_place(state, readers)])
        told = {"n": n.astype(jnp.float32)} | {f"nmse_{name}": nmse[n, i] for i, name in enumerate(SUMS)}
        if len(readers) > 1:
            told |= {f"nmse_{name}_{k}": nmse[k, i] for k in readers for i, name in enumerate(SUMS)}
        return told

    return facts


def _init_compare(judge: Comparator, patch: int):
    def init(key: Array, spec: DataSpec, carry: TrainState | None) -> TrainState:
        two = jnp.zeros((2, 2, patch, patch, 3), jnp.float32)
        made = jax.jit(judge.init)(key, *two)
        return TrainState.create(
            params={"comparator": made["params"]},
            stats={"comparator": made["batch_stats"]},
            frozen=carry.frozen,
            memory=carry.memory,
        )

    return init


def _compare(options: Any, net: Generator, judge: Comparator):
    """The objective of 'compare': eq. 4, on pairs of what the frozen generator draws and what is there."""
    chosen = options.compare

    def objective(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        pair = {name: batch.views[f"pair_{name}"] for name in ("far", "near", "observed", "mask", "match", "masked")}
        drawn = jnp.clip(_bound(net, state)(pair["far"], pair["near"]), 0.0, 1.0)
        own = variables(state, "comparator", params)
        found, stats = judge.apply(own, drawn, pair["observed"], True, mutable=["batch_stats"])
        truth = comparison.pool_mask(pair["mask"], options.pairs.mask_pool)
        masks = comparison.mask_loss(found.mask, truth, chosen.mask_loss, chosen.mask_norm)
        hinge = comparison.hinge(found.score, pair["match"], chosen.hinge_on)
        terms = {
            "mask": (1.0, masked_mean(masks, batch.valid & pair["masked"])),
            "hinge": (1.0, masked_mean(hinge, batch.valid)),
        }
        value, metrics = weighted_sum(terms)
        right = (found.score > 0) == pair["match"]
        metrics["accuracy"] = masked_mean(right.astype(jnp.float32), batch.valid)
        differs = truth * pair["masked"].astype(jnp.float32)[:, None, None]
        metrics["recall"] = jnp.sum(jax.nn.sigmoid(found.mask) * differs) / jnp.maximum(jnp.sum(differs), 1.0)
        return value, Aux(stats={"comparator": stats["batch_stats"]}, metrics=metrics)

    return objective


def _switch(readers: Mapping[int, Reader], fixed: Reader | None, said: Any):
    """predict(state, batch) -> what `said(reader, state, batch)` says for a fixed number of patches, or the chosen."""

    def predict(state: TrainState, batch: Batch) -> AnomalyMap:
        if fixed:
            return said(fixed, state, batch)
        branches = [lambda state, batch, one=one: said(one, state, batch) for one in readers.values()]
        return jax.lax.switch(_place(state, readers), branches, state, batch)

    return predict


def _predict(config: Any, net: Generator, judge: Comparator, readers: Mapping[int, Reader], fixed: Reader | None):
    options = config.pattern_generation

    def said(one: Reader, state: TrainState, batch: Batch) -> AnomalyMap:
        seen = one.read(_bound(net, state), batch.image)
        found = judge.apply(variables(state, "comparator"), flat(seen.predicted), flat(seen.target))
        lead = seen.target.shape[:2]
        unlike = one.combine(jax.nn.sigmoid(-found.score).reshape(lead), options)  # 1 - P
        masks = one.upright(jax.nn.sigmoid(found.mask).reshape(*lead, *found.mask.shape[1:], 1))
        answer = _answer(config, one, seen, unlike, masks, batch.image.shape[1:3])
        return answer._replace(extras=answer.extras | {"error": jnp.max(_errors(one, seen, options)[0], axis=1)})

    return _switch(readers, fixed, said)


def _predict_error(config: Any, net: Generator, readers: Mapping[int, Reader], fixed: Reader | None):
    """Without a comparison network: the squared error of the prediction takes the place of its mask and of 1 - P."""

    def said(one: Reader, state: TrainState, batch: Batch) -> AnomalyMap:
        seen = one.read(_bound(net, state), batch.image)
        unlike, errors = _errors(one, seen, config.pattern_generation)
        return _answer(config, one, seen, unlike, errors, batch.image.shape[1:3])

    return _switch(readers, fixed, said)


def _errors(one: Reader, seen: Read, options: Any) -> tuple[Array, Array]:
    """(f32[B, n * n] eq. 6 of every patch, over its directions; f32[B, T, p, p, 1] of every pixel, upright)."""
    squared = jnp.sum(jnp.square(seen.predicted - seen.target), axis=-1, keepdims=True)
    return one.combine(jnp.mean(squared, axis=(2, 3, 4)), options), one.upright(squared)


def _answer(config: Any, one: Reader, seen: Read, unlike: Array, masks: Array, size: tuple[int, int]) -> AnomalyMap:
    """unlike: f32[B, n * n], how little a patch is what was predicted · masks: f32[B, T, q, q, 1], where not, upright.

    The extras are the three image scores, and pictures per direction: what was predicted, and its mask.
    """
    options = config.pattern_generation
    agreed = one.combine(masks[..., 0], options)
    if options.gate:
        agreed = agreed * unlike[..., None, None]
    pixel = one.image_map(agreed, size, config.score)
    scores = {"prob": jnp.max(unlike, axis=1), "pixel": jnp.max(pixel, axis=(1, 2))}
    scores["product"] = scores["prob"] * scores["pixel"]
    pictures = one.pictures("predicted", one.upright(seen.predicted), size) | one.pictures("mask", masks, size)
    return AnomalyMap(pixel, scores[options.score], scores | pictures)
