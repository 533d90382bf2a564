"""VisA's 2-class models (Zou et al., "SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection and
Segmentation", ECCV 2022, low-shot and high-shot protocols): supervised networks on a pre-trained backbone.

Stage 'classify': the backbone, fine-tuned, and one logit of its pooled features: is the image anomalous. Stage
'segment': the same pre-trained backbone, fine-tuned anew, under the decoder of a U-Net: is the pixel anomalous. What is
reported of a backbone is how well these two do that start from it. The poster does not describe them: the architecture
is the specification's, and so are losses and learning rates.

BatchNorm of the backbone keeps the averages of the pre-training, in training too: five images of a class say less of
them than ImageNet did. That of the decoder, which is new, trains on the statistics of the batch and is used with their
averages. Where there are fewer images than rows of a batch, an image fills several of them, each time flipped and
coloured anew; a row has thousands of positions, so even ten images settle the decoder's averages.

There is no validation set: the number of steps is fixed, and the last weights are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxad.errors import Checks
from jaxad.losses import classification, reconstruction, segmentation
from jaxad.methods import features
from jaxad.methods.adversarial import run
from jaxad.methods.features import Extractor
from jaxad.models import unet
from jaxad.models.resnet import ARCHITECTURES
from jaxad.optim import optimiser
from jaxad.scoring import maps
from jaxad.types import AnomalyMap, Array, Batch, DataSpec, Feed, Stage, TrainState, Tree, UserError, View
from jaxad.updates import Aux, Update, descend, masked_mean, weighted_sum

SCORES = ("classifier", "map")


def stages(config: Any, spec: DataSpec) -> tuple[Stage, ...]:
    """'classify' and 'segment', which predicts with both networks. Raises UserError where they cannot be trained."""
    options, steps = config.two_class, config.train.steps
    _check(options, config, spec)
    feed = Feed(config.data.batch_size, views=_views(options))
    size, dtype = spec.image_size, features.compute_dtype(config)
    deep, all_stages = (features.extractor(config, layers, size) for layers in (("layer4",), unet.LAYERS))
    head = Logit()
    decoder = unet.Decoder(tuple(options.decoder), (size, size), dtype)

    def classify(params: Tree, frozen: Tree, image: Array) -> Array:
        return head.apply({"params": params["head"]}, _see(deep, params, frozen, image))

    def segment(params: Tree, stats: Tree, frozen: Tree, image: Array, train: bool = False) -> tuple[Array, Tree]:
        own = {"params": params["head"], "batch_stats": stats}
        return run(decoder, own, _see(all_stages, params, frozen, image), train)

    return (
        Stage(
            "classify",
            feed,
            steps.classify,
            _init("classifier", deep, head, options.head_only),
            _classify(config, spec, classify),
        ),
        Stage(
            "segment",
            feed,
            steps.segment,
            _init("segmenter", all_stages, decoder, options.head_only),
            _segment(config, segment),
            predict=_predict(config, classify, segment),
            map_range=(0.0, 1.0),
        ),
    )


class Logit(nn.Module):
    """One logit of the globally pooled last features: (f32[B, h, w, C],) -> f32[B]. Starts at 0, a half for all."""

    @nn.compact
    def __call__(self, found: Sequence[Array]) -> Array:
        pooled = jnp.mean(found[-1], axis=(1, 2))
        return nn.Dense(1, kernel_init=nn.initializers.zeros, name="fc")(pooled)[:, 0]


def _views(options: Any) -> tuple[View, ...]:
    if not (options.flip or options.jitter):
        return ()
    return (View("augmented", "flip_jitter", {"flip": options.flip, "jitter": options.jitter}),)


def _shown(batch: Batch) -> tuple[Array, Array]:
    """(image f32[B, H, W, 3], mask bool[B, H, W]) that a stage trains on."""
    if "augmented" in batch.views:
        return batch.views["augmented"], batch.views["augmented_mask"]
    return batch.image, batch.mask


def _see(backbone: Extractor, params: Tree, frozen: Tree, image: Array) -> tuple[Array, ...]:
    """The features of a network's own backbone, or of the frozen one where it has none; its averages are frozen."""
    own = {"params": params["backbone"]} if "backbone" in params else {}
    return backbone.apply({**frozen["backbone"], **own}, image)


def _init(name: str, backbone: Extractor, head: nn.Module, head_only: bool):
    """Both stages start from the pre-trained weights. The classifier of the stage before is kept, frozen."""

    def init(key: Array, spec: DataSpec, carry: TrainState | None) -> TrainState:
        fixed = dict(backbone.load())
        made = jax.jit(head.init)(key, [jnp.zeros((1, *shape)) for shape in backbone.shapes])
        params = {"head": made["params"]} | ({} if head_only else {"backbone": fixed.pop("params")})
        return TrainState.create(
            params={name: params},
            stats={name: made["batch_stats"]} if "batch_stats" in made else {},
            frozen={"backbone": fixed} | ({"classifier": carry.params["classifier"]} if carry else {}),
        )

    return init


