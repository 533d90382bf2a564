"""PatchCore on a small random backbone, against brute force in NumPy; one device against eight."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxad import config as configs
from jaxad import sharding
from jaxad.methods import features, patchcore
from jaxad.scoring import maps
from jaxad.types import Batch, DataSpec, UserError

RNG = np.random.default_rng(5)
SIZE, N, BATCH = 64, 10, 4  # 10 images in batches of 4: the last is padded. 8 x 8 patches each
IMAGES = RNG.random((N, SIZE, SIZE, 3)).astype(np.float32)
SPEC = DataSpec("demo", "noise", SIZE, N, 0, 1, 1, True)


def config_of(**options):
    config = configs.default("patchcore")
    config.backbone.weights, config.data.image_size, config.data.batch_size = "random", SIZE, BATCH
    config.patchcore.projection_dim = 32
    config.patchcore.image_score, config.patchcore.ones_pass = "max", False
    for name, value in options.items():
        section = config.score if name in config.score else config.patchcore
        section[name] = value
    return config


def batch_of(start, rows=BATCH):
    index = np.arange(start, start + rows, dtype=np.int32)
    valid = index < N
    image = np.where(valid[:, None, None, None], IMAGES[index % N], np.float32(0.5))
    mask = np.zeros((rows, SIZE, SIZE), bool)
    # What a padding row's index is, is nobody's business: here it is that of a real image.
    return Batch(image, mask, np.zeros(rows, bool), np.where(valid, index, 0).astype(np.int32), valid)


def fit(stage, order=(0, 4, 8)):
    state = stage.update.init(stage.init(jax.random.key(7), SPEC, None))
    apply = jax.jit(stage.update.apply)
    for start in order:
        state, metrics = apply(state, batch_of(start), jax.random.key(0))
        assert metrics == {}
    return state


@pytest.fixture(scope="module")
def fitted():
    """(stage that keeps all patches, its state before finish)"""
    (stage,) = patchcore.stages(config_of(coreset=1.0), SPEC)
    return stage, fit(stage)


def descriptors(images):
    """f32[n, 64, 1024], not through the stage."""
    extractor = features.extractor(config_of(), ("layer2", "layer3"), config_of().data.image_size)
    return np.asarray(features.adaptive(extractor.apply(extractor.load(), images))).reshape(len(images), 64, 1024)


def test_the_bank_holds_every_patch_at_its_images_index(fitted):
    stage, state = fitted
    assert stage.steps == 3 and not stage.feed.shuffle
    assert np.asarray(state.memory["bank_written"]).sum() == N * 64
    bank = stage.finish(state).memory["bank"]
    np.testing.assert_allclose(bank.reshape(N, 64, 1024), descriptors(IMAGES), rtol=1e-4, atol=1e-5)


def test_layers_come_on_the_grid_of_the_first_and_are_weighted():
    options = dict(descriptor="concat", layers=("layer2", "layer1"), layer_weights=(3.0, 0.5), coreset=1.0)
    (stage,) = patchcore.stages(config_of(**options), SPEC)
    bank = stage.finish(fit(stage)).memory["bank"].reshape(N, 8, 8, 128 + 64)
    extractor = features.extractor(config_of(), ("layer2", "layer1"), SIZE)
    two, one = extractor.apply(extractor.load(), IMAGES)
    np.testing.assert_allclose(bank[..., :128], 3.0 * features.concat([two]), rtol=1e-4, atol=1e-5)
    small = np.asarray(features.concat([one])).reshape(N, 8, 2, 8, 2, 64).mean((2, 4))  # halved: means of 2 x 2
    np.testing.assert_allclose(bank[..., 128:], 0.5 * small, rtol=1e-4, atol=1e-5)


def test_a_repeated_or_reordered_batch_changes_nothing(fitted):
    stage, state = fitted
    again = fit(stage, order=(8, 0, 4, 0))
    np.testing.assert_array_equal(state.memory["bank"], again.memory["bank"])
    np.testing.assert_array_equal(state.memory["bank_written"], again.memory["bank_written"])


@pytest.mark.parametrize("options", [dict(), dict(projection="none"), dict(start_points=0, projection="sparse")])
def test_the_coreset_is_a_tenth_of_the_patches_and_covers_them(fitted, options):
    (stage,) = patchcore.stages(config_of(coreset=0.1, **options), SPEC)
    state = fitted[1]
    finish = jax.jit(stage.finish)
    done = finish(state)
    assert set(done.memory) == {"bank"}
    bank, kept = np.asarray(state.memory["bank"])[: N * 64], np.asarray(done.memory["bank"])
    assert kept.shape == (64, 1024)
    to_bank = ((kept[:, None] - bank[None]) ** 2).sum(-1)
    rows = to_bank.argmin(1)
    np.testing.assert_array_equal(bank[rows], kept)
    assert len(set(rows.tolist())) == 64
    drawn = ((bank[RNG.choice(N * 64, 64, replace=False)][:, None] - bank[None]) ** 2).sum(-1)
    assert to_bank.min(0).max() < drawn.min(0).max()  # its largest gap is smaller than a random subset's
    np.testing.assert_array_equal(kept, finish(state).memory["bank"])  # the draw is in the state


@pytest.mark.parametrize("squared, k, interpolation", [(True, 1, "bilinear"), (False, 3, "nearest")])
def test_scores_are_brute_force_distances_before_smoothing(fitted, squared, k, interpolation):
    options = dict(coreset=1.0, squared=squared, neighbours=k, interpolation=interpolation, sigma=2.0)
    (stage,) = patchcore.stages(config_of(**options), SPEC)
    state = stage.finish(fitted[1])
    test = RNG.random((3, SIZE, SIZE, 3)).astype(np.float32)
    test[2, 20:30, 40:60] = 1.0
    found = jax.jit(stage.predict)(state, batch_of(0, 3).replace(image=test))
    query, bank = descriptors(test).astype(np.float64), np.asarray(state.memory["bank"], np.float64)
    distance = np.sort(((query[:, :, None] - bank) ** 2).sum(-1), axis=-1)[..., :k]
    patch = (distance if squared else np.sqrt(distance)).mean(-1)
    np.testing.assert_allclose(found.image, patch.max(1), rtol=1e-3)
    large = np.asarray(maps.upsample(patch.reshape(3, 8, 8).astype(np.float32), (SIZE, SIZE), interpolation))
    expected = np.stack([scipy.ndimage.gaussian_filter(one, 2.0) for one in large])
    np.testing.assert_allclose(found.pixel, expected, rtol=1e-3, atol=1e-4)


def test_training_images_score_nothing_when_all_patches_are_kept(fitted):
    stage, state = fitted
    state = stage.finish(state)
    batch = batch_of(0)
    seen = stage.predict(state, batch).image
    changed = stage.predict(state, batch.replace(image=batch.image[:, ::-1])).image
    assert np.all(seen < 1e-3 * changed)


def test_the_image_score_can_be_a_mean_of_patches(fitted):
    (stage,) = patchcore.stages(config_of(coreset=1.0, image_score="mean"), SPEC)
    state = stage.finish(fitted[1])
    test = RNG.random((2, SIZE, SIZE, 3)).astype(np.float32)
    query, bank = descriptors(test).astype(np.float64), np.asarray(state.memory["bank"], np.float64)
    patch = ((query[:, :, None] - bank) ** 2).sum(-1).min(-1)
    batch = batch_of(0, 2).replace(image=test)
    np.testing.assert_allclose(stage.predict(state, batch).image, patch.mean(1), rtol=1e-3)
    (stage,) = patchcore.stages(config_of(coreset=1.0, image_score="top1%"), SPEC)
    np.testing.assert_allclose(stage.predict(state, batch).image, patch.max(1), rtol=1e-3)  # of 64 patches: one


def test_reweighting_is_equation_7(fitted):
    (stage,) = patchcore.stages(config_of(coreset=1.0, squared=False, reweight_b=4), SPEC)
    state = stage.finish(fitted[1])
    test = RNG.random((2, SIZE, SIZE, 3)).astype(np.float32)
    found = stage.predict(state, batch_of(0, 2).replace(image=test)).image
    bank = np.asarray(state.memory["bank"], np.float64)
    for image, score in zip(descriptors(test).astype(np.float64), found, strict=True):
        distance = np.sqrt(((image[:, None] - bank) ** 2).sum(-1))
        m_test = image[distance.min(1).argmax()]
        star = bank[distance[distance.min(1).argmax()].argmin()]
        around = bank[np.argsort(((bank - star) ** 2).sum(1))[:4]]
        norms = np.sqrt(((m_test - around) ** 2).sum(1))
        factor = 1 - np.exp(np.linalg.norm(m_test - star)) / np.exp(norms).sum()
        np.testing.assert_allclose(score, factor * distance.min(1).max(), rtol=1e-3)


def test_reweighting_does_not_overflow():
    bank = jnp.array([[0.0], [1000.0], [2000.0]])
    factor = patchcore.reweighting(jnp.array([[-5000.0], [900.0]]), jnp.array([0, 1]), bank, b=2)
    np.testing.assert_allclose(factor, [1.0, 1.0], atol=1e-6)


def test_eight_devices_keep_what_one_device_keeps_without_gathering_the_bank():
    config = config_of(coreset=0.1)
    config.data.batch_size = 8
    (stage,) = patchcore.stages(config, SPEC)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:8])
    split = NamedSharding(mesh, P("data"))
    alone = stage.update.init(stage.init(jax.random.key(7), SPEC, None))
    with jax.set_mesh(mesh):
        places = sharding.state_shardings(alone, mesh)
        assert places.memory["bank"].spec == P("data") and places.memory["bank_written"].spec == P("data")
        batch = jax.tree.map(lambda rows: jax.device_put(rows, split), batch_of(0, 8))
        state = jax.device_put(alone, places)
        apply = jax.jit(stage.update.apply, out_shardings=(places, None))
        texts = [apply.lower(state, batch, jax.random.key(0)).compile().as_text()]
        for start in (0, 8):
            batch = jax.tree.map(lambda rows: jax.device_put(rows, split), batch_of(start, 8))
            state, _ = apply(state, batch, jax.random.key(0))
        finish = jax.jit(stage.finish)
        texts.append(finish.lower(state).compile().as_text())
        done = finish(state)
        together = jax.jit(stage.predict)(done, batch)
    for start in (0, 8):
        alone, _ = jax.jit(stage.update.apply)(alone, batch_of(start, 8), jax.random.key(0))
    np.testing.assert_allclose(state.memory["bank"], alone.memory["bank"], rtol=1e-4, atol=1e-5)
    alone_done = stage.finish(alone)
    np.testing.assert_allclose(done.memory["bank"], alone_done.memory["bank"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(together.image, stage.predict(alone_done, batch_of(8, 8)).image, rtol=1e-3, atol=1e-4)
    rows, dim = alone.memory["bank"].shape
    gathers = [line for text in texts for line in text.splitlines() if re.search(r" all-gather(-start)?\(", line)]
    assert gathers and not any(
        f"[{rows},{dim}]" in line for line in gathers
    )  # [768,32], all of them candidates, may travel


def test_the_ones_pass_moves_batchnorm_averages_as_one_training_step_of_pytorch_does():
    torch = pytest.importorskip("torch")
    before = patchcore.stages(config_of(), SPEC)[0].init(jax.random.key(0), SPEC, None).frozen["backbone"]
    after = patchcore.stages(config_of(ones_pass=True), SPEC)[0].init(jax.random.key(0), SPEC, None).frozen["backbone"]
    jax.tree.map(np.testing.assert_array_equal, before["params"], after["params"])
    kernel = torch.from_numpy(np.array(before["params"]["conv1"]["kernel"])).permute(3, 2, 0, 1)
    norm = torch.nn.BatchNorm2d(64)
    norm(torch.nn.functional.conv2d(torch.ones(1, 3, SIZE, SIZE), kernel, stride=2, padding=3))
    np.testing.assert_allclose(after["batch_stats"]["bn1"]["mean"], norm.running_mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after["batch_stats"]["bn1"]["var"], norm.running_var, rtol=1e-4)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before["batch_stats"], after["batch_stats"])
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(coreset=0.0), "coreset"),
        (dict(descriptor="mean"), "descriptor"),
        (dict(neighbourhood=2), "neighbourhood"),
        (dict(projection="pca"), "projection"),
        (dict(neighbours=0), "neighbours"),
        (dict(neighbours=65), "neighbours=65.*64 patches"),
        (dict(reweight_b=-1), "reweight_b"),
        (dict(layer_weights=(1.0,)), "layer_weights"),
        (dict(image_score="median"), "image_score"),
        (dict(image_score="mean", reweight_b=3), "image_score=max"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named_before_anything_is_loaded(options, named):
    with pytest.raises(UserError, match=named):
        patchcore.stages(config_of(**options), SPEC)
