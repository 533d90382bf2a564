"""VisA's 2-class models on a narrow random backbone: bright squares on noise."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import jit
from sklearn.metrics import roc_auc_score

from jaxad import config as configs
from jaxad import pretrained
from jaxad.methods import two_class
from jaxad.models import backbones, resnet
from jaxad.models.unet import LAYERS, Decoder
from jaxad.types import Batch, DataSpec, Stage, TrainState, UserError

SIZE, ROWS = 32, 8
SPEC = DataSpec("demo", "squares", SIZE, 15, 0, 4, 4, True, n_train_anomalous=5)
DECODER, LR = (16, 8, 8, 4), 5e-3
W_BCE, W_DICE = 0.5, 2.0


def config_of(**options):
    config = configs.default("two_class")
    config.backbone.name, config.backbone.weights = "narrow", "random"
    config.data.image_size, config.data.batch_size = SIZE, ROWS
    config.train.steps.classify = config.train.steps.segment = 40
    config.optim.name, config.optim.lr = "adamw", LR
    config.score.sigma = 0.0
    options = {"decoder": DECODER, "w_bce": W_BCE, "w_dice": W_DICE} | options
    for name, value in options.items():
        place, _, key = name.rpartition("__")
        (config[place] if place else config.two_class)[key] = value
    return config


@pytest.fixture(scope="module", autouse=True)
def narrow(quick_compile):
    """A backbone 'narrow' that only these tests know."""
    with pytest.MonkeyPatch.context() as patch:
        small = resnet.ARCHITECTURES["resnet18"]._replace(base=8, blocks=(1, 1, 1, 1))
        patch.setitem(resnet.ARCHITECTURES, "narrow", small)
        patch.setattr(backbones, "NAMES", (*backbones.NAMES, "narrow"))
        yield


def batch_of(seed, rows=ROWS, labels=None):
    """Noise; every other image, or those of `labels`, has a bright square somewhere."""
    rng = np.random.default_rng(seed)
    label = np.arange(rows) % 2 == 1 if labels is None else np.array(labels)
    image = rng.uniform(0.3, 0.5, (rows, SIZE, SIZE, 3)).astype(np.float32)
    mask = np.zeros((rows, SIZE, SIZE), bool)
    for i in np.flatnonzero(label):
        top, left = rng.integers(2, SIZE - 12, 2)
        mask[i, top : top + 9, left : left + 7] = True
    image[mask] = 0.95
    index = np.arange(rows, dtype=np.int32)
    return jax.tree.map(jnp.asarray, Batch(image, mask, label, index, np.ones(rows, bool)))


def augmented(batch):
    """`batch` as the view of another: a stage that asks for the view sees nothing else."""
    views = {"augmented": batch.image, "augmented_mask": batch.mask}
    return batch.replace(image=1 - batch.image, mask=~batch.mask, views=views)


def start(config, place=0, carry=None):
    stage = two_class.stages(config, SPEC)[place]
    return stage, stage.update.init(stage.init(jax.random.key(7), SPEC, carry))


def walk(stage, state, apply, steps):
    rows = []
    for step in range(steps):
        state, metrics = apply(state, augmented(batch_of(step)), jax.random.key(step))
        state = state.replace(step=state.step + 1)
        rows.append({name: float(value) for name, value in metrics.items()})
    return state, rows


class Run(NamedTuple):
    stage: Stage
    before: TrainState
    after: TrainState
    rows: list  # of metrics
    apply: Callable  # compiled


def run(config, place=0, carry=None, steps=40):
    stage, state = start(config, place, carry)
    apply = jax.jit(stage.update.apply)
    return Run(stage, state, *walk(stage, state, apply, steps), apply)


@pytest.fixture(scope="module")
def classified():
    return run(config_of())


@pytest.fixture(scope="module")
def segmented(classified):
    return run(config_of(), 1, classified.after)


@pytest.fixture(scope="module")
def found(segmented):
    """What the trained networks say of 16 new images, and these."""
    batch = batch_of(1000, 16)
    return jax.jit(segmented.stage.predict)(segmented.after, batch), batch


def equal(one, two):
    return [bool((a == b).all()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)]


def features_of(backbone, image, layers):
    module = backbones.build("narrow", layers)
    found = jit(lambda own, x: module.apply(own, backbones.normalise(x)))(backbone, image)
    return [found[layer] for layer in layers]


def logit_of(run, image):
    """The logit of the classifier after stage 1, by NumPy from its features."""
    params = run.after.params["classifier"]
    (deep,) = features_of({"params": params["backbone"], **run.after.frozen["backbone"]}, image, ("layer4",))
    own = params["head"]["fc"]
    return np.asarray(deep, np.float64).mean((1, 2)) @ np.asarray(own["kernel"])[:, 0] + np.asarray(own["bias"])[0]


def test_two_stages_on_the_split_with_anomalies_and_only_the_last_predicts():
    stages = two_class.stages(config_of(jitter=0.2), SPEC)
    assert [stage.name for stage in stages] == ["classify", "segment"]
    assert [stage.predict is None for stage in stages] == [True, False] and stages[1].map_range == (0.0, 1.0)
    for stage in stages:
        assert stage.feed.split == "train" and stage.feed.shuffle and stage.feed.batch_size == ROWS
        (view,) = stage.feed.views
        assert view.op == "flip_jitter" and dict(view.options) == {"flip": True, "jitter": 0.2}


def test_no_view_is_asked_for_where_nothing_is_augmented():
    off = {"flip": False, "jitter": 0.0}
    for change, n in (({}, 0), ({"flip": True}, 1), ({"jitter": 0.1}, 1)):
        assert len(two_class.stages(config_of(**off | change), SPEC)[0].feed.views) == n


@pytest.mark.parametrize("balance", [True, False])
def test_the_loss_of_stage_1_is_the_weighted_cross_entropy(classified, balance):
    batch = batch_of(3, labels=[True, False, False, False, False, True, False, False])
    update = jax.jit(start(config_of(balance=False))[0].update.apply) if not balance else classified.apply
    shown = augmented(batch) if balance else batch  # without the view the image itself
    _, metrics = update(classified.after, shown, jax.random.key(0))
    logit = logit_of(classified, batch.image)
    weights = (15 / 20, 15 / 10) if balance else (1, 1)  # of 10 normal and 5 anomalous training images
    terms = [weights[int(y)] * np.logaddexp(0, -z if y else z) for z, y in zip(logit, batch.label, strict=True)]
    assert float(metrics["classifier/loss"]) == pytest.approx(np.mean(terms), rel=2e-3)
    assert float(metrics["accuracy"]) == np.mean((logit > 0) == np.asarray(batch.label))


def test_the_loss_of_stage_2_is_cross_entropy_and_the_dice_of_the_batch(segmented):
    batch, after = batch_of(3), segmented.after
    _, metrics = segmented.apply(after, augmented(batch), jax.random.key(0))
    params = after.params["segmenter"]
    seen = features_of({"params": params["backbone"], **after.frozen["backbone"]}, batch.image, LAYERS)
    module, own = Decoder(DECODER, (SIZE, SIZE)), {"params": params["head"], "batch_stats": after.stats["segmenter"]}
    z, _ = jit(lambda v, x: module.apply(v, x, True, mutable=["batch_stats"]))(own, seen)
    z, t = np.asarray(z, np.float64), np.asarray(batch.mask)
    p = 1 / (1 + np.exp(-z))
    bce, dice = np.mean(np.logaddexp(0, z) - z * t), 1 - 2 * np.sum(p * t) / (np.sum(p) + np.sum(t))
    assert float(metrics["bce"]) == pytest.approx(bce, rel=2e-3)
    assert float(metrics["dice"]) == pytest.approx(dice, rel=2e-3)
    assert float(metrics["segmenter/loss"]) == pytest.approx(W_BCE * bce + W_DICE * dice, rel=2e-3)


def test_a_term_without_weight_is_not_computed(segmented):
    for off, left in (("w_bce", "dice"), ("w_dice", "bce")):
        update = start(config_of(**{off: 0.0}), 1)[0].update.apply
        _, metrics = jax.eval_shape(update, segmented.after, batch_of(0), jax.random.key(0))
        assert set(metrics) == {"segmenter/loss", left}


def test_both_stages_start_from_the_pre_trained_weights_and_the_second_keeps_the_classifier(classified, segmented):
    weights = pretrained.load("narrow", "random", ("layer4",), seed=0)
    for state, name in ((classified.before, "classifier"), (segmented.before, "segmenter")):
        assert all(equal(state.params[name]["backbone"], weights["params"]))
        assert all(equal(state.frozen["backbone"]["batch_stats"], weights["batch_stats"]))
    for state in (segmented.before, segmented.after):
        assert all(equal(state.frozen["classifier"], classified.after.params["classifier"]))


def test_all_parameters_move_and_the_averages_of_the_backbone_do_not(classified, segmented):
    for each, name in ((classified, "classifier"), (segmented, "segmenter")):
        assert not any(equal(each.before.params[name], each.after.params[name]))
        assert all(equal(each.before.frozen, each.after.frozen))
    assert classified.after.stats == {}
    assert not any(equal(segmented.before.stats, segmented.after.stats))  # the decoder's own move
    assert set(segmented.after.stats["segmenter"]) == {"up_layer3", "up_layer2", "up_layer1", "up_stem"}


def test_head_only_leaves_the_backbone_as_it_is_in_both_stages():
    first = run(config_of(head_only=True), steps=5)
    assert set(first.before.params["classifier"]) == {"head"}
    assert set(first.before.frozen["backbone"]) == {"params", "batch_stats"}
    assert all(equal(first.after.frozen, first.before.frozen))
    assert not any(equal(first.after.params, first.before.params))
    second = run(config_of(head_only=True), 1, first.after, steps=2)
    assert set(second.before.params["segmenter"]) == {"head"}
    assert all(equal(second.after.frozen["backbone"], first.before.frozen["backbone"]))
    assert not any(equal(second.after.params, second.before.params))
    assert jax.eval_shape(second.stage.predict, second.after, batch_of(1)).pixel.shape == (ROWS, SIZE, SIZE)


def test_adams_first_step_is_the_learning_rate_of_each_group(segmented):
    after, _ = segmented.apply(segmented.before, augmented(batch_of(0)), jax.random.key(0))
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(b - a)), segmented.before.params, after.params)["segmenter"]
    for group, rate in (("head", LR), ("backbone", 0.1 * LR)):
        steps = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moved[group])])
        assert np.quantile(steps, 0.9) == pytest.approx(rate, rel=1e-2) and steps.max() < 1.01 * rate


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_the_rate_of_the_backbone_is_a_fraction_of_the_heads_under_every_optimiser(name):
    config = config_of(optim__name=name, optim__lr=0.4, optim__clip=1.0, optim__weight_decay=0.1, backbone_lr=0.125)
    tx = two_class.groups(config.two_class, config.optim, 10)
    params, slope = (
        {group: {"w": jnp.array([values])} for group in ("head", "backbone")} for values in ([1.0, -2.0], [0.3, 0.1])
    )
    state = tx.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(3):  # momentum too
            change, state = tx.update(slope, state, params)
    np.testing.assert_allclose(change["backbone"]["w"], 0.125 * change["head"]["w"], rtol=1e-5)
    assert np.abs(change["head"]["w"]).min() > 1e-6


def test_it_learns_the_square_in_a_few_tens_of_steps(classified, segmented, found):
    assert classified.rows[0]["classifier/loss"] == pytest.approx(np.log(2) * 1.125, rel=1e-5)  # at first 1/2 for all
    told, batch = found
    assert roc_auc_score(batch.label, told.image) == 1.0
    assert roc_auc_score(np.ravel(batch.mask), np.ravel(told.pixel)) > 0.99
    assert told.pixel.shape == (16, SIZE, SIZE) and told.pixel.dtype == told.image.dtype == jnp.float32
    assert 0 <= float(told.pixel.min()) < 0.5 < float(told.pixel.max()) <= 1


def test_the_image_score_is_the_classifiers_or_the_maps_and_the_other_is_an_extra(classified, segmented, found):
    told, batch = found
    other = jax.jit(start(config_of(image_score="map"), 1)[0].predict)(segmented.after, batch)
    assert set(told.extras) == {"map"} and set(other.extras) == {"classifier"}
    np.testing.assert_allclose(other.pixel, told.pixel, rtol=1e-5)
    np.testing.assert_array_equal(other.image, other.pixel.max((1, 2)))
    np.testing.assert_array_equal(told.extras["map"], told.pixel.max((1, 2)))
    expected = 1 / (1 + np.exp(-logit_of(classified, batch.image)))
    for score in (told.image, other.extras["classifier"]):
        np.testing.assert_allclose(score, expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(image_score="max"), "image_score='max'.*classifier, map"),
        (dict(decoder=(8, 8, 8)), r"decoder=\(8, 8, 8\).*4 numbers"),
        (dict(backbone_lr=0.0), "backbone_lr=0.0.*head_only=True"),
        (dict(w_bce=-1.0), "w_bce=-1.0.*0 or more"),
        (dict(w_bce=0.0, w_dice=0.0), "w_bce=0.0.*more than 0"),
        (dict(jitter=1.5), "jitter=1.5"),
        (dict(backbone__name="vgg16"), "config.backbone.name='vgg16'.*ResNet.*resnet50"),
    ],
    ids=str,
)
def test_mistakes_are_one_line_with_the_key(options, says):
    with pytest.raises(UserError, match=says) as raised:
        two_class.stages(config_of(**options), SPEC)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(n_train=10, n_train_anomalous=0), "squares.*protocol=few_shot.*high_shot.*n_anomalies=N"),
        (dict(has_masks=False), "squares.*no masks.*segmenter"),
    ],
    ids=str,
)
def test_data_that_cannot_teach_is_refused(change, says):
    with pytest.raises(UserError, match=says):
        two_class.stages(config_of(), dataclasses.replace(SPEC, **change))
