"""AnoSeg with few channels at 32 pixels. What is compiled is shared: it is what these tests take their time for."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jaxad import config as configs
from jaxad import pretrained
from jaxad.flags import load
from jaxad.methods import anoseg
from jaxad.methods.adversarial import variables
from jaxad.models import resnet
from jaxad.types import Batch, DataSpec, UserError

SIZE, ROWS = 32, 4
SPEC = DataSpec("demo", "stripes", SIZE, 20, 0, 4, 4, True)
LOG2 = float(np.log(2.0))
ABLATIONS = pathlib.Path(__file__).parents[2] / "configs" / "ablations.py"


def config_of(**options):
    config = configs.default("anoseg")
    config.backbone.weights = "random"
    config.data.image_size, config.data.batch_size = SIZE, ROWS
    config.train.steps.segment, config.train.steps.detect = 300, 30
    config.optim.lr, config.optim.b1 = 1e-3, 0.5
    config.anoseg.width_mult, config.score.sigma, config.score.reduction = 0.0625, 0.0, "max"
    for name, value in options.items():
        place, _, key = name.rpartition("__")
        (config.anoseg[place] if place else config.anoseg)[key] = value
    return config


@pytest.fixture(scope="module", autouse=True)
def shallow_encoder(quick_compile):
    """A block a stage: the same program, compiled in less time."""
    with pytest.MonkeyPatch.context() as patch:
        small = resnet.ARCHITECTURES["resnet18"]._replace(base=16, blocks=(1, 1, 1, 1))
        patch.setitem(resnet.ARCHITECTURES, "resnet18", small)
        pretrained._expected.cache_clear()
        yield
    pretrained._expected.cache_clear()


@functools.cache
def batch_of(seed=0, rows=ROWS):
    """Horizontal stripes; in the view 'anomaly' a rectangle of vertical ones."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    image, anomaly = (np.empty((rows, SIZE, SIZE, 3), np.float32) for _ in range(2))
    mask = np.zeros((rows, SIZE, SIZE), bool)
    for i in range(rows):
        top, left = rng.integers(2, SIZE - 14, 2)
        mask[i, top : top + 10, left : left + 12] = True
        stripes, other = (0.5 + 0.4 * np.sin(0.8 * way + rng.uniform(0, 6)) for way in (y, x))
        noise = 0.02 * rng.normal(size=(SIZE, SIZE, 3))
        image[i] = np.clip(stripes[..., None] + noise, 0, 1)
        anomaly[i] = np.where(mask[i][..., None], other[..., None], image[i])
    views = {"anomaly": anomaly, "anomaly_mask": mask}
    none = np.zeros((rows, SIZE, SIZE), bool)
    made = Batch(image, none, np.zeros(rows, bool), np.arange(rows, dtype=np.int32), np.ones(rows, bool), views)
    return jax.tree.map(jnp.asarray, made)


def build(stage, carry=None):
    """The state of a stage at step 0."""
    return stage.update.init(stage.init(jax.random.key(3), SPEC, carry))


def shapes(config):
    """(stages, what the state of each stage at step 0 looks like); nothing is compiled."""
    stages, states, carry = anoseg.stages(config, SPEC), [], None
    for stage in stages:
        states.append(jax.eval_shape(lambda stage=stage, carry=carry: build(stage, carry)))
        carry = jax.eval_shape(stage.finish, states[-1])
    return stages, states


SHARED = dict(seg_loss="balanced_l1", ema=0.5, adv_ramp=10, w_adv=0.05, detector__alpha=2.0, detector__beta=0.3)


@pytest.fixture(scope="module")
def begun():
    """(stages, state of 'segment' at step 0, the compiled update)"""
    stages = anoseg.stages(config_of(**SHARED), SPEC)
    state = build(stages[0])
    return stages, state, jax.jit(stages[0].update.apply).lower(state, batch_of(), jax.random.key(0)).compile()


@pytest.fixture(scope="module")
def draws(begun):
    """predict of 'segment', compiled."""
    return jax.jit(begun[0][0].predict)


@pytest.fixture(scope="module")
def stepped(begun):
    """(state of 'segment' after one step, its metrics)"""
    _, state, apply = begun
    return apply(state, batch_of(), jax.random.key(0))


@pytest.fixture(scope="module")
def detecting(begun):
    """(state of 'detect' at step 0, the compiled update, the compiled predict)"""
    stage = begun[0][1]
    return build(stage, begun[1]), jax.jit(stage.update.apply), jax.jit(stage.predict)


def moved(before, after):
    return any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


