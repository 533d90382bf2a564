"""AnoSeg (Song et al., "AnoSeg: Anomaly Segmentation Network Using Self-Supervised Learning"): a network that draws
the anomaly map, trained on pasted anomalies, and a detector on top of it.

Stage 'segment' (3.1 to 3.3): the segmenter restores the normal part of an image and draws a map, 1 on normal pixels and
0 on others; a critic tells pairs of image and mask from pairs of restoration and map. Stage 'detect' (3.4, Appendix A):
a second generator restores normal images, given the frozen segmenter's map, and a second critic, the judge, learns what
normal pairs look like; an image is scored by how far its pair is from its restored one.

Inside, maps are the paper's: 1 = normal. What `predict` returns is 1 - A_hat, computed as sigmoid(-logit), for the
difference rounds to 0 where the network is sure.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxad import pretrained, updates
from jaxad.losses import adversarial, reconstruction, segmentation
from jaxad.methods import features
from jaxad.models import anoseg as models
from jaxad.models.backbones import normalise
from jaxad.models.discriminator import Discriminator, Judgement, channels
from jaxad.optim import optimiser
from jaxad.scoring import maps
from jaxad.types import AnomalyMap, Array, Batch, DataSpec, Feed, Stage, TrainState, Tree, UserError, View
from jaxad.updates import Aux, Update, descend, masked_mean, sequence, weighted_sum

TOP = "top1%"  # of the pixels: a second image score of the map alone, beside its maximum
RANGES = ("01", "pm1")


def stages(config: Any, spec: DataSpec) -> tuple[Stage, ...]:
    """'segment', and 'detect' unless config.anoseg.detector.enabled is off. Raises UserError for options at odds."""
    options, steps, batch = config.anoseg, config.train.steps, config.data.batch_size
    _check(options, config, spec)
    chosen = {"hard": options.hard_aug, **options.cutpaste, "area": list(options.cutpaste.area)}
    feed = Feed(batch, split="train_normal", views=(View("anomaly", "cutpaste", chosen),))

    decoders = {"map": options.map_channels} | ({"image": 3} if options.reconstruction else {})
    segmenter = _generator(config, spec, decoders, given=0)
    critic = _critic(config, spec, planes=3 + options.map_channels)
    segment = Stage(
        "segment",
        feed,
        steps.segment,
        _init_segment(options, segmenter, critic),
        _segment(config, segmenter, critic),
        finish=_average if options.ema else lambda state: state,
        predict=_predict_segment(config, segmenter),
        map_range=(0.0, 1.0),
    )
    if not options.detector.enabled:
        return (segment,)
    seen = options.detector.input_map
    restorer = _generator(config, spec, {"image": 3}, given=int(seen and options.detector.g_input == "image_map"))
    judge = _critic(config, spec, planes=4 if seen else 3, pre_activation=options.detector.pre_activation)
    detect = Stage(
        "detect",
        feed if options.detector.anomaly_cls else Feed(batch, split="train_normal"),
        steps.detect,
        _init_detect(restorer, judge),
        _detect(config, segmenter, restorer, judge),
        predict=_predict_detect(config, segmenter, restorer, judge),
        map_range=(0.0, 1.0),
    )
    return segment, detect


class Network(NamedTuple):
    """init(key) -> variables · apply(variables, ..., train) -> (result, new BatchNorm averages)."""

    init: Callable[[Array], Tree]
    apply: Callable[..., tuple[Any, Tree]]


def _generator(config: Any, spec: DataSpec, decoders: dict[str, int], given: int) -> Network:
    """A generator: apply(variables, image: f32[B, H, W, 3], given: f32[B, H, W, 1] or None, train) -> logits by name.

    given: how many planes beside the image; coordinates come last.
    """
    options, backbone = config.anoseg, config.backbone
    dtype, size = features.compute_dtype(config), spec.image_size
    module = models.Generator(decoders, backbone.name, options.width_mult, dtype, options.remat)
    places = models.coordinates(size, size) if options.coords else np.zeros((1, size, size, 0), np.float32)
    planes = 3 + given + places.shape[-1]

    def init(key: Array) -> Tree:
        variables = jax.jit(module.init)(key, jnp.zeros((1, size, size, planes)))
        if backbone.weights == "random":
            return variables
        ported = pretrained.load(backbone.name, backbone.weights, ("layer4",), seed=config.seed)
        encoder = dict(ported["params"])
        encoder["conv1"] = {"kernel": models.with_extra_planes(encoder["conv1"]["kernel"], planes)}
        return {
            "params": {**variables["params"], "encoder": encoder},
            "batch_stats": {**variables["batch_stats"], "encoder": ported["batch_stats"]},
        }

    def apply(variables: Tree, image: Array, extra: Array | None = None, train: bool = False):
        if backbone.weights != "random":
            image = normalise(image)
        elif options.input_range == "pm1":
            image = 2.0 * image - 1.0
        where = jnp.broadcast_to(places, (len(image), *places.shape[1:]))
        joined = jnp.concatenate([image, *([] if extra is None else [extra]), where], axis=-1)
        return _run(module, variables, joined, train)

    return Network(init, apply)


def _critic(config: Any, spec: DataSpec, planes: int, pre_activation: bool = False) -> Network:
    """A discriminator: apply(variables, image: f32[B, H, W, 3], normal: f32[B, H, W, C], train) -> `Judgement`.

    With 3 planes it looks at the image alone.
    """
    options, size = config.anoseg, spec.image_size
    module = Discriminator(options.width_mult, features.compute_dtype(config), pre_activation)

    def init(key: Array) -> Tree:
        return jax.jit(module.init)(key, jnp.zeros((1, size, size, planes)))

    def apply(variables: Tree, image: Array, normal: Array, train: bool = False):
        if options.d_image_masked:
            image = image * jnp.mean(normal, axis=-1, keepdims=True)
        pair = image if planes == 3 else jnp.concatenate([image, _channels(normal, planes - 3)], axis=-1)
        return _run(module, variables, pair, train)

    return Network(init, apply)


def _run(module: Any, variables: Tree, planes: Array, train: bool) -> tuple[Any, Tree]:
    if not train:
        return module.apply(variables, planes), variables["batch_stats"]
    result, new = module.apply(variables, planes, True, mutable=["batch_stats"])
    return result, new["batch_stats"]


def _channels(normal: Array, n: int) -> Array:
    """A mask of one channel repeated to n; a map that has n already as it is."""
    return normal if normal.shape[-1] == n else jnp.broadcast_to(normal, (*normal.shape[:-1], n))


def _at(state: TrainState, name: str, params: Tree | None = None) -> Tree:
    """The variables of network `name`, with other parameters where a gradient is taken."""
    return {"params": state.params[name] if params is None else params, "batch_stats": state.stats[name]}


def synthetic_rows(rows: int, share: float) -> np.ndarray:
    """bool[rows]: which rows of a batch are synthetic anomalies, spread evenly, so that every device has its share.

    >>> synthetic_rows(4, 0.5).tolist(), int(synthetic_rows(16, 0.25).sum())
    ([False, True, False, True], 4)
    """
    whole = np.floor(np.arange(rows + 1) * share + 1e-9)
    return whole[1:] > whole[:-1]


def mixed(batch: Batch, share: float) -> tuple[Array, Array]:
    """x and A of eq. 1: (images f32[B, H, W, 3], f32[B, H, W, 1], 1 = normal), normal and synthetic rows in turn."""
    chosen = synthetic_rows(len(batch.image), share)[:, None, None, None]
    image = jnp.where(chosen, batch.views["anomaly"], batch.image)
    return image, _normal(batch.views["anomaly_mask"], chosen)


def _normal(mask: Array, where: Array | bool = True) -> Array:
    return 1.0 - (mask[..., None] & where).astype(jnp.float32)


def _init_segment(options: Any, segmenter: Network, critic: Network):
    def init(key: Array, spec: DataSpec, carry: TrainState | None) -> TrainState:
        networks = {"segmenter": segmenter.init(jax.random.fold_in(key, 0))}
        if options.adversarial:
            networks["critic"] = critic.init(jax.random.fold_in(key, 1))
        return _fresh(networks)

    return init


def _fresh(networks: dict[str, Tree], frozen: Tree | None = None) -> TrainState:
    return TrainState.create(
        params={name: variables["params"] for name, variables in networks.items()},
        stats={name: variables["batch_stats"] for name, variables in networks.items()},
        frozen=frozen,
    )


def _segment(config: Any, segmenter: Network, critic: Network) -> Update:
    """The update of stage 1: the critic first, then the segmenter against the new critic.

    The segmenter draws the same in both, so XLA computes its forward pass once.
    """
    options = config.anoseg
    kind, new = options.gan_loss, functools.partial(optimiser, config.optim, config.train.steps.segment)

    def critique(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        image, normal = mixed(batch, options.p_anomaly)
        drawn, _ = segmenter.apply(_at(state, "segmenter"), image, None, True)
        fake = jax.lax.stop_gradient(jax.tree.map(jax.nn.sigmoid, drawn))
        # Two batches, as DCGAN trains: BatchNorm sees real and fake apart. Synthetic anomalies with their right mask
        # are real here (eq. 3 is over x_Seg).
        on_real, stats = critic.apply(_at(state, "critic", params), image, normal, True)
        on_fake, stats = critic.apply({"params": params, "batch_stats": stats}, fake["image"], fake["map"], True)
        return _eq_3(on_real, on_fake, batch.valid, kind, {"critic": stats})

    def draw(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        image, normal = mixed(batch, options.p_anomaly)
        drawn, stats = segmenter.apply(_at(state, "segmenter", params), image, None, True)
        found = segmentation.segmentation(drawn["map"], normal, options.seg_loss)
        terms = {"segmentation": (options.w_seg, masked_mean(found, batch.valid))}  # eq. 2
        if options.reconstruction:
            restored = jax.nn.sigmoid(drawn["image"])
            terms["reconstruction"] = (options.w_re, _eq_4(image, restored, normal, batch.valid))
        if options.adversarial:
            # The averages that this pass of the critic gives are dropped: it is trained in `critique` alone.
            judged, _ = critic.apply(_at(state, "critic"), restored, jax.nn.sigmoid(drawn["map"]), True)
            ramp = jnp.minimum((state.step + 1) / max(options.adv_ramp, 1), 1.0).astype(jnp.float32)
            paid = masked_mean(adversarial.generator(judged.logit, kind), batch.valid)
            terms["adversarial"] = (options.w_adv * ramp, paid)  # eq. 3
        value, metrics = weighted_sum(terms)
        for name, counts in (("recall", segmentation.recall), ("false_alarms", segmentation.false_alarms)):
            called, of = counts(drawn["map"], normal)
            metrics[f"synthetic/{name}"] = reconstruction.ratio(called, of)
        return value, Aux(stats={"segmenter": stats}, metrics=metrics)

    parts = [descend(critique, new(), wrt="critic")] if options.adversarial else []
    parts += [descend(draw, new(), wrt="segmenter")] * options.g_steps
    return sequence(*parts, *([updates.ema("segmenter", "average", options.ema)] if options.ema else []))


def _eq_3(on_real: Judgement, on_fake: Judgement, valid: Array, kind: str, stats: Tree) -> tuple[Array, Aux]:
    terms = {
        "real": (1.0, masked_mean(adversarial.real(on_real.logit, kind), valid)),
        "fake": (1.0, masked_mean(adversarial.fake(on_fake.logit, kind), valid)),
    }
    value, metrics = weighted_sum(terms)
    return value, Aux(stats=stats, metrics={f"critic/{name}": term for name, term in metrics.items()})


def _eq_4(image: Array, restored: Array, normal: Array, valid: Array) -> Array:
    numerator, denominator = reconstruction.masked_l1(image, restored, normal)
    rows = valid.astype(numerator.dtype)
    return reconstruction.ratio(numerator * rows, denominator * rows)


def _average(state: TrainState) -> TrainState:
    """The moving average of the segmenter takes its place; BatchNorm's averages follow on their own."""
    kept = {name: tree for name, tree in state.params.items() if name != "average"}
    return state.replace(params={**kept, "segmenter": state.params["average"]})


