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

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxad import pretrained, updates
from jaxad.errors import Checks
from jaxad.losses import adversarial, reconstruction, segmentation
from jaxad.methods import features
from jaxad.methods.adversarial import Network, criticise, fresh, run, variables
from jaxad.models import anoseg as models
from jaxad.models.backbones import normalise
from jaxad.models.discriminator import Discriminator, channels
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
    segmenter = _generator(config, spec, decoders)
    critic = _critic(config, spec, planes=3 + options.map_channels)
    segment = Stage(
        "segment",
        feed,
        steps.segment,
        _init({"segmenter": segmenter} | ({"critic": critic} if options.adversarial else {})),
        _segment(config, segmenter, critic),
        finish=_average if options.ema else lambda state: state,
        predict=_predict_segment(config, segmenter),
        map_range=(0.0, 1.0),
    )
    if not options.detector.enabled:
        return (segment,)
    seen = options.detector.input_map
    restorer = _generator(config, spec, {"image": 3}, with_map=seen and options.detector.g_input == "image_map")
    judge = _critic(config, spec, planes=4 if seen else 3, pre_activation=options.detector.pre_activation)
    detect = Stage(
        "detect",
        feed if options.detector.anomaly_cls else Feed(batch, split="train_normal"),
        steps.detect,
        _init({"restorer": restorer, "judge": judge}),
        _detect(config, segmenter, restorer, judge),
        predict=_predict_detect(config, segmenter, restorer, judge),
        map_range=(0.0, 1.0),
    )
    return segment, detect


def _generator(config: Any, spec: DataSpec, decoders: dict[str, int], with_map: bool = False) -> Network:
    """A generator: apply(variables, image: f32[B, H, W, 3], normal: f32[B, H, W, 1], train) -> logits by name.

    with_map: it sees `normal` beside the image, else that is ignored. Coordinates come last.
    """
    options, backbone = config.anoseg, config.backbone
    dtype, size = features.compute_dtype(config), spec.image_size
    module = models.Generator(decoders, backbone.name, options.width_mult, dtype, options.remat)
    places = models.coordinates(size, size) if options.coords else np.zeros((1, size, size, 0), np.float32)
    planes = 3 + with_map + places.shape[-1]

    def init(key: Array) -> Tree:
        made = jax.jit(module.init)(key, jnp.zeros((1, size, size, planes)))
        if backbone.weights == "random":
            return made
        ported = pretrained.load(backbone.name, backbone.weights, ("layer4",), seed=config.seed)
        encoder = dict(ported["params"])
        encoder["conv1"] = {"kernel": models.with_extra_planes(encoder["conv1"]["kernel"], planes)}
        return {
            "params": {**made["params"], "encoder": encoder},
            "batch_stats": {**made["batch_stats"], "encoder": ported["batch_stats"]},
        }

    def apply(own: Tree, image: Array, normal: Array | None = None, train: bool = False):
        if backbone.weights != "random":
            image = normalise(image)
        elif options.input_range == "pm1":
            image = 2.0 * image - 1.0
        where = jnp.broadcast_to(places, (len(image), *places.shape[1:]))
        joined = jnp.concatenate([image, *([normal] if with_map else []), where], axis=-1)
        return run(module, own, joined, train)

    return Network(init, apply)


def _critic(config: Any, spec: DataSpec, planes: int, pre_activation: bool = False) -> Network:
    """A discriminator: apply(variables, image: f32[B, H, W, 3], normal: f32[B, H, W, C], train) -> `Judgement`.

    With 3 planes it looks at the image alone.
    """
    options, size = config.anoseg, spec.image_size
    module = Discriminator(options.width_mult, features.compute_dtype(config), pre_activation)

    def init(key: Array) -> Tree:
        return jax.jit(module.init)(key, jnp.zeros((1, size, size, planes)))

    def apply(own: Tree, image: Array, normal: Array, train: bool = False):
        if planes == 3:
            return run(module, own, image, train)
        if options.d_image_masked:
            image = image * jnp.mean(normal, axis=-1, keepdims=True)
        return run(module, own, jnp.concatenate([image, _channels(normal, planes - 3)], axis=-1), train)

    return Network(init, apply)


def _channels(normal: Array, n: int) -> Array:
    """A mask of one channel repeated to n; a map that has n already as it is."""
    return normal if normal.shape[-1] == n else jnp.broadcast_to(normal, (*normal.shape[:-1], n))


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