def with_head(params, kernel=0.0, bias=0.0):
    """Parameters of a decoder whose last convolution gives `bias` at every pixel."""
    head = {
        "kernel": jnp.full_like(params["conv7"]["kernel"], kernel),
        "bias": jnp.full_like(params["conv7"]["bias"], bias),
    }
    return {**params, "conv7": head}


def test_half_of_a_batch_is_synthetic_each_with_its_own_mask():
    batch = batch_of()
    image, normal = anoseg.mixed(batch, 0.5)
    for row in range(ROWS):
        synthetic = row % 2 == 1
        expected = batch.views["anomaly"][row] if synthetic else batch.image[row]
        np.testing.assert_array_equal(image[row], expected)
        mask = batch.views["anomaly_mask"][row] if synthetic else np.zeros((SIZE, SIZE), bool)
        np.testing.assert_array_equal(normal[row, ..., 0], 1.0 - np.asarray(mask))


@pytest.mark.parametrize("rows, share, count", [(16, 0.5, 8), (16, 0.25, 4), (10, 0.3, 3), (4, 1.0, 4), (3, 0.1, 0)])
def test_the_share_of_synthetic_rows_is_what_was_asked_for(rows, share, count):
    assert anoseg.synthetic_rows(rows, share).sum() == count


def test_every_device_gets_as_many_synthetic_rows():
    assert anoseg.synthetic_rows(16, 0.5).reshape(8, 2).sum(1).tolist() == [1] * 8


def test_a_step_of_segment_moves_both_networks_and_their_averages(begun, stepped):
    before, after = begun[1], stepped[0]
    for name in ("segmenter", "critic"):
        assert moved(before.params[name], after.params[name])
        assert moved(before.stats[name], after.stats[name])