def _init_detect(restorer: Network, judge: Network):
    def init(key: Array, spec: DataSpec, carry: TrainState | None) -> TrainState:
        drawn = {"restorer": restorer, "judge": judge}
        networks = {name: net.init(jax.random.fold_in(key, i)) for i, (name, net) in enumerate(drawn.items())}
        return _fresh(networks, frozen={"segmenter": _at(carry, "segmenter")})

    return init


def _map(segmenter: Network, variables: Tree, image: Array) -> tuple[Array, dict[str, Array]]:
    """(A_hat f32[B, H, W, 1] of a trained segmenter, all that it draws as logits)."""
    drawn, _ = segmenter.apply(variables, image)
    return jnp.mean(jax.nn.sigmoid(drawn["map"]), axis=-1, keepdims=True), drawn


def judge_weights(options: Any) -> dict[str, float]:
    """What each pair weighs for the judge: eq. 6, and L_cls, where synthetic anomalies are fake with their right mask.

    The term of real pairs is printed in both. options: config.anoseg.detector.
    """
    if not options.anomaly_cls:
        return {"real": 1.0, "fake": 1.0}
    return {"real": 2.0 if options.cls_dup_real else 1.0, "fake": 1.0, "synthetic": 1.0}


def _detect(config: Any, segmenter: Network, restorer: Network, judge: Network) -> Update:
    """The update of stage 2. Only normal images with a mask of ones are real (eq. 6), and only they are restored."""
    options, kind, weights = config.anoseg.detector, config.anoseg.gan_loss, judge_weights(config.anoseg.detector)
    new = functools.partial(optimiser, config.optim, config.train.steps.detect)

    def restore(params: Tree | None, state: TrainState, batch: Batch) -> tuple[Array, Array, Tree]:
        found, _ = jax.lax.stop_gradient(_map(segmenter, state.frozen["segmenter"], batch.image))
        given = found if options.input_map and options.g_input == "image_map" else None
        drawn, stats = restorer.apply(_at(state, "restorer", params), batch.image, given, True)
        return jax.nn.sigmoid(drawn["image"]), found, stats

    def critique(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        restored, found, _ = restore(None, state, batch)
        stats = state.stats["judge"]
        pairs = {"real": (batch.image, jnp.ones_like(found)), "fake": (jax.lax.stop_gradient(restored), found)}
        if options.anomaly_cls:
            pairs["synthetic"] = (batch.views["anomaly"], _normal(batch.views["anomaly_mask"]))
        terms = {}
        for name, pair in pairs.items():
            judged, stats = judge.apply({"params": params, "batch_stats": stats}, *pair, True)
            pay = adversarial.real if name == "real" else adversarial.fake
            terms[name] = (weights[name], masked_mean(pay(judged.logit, kind), batch.valid))
        value, metrics = weighted_sum(terms)
        metrics = {f"judge/{name}": term for name, term in metrics.items()}
        return value, Aux(stats={"judge": stats}, metrics=metrics)

    def draw(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        restored, found, stats = restore(params, state, batch)
        on_fake, _ = judge.apply(_at(state, "judge"), restored, found, True)
        terms = {
            "reconstruction": (options.w_re, masked_mean(reconstruction.l1(batch.image, restored), batch.valid)),
            "adversarial": (options.w_adv, masked_mean(adversarial.generator(on_fake.logit, kind), batch.valid)),
        }
        if options.feature_matching:  # L_fea; it moves the restorer only
            on_real, _ = judge.apply(_at(state, "judge"), batch.image, jnp.ones_like(found), True)
            apart = adversarial.feature_matching(on_real.features, on_fake.features)
            terms["feature_matching"] = (options.w_fea, masked_mean(apart, batch.valid))
        value, metrics = weighted_sum(terms)
        return value, Aux(stats={"restorer": stats}, metrics=metrics)

    return sequence(descend(critique, new(), wrt="judge"), descend(draw, new(), wrt="restorer"))


def _pixel(config: Any, drawn: dict[str, Array]) -> Array:
    """1 - A_hat, f32[B, H, W]."""
    score = config.score
    anomalous = jnp.mean(jax.nn.sigmoid(-drawn["map"]), axis=-1)
    size = anomalous.shape[1:]
    return maps.anomaly_map(anomalous, size, interpolation=score.interpolation, sigma=score.sigma)


def _predict_segment(config: Any, segmenter: Network):
    def predict(state: TrainState, batch: Batch) -> AnomalyMap:
        _, drawn = _map(segmenter, _at(state, "segmenter"), batch.image)
        pixel = _pixel(config, drawn)
        pictures = {"reconstruction": jax.nn.sigmoid(drawn["image"])} if "image" in drawn else {}
        return AnomalyMap(pixel, maps.image_score(pixel, config.score.reduction), pictures)

    return predict


def _predict_detect(config: Any, segmenter: Network, restorer: Network, judge: Network):
    options = config.anoseg.detector

    def predict(state: TrainState, batch: Batch) -> AnomalyMap:
        found, drawn = _map(segmenter, state.frozen["segmenter"], batch.image)
        given = found if options.input_map and options.g_input == "image_map" else None
        redrawn, _ = restorer.apply(_at(state, "restorer"), batch.image, given)
        restored = jax.nn.sigmoid(redrawn["image"])
        on_real, _ = judge.apply(_at(state, "judge"), batch.image, jnp.ones_like(found))
        on_fake, _ = judge.apply(_at(state, "judge"), restored, found)
        pixel = _pixel(config, drawn)
        scores = {  # eq. 5
            "feature": adversarial.feature_matching(on_real.features, on_fake.features),
            "reconstruction_mse": reconstruction.mse(batch.image, restored),
        }
        image = options.alpha * scores["feature"] + options.beta * scores["reconstruction_mse"]
        # Scores of the map alone, to see what the detector adds.
        scores |= {"map_max": maps.image_score(pixel, "max"), "map_top1%": maps.image_score(pixel, TOP)}
        pictures = {"reconstruction": jax.nn.sigmoid(drawn["image"])} if "image" in drawn else {}
        return AnomalyMap(pixel, image, scores | pictures | {"ad_reconstruction": restored})

    return predict


def _check(options: Any, config: Any, spec: DataSpec) -> None:
    """Raises UserError for values that make no sense, before anything is loaded."""

    def demand(ok: bool, name: str, what: str) -> None:
        if not ok:
            value = options
            for part in name.split("."):
                value = value[part]
            raise UserError(f"config.anoseg.{name}={value!r}: it must be {what}")

    def one_of(name: str, allowed: Sequence) -> None:
        value = options
        for part in name.split("."):
            value = value[part]
        demand(value in allowed, name, f"one of {', '.join(map(str, allowed))}")

    one_of("map_channels", (1, 3))
    one_of("input_range", RANGES)
    one_of("seg_loss", segmentation.SEGMENTATIONS)
    one_of("gan_loss", adversarial.KINDS)
    one_of("detector.g_input", ("image_map", "image"))
    demand(options.reconstruction or not options.adversarial, "adversarial", "False where reconstruction is False")
    demand(options.width_mult > 0, "width_mult", "more than 0")
    demand(0 < options.p_anomaly <= 1, "p_anomaly", "in (0, 1]")
    demand(0 <= options.ema < 1, "ema", "in [0, 1)")
    demand(options.g_steps >= 1, "g_steps", "1 or more")
    demand(options.adv_ramp >= 0, "adv_ramp", "0 or more")
    weights = ("w_seg", "w_re", "w_adv", *(f"detector.{name}" for name in ("w_re", "w_adv", "w_fea", "alpha", "beta")))
    for name in weights:
        value = functools.reduce(lambda tree, part: tree[part], name.split("."), options)
        demand(value >= 0 and math.isfinite(value), name, "0 or more")
    demand(options.w_seg > 0, "w_seg", "more than 0: without it there is no map")
    if not synthetic_rows(config.data.batch_size, options.p_anomaly).any():
        raise UserError(
            f"config.anoseg.p_anomaly={options.p_anomaly} leaves no synthetic anomaly in a batch of "
            f"{config.data.batch_size}; raise it or config.data.batch_size"
        )
    models.encoder_of(config.backbone.name, options.width_mult)  # raises for what is not a ResNet
    if config.backbone.weights != "random" and options.width_mult != 1.0:
        raise UserError(
            f"config.anoseg.width_mult={options.width_mult} has no pretrained encoder; set backbone.weights=random"
        )
    if spec.image_size % models.STRIDE:
        near = max(models.STRIDE, round(spec.image_size / models.STRIDE) * models.STRIDE)
        raise UserError(
            f"AnoSeg needs images whose side is a multiple of {models.STRIDE} pixels, not {spec.image_size}; "
            f"set config.data.image_size={near}"
        )
    if options.adversarial or options.detector.enabled:
        channels(spec.image_size, options.width_mult)  # raises for sizes that the discriminator cannot halve
