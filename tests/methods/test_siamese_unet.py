"""The Siamese U-Net on a narrow random teacher."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.metrics import roc_auc_score

from jaxad import config as configs
from jaxad.losses import contrastive, deviation, distillation
from jaxad.methods import reverse_distillation, siamese_unet
from jaxad.models import backbones, resnet
from jaxad.models.attention import attention
from jaxad.models.reverse_distillation import LAYERS, student
from jaxad.types import Batch, DataSpec, UserError

SIZE, ROWS = 64, 4
NARROW = dict(base=16, blocks=(1, 1, 1, 1))
SPEC = DataSpec("demo", "stripes", SIZE, 20, 0, 4, 4, True)


def config_of(**options):
    config = configs.default("siamese_unet")
    config.backbone.name, config.backbone.weights = "narrow", "random"
    config.data.image_size, config.data.batch_size = SIZE, ROWS
    config.train.steps.contrast, config.train.steps.deviate = 40, 30
    config.optim.lr, config.optim.b1 = 0.005, 0.5
    config.score.interpolation = "bilinear_corners"
    for name, value in options.items():
        place, _, key = name.rpartition("__")
        (config.siamese_unet[place] if place else config.siamese_unet)[key] = value
    return config


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """A backbone 'narrow' that only these tests know."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.ARCHITECTURES, "narrow", resnet.ARCHITECTURES["resnet18"]._replace(**NARROW))
        patch.setattr(backbones, "NAMES", (*backbones.NAMES, "narrow"))
        yield


def stripes(rng, other=False):
    y, x = np.mgrid[:SIZE, :SIZE]
    way = -1 if other else 1
    return 0.5 + 0.3 * np.sin((x + way * 0.5 * y) * 0.6 + rng.uniform(0, 2 * np.pi))


def batch_of(seed, rows=ROWS, anomalous=False):
    """Slanted stripes; in the view 'anomaly', and in the image if anomalous, a square of stripes the other way."""
    rng = np.random.default_rng(seed)
    image, anomaly = (np.empty((rows, SIZE, SIZE, 3), np.float32) for _ in range(2))
    mask = np.zeros((rows, SIZE, SIZE), bool)
    for i in range(rows):
        top, left = rng.integers(4, SIZE - 28, 2)
        mask[i, top : top + 20, left : left + 20] = True
        noise = 0.02 * rng.normal(size=(SIZE, SIZE, 3))
        image[i] = stripes(rng)[..., None] + noise
        anomaly[i] = np.where(mask[i], stripes(rng, other=True), stripes(rng))[..., None] + noise
    views = {"rotated": image[:, ::-1, ::-1], "anomaly": anomaly, "anomaly_mask": mask}
    label, index = np.full(rows, anomalous), np.arange(rows, dtype=np.int32)
    shown = anomaly if anomalous else image
    return jax.tree.map(jnp.asarray, Batch(shown, mask & anomalous, label, index, np.ones(rows, bool), views))


def start(config):
    """(stages, state of the first at step 0)"""
    stages = siamese_unet.stages(config, SPEC)
    return stages, stages[0].update.init(stages[0].init(jax.random.key(7), SPEC, None))


@pytest.fixture(scope="module")
def started():
    """(stages, state of 'contrast' at step 0, the compiled update)"""
    stages, state = start(config_of())
    return stages, state, jax.jit(stages[0].update.apply)


def walk(stage, state, apply, steps):
    rows = []
    for step in range(steps):
        state, metrics = apply(state, batch_of(step), jax.random.key(step))
        state = state.replace(step=state.step + 1)
        rows.append({name: float(value) for name, value in metrics.items()})
    return state, rows


@pytest.fixture(scope="module")
def contrasted(started):
    """(state after stage 1, its metrics)"""
    stages, state, apply = started
    return walk(stages[0], state, apply, stages[0].steps)


@pytest.fixture(scope="module")
def deviated(started, contrasted):
    """(state of stage 2 at step 0, after it, its metrics)"""
    stage = started[0][1]
    state = stage.update.init(stage.init(jax.random.key(8), SPEC, contrasted[0]))
    return state, *walk(stage, state, jax.jit(stage.update.apply), stage.steps)


def features_of(state, images, train=False, mask=None):
    """({layer: teacher's}, {layer: student's}, new stats) without the method."""
    teacher = backbones.build("narrow", LAYERS).apply(state.frozen["teacher"], backbones.normalise(images))
    module = student("resnet18", attention=attention("cpam"), **NARROW)
    variables = {"params": state.params["student"], "batch_stats": state.stats["student"]}
    answers, new = module.apply(variables, teacher, train, mask, mutable=["batch_stats"])
    return teacher, answers, new


