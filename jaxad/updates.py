"""Update combinators: optax's `(init, update)` and `chain`, lifted from gradients to whole train steps.

A method's training rule is one `Update`. `descend` follows a gradient, `remember` writes memory, `ema` follows another
network, `sequence` runs updates one after the other (each sees the result of those before it), `every` runs one of them
now and then. Beyond three parts, a hand-written `apply` is clearer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxad.types import SKIPPED, Array, Batch, Metrics, TrainState, Tree, Update


class Aux(NamedTuple):
    """What an objective hands out beside its value: new `stats`, new `memory`, and metrics to log."""

    stats: Mapping[str, Tree] = {}
    memory: Mapping[str, Tree] = {}
    metrics: Mapping[str, Array] = {}


Objective = Callable[[Tree, TrainState, Batch, Array], tuple[Array, Aux]]


def masked_mean(values: Array, valid: Array) -> Array:
    """Mean of `values: f32[B]` over the rows where `valid: bool[B]`; 0 if there are none.

    >>> float(masked_mean(jnp.array([1.0, 3.0, 100.0]), jnp.array([True, True, False])))
    2.0
    """
    total = jnp.sum(jnp.where(valid, values, 0.0))
    return total / jnp.maximum(jnp.sum(valid), 1).astype(values.dtype)


def weighted_sum(terms: Mapping[str, tuple[float, Array]]) -> tuple[Array, Metrics]:
    """Sum of weight * value over `{name: (weight, value: f32[])}`, and the unweighted values as metrics.

    A term of weight zero should not be built at all; one that is passed still counts as zero.

    >>> value, metrics = weighted_sum({'a': (2.0, jnp.float32(3)), 'b': (1.0, jnp.float32(1))})
    >>> float(value), float(metrics['a'])
    (7.0, 3.0)
    """
    value = sum(weight * term for weight, term in terms.values())
    return value, {name: term for name, (_, term) in terms.items()}


def descend(objective: Objective, tx: optax.GradientTransformation, wrt: str) -> Update:
    """Gradient descent on `objective(params[wrt], state, batch, key) -> (f32[], Aux)`, by optax's `tx`.

    The gradient reaches params[wrt] only. Logs the value as '<wrt>/loss' and the objective's own metrics.
    """

    def init(state: TrainState) -> TrainState:
        if wrt not in state.params:
            raise KeyError(f"descend: no network {wrt!r} in state.params, which holds {sorted(state.params)}")
        return state.replace(opt={**state.opt, wrt: tx.init(state.params[wrt])})

    def apply(state: TrainState, batch: Batch, key: Array):
        gradient_of = jax.value_and_grad(objective, has_aux=True)
        (value, aux), gradient = gradient_of(state.params[wrt], state, batch, key)
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an integer power
            change, opt = tx.update(gradient, state.opt[wrt], state.params[wrt])
        state = state.replace(
            params={**state.params, wrt: optax.apply_updates(state.params[wrt], change)},
            opt={**state.opt, wrt: opt},
            stats={**state.stats, **aux.stats},
            memory={**state.memory, **aux.memory},
        )
        return state, {f"{wrt}/loss": value, **aux.metrics}

    return Update(init, apply)


def remember(rule: Callable[[TrainState, Batch, Array], Mapping[str, Tree]]) -> Update:
    """Writes `rule(state, batch, key) -> {name: new value}` into memory: banks, moments, centres; no gradient."""

    def apply(state: TrainState, batch: Batch, key: Array):
        return state.replace(memory={**state.memory, **rule(state, batch, key)}), {}

    return Update(lambda state: state, apply)


def ema(source: str, target: str, decay: float) -> Update:
    """params[target] <- decay * params[target] + (1 - decay) * params[source] (MoCo's key encoder, for one).

    The target starts as a copy of the source where the state has no such network yet. A copy, for buffers that are one
    array under two names cannot be donated.
    """

    def init(state: TrainState) -> TrainState:
        if target in state.params:
            return state
        return state.replace(params={**state.params, target: jax.tree.map(jnp.copy, state.params[source])})

    def apply(state: TrainState, batch: Batch, key: Array):
        followed = optax.incremental_update(state.params[source], state.params[target], 1.0 - decay)
        return state.replace(params={**state.params, target: followed}), {}

    return Update(init, apply)


def sequence(*updates: Update) -> Update:
    """One update after the other, each with its own key; the second sees what the first wrote."""

    def init(state: TrainState) -> TrainState:
        for update in updates:
            state = update.init(state)
        return state

    def apply(state: TrainState, batch: Batch, key: Array):
        metrics: Metrics = {}
        for position, update in enumerate(updates):
            state, more = update.apply(state, batch, jax.random.fold_in(key, position))
            metrics |= more
        return state, metrics

    return Update(init, apply)


def every(n: int, update: Update) -> Update:
    """`update` at steps 0, n, 2n, ...; its metrics are SKIPPED at the steps between."""
    if n < 1:
        raise ValueError(f"every: n must be at least 1, got {n}")

    def apply(state: TrainState, batch: Batch, key: Array):
        _, shapes = jax.eval_shape(update.apply, state, batch, key)

        def skip(state):
            return state, jax.tree.map(lambda leaf: jnp.full(leaf.shape, SKIPPED, leaf.dtype), shapes)

        return jax.lax.cond(state.step % n == 0, lambda state: update.apply(state, batch, key), skip, state)

    return Update(update.init, apply)