def _init(networks: dict[str, Network]):
    """New networks; the segmenter of the stage before, where there is one, is frozen."""

    def init(key: Array, spec: DataSpec, carry: TrainState | None) -> TrainState:
        made = {name: net.init(jax.random.fold_in(key, i)) for i, (name, net) in enumerate(networks.items())}
        return fresh(made, {"segmenter": variables(carry, "segmenter")} if carry else {})

    return init


def _segment(config: Any, segmenter: Network, critic: Network) -> Update:
    """The update of stage 1: the critic first, then the segmenter against the new critic.

    The segmenter draws the same in both, so XLA computes its forward pass once.
    """
    options, kind, steps = config.anoseg, config.anoseg.gan_loss, config.train.steps.segment

    def critique(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        image, normal = mixed(batch, options.p_anomaly)
        drawn, _ = segmenter.apply(variables(state, "segmenter"), image, None, True)
        fake = jax.lax.stop_gradient(jax.tree.map(jax.nn.sigmoid, drawn))
        # eq. 3. It is over x_Seg: synthetic anomalies with their right mask are real here.
        pairs = {"real": (image, normal), "fake": (fake["image"], fake["map"])}
        return criticise(critic, "critic", params, state, pairs, batch.valid, kind)

    def draw(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        image, normal = mixed(batch, options.p_anomaly)
        drawn, stats = segmenter.apply(variables(state, "segmenter", params), image, None, True)
        found = segmentation.segmentation(drawn["map"], normal, options.seg_loss)
        terms = {"segmentation": (options.w_seg, masked_mean(found, batch.valid))}  # eq. 2
        if options.reconstruction:
            restored = jax.nn.sigmoid(drawn["image"])
            terms["reconstruction"] = (options.w_re, _eq_4(image, restored, normal, batch.valid))
        if options.adversarial:
            # The averages that this pass of the critic gives are dropped: it is trained in `critique` alone.
            judged, _ = critic.apply(variables(state, "critic"), restored, jax.nn.sigmoid(drawn["map"]), True)
            ramp = jnp.minimum((state.step + 1) / max(options.adv_ramp, 1), 1.0).astype(jnp.float32)
            paid = masked_mean(adversarial.generator(judged.logit, kind), batch.valid)
            terms["adversarial"] = (options.w_adv * ramp, paid)  # eq. 3
        value, metrics = weighted_sum(terms)
        for name, counts in (("recall", segmentation.recall), ("false_alarms", segmentation.false_alarms)):
            called, of = counts(drawn["map"], normal)
            metrics[f"synthetic/{name}"] = reconstruction.ratio(called, of)
        return value, Aux(stats={"segmenter": stats}, metrics=metrics)

    parts = [descend(critique, optimiser(config.optim, steps), wrt="critic")] if options.adversarial else []
    # The schedule counts its own steps, of which there are g_steps in one of the stage.
    parts += [descend(draw, optimiser(config.optim, steps * options.g_steps), wrt="segmenter")] * options.g_steps
    return sequence(*parts, *([updates.ema("segmenter", "average", options.ema)] if options.ema else []))


def _eq_4(image: Array, restored: Array, normal: Array, valid: Array) -> Array:
    numerator, denominator = reconstruction.masked_l1(image, restored, normal)
    rows = valid.astype(numerator.dtype)
    return reconstruction.ratio(numerator * rows, denominator * rows)


def _average(state: TrainState) -> TrainState:
    """The moving average of the segmenter takes its place; BatchNorm's averages follow on their own."""
    kept = {name: tree for name, tree in state.params.items() if name != "average"}
    return state.replace(params={**kept, "segmenter": state.params["average"]})


def _map(segmenter: Network, own: Tree, image: Array) -> tuple[Array, dict[str, Array]]:
    """(A_hat f32[B, H, W, 1] of a trained segmenter, all that it draws as logits)."""
    drawn, _ = segmenter.apply(own, image)
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
    steps = config.train.steps.detect

    def restore(params: Tree | None, state: TrainState, batch: Batch) -> tuple[Array, Array, Tree]:
        found, _ = jax.lax.stop_gradient(_map(segmenter, state.frozen["segmenter"], batch.image))
        drawn, stats = restorer.apply(variables(state, "restorer", params), batch.image, found, True)
        return jax.nn.sigmoid(drawn["image"]), found, stats

    def critique(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        restored, found, _ = restore(None, state, batch)
        pairs = {"real": (batch.image, jnp.ones_like(found)), "fake": (jax.lax.stop_gradient(restored), found)}
        if options.anomaly_cls:
            pairs["synthetic"] = (batch.views["anomaly"], _normal(batch.views["anomaly_mask"]))
        return criticise(judge, "judge", params, state, pairs, batch.valid, kind, weights)

    def draw(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        restored, found, stats = restore(params, state, batch)
        on_fake, _ = judge.apply(variables(state, "judge"), restored, found, True)
        terms = {  # A.1
            "reconstruction": (options.w_re, masked_mean(reconstruction.l1(batch.image, restored), batch.valid)),
            "adversarial": (options.w_adv, masked_mean(adversarial.generator(on_fake.logit, kind), batch.valid)),
        }
        if options.feature_matching:  # L_fea; it moves the restorer only
            on_real, _ = judge.apply(variables(state, "judge"), batch.image, jnp.ones_like(found), True)
            apart = adversarial.feature_matching(on_real.features, on_fake.features)
            terms["feature_matching"] = (options.w_fea, masked_mean(apart, batch.valid))
        value, metrics = weighted_sum(terms)
        return value, Aux(stats={"restorer": stats}, metrics=metrics)

    return sequence(
        descend(critique, optimiser(config.optim, steps), wrt="judge"),
        descend(draw, optimiser(config.optim, steps), wrt="restorer"),
    )


def _pixel(config: Any, drawn: dict[str, Array]) -> Array:
    """1 - A_hat, f32[B, H, W]."""
    score = config.score
    anomalous = jnp.mean(jax.nn.sigmoid(-drawn["map"]), axis=-1)
    size = anomalous.shape[1:]
    return maps.anomaly_map(anomalous, size, interpolation=score.interpolation, sigma=score.sigma)


def _pictures(drawn: dict[str, Array]) -> dict[str, Array]:
    return {"reconstruction": jax.nn.sigmoid(drawn["image"])} if "image" in drawn else {}


def _predict_segment(config: Any, segmenter: Network):
    def predict(state: TrainState, batch: Batch) -> AnomalyMap:
        _, drawn = _map(segmenter, variables(state, "segmenter"), batch.image)
        pixel = _pixel(config, drawn)
        return AnomalyMap(pixel, maps.image_score(pixel, config.score.reduction), _pictures(drawn))

    return predict


def _predict_detect(config: Any, segmenter: Network, restorer: Network, judge: Network):
    options = config.anoseg.detector

    def predict(state: TrainState, batch: Batch) -> AnomalyMap:
        found, drawn = _map(segmenter, state.frozen["segmenter"], batch.image)
        redrawn, _ = restorer.apply(variables(state, "restorer"), batch.image, found)
        restored = jax.nn.sigmoid(redrawn["image"])
        on_real, _ = judge.apply(variables(state, "judge"), batch.image, jnp.ones_like(found))
        on_fake, _ = judge.apply(variables(state, "judge"), restored, found)
        pixel = _pixel(config, drawn)
        scores = {  # eq. 5
            "feature": adversarial.feature_matching(on_real.features, on_fake.features),
            "reconstruction_mse": reconstruction.mse(batch.image, restored),
        }
        image = options.alpha * scores["feature"] + options.beta * scores["reconstruction_mse"]
        # Scores of the map alone, to see what the detector adds.
        scores |= {"map_max": maps.image_score(pixel, "max"), "map_top1%": maps.image_score(pixel, TOP)}
        return AnomalyMap(pixel, image, scores | _pictures(drawn) | {"ad_reconstruction": restored})

    return predict


def _check(options: Any, config: Any, spec: DataSpec) -> None:
    """Raises UserError for values that make no sense, before anything is loaded."""

    check = Checks(options, "config.anoseg")
    check.one_of("map_channels", (1, 3))
    check.one_of("input_range", RANGES)
    check.one_of("seg_loss", segmentation.SEGMENTATIONS)
    check.one_of("gan_loss", adversarial.KINDS)
    check.one_of("detector.g_input", ("image_map", "image"))
    check.demand(options.reconstruction or not options.adversarial, "adversarial", "False where reconstruction is")
    check.demand(options.width_mult > 0, "width_mult", "more than 0")
    check.demand(0 < options.p_anomaly <= 1, "p_anomaly", "in (0, 1]")
    check.demand(0 <= options.ema < 1, "ema", "in [0, 1)")
    check.demand(options.g_steps >= 1, "g_steps", "1 or more")
    check.not_negative("adv_ramp", "w_seg", "w_re", "w_adv")
    check.not_negative(*(f"detector.{name}" for name in ("w_re", "w_adv", "w_fea", "alpha", "beta")))
    check.demand(options.w_seg > 0, "w_seg", "more than 0: without it there is no map")
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
