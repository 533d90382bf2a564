"""The discriminator of AnoSeg: Table 6 row by row, and the whole of it against PyTorch's functions."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import drawn, jit

from jaxad.models.discriminator import Discriminator, channels
from jaxad.types import UserError

TABLE_6 = {
    "conv1": (128, 64),
    "conv2": (64, 128),
    "conv3": (32, 256),
    "conv4": (16, 512),
    "conv5": (8, 512),
    "conv6": (4, 512),
    "conv7": (2, 128),
    "last": (1, 1),
}
TINY = dict(width_mult=1 / 32)  # 4, 4, 8, 16, 16, 16, 4 channels


def shapes(size, planes=4, **options):
    """(Judgement, parameters, {module: shape of what it gave}), without computing anything."""
    module = Discriminator(**options)
    judgement, variables = jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x, capture_intermediates=True, mutable=True),
        jax.ShapeDtypeStruct((3, size, size, planes), jnp.float32),
    )
    seen = {name: calls["__call__"][0] for name, calls in variables["intermediates"].items() if name != "__call__"}
    return judgement, variables["params"], {name: leaf.shape for name, leaf in seen.items()}


def applied(module, variables, planes, train=False):
    """(Judgement, {"batch_stats": what they became})."""
    return jit(lambda variables, planes: module.apply(variables, planes, train, mutable=["batch_stats"]))(
        variables, planes
    )


def pairs(batch=3, size=32, planes=4, seed=1):
    return np.random.default_rng(seed).random((batch, size, size, planes), np.float32)


def relative_error(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_every_row_of_table_6_has_its_shape_and_the_whole_its_number_of_parameters():
    judgement, params, seen = shapes(256)
    for name, (side, features) in TABLE_6.items():
        assert seen[name] == (3, side, side, features), name
        assert params[name]["kernel"].shape[:2] == (4, 4)
        assert (f"bn{name[-1]}" in params) == ("bias" not in params[name])  # a BatchNorm or a bias
    assert [f"bn{i}" in params for i in range(1, 9)] == [False] + [True] * 6 + [False]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 12_200_001
    assert judgement.logit.shape == (3,) and judgement.features.shape == (3, 2, 2, 128)


@pytest.mark.parametrize("planes", [3, 6])
def test_only_the_first_kernel_depends_on_the_number_of_planes(planes):
    _, params, _ = shapes(256, planes)
    assert params["conv1"]["kernel"].shape == (4, 4, planes, 64)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 12_200_001 + (planes - 4) * 16 * 64


@pytest.mark.parametrize(("size", "dropped"), [(32, (4, 5, 6)), (64, (5, 6)), (128, (6,)), (512, ())])
def test_another_size_drops_or_adds_layers_of_512_channels(size, dropped):
    kept = [features for i, features in enumerate((64, 128, 256, 512, 512, 512), 1) if i not in dropped]
    expected = (*kept, *[512] * (size == 512), 128)
    assert channels(size) == expected
    judgement, _, seen = shapes(size)
    for i, features in enumerate(expected, 1):
        assert seen[f"conv{i}"] == (3, size >> i, size >> i, features)
    assert seen["last"] == (3, 1, 1, 1)
    assert judgement.logit.shape == (3,) and judgement.features.shape == (3, 2, 2, 128)


@pytest.mark.parametrize(("size", "near"), [(16, 32), (0, 32), (60, 64), (100, 128), (250, 256), (320, 256)])
def test_a_size_that_halving_does_not_bring_to_two_is_refused_with_the_nearest(size, near):
    with pytest.raises(UserError, match=rf"not {size};.*config\.data\.image_size={near}$"):
        channels(size)


def test_a_discriminator_refuses_such_images():
    with pytest.raises(UserError, match="config.data.image_size=64"):
        shapes(48)


def test_width_mult_scales_every_layer_but_the_logit():
    _, _, seen = shapes(256, width_mult=0.5)
    for name, (side, features) in TABLE_6.items():
        assert seen[name] == (3, side, side, features if name == "last" else features // 2)


def torch_discriminator(torch, variables, planes, train):
    """(logit, features, their value before BatchNorm, tensors), written out in torch.nn.functional."""
    import torch.nn.functional as F

    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    tensors = {name: torch.tensor(np.array(value)) for name, value in flat.items()}

    def conv(x, name):
        kernel = tensors[f"params/{name}/kernel"].permute(3, 2, 0, 1)
        return F.conv2d(x, kernel, tensors.get(f"params/{name}/bias"), stride=2, padding=1)

    x = torch.tensor(planes).permute(0, 3, 1, 2)
    for i in range(1, len(variables["params"]) // 2 + 1):
        before = x = conv(x, f"conv{i}")
        if i > 1:
            averages = (tensors[f"batch_stats/bn{i}/{leaf}"] for leaf in ("mean", "var"))
            affine = (tensors[f"params/bn{i}/{leaf}"] for leaf in ("scale", "bias"))
            x = F.batch_norm(x, *averages, *affine, training=train, momentum=0.1, eps=1e-5)
        x = F.leaky_relu(x, 0.2)
    return conv(x, "last")[:, 0, 0, 0], x.permute(0, 2, 3, 1), before.permute(0, 2, 3, 1), tensors


@pytest.mark.parametrize("train", [False, True])
def test_logit_features_and_averages_equal_torch(train):
    torch = pytest.importorskip("torch")
    module, planes = Discriminator(**TINY), pairs(size=64)
    variables = drawn(module, planes)
    logit, features, before, tensors = torch_discriminator(torch, variables, planes, train)
    found, new = applied(module, variables, planes, train)
    assert relative_error(found.logit, logit) < 1e-4
    assert relative_error(found.features, features) < 1e-4
    other, _ = applied(Discriminator(**TINY, pre_activation=True), variables, planes, train)
    assert relative_error(other.features, before) < 1e-4
    for path, value in flax.traverse_util.flatten_dict(new, sep="/").items():
        np.testing.assert_allclose(value, tensors[path], rtol=1e-4, atol=1e-5)  # torch has updated its own


@pytest.mark.parametrize("train", [False, True])
def test_pre_activation_lies_one_batch_norm_and_one_leaky_relu_before(train):
    planes = pairs()
    module, early = Discriminator(**TINY), Discriminator(**TINY, pre_activation=True)
    variables = drawn(module, planes)
    after, _ = applied(module, variables, planes, train)
    before, _ = applied(early, variables, planes, train)
    np.testing.assert_array_equal(after.logit, before.logit)
    x = np.asarray(before.features)
    stats, affine = (jax.tree.map(np.asarray, variables[kind]["bn4"]) for kind in ("batch_stats", "params"))
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (stats["mean"], stats["var"])
    x = (x - mean) / np.sqrt(var + 1e-5) * affine["scale"] + affine["bias"]
    np.testing.assert_allclose(after.features, np.where(x > 0, x, 0.2 * x), rtol=1e-4, atol=1e-5)
    assert np.any(x < 0) and np.any(x > 0)


def test_the_last_convolution_is_a_valid_one_of_2x2_and_its_12_outer_taps_get_no_gradient():
    module, planes = Discriminator(**TINY), pairs()
    variables = drawn(module, planes)
    judgement, _ = applied(module, variables, planes)
    last = variables["params"]["last"]
    expected = [np.sum(image * last["kernel"][1:3, 1:3, :, 0]) + last["bias"][0] for image in judgement.features]
    np.testing.assert_allclose(judgement.logit, expected, rtol=1e-4, atol=1e-5)

    def loss(params):
        logit = module.apply({**variables, "params": params}, planes).logit
        return jnp.sum(logit * jnp.array([1.0, -2.0, 0.5]))

    gradient = np.asarray(jit(jax.grad(loss))(variables["params"])["last"]["kernel"])[..., 0]
    inner = np.zeros((4, 4), bool)
    inner[1:3, 1:3] = True
    assert np.all(gradient[~inner] == 0) and np.all(gradient[inner] != 0)


def test_images_are_judged_apart_from_one_another_when_not_training():
    module, planes = Discriminator(**TINY), pairs()
    variables = drawn(module, planes)
    (whole, _), (alone, _) = (applied(module, variables, rows) for rows in (planes, planes[1:2]))
    np.testing.assert_allclose(whole.logit[1:2], alone.logit, rtol=1e-4)
    assert len(np.unique(np.round(whole.logit, 3))) == 3


def test_bfloat16_compute_gives_a_float32_logit_of_more_than_bfloat16():
    module, planes = Discriminator(**TINY, dtype=jnp.bfloat16), pairs(8)
    variables = drawn(module, planes)
    like = jax.eval_shape(module.init, jax.random.key(0), planes)
    assert {leaf.dtype for leaf in jax.tree.leaves(like)} == {jnp.dtype(jnp.float32)}
    (logit, features), new = applied(module, variables, planes, True)
    assert logit.dtype == features.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.float32)}
    assert np.mean(logit == logit.astype(jnp.bfloat16).astype(jnp.float32)) < 0.5
    full, _ = applied(Discriminator(**TINY), variables, planes, True)
    assert 1e-4 < relative_error(logit, full.logit) < 0.1


def test_weights_start_as_dcgans():
    init = jit(lambda key: Discriminator(width_mult=0.5).init(key, jnp.zeros((1, 32, 32, 4))))
    params = init(jax.random.key(3, impl="rbg"))["params"]
    scales = np.concatenate([params[name]["scale"] for name in params if name.startswith("bn")])
    assert scales.mean() == pytest.approx(1, abs=0.004) and scales.std() == pytest.approx(0.02, rel=0.15)
    for name in (name for name in params if not name.startswith("bn")):
        kernel = np.asarray(params[name]["kernel"])
        assert kernel.std() == pytest.approx(0.02, rel=4 / np.sqrt(kernel.size)), name
    for bias in (params["conv1"]["bias"], params["last"]["bias"], params["bn2"]["bias"]):
        assert not np.any(bias)