def test_only_the_critics_own_pass_moves_its_batch_norm_averages(begun, stepped):
    """Two passes, real then fake, each a tenth: of the fakes of the old segmenter, under the old critic."""
    stages, state, _ = begun
    config = config_of()
    critic = anoseg._critic(config, SPEC, planes=4)
    segmenter = anoseg._generator(config, SPEC, {"map": 1, "image": 3}, with_map=False)
    image, normal = anoseg.mixed(batch_of(), 0.5)
    drawn, _ = segmenter.apply(variables(state, "segmenter"), image, None, True)
    stats = state.stats["critic"]
    for pair in ((image, normal), tuple(jax.nn.sigmoid(drawn[name]) for name in ("image", "map"))):
        _, stats = critic.apply({"params": state.params["critic"], "batch_stats": stats}, *pair, True)
    for one, two in zip(jax.tree.leaves(stats), jax.tree.leaves(stepped[0].stats["critic"]), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_the_forward_pass_of_the_segmenter_is_computed_once(begun):
    """The critic's step and the segmenter's both run it, on the same parameters and images: XLA merges them."""
    stages, state, compiled = begun
    segmenter = anoseg._generator(config_of(), SPEC, {"map": 1, "image": 3}, with_map=False)
    once = jax.jit(lambda v, x: segmenter.apply(v, x, None, True)).lower(
        variables(state, "segmenter"), batch_of().image
    )
    asked = jax.jit(stages[0].update.apply).lower(state, batch_of(), jax.random.key(0)).as_text()
    convolutions = [text.count("stablehlo.convolution(") for text in (asked, once.as_text())]
    done = compiled.as_text().count(" convolution(")
    assert convolutions[1] > 20 and done <= convolutions[0] - convolutions[1]


@pytest.mark.parametrize(
    "options, networks, terms",
    [
        ({}, {"segmenter", "critic"}, {"segmentation", "reconstruction", "adversarial"}),
        ({"adversarial": False}, {"segmenter"}, {"segmentation", "reconstruction"}),
        ({"adversarial": False, "reconstruction": False}, {"segmenter"}, {"segmentation"}),
    ],
)
def test_an_ablation_builds_what_it_needs_and_no_more(options, networks, terms):
    stages, states = shapes(config_of(detector__enabled=False, **options))
    assert len(stages) == 1 and set(states[0].params) == networks
    assert ("image" in states[0].params["segmenter"]) == ("reconstruction" in terms)
    _, metrics = jax.eval_shape(stages[0].update.apply, states[0], batch_of(), jax.random.key(0))
    assert {name for name in metrics if "/" not in name} == terms


@pytest.mark.parametrize(
    "options, segmenter, restorer, judge",
    [
        ({}, 5, 6, 4),
        ({"coords": False}, 3, 4, 4),
        ({"detector__g_input": "image"}, 5, 5, 4),
        ({"detector__input_map": False}, 5, 5, 3),
        ({"detector__input_map": False, "coords": False}, 3, 3, 3),
    ],
)
def test_each_network_sees_the_planes_that_it_should(options, segmenter, restorer, judge):
    segment, detect = shapes(config_of(**options))[1]
    assert segment.params["segmenter"]["encoder"]["conv1"]["kernel"].shape[2] == segmenter
    assert detect.params["restorer"]["encoder"]["conv1"]["kernel"].shape[2] == restorer
    assert detect.params["judge"]["conv1"]["kernel"].shape[2] == judge
    assert segment.params["critic"]["conv1"]["kernel"].shape[2] == 4


def test_recall_is_what_the_map_finds_of_the_synthetic_pixels(begun):
    """With a map of all zeros everything is called anomalous, with one of all ones nothing."""
    _, state, apply = begun
    for bias, expected in ((-50.0, 1.0), (50.0, 0.0)):
        params = {**state.params["segmenter"], "map": with_head(state.params["segmenter"]["map"], bias=bias)}
        _, metrics = apply(state.replace(params={**state.params, "segmenter": params}), batch_of(), jax.random.key(0))
        assert float(metrics["synthetic/recall"]) == pytest.approx(expected, abs=1e-6)
        assert float(metrics["synthetic/false_alarms"]) == pytest.approx(expected, abs=1e-6)
        # Half of the images are normal, and of the others the balanced loss sees either side.
        assert float(metrics["segmentation"]) == pytest.approx(0.25 if bias > 0 else 0.75, rel=1e-4)


def test_the_weight_of_the_adversarial_term_climbs(begun):
    _, state, apply = begun
    for step, factor in ((0, 0.1), (4, 0.5), (99, 1.0)):
        _, metrics = apply(state.replace(step=jnp.int32(step)), batch_of(), jax.random.key(0))
        rest = metrics["segmentation"] + metrics["reconstruction"]
        paid = float((metrics["segmenter/loss"] - rest) / metrics["adversarial"])
        assert paid == pytest.approx(SHARED["w_adv"] * factor, rel=1e-3)


def test_with_several_steps_of_the_segmenter_in_one_its_learning_rate_still_ends_with_the_stage(monkeypatch):
    asked = []
    monkeypatch.setattr(anoseg, "optimiser", lambda optim, steps: asked.append(steps))
    anoseg.stages(config_of(g_steps=3, detector__enabled=False), SPEC)
    assert asked == [300, 900]  # the critic's, the segmenter's


def test_a_critic_without_a_map_does_not_see_it_as_a_mask_of_the_image_either():
    config = config_of(d_image_masked=True)
    image, normal = batch_of().image, jnp.ones((ROWS, SIZE, SIZE, 1))
    for planes, sees in ((3, False), (4, True)):
        critic = anoseg._critic(config, SPEC, planes)
        own = critic.init(jax.random.key(0))
        one, two = (critic.apply(own, image, mask)[0].features for mask in (normal, 0.0 * normal))
        assert bool(np.any(one != two)) == sees


def test_with_ema_the_average_predicts(begun, stepped):
    stages, state, _ = begun
    finished = stages[0].finish(stepped[0])
    assert set(finished.params) == {"segmenter", "critic"}
    first, second, average = (
        np.asarray(tree["map"]["conv7"]["kernel"])
        for tree in (state.params["segmenter"], stepped[0].params["segmenter"], finished.params["segmenter"])
    )
    np.testing.assert_allclose(average, (first + second) / 2, atol=1e-7)


def test_it_overfits_four_images(begun, draws):
    """Section 10, test 9: 300 steps, and the synthetic pixels are ranked."""
    stages, state, apply = begun
    batch, rows = batch_of(), []
    for step in range(300):
        state, metrics = apply(state, batch, jax.random.key(step))
        state = state.replace(step=state.step + 1)
        rows.append({name: float(value) for name, value in metrics.items()})
    assert np.isfinite([list(row.values()) for row in rows]).all()
    image, normal = anoseg.mixed(batch, 0.5)
    found = draws(state, batch.replace(image=image))
    assert roc_auc_score(np.asarray(normal).ravel() == 0, np.asarray(found.pixel).ravel()) > 0.99
    assert rows[-1]["synthetic/recall"] > 0.8
    assert rows[-1]["reconstruction"] < 0.5 * rows[0]["reconstruction"]


def blind(state):
    """A judge whose logits are all 0."""
    judge = state.params["judge"]
    return state.replace(
        params={**state.params, "judge": {**judge, "last": jax.tree.map(jnp.zeros_like, judge["last"])}}
    )


def test_the_judge_pays_log_2_a_term_where_it_cannot_tell(detecting):
    """Fake, synthetic, and real twice, as eq. 6 and L_cls both print it."""
    state, apply, _ = detecting
    _, metrics = apply(blind(state), batch_of(), jax.random.key(0))
    assert float(metrics["judge/loss"]) == pytest.approx(4 * LOG2, rel=1e-5)
    for name in ("real", "fake", "synthetic"):
        assert float(metrics[f"judge/{name}"]) == pytest.approx(LOG2, rel=1e-5)


@pytest.mark.parametrize("twice, classified, total", [(True, True, 4), (False, True, 3), (True, False, 2)])
def test_the_real_term_counts_twice_only_beside_the_classification(twice, classified, total):
    options = config_of(detector__cls_dup_real=twice, detector__anomaly_cls=classified).anoseg.detector
    weights = anoseg.judge_weights(options)
    assert sum(weights.values()) == total and ("synthetic" in weights) == classified


def test_detect_trains_on_the_frozen_segmenter(begun, detecting):
    before, apply, _ = detecting
    after, metrics = apply(before, batch_of(), jax.random.key(0))
    for name in ("restorer", "judge"):
        assert moved(before.params[name], after.params[name])
    assert not moved(before.frozen, after.frozen)
    assert not moved(begun[1].params["segmenter"], after.frozen["segmenter"]["params"])
    assert {"reconstruction", "adversarial", "feature_matching"} <= set(metrics)


@pytest.mark.parametrize("option, term", [("feature_matching", "feature_matching"), ("anomaly_cls", "judge/synthetic")])
def test_a_term_of_the_detector_that_is_switched_off_is_not_there(option, term):
    for value in (True, False):
        stages, states = shapes(config_of(**{f"detector__{option}": value}))
        _, metrics = jax.eval_shape(stages[1].update.apply, states[1], batch_of(), jax.random.key(0))
        assert (term in metrics) == value
    assert bool(stages[1].feed.views) == (option != "anomaly_cls")  # no synthetic anomalies are made in vain


def test_a_pair_that_is_restored_exactly_scores_zero(detecting):
    """A map of ones (a logit of 50) and a grey image that is restored as grey (a logit of 0): eq. 5 is 0."""
    state = detecting[0]
    segmenter = state.frozen["segmenter"]
    drawn = {**segmenter["params"], "map": with_head(segmenter["params"]["map"], bias=50.0)}
    grey = {**state.params["restorer"], "image": with_head(state.params["restorer"]["image"])}
    state = state.replace(
        params={**state.params, "restorer": grey}, frozen={"segmenter": {**segmenter, "params": drawn}}
    )
    predict, batch = detecting[2], batch_of()
    half = batch.replace(image=jnp.full_like(batch.image, 0.5))
    found = predict(state, half)
    np.testing.assert_array_equal(found.image, np.zeros(ROWS))
    assert float(found.pixel.max()) < 1e-20
    assert float(predict(state, batch).image.min()) > 0


def test_the_score_is_eq_5_of_the_terms_that_it_shows(detecting):
    state, _, predict = detecting
    found = predict(state, batch_of())
    expected = 2.0 * found.extras["feature"] + 0.3 * found.extras["reconstruction_mse"]
    np.testing.assert_allclose(found.image, expected, rtol=1e-5)
    restored = np.asarray(found.extras["ad_reconstruction"])
    mse = np.mean((np.asarray(batch_of().image) - restored) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(found.extras["reconstruction_mse"], mse, rtol=1e-4)
    np.testing.assert_allclose(found.extras["map_max"], np.asarray(found.pixel).max((1, 2)), rtol=1e-6)


def test_larger_is_more_anomalous_although_the_papers_map_is_1_where_normal(begun, draws):
    stages, state, _ = begun
    for bias, expected in ((50.0, 0.0), (-50.0, 1.0)):
        params = {**state.params["segmenter"], "map": with_head(state.params["segmenter"]["map"], bias=bias)}
        found = draws(state.replace(params={**state.params, "segmenter": params}), batch_of())
        np.testing.assert_allclose(found.pixel, expected, atol=1e-6)
    assert stages[0].map_range == (0.0, 1.0)


def test_a_map_of_three_channels_is_averaged():
    logits = jnp.broadcast_to(jnp.array([50.0, -50.0, -50.0]), (2, SIZE, SIZE, 3))
    np.testing.assert_allclose(anoseg._pixel(config_of(), {"map": logits}), 2 / 3, rtol=1e-5)
    stages, states = shapes(config_of(map_channels=3))
    assert states[0].params["critic"]["conv1"]["kernel"].shape[2] == 6  # Table 6's three, beside the image
    for stage, state in zip(stages, states, strict=True):
        jax.eval_shape(stage.update.apply, state, batch_of(), jax.random.key(0))


def test_a_pretrained_encoder_takes_zeros_for_the_planes_that_it_never_saw(tmp_path):
    tree = pretrained.load("resnet18", "random", ("layer4",), seed=5)
    pretrained.save(tmp_path / "encoder.safetensors", tree, "resnet18")
    config = config_of(width_mult=1.0, adversarial=False, reconstruction=False, detector__enabled=False)
    config.backbone.weights = str(tmp_path / "encoder.safetensors")
    stages = anoseg.stages(config, SPEC)
    with pytest.MonkeyPatch.context() as patch:  # a decoder of full width would take a minute
        patch.setattr(anoseg.models, "CHANNELS", (8,) * 5)
        state = stages[0].init(jax.random.key(0), SPEC, None)
    stem = state.params["segmenter"]["encoder"]["conv1"]["kernel"]
    np.testing.assert_array_equal(stem[:, :, :3], tree["params"]["conv1"]["kernel"])
    assert stem.shape[2] == 5 and not np.any(stem[:, :, 3:])
    kept = state.params["segmenter"]["encoder"]["layer4_0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kept, tree["params"]["layer4_0"]["conv1"]["kernel"])


def refused(message, spec=SPEC, **options):
    changes = {name: options.pop(name) for name in list(options) if name.startswith("config__")}
    config = config_of(**options)
    for name, value in changes.items():
        _, place, key = name.split("__")
        config[place][key] = value
    with pytest.raises(UserError, match=message):
        anoseg.stages(config, spec)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"map_channels": 2}, "config.anoseg.map_channels=2: it must be one of 1, 3"),
        ({"seg_loss": "l2"}, "one of l1, bce, balanced_l1"),
        ({"gan_loss": "wgan"}, "one of ns, minimax, lsgan"),
        ({"input_range": "imagenet"}, "one of 01, pm1"),
        ({"detector__g_input": "map"}, "config.anoseg.detector.g_input='map': it must be one of image_map, image"),
        ({"reconstruction": False}, "config.anoseg.adversarial=True: it must be False where reconstruction is"),
        ({"w_adv": -1.0}, "config.anoseg.w_adv=-1.0: it must be 0 or more"),
        ({"w_seg": 0.0}, "without it there is no map"),
        ({"detector__beta": float("nan")}, "config.anoseg.detector.beta=nan"),
        ({"p_anomaly": 0.0}, "in \\(0, 1\\]"),
        ({"p_anomaly": 0.1}, "leaves no synthetic anomaly in a batch of 4"),
        ({"ema": 1.0}, "in \\[0, 1\\)"),
        ({"g_steps": 0}, "1 or more"),
        ({"config__backbone__name": "vgg16"}, "unknown ResNet 'vgg16'"),
        ({"config__backbone__weights": "imagenet"}, "has no pretrained encoder"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options, message):
    refused(message, **options)


@pytest.mark.parametrize(
    "size, message",
    [(40, "multiple of 32 pixels, not 40; set config.data.image_size=32"), (96, "set config.data.image_size=128")],
)
def test_an_image_size_that_does_not_halve_is_refused_with_one_that_does(size, message):
    refused(message, spec=SPEC.__class__("demo", "stripes", size, 20, 0, 4, 4, True))


def test_without_critics_any_multiple_of_32_will_do():
    config = config_of(adversarial=False, detector__enabled=False)
    assert anoseg.stages(config, SPEC.__class__("demo", "stripes", 96, 20, 0, 4, 4, True))


def test_the_rows_of_table_3_are_cumulative():
    rows = ["base", "hard", "adversarial", "coords"]
    switches = []
    for row in rows:
        options = load(f"{ABLATIONS}:anoseg/table3_{row}").anoseg
        assert not options.detector.enabled
        switches.append((options.hard_aug, options.adversarial and options.reconstruction, options.coords))
    assert switches == [(False, False, False), (True, False, False), (True, True, False), (True, True, True)]


def test_the_rows_of_table_5_are_cumulative_on_the_whole_segmenter():
    for row, expected in {
        "base": (False, False, False),
        "feature_matching": (True, False, False),
        "input_map": (True, True, False),
        "cls": (True, True, True),
    }.items():
        options = load(f"{ABLATIONS}:anoseg/table5_{row}").anoseg
        found = options.detector
        assert (found.feature_matching, found.input_map, found.anomaly_cls) == expected
        assert options.hard_aug and options.adversarial and options.coords and found.enabled
