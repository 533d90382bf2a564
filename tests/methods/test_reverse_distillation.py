"""Reverse Distillation on a narrow random teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from sklearn.metrics import roc_auc_score

from jaxad import config as configs
from jaxad.methods import reverse_distillation
from jaxad.models import backbones, resnet
from jaxad.models.reverse_distillation import LAYERS, student
from jaxad.types import Batch, DataSpec, UserError

SIZE, ROWS = 64, 8
NARROW = dict(base=16, blocks=(1, 1, 1, 1))


def spec_of(size=SIZE):
    return DataSpec("demo", "stripes", size, 20, 0, 4, 4, True)


def config_of(**options):
    config = configs.default("reverse_distillation")
    config.backbone.name, config.backbone.weights = "narrow", "random"
    config.data.image_size, config.data.batch_size = SIZE, ROWS
    config.train.steps.distil = 60
    config.optim.lr, config.optim.b1 = 0.005, 0.5
    config.score.interpolation = "bilinear_corners"
    for name, value in options.items():
        config.reverse_distillation[name] = value
    return config


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """A backbone 'narrow' that only these tests know."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.ARCHITECTURES, "narrow", resnet.ARCHITECTURES["resnet18"]._replace(**NARROW))
        patch.setattr(backbones, "NAMES", (*backbones.NAMES, "narrow"))
        yield