def test_two_stages_the_second_on_the_images_and_anomalies_of_the_first(started):
    contrast, deviate = started[0]
    assert (contrast.name, deviate.name) == ("contrast", "deviate")
    assert [view.name for view in contrast.feed.views] == ["rotated", "anomaly"]
    assert contrast.feed.views[1] == deviate.feed.views[0] and contrast.feed.split == "train_normal"
    assert deviate.feed.replay == ("contrast", 40 * ROWS) and deviate.feed.batch_size == 8
    assert contrast.feed.views[1].options["category"] == "stripes"


def test_three_attentions_stand_before_the_decoder_layers_of_one_network(started):
    _, state, _ = started
    decoder = state.params["student"]["decoder"]
    assert {name for name in decoder if name.startswith("attention")} == {"attention1", "attention2", "attention3"}
    sizes = [decoder[f"attention{i}"]["value_conv"]["kernel"].shape[-1] for i in (1, 2, 3)]
    assert sizes == [128, 64, 32]  # phi, S_3, S_2 of a network of base 16
    assert set(state.params) == {"student"} and set(state.frozen) == {"teacher"}


@pytest.mark.parametrize(
    "backbone, counts",
    [
        ("resnet18", (11_680_000, 3_703_168)),
        ("resnet34", (16_400_640, 5_770_624)),
        ("resnet50", (30_829_568, 15_821_824)),
        ("wide_resnet50_2", (58_885_120, 24_917_504)),
    ],
)
def test_parameters_are_those_of_the_specification_and_the_attentions_on_top(backbone, counts):
    channels = (64, 128, 256) if backbone in ("resnet18", "resnet34") else (256, 512, 1024)
    blank = {layer: jnp.zeros((1, 8 >> i, 8 >> i, channels[i])) for i, layer in enumerate(LAYERS)}
    module = student(backbone, attention=attention("cpam"))
    params = jax.eval_shape(module.init, jax.random.key(0), blank)["params"]
    attentions = {name: tree for name, tree in params["decoder"].items() if name.startswith("attention")}
    rest = {name: tree for name, tree in params["decoder"].items() if name not in attentions}
    count = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params["ocbe"], rest, attentions)]
    assert count[:2] == list(counts)
    if backbone == "wide_resnet50_2":  # PAM of 2048, 1024 and 512 channels, and a gamma each for the channel branch
        assert count[2] == 5_245_441 + 1_312_001 + 328_321 + 3


def test_the_losses_of_stage_1_are_eqs_1_6_and_7(started):
    _, state, apply = started
    batch = batch_of(3)
    _, metrics = apply(state, batch, jax.random.key(0))
    images = [batch.image, batch.views["rotated"], batch.views["anomaly"]]
    mask = jnp.arange(3 * ROWS) < 2 * ROWS
    teacher, answers, _ = features_of(state, jnp.concatenate(images), True, mask)

    def part(tree, i):
        return {layer: np.asarray(tree[layer][i * ROWS : (i + 1) * ROWS]) for layer in LAYERS}

    each = [distillation.distillation(part(teacher, i), part(answers, i), layers="mean") for i in (0, 1)]
    cossim = float(np.mean(each))
    hinge = float(np.mean(contrastive.contrastive(*(part(answers, i) for i in range(3)), margin=0.2)))
    assert float(metrics["cossim"]) == pytest.approx(cossim, rel=1e-3)
    assert float(metrics["contrastive"]) == pytest.approx(hinge, rel=1e-3)
    assert float(metrics["student/loss"]) == pytest.approx(cossim + 0.1 * hinge, rel=1e-3)
    for name, other in (("positive", 1), ("negative", 2)):
        for layer in LAYERS:
            near = float(np.mean(contrastive.similarity(part(answers, 0)[layer], part(answers, other)[layer])))
            assert float(metrics[f"cos_{name}/{layer}"]) == pytest.approx(near, rel=1e-3)


def test_batchnorm_averages_come_from_the_normals_unless_asked_otherwise(started):
    _, state, apply = started
    batch = batch_of(3)
    changed = batch.replace(views={**batch.views, "anomaly": batch.views["anomaly"] * 0.3})
    joint = jax.jit(start(config_of(bn_stats="joint"))[0][0].update.apply)

    def averages(update, batch):
        return update(state, batch, jax.random.key(0))[0].stats["student"]["ocbe"]["bn1"]

    normal = averages(apply, batch)
    np.testing.assert_array_equal(normal["mean"], averages(apply, changed)["mean"])
    assert np.abs(averages(joint, batch)["mean"] - averages(joint, changed)["mean"]).max() > 1e-4
    expected = features_of(state, jnp.concatenate([batch.image, batch.views["rotated"]]), True)[2]
    for name in ("mean", "var"):
        wanted = expected["batch_stats"]["ocbe"]["bn1"][name]
        np.testing.assert_allclose(normal[name], wanted, rtol=1e-4, atol=1e-6)


