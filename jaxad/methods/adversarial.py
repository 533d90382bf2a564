"""What stages with a generator and a critic share: networks with BatchNorm averages, and the critic's objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import linen as nn

from jaxad.losses import adversarial
from jaxad.types import Array, TrainState, Tree
from jaxad.updates import Aux, masked_mean, weighted_sum


class Network(NamedTuple):
    """init(key) -> variables · apply(variables, ..., train) -> (result, new BatchNorm averages)."""

    init: Callable[[Array], Tree]
    apply: Callable[..., tuple[Any, Tree]]


def run(module: nn.Module, own: Tree, planes: Array, train: bool) -> tuple[Any, Tree]:
    """(what the module gives, its BatchNorm averages), which a pass with train=False leaves as they are."""
    if not train:
        return module.apply(own, planes), own["batch_stats"]
    result, new = module.apply(own, planes, True, mutable=["batch_stats"])
    return result, new["batch_stats"]


def variables(state: TrainState, name: str, params: Tree | None = None) -> Tree:
    """The variables of network `name`, with other parameters where a gradient is taken."""
    return {"params": state.params[name] if params is None else params, "batch_stats": state.stats[name]}


def fresh(networks: Mapping[str, Tree], frozen: Mapping[str, Tree]) -> TrainState:
    """A state at step 0 of networks that are trained, given by their variables, and of others that are not."""
    return TrainState.create(
        params={name: own["params"] for name, own in networks.items()},
        stats={name: own["batch_stats"] for name, own in networks.items()},
        frozen=frozen,
    )


def criticise(
    critic: Network,
    name: str,
    params: Tree,
    state: TrainState,
    pairs: Mapping[str, tuple[Array, ...]],
    valid: Array,
    kind: str,
    weights: Mapping[str, float] | None = None,
) -> tuple[Array, Aux]:
    """The objective of a critic, `state`'s network `name`, under `params`: the sum over pairs of what it pays.

    pairs: {'real': what it should take for real, any other name: for fake}, arguments of `critic.apply`. Each is a
    batch of its own, as DCGAN trains: BatchNorm sees real and fake apart, its averages move once for each, in order.
    valid: bool[B] · kind: see losses/adversarial · weights: {pair: factor}; None: 1.
    """
    stats, terms = state.stats[name], {}
    for pair, planes in pairs.items():
        judged, stats = critic.apply({"params": params, "batch_stats": stats}, *planes, True)
        pay = adversarial.real if pair == "real" else adversarial.fake
        terms[pair] = (weights[pair] if weights else 1.0, masked_mean(pay(judged.logit, kind), valid))
    value, metrics = weighted_sum(terms)
    return value, Aux(stats={name: stats}, metrics={f"{name}/{pair}": term for pair, term in metrics.items()})
