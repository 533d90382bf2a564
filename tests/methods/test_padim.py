"""PaDiM on a small random backbone, against an offline one in NumPy; the channel draw; the port's concatenation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.spatial.distance

from jaxad import config as configs
from jaxad.methods import features, padim
from jaxad.scoring import maps
from jaxad.types import Batch, DataSpec, UserError

pytestmark = pytest.mark.usefixtures("shallow", "quick_compile")
RNG = np.random.default_rng(11)
SIZE, N, BATCH = 40, 10, 4  # 10 images in batches of 4: the last is padded. Grids of 10, 5 and 3: not multiples
IMAGES = RNG.random((N, SIZE, SIZE, 3)).astype(np.float32)
SPEC = DataSpec("demo", "noise", SIZE, N, 0, 1, 1, True)


def config_of(**options):
    config = configs.default("padim")
    config.backbone.weights, config.data.image_size, config.data.batch_size = "random", SIZE, BATCH
    config.padim.dim, config.padim.embedding = 12, "channels"
    for name, value in options.items():
        section = config.score if name in config.score else config.padim
        section[name] = value
    return config


def batch_of(images, start=0, rows=BATCH):
    index = np.arange(start, start + rows, dtype=np.int32)
    valid = index < len(images)
    image = np.where(valid[:, None, None, None], images[index % len(images)], np.float32(0.5))
    mask = np.zeros((rows, SIZE, SIZE), bool)
    return Batch(image, mask, np.zeros(rows, bool), np.where(valid, index, 0).astype(np.int32), valid)


def fit(stage):
    state = stage.update.init(stage.init(jax.random.key(7), SPEC, None))
    apply = jax.jit(stage.update.apply)
    for start in range(0, BATCH * stage.steps, BATCH):
        state, metrics = apply(state, batch_of(IMAGES, start), jax.random.key(0))
        assert metrics == {}
    return state


def embedded(images, channels):
    """f64[n, 10, 10, dim] by loops over positions, not through the stage. channels: of all layers' end to end."""
    extractor = features.extractor(config_of(), ("layer1", "layer2", "layer3"), SIZE)
    layers = [np.asarray(layer, np.float64) for layer in jax.jit(extractor.apply)(extractor.load(), images)]
    assert [layer.shape[1] for layer in layers] == [10, 5, 3]
    out = np.empty((len(images), 10, 10, sum(layer.shape[3] for layer in layers)))
    for y, x in np.ndindex(10, 10):
        places = [layer[:, y * layer.shape[1] // 10, x * layer.shape[2] // 10] for layer in layers]
        out[:, y, x] = np.concatenate(places, axis=1)
    return out[..., channels]


def drawn(dim):
    """i64[dim] among the 112 channels of all layers, end to end."""
    parts = padim.draw(1024, [16, 32, 64], dim)
    return np.concatenate([part + offset for part, offset in zip(parts, (0, 16, 48), strict=True)])


@pytest.mark.parametrize(
    "dim, regularisation, interpolation, reduction", [(12, 0.01, "bilinear", "max"), (6, 0.5, "nearest", "mean")]
)
def test_a_fit_and_its_scores_equal_an_offline_padim(dim, regularisation, interpolation, reduction):
    options = dict(dim=dim, regularisation=regularisation, interpolation=interpolation, reduction=reduction, sigma=2.0)
    (stage,) = padim.stages(config_of(**options), SPEC)
    assert stage.steps == 3 and not stage.feed.shuffle and stage.feed.split == "train_normal"
    state = fit(stage)
    assert state.memory["count"] == N
    assert state.memory["bank_scatter"].shape == (128, dim, dim)  # 100 positions, padded
    state = jax.jit(stage.finish)(state)
    assert set(state.memory) == {"bank_mean", "bank_factor"}
    test = RNG.random((3, SIZE, SIZE, 3)).astype(np.float32)
    test[2, 5:15, 20:35] = 1.0
    found = jax.jit(stage.predict)(state, batch_of(test, rows=3))

    train, seen = embedded(IMAGES, drawn(dim)), embedded(test, drawn(dim))
    patch = np.empty((3, 10, 10))
    for y, x in np.ndindex(10, 10):
        covariance = np.cov(train[:, y, x], rowvar=False) + regularisation * np.eye(dim)
        inverse, mean = np.linalg.inv(covariance), train[:, y, x].mean(0)
        patch[:, y, x] = [scipy.spatial.distance.mahalanobis(one, mean, inverse) for one in seen[:, y, x]]
    large = np.asarray(maps.upsample(patch.astype(np.float32), (SIZE, SIZE), interpolation))
    pixel = np.stack([scipy.ndimage.gaussian_filter(one, 2.0) for one in large])
    np.testing.assert_allclose(found.pixel, pixel, rtol=1e-3)
    np.testing.assert_allclose(found.image, getattr(pixel, reduction)((1, 2)), rtol=1e-3)  # of the smoothed map


def test_moments_are_float32_where_the_backbone_computes_in_bfloat16():
    config = config_of()
    config.train.precision = "bfloat16"
    (stage,) = padim.stages(config, SPEC)
    state = jax.eval_shape(lambda key: stage.init(key, SPEC, None), jax.random.key(0))
    after, _ = jax.eval_shape(stage.update.apply, state, batch_of(IMAGES), jax.random.key(0))
    done = jax.eval_shape(stage.finish, after)
    assert {leaf.dtype for leaf in jax.tree.leaves((after.memory, done.memory))} == {jnp.dtype("float32")}
    assert jax.eval_shape(stage.predict, done, batch_of(IMAGES)).pixel.dtype == jnp.float32


def test_the_draw_is_without_replacement_rising_and_stable():
    parts = padim.draw(1024, [64, 128, 256], 100)
    assert [len(part) for part in parts] == [16, 32, 52]
    assert parts[0][:8].tolist() == [
        0,
        4,
        11,
        14,
        15,
        28,
        33,
        40,
    ]  # a change of these numbers changes what every saved run means
    for part, size in zip(parts, (64, 128, 256), strict=True):
        assert np.all(np.diff(part) > 0) and 0 <= part[0] and part[-1] < size
    other = padim.draw(1025, [64, 128, 256], 100)
    assert any(len(a) != len(b) or np.any(a != b) for a, b in zip(parts, other, strict=True))
    smaller = padim.draw(1024, [64, 128, 256], 40)
    assert all(set(few) <= set(many) for few, many in zip(smaller, parts, strict=True))


def test_the_draw_favours_no_channel():
    counts = np.zeros(12)
    for seed in range(2000):
        first, second = padim.draw(seed, [4, 8], 3)
        counts[first] += 1
        counts[second + 4] += 1
    assert counts.sum() == 6000
    np.testing.assert_allclose(counts, 500, atol=100)  # five standard deviations


def test_all_channels_of_all_layers_when_the_draw_is_off():
    layers = [RNG.normal(size=(2, 4, 6, 3)).astype(np.float32), RNG.normal(size=(2, 2, 3, 5)).astype(np.float32)]
    whole = padim.embed(layers, padim.draw(0, [3, 5], 0))
    assert whole.shape == (2, 4, 6, 8)
    np.testing.assert_array_equal(whole[..., :3], layers[0])
    np.testing.assert_array_equal(whole[:, 3, 4, 3:], layers[1][:, 1, 2])
    np.testing.assert_array_equal(padim.embed(layers, padim.draw(5, [3, 5], 8)), whole)


def test_a_layer_that_leaves_no_channel_in_the_draw_is_nothing():
    layers = [jnp.ones((2, 4, 4, 3)), jnp.ones((2, 2, 2, 5))]
    assert padim.embed(layers, [np.array([0, 2]), np.array([], np.int64)]).shape == (2, 4, 4, 2)


def test_concatenation_is_the_ports_unfold_and_fold():
    torch = pytest.importorskip("torch")
    fine = RNG.normal(size=(2, 8, 12, 3)).astype(np.float32)
    coarse = RNG.normal(size=(2, 4, 6, 5)).astype(np.float32)
    x, y = (torch.from_numpy(layer.transpose(0, 3, 1, 2).copy()) for layer in (fine, coarse))
    # Its 2 x 2 patches of the fine layer are unfolded, each gets the coarse feature that covers it, all is folded back.
    patches = torch.nn.functional.unfold(x, kernel_size=2, stride=2).reshape(2, 3, 4, 4, 6)
    joined = torch.cat([patches, y[:, :, None].expand(-1, -1, 4, -1, -1)], dim=1).reshape(2, 8 * 4, 4 * 6)
    folded = torch.nn.functional.fold(joined, output_size=(8, 12), kernel_size=2, stride=2)
    found = padim.embed([fine, coarse], padim.draw(0, [3, 5], 0))
    np.testing.assert_array_equal(found, folded.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(layers=()), "layers"),
        (dict(dim=113), "dim=113.*112 channels"),
        (dict(dim=-1), "dim"),
        (dict(dim_seed=-1), "dim_seed"),
        (dict(regularisation=0.0), "regularisation"),
        (dict(regularisation=-0.01), "regularisation"),
        (dict(regularisation=float("nan")), "regularisation"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named_before_anything_is_loaded(options, named):
    with pytest.raises(UserError, match=f"config.padim.{named}"):
        padim.stages(config_of(**options), SPEC)


def test_one_image_has_no_covariance():
    spec = DataSpec("demo", "noise", SIZE, 3, 0, 1, 1, True, n_train_anomalous=2)
    with pytest.raises(UserError, match="noise.*2 normal training images.*n_shot"):
        padim.stages(config_of(), spec)


def test_semi_orthogonal_directions_are_orthonormal_and_random():
    matrices = padim.semi_orthogonal(3, [4, 6], 5)
    assert [matrix.shape for matrix in matrices] == [(4, 5), (6, 5)] and matrices[0].dtype == np.float32
    whole = np.concatenate(matrices)
    np.testing.assert_allclose(whole.T @ whole, np.eye(5), atol=1e-6)
    np.testing.assert_array_equal(whole, np.concatenate(padim.semi_orthogonal(3, [4, 6], 5)))
    assert not np.allclose(whole, np.concatenate(padim.semi_orthogonal(4, [4, 6], 5)))
    # Uniform over directions: no sign is preferred, every channel has the same share.
    draws = np.stack([np.concatenate(padim.semi_orthogonal(seed, [4, 6], 5)) for seed in range(400)])
    np.testing.assert_allclose(draws.mean(0), 0, atol=0.09)  # five standard deviations
    np.testing.assert_allclose((draws**2).sum(2).mean(0), 0.5, atol=0.05)


def test_a_projection_is_of_all_layers_on_the_first_grid():
    layers = [RNG.normal(size=(2, 4, 6, 3)).astype(np.float32), RNG.normal(size=(2, 2, 3, 5)).astype(np.float32)]
    matrices = padim.semi_orthogonal(0, [3, 5], 4)
    expected = layers[0] @ matrices[0] + np.repeat(np.repeat(layers[1], 2, 1), 2, 2) @ matrices[1]
    np.testing.assert_allclose(padim.project(layers, matrices), expected, atol=1e-5)


def test_a_whole_rotation_changes_no_distance_but_for_rounding():
    """With as many directions as channels the Mahalanobis distance is that of the channels: S + rI turns with them."""
    maps_of = {}
    for embedding in ("channels", "semi_orthogonal"):
        (stage,) = padim.stages(config_of(embedding=embedding, dim=0, regularisation=0.5), SPEC)
        state = jax.jit(stage.finish)(fit(stage))
        maps_of[embedding] = np.asarray(jax.jit(stage.predict)(state, batch_of(IMAGES)).pixel)
    np.testing.assert_allclose(maps_of["semi_orthogonal"], maps_of["channels"], rtol=2e-3)


def test_an_embedding_of_another_name_is_refused():
    with pytest.raises(UserError, match="padim.embedding='pca': it must be one of channels, semi_orthogonal"):
        padim.stages(config_of(embedding="pca"), SPEC)