def test_the_teacher_never_moves(started, contrasted, deviated):
    for after in (contrasted[0], deviated[1]):
        jax.tree.map(np.testing.assert_array_equal, after.frozen, started[1].frozen)


def test_the_anomaly_is_not_restored(started):
    """Without eq. 6 nothing of the anomaly reaches the parameters, under statistics of the normals."""
    stages, state = start(config_of(lambda_con=0.0))
    apply = jax.jit(stages[0].update.apply)
    batch = batch_of(3)
    changed = batch.replace(views={**batch.views, "anomaly": 1 - batch.views["anomaly"]})
    one, two = (apply(state, each, jax.random.key(0))[0].params for each in (batch, changed))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, two)


def test_stage_1_restores_normals_and_keeps_anomalies_away(contrasted):
    _, rows = contrasted
    assert np.mean([row["cossim"] for row in rows[-5:]]) < 0.4 * rows[0]["cossim"]
    assert np.mean([row["contrastive"] for row in rows[-5:]]) < rows[0]["contrastive"]


def test_stage_2_freezes_batchnorm_and_starts_where_stage_1_ended(contrasted, deviated):
    before, after, rows = deviated
    jax.tree.map(np.testing.assert_array_equal, before.params, contrasted[0].params)
    jax.tree.map(np.testing.assert_array_equal, after.stats, contrasted[0].stats)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), after.params, before.params)
    assert not any(jax.tree.leaves(same))
    assert np.mean([row["deviation"] for row in rows[-5:]]) < rows[0]["deviation"]


def test_the_losses_of_stage_2_are_eq_8_and_the_term_that_keeps(contrasted, deviated, started):
    before, _, rows = deviated
    batch = batch_of(0)
    scores, kept = {layer: [] for layer in LAYERS}, None
    for image in (batch.image, batch.views["anomaly"]):
        teacher, answers, _ = features_of(before, image)
        for layer in LAYERS:
            scores[layer].append(deviation.layer_score(teacher[layer], answers[layer], "topk", 0.05))
        if kept is None:
            kept = float(np.mean(distillation.distillation(teacher, answers, layers="mean")))
    label = np.repeat([False, True], ROWS)
    expected = np.mean(deviation.deviation({layer: jnp.concatenate(s) for layer, s in scores.items()}, label, 0.5))
    assert rows[0]["deviation"] == pytest.approx(float(expected), rel=1e-3)
    assert rows[0]["cossim"] == pytest.approx(kept, rel=1e-3)
    assert rows[0]["student/loss"] == pytest.approx(float(expected) + kept, rel=1e-3)
    for layer in LAYERS:
        assert rows[0][f"score_anomalous/{layer}"] == pytest.approx(float(np.mean(scores[layer][1])), rel=1e-3)


def test_it_finds_the_defect_after_either_stage(started, contrasted, deviated):
    stage = started[0][1]
    predict = jax.jit(stage.predict)
    for state in (contrasted[0], deviated[1]):
        quiet, loud = (predict(state, batch_of(200, 8, kind)) for kind in (False, True))
        assert roc_auc_score([0] * 8 + [1] * 8, np.concatenate([quiet.image, loud.image])) > 0.9
        masks = np.asarray(batch_of(200, 8, True).mask)
        # Per image: eq. 6 compares whole feature maps, so an anomaly also moves the level of its whole map.
        within = [roc_auc_score(m.ravel(), np.asarray(map).ravel()) for m, map in zip(masks, loud.pixel, strict=True)]
        assert np.mean(within) > 0.65, within