def batch_of(seed, anomalous=False, rows=ROWS):
    """Slanted stripes under noise; the anomalous have a square in which the stripes run the other way."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    image, mask = np.empty((rows, SIZE, SIZE, 3), np.float32), np.zeros((rows, SIZE, SIZE), bool)
    for i in range(rows):
        phase = rng.uniform(0, 2 * np.pi)
        stripes, others = (0.5 + 0.3 * np.sin((x + way * 0.5 * y) * 0.6 + phase) for way in (1, -1))
        if anomalous:
            top, left = rng.integers(8, SIZE - 28, 2)
            mask[i, top : top + 20, left : left + 20] = True
        image[i] = np.where(mask[i], others, stripes)[..., None] + 0.02 * rng.normal(size=(SIZE, SIZE, 3))
    label, index = np.full(rows, anomalous), np.arange(rows, dtype=np.int32)
    return jax.tree.map(jnp.asarray, Batch(image, mask, label, index, np.ones(rows, bool)))


@pytest.fixture(scope="module")
def started():
    """(stage, its state at step 0, the compiled update)"""
    (stage,) = reverse_distillation.stages(config_of(), spec_of())
    state = stage.update.init(stage.init(jax.random.key(7), spec_of(), None))
    return stage, state, jax.jit(stage.update.apply)


@pytest.fixture(scope="module")
def trained(started):
    """(stage, state after 60 steps, losses)"""
    stage, state, apply = started
    losses = []
    for step in range(stage.steps):
        state, metrics = apply(state, batch_of(step), jax.random.key(step))
        losses.append(float(metrics["student/loss"]))
    return stage, state, losses


def features_of(state, image, train=False):
    """(teacher's, student's) features, not through the stage."""
    teacher = backbones.build("narrow", LAYERS).apply(state.frozen["teacher"], backbones.normalise(image))
    variables = {"params": state.params["student"], "batch_stats": state.stats["student"]}
    answers = student("resnet18", **NARROW).apply(variables, teacher, train, mutable=["batch_stats"])[0]
    return [{layer: np.asarray(found[layer], np.float64) for layer in LAYERS} for found in (teacher, answers)]


def test_one_shuffled_stage_trains_one_network(started):
    stage, state, _ = started
    assert (stage.name, stage.steps, stage.feed.shuffle) == ("distil", 60, True)
    assert set(state.params) == set(state.opt) == set(state.stats) == {"student"}
    assert set(state.params["student"]) == {"ocbe", "decoder"}
    assert set(state.frozen) == {"teacher"} and not state.memory


def test_a_step_changes_the_whole_student_and_nothing_of_the_teacher(started):
    _, state, apply = started
    after, _ = apply(state, batch_of(0), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, after.frozen, state.frozen)
    for slot in ("params", "stats"):
        same = jax.tree.map(lambda one, two: bool((one == two).all()), getattr(after, slot), getattr(state, slot))
        assert not any(jax.tree.leaves(same))


def test_the_gradient_never_reaches_the_teacher(started):
    stage, state, _ = started

    def loss(frozen):
        return stage.update.apply(state.replace(frozen=frozen), batch_of(0), jax.random.key(0))[1]["student/loss"]

    assert all((leaf == 0).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(state.frozen)))


def test_the_loss_is_the_mean_over_images_of_the_sum_over_layers_and_padding_does_not_count(started):
    _, state, apply = started
    batch = batch_of(3)
    batch = batch.replace(valid=jnp.arange(ROWS) != 2)
    teacher, answers = features_of(state, batch.image, train=True)
    each = np.zeros(ROWS)
    for layer in LAYERS:
        t, s = (found[layer].reshape(ROWS, -1) for found in (teacher, answers))
        each += 1 - (t * s).sum(1) / np.sqrt((t * t).sum(1) * (s * s).sum(1))
    _, metrics = apply(state, batch, jax.random.key(0))
    assert float(metrics["student/loss"]) == pytest.approx(np.delete(each, 2).mean(), rel=1e-4)


def test_the_map_is_rd4ads(trained):
    torch = pytest.importorskip("torch")
    stage, state, _ = trained
    batch = batch_of(100, anomalous=True, rows=3)
    teacher, answers = features_of(state, batch.image)
    expected = np.zeros((3, SIZE, SIZE))
    for layer in LAYERS:
        pair = (torch.tensor(found[layer]).permute(0, 3, 1, 2) for found in (teacher, answers))
        distance = 1 - torch.nn.functional.cosine_similarity(*pair)
        expected += torch.nn.functional.interpolate(distance[:, None], SIZE, mode="bilinear", align_corners=True)[
            :, 0
        ].numpy()
    expected = np.stack([scipy.ndimage.gaussian_filter(one, 4) for one in expected])
    found = jax.jit(stage.predict)(state, batch)
    assert found.pixel.dtype == found.image.dtype == jnp.float32
    np.testing.assert_allclose(found.pixel, expected, atol=1e-5)
    np.testing.assert_allclose(found.image, expected.max((1, 2)), atol=1e-5)


def test_it_learns_the_normal_and_the_heat_is_on_the_defect(trained):
    stage, state, losses = trained
    assert np.mean(losses[-5:]) < 0.3 * losses[0]
    predict = jax.jit(stage.predict)
    normal, anomalous = (batch_of(200, kind) for kind in (False, True))
    quiet, loud = predict(state, normal), predict(state, anomalous)
    assert roc_auc_score([0] * ROWS + [1] * ROWS, np.concatenate([quiet.image, loud.image])) > 0.95
    assert roc_auc_score(np.asarray(anomalous.mask).ravel(), np.asarray(loud.pixel).ravel()) > 0.9


def test_position_is_another_loss(started):
    _, state, apply = started
    (stage,) = reverse_distillation.stages(config_of(cos_reduce="position"), spec_of())
    losses = [
        float(f(state, batch_of(0), jax.random.key(0))[1]["student/loss"]) for f in (apply, jax.jit(stage.update.apply))
    ]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_mistakes_are_one_line_with_the_key():
    with pytest.raises(UserError, match="cos_reduce='pixel'.*flat, position"):
        reverse_distillation.stages(config_of(cos_reduce="pixel"), spec_of())
    with pytest.raises(UserError, match="100 pixels.*config.data.image_size"):
        reverse_distillation.stages(config_of(), spec_of(100))
    other = config_of()
    other.backbone.name = "vgg16"
    with pytest.raises(UserError, match="vgg16.*config.backbone.name"):
        reverse_distillation.stages(other, spec_of())
