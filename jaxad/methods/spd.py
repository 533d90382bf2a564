"""Pre-training by SPot-the-Difference (SPD; Zou et al., the poster): a backbone that sees small local changes.

One stage, 'pretrain': L = L_base(x, x^) + eta * L_SPD(x, x~-, x~+). The base is SimSiam, MoCo, SimCLR or supervised
classification; x and x^ are strong global views of an image, x~+ a weak one, x~- a weak one with a strong local change
(SmoothBlend). The pipeline makes them: `jaxad/data/synthesis/spot_the_difference.py`. What comes out is the backbone,
under torchvision's names, for every other method to stand on.

The poster gives the losses and eta (0.1). All else is from the base methods' papers and code:

  BatchNorm   SimSiam: each view is a batch of its own, over all devices · SimCLR: all views are one, or x~- would be
              known by its own statistics · MoCo: groups of `bn_group` images and, for keys, after a permutation: a key
              normalised together with its query could be found by that signature instead of by what it shows
  gradients   of L_SPD reach z, z~- and z~+; SimSiam's form has its predictor and stopped gradients in it
  eta = 0     drops the term and its views: what is left is the base itself

Departure from SimCLR's code, which feeds [0, 1]: every base sees images normalised as for torchvision's networks, so
that the backbone can stand wherever those do.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxad import pretrained
from jaxad.losses import selfsup
from jaxad.methods import features
from jaxad.methods import spd_recipe as recipe
from jaxad.methods.encoders import LAST, Encoder, Seen
from jaxad.models import backbones, heads
from jaxad.optim import optimiser
from jaxad.types import Array, Batch, DataSpec, Feed, Stage, TrainState, Tree, View
from jaxad.updates import Aux, descend, ema, masked_mean, sequence, weighted_sum

Terms = dict[str, Array]  # {name: f32[B]}


def stages(config: Any, spec: DataSpec) -> tuple[Stage, ...]:
    """One stage, 'pretrain'. Raises UserError where config.spd, the data or the backbone make no sense."""
    options, batch_size = config.spd, config.data.batch_size
    recipe.check(config, spec)
    dtype, groups = features.compute_dtype(config), recipe.groups(options, batch_size)
    encoder = Encoder(
        backbones.build(config.backbone.name, (LAST,), dtype=dtype, groups=groups),
        _heads(options, backbones.channels(config.backbone.name, LAST), len(spec.kinds), dtype),
    )
    steps = round(options.epochs * spec.n_train_normal / batch_size) if options.epochs else config.train.steps.pretrain
    best = "average" if options.ema else "encoder"

    def init(key: Array, spec: DataSpec, carry: TrainState | None) -> TrainState:
        backbone = pretrained.load(config.backbone.name, config.backbone.weights, (LAST,), seed=config.seed)
        if options.base == "simsiam" and options.simsiam.zero_init and config.backbone.weights == "random":
            backbone = _closed(backbone)
        own = encoder.init(key, backbone, backbones.channels(config.backbone.name, LAST))
        params, stats, memory = {"encoder": own["params"]}, {"encoder": own["batch_stats"]}, {}
        if options.base == "moco":
            stats["key"] = own["batch_stats"]
            shape = (options.moco.queue, options.moco.dim)
            rows = jax.random.normal(jax.random.fold_in(key, len(encoder.heads)), shape, jnp.float32)
            memory = {"queue": selfsup.unit(rows), "queue_pointer": jnp.zeros((), jnp.int32)}
        return TrainState.create(params=params, stats=stats, memory=memory)

    objective = _objective(options, encoder)

    def loss(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        terms, aux = objective(params, state, batch, key)
        weights = {"base": 1.0, "spd": options.eta}
        value, metrics = weighted_sum(
            {name: (weights[name], masked_mean(term, batch.valid)) for name, term in terms.items()}
        )
        return value, aux._replace(metrics={**aux.metrics, **{f"pretrain/{k}": v for k, v in metrics.items()}})

    rules = [descend(loss, _optimiser(config, spec, steps), "encoder")]
    if options.base == "moco":
        rules.insert(0, ema("encoder", "key", options.moco.momentum))
    if options.ema:
        rules.append(ema("encoder", "average", options.ema))

    def variables(state: TrainState) -> Tree:
        return {"params": state.params[best]["backbone"], "batch_stats": state.stats["encoder"]["backbone"]}

    wanted = [View("spd", "spot_the_difference", recipe.view_options(options))]
    if options.base == "supervised":
        wanted.append(View("class", "class"))
    return (
        Stage(
            "pretrain",
            Feed(batch_size, split="train_normal", views=tuple(wanted)),
            steps,
            init,
            sequence(*rules),
            finish=lambda state: state.replace(opt={}),
            embed=lambda state, batch: encoder.features(variables(state), batch.image),
            backbone=lambda state: (config.backbone.name, variables(state)),
        ),
    )


def _objective(options: Any, encoder: Encoder) -> Callable[[Tree, TrainState, Batch, Array], tuple[Terms, Aux]]:
    """The terms of the loss, one value per image, and what the passes leave behind."""
    base, term = options.base, recipe.term(options)
    by_key = {"second"} if base == "moco" else set()
    if base == "moco" and options.spd_moco == "key":
        by_key |= {"weak", "local"}
    shown = recipe.views(options)
    joint = options.bn_concat_views == "yes" or (options.bn_concat_views == "auto" and base == "simclr")
    anchor = "first" if options.spd_anchor == "shared" else "anchor"

    def objective(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        views = {name: batch.views[f"spd_{name}"] for name in shown}
        own = {name: image for name, image in views.items() if name not in by_key}
        seen, stats = encoder.see_all(params, state.stats["encoder"], own, joint)
        aux = Aux({"encoder": stats}, metrics={"pretrain/spread": _spread(seen["first"].z)})
        if base == "moco":
            more, averages = _keys(encoder, state, {name: views[name] for name in views if name in by_key}, key)
            seen |= more
            memory = state.memory
            queue, pointer = selfsup.enqueue(memory["queue"], memory["queue_pointer"], seen["second"].z)
            aux = aux._replace(
                stats={"encoder": stats, "key": averages}, memory={"queue": queue, "queue_pointer": pointer}
            )
        terms = {"base": _base(options, encoder, params, seen, state, batch)}
        if options.eta and term == "xent":
            negative, positive = seen["local"], seen["first" if base == "supervised" else "weak"]
            terms["spd"] = _told_apart(encoder, params, positive.h, negative.h)
        elif options.eta:
            terms["spd"] = _difference(options, *(seen[name] for name in (anchor, "local", "weak")))
        return terms, aux

    return objective


def _base(
    options: Any,
    encoder: Encoder,
    params: Tree,
    seen: Mapping[str, Seen],
    state: TrainState,
    batch: Batch,
) -> Array:
    """L_base, f32[B]."""
    first, second = seen["first"], seen.get("second")
    if options.base == "simsiam":
        return selfsup.simsiam((first.p, first.z), (second.p, second.z))
    if options.base == "moco":
        return selfsup.moco(first.z, second.z, state.memory["queue"], options.moco.temperature)
    if options.base == "simclr":
        # The official NT-Xent has both directions and the negatives of both views; the poster's InfoNCE one of each.
        form = selfsup.nt_xent if options.simclr.negatives == "ntxent" else selfsup.info_nce
        return form(first.z, second.z, options.simclr.temperature)
    return selfsup.cross_entropy(encoder.head(params, "classes", first.h), batch.views["class"])


def _difference(options: Any, anchor: Seen, negative: Seen, positive: Seen) -> Array:
    """L_SPD, f32[B].

    Departure: SimSiam's stands on the predictor, with stopped gradients, as SimSiam's own loss does; the poster's form
    would pull at the projections themselves. As printed: spd_space=z.
    """
    if recipe.space(options) == "pred_sg":
        return selfsup.predicted_difference(*((view.p, view.z) for view in (anchor, negative, positive)))
    return selfsup.spot_the_difference(anchor.z, negative.z, positive.z)


def _told_apart(encoder: Encoder, params: Tree, positive: Array, negative: Array) -> Array:
    """Cross-entropy of the auxiliary classifier, 'is it with SmoothBlend?', f32[B]: the mean of its two images."""
    told = [
        selfsup.cross_entropy(encoder.head(params, "spot", h), jnp.full(h.shape[0], label, jnp.int32))
        for label, h in enumerate((positive, negative))
    ]
    return (told[0] + told[1]) / 2.0


def _keys(encoder: Encoder, state: TrainState, views: Mapping[str, Array], key: Array) -> tuple[dict[str, Seen], Tree]:
    """What the key encoder sees, without gradient: permuted, so that its BatchNorm groups are not the queries'."""
    params, stats, found = jax.lax.stop_gradient(state.params["key"]), state.stats["key"], {}
    for name, image in views.items():
        order = jax.random.permutation(key, image.shape[0])
        seen, stats = encoder.see(params, stats, image[order])
        back = jnp.argsort(order)
        found[name] = jax.tree.map(lambda rows, back=back: jax.lax.stop_gradient(rows[back]), seen)
    return found, stats