def test_without_attention_contrast_and_deviation_it_is_reverse_distillation_up_to_the_mean_over_layers():
    config = config_of(attention="none", contrastive=False, deviation=False)
    (stage,), state = start(config)
    assert stage.feed.views == ()
    made = configs.default("reverse_distillation")
    for section in ("data", "backbone", "optim", "score"):
        made[section].update(config[section])
    (other,) = reverse_distillation.stages(made, SPEC)
    theirs = other.update.init(other.init(jax.random.key(7), SPEC, None))
    jax.tree.map(np.testing.assert_array_equal, state.params, theirs.params)
    batch = batch_of(1)
    mine, found = (
        update(s, batch, jax.random.key(0))
        for update, s in ((jax.jit(stage.update.apply), state), (jax.jit(other.update.apply), theirs))
    )
    assert 3 * float(mine[1]["student/loss"]) == pytest.approx(float(found[1]["student/loss"]), rel=1e-5)
    np.testing.assert_allclose(stage.predict(state, batch).pixel, other.predict(theirs, batch).pixel, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(attention="cbam", bn_stats="separate", score="mean", cos_reduce="position"),
        dict(attention_at="post", con_reduce="gap", cossim_on=("n",), con_stop="anchor", score="literal", keep=0.0),
        dict(contrastive=False, masked=True, score="zscore", p=5.0, cpam__fusion="gated"),
    ],
    ids=str,
)
def test_every_option_gives_finite_numbers_in_both_stages_and_keeps_the_state_in_shape(options):
    (contrast, deviate), state = start(config_of(**options))
    for stage in (contrast, deviate):
        if stage is deviate:
            state = stage.update.init(stage.init(jax.random.key(8), SPEC, state))
        apply = jax.jit(stage.update.apply)
        for step in range(2):
            after, metrics = apply(state, batch_of(step), jax.random.key(step))
            assert all(np.isfinite(value) for value in metrics.values())
            assert jax.tree.structure(after) == jax.tree.structure(state)
            if stage is deviate and options["score"] == "zscore" and step == 0:  # in units of the normals
                assert all(abs(float(metrics[f"score_normal/{layer}"])) < 1e-3 for layer in LAYERS)
            state = after.replace(step=after.step + 1)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))


def test_masked_scores_see_only_the_mask():
    (_, deviate), state = start(config_of(masked=True))
    state = deviate.update.init(deviate.init(jax.random.key(8), SPEC, state))
    batch = batch_of(0)
    _, metrics = jax.jit(deviate.update.apply)(state, batch, jax.random.key(0))
    teacher, answers, _ = features_of(state, batch.views["anomaly"])
    for layer in LAYERS:
        cell = SIZE // teacher[layer].shape[1]
        mask = np.asarray(batch.views["anomaly_mask"])
        inside = np.stack([m.reshape(SIZE // cell, cell, SIZE // cell, cell).any((1, 3)) for m in mask])
        expected = np.mean(deviation.layer_score(teacher[layer], answers[layer], "topk", 0.05, inside))
        assert float(metrics[f"score_anomalous/{layer}"]) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(attention="capm"), "capm.*cpam, cbam, none"),
        (dict(cpam__fusion="max"), "fusion.*mul_rms, mul, gated, sum"),
        (dict(bn_stats="all"), "bn_stats='all'.*normal, joint, separate"),
        (dict(score="max"), "score='max'.*topk"),
        (dict(p=5.0), "p=5.0.*at most 1.*topk"),
        (dict(k=0.0), "k=0.0"),
        (dict(cossim_on=("n", "a")), "cossim_on"),
        (dict(deviate__batch_size=0), "deviate.batch_size=0"),
        (dict(masked=True, score="mean"), "masked"),
        (dict(anomalies="real"), "config.data.n_anomalies=10"),
    ],
    ids=str,
)
def test_mistakes_are_one_line_with_the_key(options, says):
    with pytest.raises(UserError, match=says) as raised:
        siamese_unet.stages(config_of(**options), SPEC)
    assert "\n" not in str(raised.value)


def test_one_normal_image_cannot_make_synthetic_anomalies():
    alone = DataSpec("demo", "stripes", SIZE, 1, 0, 4, 4, True)
    with pytest.raises(UserError, match="two normal training images, there is 1"):
        siamese_unet.stages(config_of(), alone)
    assert len(siamese_unet.stages(config_of(contrastive=False, deviation=False), alone)) == 1


def test_joining_the_copies_of_a_sharded_batch_moves_no_image_between_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P("data"))
    parts = [jax.device_put(jnp.arange(16.0 * k, 16.0 * k + 16).reshape(16, 1), split) for k in range(3)]
    with jax.set_mesh(mesh):
        joined = jax.jit(siamese_unet._join, out_shardings=split)
        text = joined.lower(parts).compile().as_text()
        assert not re.search("all-gather|all-to-all|collective-permute|all-reduce", text)
        whole = joined(parts)
        back = jax.jit(lambda tree: siamese_unet._split(tree, 3))(whole)
        for one, other in zip(parts, back, strict=True):
            np.testing.assert_array_equal(one, other)
    assert sorted(np.asarray(whole)[:6, 0]) == [0, 1, 16, 17, 32, 33]  # the first device's share of each


def test_the_toy_data_serves_the_views_that_the_tests_of_every_method_need():
    feed = siamese_unet.stages(config_of(), SPEC)[0].feed
    data = toy.ArrayData(n=5, size=SIZE)
    batch = next(data.batches(feed, seed=0, stage="contrast", start=0, stop=1, rows=slice(None)))
    assert set(batch.views) == {"rotated", "anomaly", "anomaly_mask"}