def groups(options: Any, optim: Any, steps: int) -> optax.GradientTransformation:
    """The optimiser of config.optim on {'head', 'backbone'}, the backbone at `backbone_lr` times the learning rate."""
    tx = optimiser(optim, steps)
    if options.head_only:
        return tx
    # Every optimiser's step is proportional to its learning rate: a factor on one is a factor on the other.
    return optax.chain(tx, optax.masked(optax.scale(options.backbone_lr), {"head": False, "backbone": True}))


def _classify(config: Any, spec: DataSpec, classify: Callable[..., Array]) -> Update:
    """The update of stage 1: binary cross entropy, both classes of the same weight."""
    options = config.two_class
    weights = (1.0, 1.0)
    if options.balance:
        weights = classification.class_weights(spec.n_train_normal, spec.n_train_anomalous)

    def objective(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        logit = classify(params, state.frozen, _shown(batch)[0])
        right = ((logit > 0) == batch.label).astype(jnp.float32)
        value = masked_mean(classification.bce(logit, batch.label, weights), batch.valid)
        return value, Aux(metrics={"accuracy": masked_mean(right, batch.valid)})

    return descend(objective, groups(options, config.optim, config.train.steps.classify), wrt="classifier")


def _segment(config: Any, segment: Callable[..., tuple[Array, Tree]]) -> Update:
    """The update of stage 2: cross entropy of all pixels, and Dice over the batch."""
    options = config.two_class

    def objective(params: Tree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Aux]:
        image, mask = _shown(batch)
        drawn, stats = segment(params, state.stats["segmenter"], state.frozen, image, True)
        logits, truth = drawn[..., None], mask[..., None].astype(jnp.float32)
        terms = {}
        if options.w_bce:
            terms["bce"] = (options.w_bce, masked_mean(segmentation.bce(logits, truth), batch.valid))
        if options.w_dice:
            rows = batch.valid.astype(jnp.float32)
            overlap = reconstruction.ratio(*(part * rows for part in segmentation.dice(logits, truth)))
            terms["dice"] = (options.w_dice, 1.0 - overlap)
        value, metrics = weighted_sum(terms)
        return value, Aux(stats={"segmenter": stats}, metrics=metrics)

    return descend(objective, groups(options, config.optim, config.train.steps.segment), wrt="segmenter")


def _predict(config: Any, classify: Callable[..., Array], segment: Callable[..., tuple[Array, Tree]]):
    options, score = config.two_class, config.score

    def predict(state: TrainState, batch: Batch) -> AnomalyMap:
        logits, _ = segment(state.params["segmenter"], state.stats["segmenter"], state.frozen, batch.image)
        size = batch.image.shape[1:3]
        pixel = maps.anomaly_map(jax.nn.sigmoid(logits), size, interpolation=score.interpolation, sigma=score.sigma)
        scores = {
            "classifier": jax.nn.sigmoid(classify(state.frozen["classifier"], state.frozen, batch.image)),
            "map": maps.image_score(pixel, score.reduction),
        }
        return AnomalyMap(pixel, scores.pop(options.image_score), scores)

    return predict


def _check(options: Any, config: Any, spec: DataSpec) -> None:
    """Raises UserError for values that make no sense and data that cannot teach, before anything is loaded."""
    check = Checks(options, "config.two_class")
    check.one_of("image_score", SCORES)
    four = len(options.decoder) == len(unet.SKIPS) and all(width >= 1 for width in options.decoder)
    check.demand(four, "decoder", f"{len(unet.SKIPS)} numbers of channels, 1 or more each")
    check.demand(options.head_only or options.backbone_lr > 0, "backbone_lr", "more than 0; or set head_only=True")
    check.not_negative("w_bce", "w_dice")
    check.demand(options.w_bce > 0 or options.w_dice > 0, "w_bce", "more than 0 where w_dice is 0")
    check.demand(0 <= options.jitter <= 1, "jitter", "in [0, 1]")
    if config.backbone.name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"config.backbone.name={config.backbone.name!r}: two_class needs a ResNet, one of {known}")
    if not spec.n_train_anomalous:
        raise UserError(
            f"{spec.category}: two_class needs anomalies in training: --config.data.protocol=few_shot (or high_shot), "
            f"or --config.data.n_anomalies=N"
        )
    if not spec.has_masks:
        raise UserError(
            f"{spec.category}: its anomalies have no masks, from which the segmenter of two_class learns; draw them, "
            f"or take a data set that has masks"
        )