def _spread(z: Array) -> Array:
    """f32[]: the standard deviation of unit vectors, per dimension, times sqrt(D): 1 if spread evenly, 0 if collapsed
    (SimSiam, section 4.1)."""
    return jnp.mean(jnp.std(selfsup.unit(jax.lax.stop_gradient(z)), axis=0)) * jnp.sqrt(jnp.float32(z.shape[-1]))


def _closed(backbone: Tree) -> Tree:
    """Residual branches that start at zero: the last BatchNorm of every block has scale 0 (SimSiam's code)."""

    def close(path, leaf):
        block, layer = path[0].key, path[1].key
        last = {"bn3" if "bn3" in backbone["params"][block] else "bn2"} if block.startswith("layer") else set()
        return jnp.zeros_like(leaf) if layer in last and path[-1].key == "scale" else leaf

    return {**backbone, "params": jax.tree_util.tree_map_with_path(close, backbone["params"])}


def _heads(options: Any, channels: int, kinds: int, dtype: jnp.dtype) -> dict[str, nn.Module]:
    made: dict[str, nn.Module] = {}
    if options.base == "simsiam":
        made["projector"] = heads.SimSiamProjector(options.simsiam.dim, dtype=dtype)
        made["predictor"] = heads.SimSiamPredictor(options.simsiam.predictor_dim, dtype=dtype)
    elif options.base == "moco":
        hidden = channels if options.moco.head == "mlp" else 0
        made["projector"] = heads.MoCoHead(options.moco.dim, hidden, dtype=dtype)
    elif options.base == "simclr":
        made["projector"] = heads.SimCLRProjector(options.simclr.dim, options.simclr.layers, dtype=dtype)
    else:
        made["classes"] = heads.Linear(kinds, dtype=dtype)
    if options.eta and recipe.term(options) == "xent":
        made["spot"] = heads.Linear(2, dtype=dtype)
    return made


def _optimiser(config: Any, spec: DataSpec, steps: int) -> optax.GradientTransformation:
    """config.optim with the learning rate for this batch size; SimSiam's predictor keeps its own constant."""
    options, optim = config.spd, config.optim.to_dict()
    if options.lr_batch:
        optim["lr"] *= config.data.batch_size / options.lr_batch  # the linear rule
    optim["warmup"] += min(round(options.warmup_epochs * spec.n_train_normal / config.data.batch_size), steps)
    tx = optimiser(types.SimpleNamespace(**optim), steps)
    if options.base != "simsiam" or not options.simsiam.fixed_predictor_lr:
        return tx
    constant = optimiser(types.SimpleNamespace(**optim | {"schedule": "constant", "warmup": 0}), steps)
    return optax.partition(
        {"scheduled": tx, "constant": constant},
        lambda params: {name: "constant" if name == "predictor" else "scheduled" for name in params},
    )
