"""Optimisers and learning-rate schedules from `config.optim`, by optax.

Names and meanings are PyTorch's, from where nearly all of the papers' settings come.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxad.errors import UserError

OPTIMISERS = ("adam", "adamw", "sgd", "lars")
SCHEDULES = ("constant", "cosine", "constant_linear", "steps")
DECAYS = ("all", "kernels")


def schedule(lr: float, steps: int, name: str = "constant", warmup: int = 0, end: float = 0.0) -> optax.Schedule:
    """Learning rate at each step, as a function step -> f32[].

    The first `warmup` steps climb in equal parts: lr/warmup, 2 lr/warmup, ..., lr. Then 'constant' keeps lr, and
    'cosine' follows half a cosine over the steps that remain, from lr at the first to `end` after the last (Loshchilov
    and Hutter 2017, eq. 5, one period; PyTorch's CosineAnnealingLR with T_max = steps - warmup and eta_min = end).
    'constant_linear' keeps lr for the first half of them and falls in a line to 0 over the second (CycleGAN's). 'steps'
    falls to a tenth after 60 % of them and to a hundredth after 80 % (epochs 120 and 160 of 200, MoCo v1's).

    >>> [round(float(schedule(0.8, 6, "cosine", warmup=2)(step)), 3) for step in range(7)]
    [0.4, 0.8, 0.8, 0.683, 0.4, 0.117, 0.0]
    """
    if name not in SCHEDULES:
        raise UserError(f"unknown schedule {name!r}; set config.optim.schedule to one of {', '.join(SCHEDULES)}")
    if not 0 <= end <= lr:
        raise UserError(f"config.optim.end={end} is not between 0 and the learning rate, {lr}")
    if not 0 <= warmup <= steps:
        raise UserError(f"config.optim.warmup={warmup} is not between 0 and the {steps} steps of the stage")
    period, floor = max(steps - warmup, 1), end / lr if end else 0.0
    falls = [warmup + -(-period * tenths // 10) for tenths in (6, 8)]  # whole steps: a share of floats may miss one

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        rest = jnp.clip((step - warmup) / period, 0.0, 1.0)
        after = {
            "constant": jnp.ones_like(rest),
            "cosine": floor + (1.0 - floor) * (0.5 * (1.0 + jnp.cos(jnp.pi * rest))),
            "constant_linear": jnp.minimum(2.0 - 2.0 * rest, 1.0),
            "steps": jnp.where(step < falls[0], 1.0, jnp.where(step < falls[1], 0.1, 0.01)),
        }[name]
        return lr * jnp.where(step < warmup, (step + 1.0) / max(warmup, 1), after)

    return rate


def optimiser(optim: Any, steps: int) -> optax.GradientTransformation:
    """The optimiser of a stage of `steps` steps, from a `config.optim` section (keys as in `jaxad.config.default`).

    adam (b1, b2), adamw (b1, b2, decoupled weight decay), sgd (momentum) or lars (momentum, trust). weight_decay of
    adam and sgd is the L2 term added to the gradient, as PyTorch's; of these three it is on all leaves, or with
    decay='kernels' only on those that are called so, which spares biases, norms and tables. `clip` first scales the
    whole gradient down to that norm. State is float32 whatever the type of the gradients. `updates.descend` runs it
    under standard dtype promotion, which optax's Adam needs. Raises UserError.

    lars (You et al. 2017, arXiv:1708.03888, algorithm 1), layer by layer: g = gradient + weight_decay w,
    v = momentum v + lr trust |w| / |g| g, w = w - v. Leaves of one axis or none, which are biases and BatchNorm's
    parameters, have neither weight decay nor trust |w| / |g| (SimCLR).
    Departure: |g| is the norm of the sum, as in SimCLR's code; the paper has |gradient| + weight_decay |w|.

    >>> from jaxad.config import default
    >>> tx = optimiser(default("reverse_distillation").optim, steps=10)
    >>> with jax.numpy_dtype_promotion("standard"):
    ...     change, _ = tx.update({"w": jnp.ones(2)}, tx.init({"w": jnp.zeros(2)}), {"w": jnp.zeros(2)})
    >>> [round(float(value), 6) for value in change["w"]]  # Adam's first step is -lr in each coordinate
    [-0.001, -0.001]
    """
    if optim.name not in OPTIMISERS:
        raise UserError(f"unknown optimiser {optim.name!r}; set config.optim.name to one of {', '.join(OPTIMISERS)}")
    if not optim.lr > 0:
        raise UserError(f"config.optim.lr={optim.lr} must be positive")
    if optim.decay not in DECAYS:
        raise UserError(f"unknown decay {optim.decay!r}; set config.optim.decay to one of {', '.join(DECAYS)}")
    rate = schedule(optim.lr, steps, optim.schedule, optim.warmup, optim.end)
    decay = optax.add_decayed_weights(optim.weight_decay, _kernels if optim.decay == "kernels" else None)
    parts = [in_float32()]
    if optim.clip:
        parts.append(optax.clip_by_global_norm(optim.clip))
    if optim.name == "lars":
        if not optim.trust > 0:
            raise UserError(f"config.optim.trust={optim.trust} must be positive")
        own = dict(trust_coefficient=optim.trust, momentum=optim.momentum)
        parts.append(optax.lars(rate, optim.weight_decay, _matrices, trust_ratio_mask=_matrices, **own))
        return optax.chain(*parts)
    if optim.weight_decay and optim.name != "adamw":
        parts.append(decay)
    if optim.name == "sgd":
        parts += [optax.trace(optim.momentum, accumulator_dtype=jnp.float32)] if optim.momentum else []
    else:
        parts.append(optax.scale_by_adam(optim.b1, optim.b2, eps=1e-8, mu_dtype=jnp.float32))
    if optim.weight_decay and optim.name == "adamw":
        parts.append(decay)
    return optax.chain(*parts, optax.scale_by_learning_rate(rate))


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _kernels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", None) == "kernel", params)


def in_float32() -> optax.GradientTransformation:
    """Gradients as float32, whatever type they come in."""
    return optax.stateless(lambda gradient, _: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradient))
