"""The generators of AnoSeg: Table 6 row by row, and the decoder against PyTorch's functions."""

import functools
import re
from collections import Counter

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals
from networks import drawn, jit

from jaxad.models import anoseg, resnet
from jaxad.models.anoseg import Decoder, Generator, coordinates, encoder_of, with_extra_planes
from jaxad.models.layers import Conv
from jaxad.types import UserError

BOTH = {"image": 3, "map": 1}
ENCODER = {  # at 256 pixels; the max pooling has no module: layer1's first convolution already sees its 64 x 64
    "conv1": (128, 64),
    "bn1": (128, 64),
    "layer1_0/conv1": (64, 64),
    "layer1_1": (64, 64),
    "layer2_1": (32, 128),
    "layer3_1": (16, 256),
    "layer4_1": (8, 512),
}
DECODER = {  # Table 6, but for its last row
    "up1/conv": (8, 512),
    "up1/conv_transpose": (16, 512),
    "up2/conv": (16, 256),
    "up2/conv_transpose": (32, 256),
    "up3/conv": (32, 128),
    "up3/conv_transpose": (64, 128),
    "up4/conv": (64, 128),
    "up4/conv_transpose": (128, 128),
    "up5/conv": (128, 128),
    "up5/conv_transpose": (256, 128),
    "conv6": (256, 128),
}
ROWS = {f"encoder/{name}": row for name, row in ENCODER.items()}
ROWS |= {f"{decoder}/{name}": row for decoder in BOTH for name, row in DECODER.items()}
ROWS |= {"image/conv7": (256, 3), "map/conv7": (256, 1)}


def shapes(module, *shape):
    """(parameters, {path of a module: shape of what it gave}), without computing anything."""
    variables = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, capture_intermediates=True, mutable=True),
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    seen = {}
    for path, calls in flax.traverse_util.flatten_dict(variables["intermediates"]).items():
        seen["/".join(path[:-1])] = jax.tree.map(lambda leaf: leaf.shape, calls[0])
    return variables["params"], seen


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.fixture
def little(monkeypatch):
    """Generators of the same parts in smaller numbers: a ResNet-18 of one block, decoders of one Up."""
    arch = resnet.ARCHITECTURES["resnet18"]
    monkeypatch.setitem(resnet.ARCHITECTURES, "resnet18", arch._replace(base=16, blocks=(0, 0, 0, 1)))
    monkeypatch.setattr(anoseg, "CHANNELS", (384,))


def images(*shape, seed=1):
    return np.random.default_rng(seed).random(shape, np.float32)


def relative_error(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_every_row_of_table_6_has_its_shape_at_256_pixels():
    _, seen = shapes(Generator(BOTH), 2, 256, 256, 5)
    for name, (side, channels) in ROWS.items():
        assert seen[name] == (2, side, side, channels), name
        if not name.endswith("conv7") and f"{name}_bn" in seen:
            assert seen[f"{name}_bn"] == seen[name]
    assert seen[""] == {"image": (2, 256, 256, 3), "map": (2, 256, 256, 1)}


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 128), (64, 96)])
def test_every_row_shrinks_with_the_image(height, width):
    _, seen = shapes(Generator(BOTH), 1, height, width, 5)
    for name, (side, channels) in ROWS.items():
        assert seen[name] == (1, side * height // 256, side * width // 256, channels), name


def test_every_convolution_but_the_last_is_followed_by_a_batch_norm_and_has_no_bias():
    params, _ = shapes(Generator(BOTH), 1, 32, 32, 5)
    for decoder in BOTH:
        leaves = flax.traverse_util.flatten_dict(params[decoder], sep="/")
        for name in DECODER:
            assert f"{name}/bias" not in leaves and f"{name}_bn/scale" in leaves
        assert "conv7/bias" in leaves and "conv7_bn" not in params[decoder]


@pytest.mark.parametrize(("planes", "encoder"), [(3, 11_176_512), (5, 11_182_784), (6, 11_185_920)])
def test_parameter_counts_are_those_of_the_specification(planes, encoder):
    params, _ = shapes(Generator(BOTH), 1, 32, 32, planes)
    assert {name: count(tree) for name, tree in params.items()} == {
        "encoder": encoder,
        "image": 10_313_859,
        "map": 10_311_553,
    }


def test_both_generators_have_their_published_number_of_parameters():
    assert count(shapes(Generator(BOTH), 1, 32, 32, 5)[0]) == 31_808_196
    assert count(shapes(Generator({"image": 3}), 1, 32, 32, 6)[0]) == 21_499_779


def test_width_mult_scales_every_layer_but_what_is_drawn():
    _, seen = shapes(Generator(BOTH, width_mult=0.25), 1, 256, 256, 5)
    for name, (side, channels) in ROWS.items():
        scaled = channels if name.endswith("conv7") else channels // 4
        assert seen[name] == (1, side, side, scaled), name


def test_a_map_of_three_channels_has_the_image_decoders_shape():
    params, seen = shapes(Generator({"image": 3, "map": 3}), 1, 32, 32, 5)
    assert seen["map/conv7"] == (1, 32, 32, 3) and count(params["map"]) == count(params["image"])


def test_a_backbone_that_is_no_resnet_is_refused():
    with pytest.raises(UserError, match="vgg16"):
        encoder_of("vgg16", 0.5)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (5, 9)])
def test_coordinates_run_from_minus_one_to_one_x_first_in_planes_of_rank_one(height, width):
    planes = coordinates(height, width)
    assert planes.shape == (1, height, width, 2) and planes.dtype == np.float32
    corners = [planes[0, i, j].tolist() for i, j in ((0, 0), (0, -1), (-1, 0), (-1, -1))]
    assert corners == [[-1, -1], [1, -1], [-1, 1], [1, 1]]
    for plane in (0, 1):
        assert np.linalg.matrix_rank(planes[0, ..., plane]) == 1
    for i, j in ((1, 2), (height - 2, 3)):
        expected = -1 + 2 * j / (width - 1), -1 + 2 * i / (height - 1)
        np.testing.assert_allclose(planes[0, i, j], expected, atol=1e-6)


def torch_decoder(torch, variables, features, train):
    """(logits, {path of a running average: its new value}), Table 6 written out in torch.nn.functional."""
    import torch.nn.functional as F

    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    tensors = {name: torch.tensor(np.array(value)) for name, value in flat.items()}

    def norm(x, name):
        averages = (tensors[f"batch_stats/{name}/{leaf}"] for leaf in ("mean", "var"))
        affine = (tensors[f"params/{name}/{leaf}"] for leaf in ("scale", "bias"))
        return F.relu(F.batch_norm(x, *averages, *affine, training=train, momentum=0.1, eps=1e-5))

    def conv(x, name, bias=None):
        return F.conv2d(x, tensors[f"params/{name}/kernel"].permute(3, 2, 0, 1), bias, padding=1)

    def conv_transpose(x, name):
        weight = tensors[f"params/{name}/kernel"].permute(2, 3, 0, 1)
        return F.conv_transpose2d(x, weight, stride=2, padding=1)

    x = torch.tensor(features).permute(0, 3, 1, 2)
    for i in range(1, 6):
        x = norm(conv(x, f"up{i}/conv"), f"up{i}/conv_bn")
        x = norm(conv_transpose(x, f"up{i}/conv_transpose"), f"up{i}/conv_transpose_bn")
    x = norm(conv(x, "conv6"), "conv6_bn")
    return conv(x, "conv7", tensors["params/conv7/bias"]).permute(0, 2, 3, 1), tensors


@pytest.mark.parametrize("train", [False, True])
def test_the_decoder_equals_torch(train):
    torch = pytest.importorskip("torch")
    module, features = Decoder(3, width_mult=1 / 64), images(3, 2, 1, 6)  # 8, 4, 4, 4, 4 channels
    variables = drawn(module, features)
    expected, tensors = torch_decoder(torch, variables, features, train)
    apply = jit(lambda variables: module.apply(variables, features, train, mutable=["batch_stats"]))
    logits, new = apply(variables)
    assert logits.shape == (3, 64, 32, 3)
    assert relative_error(logits, expected) < 1e-4
    for path, value in flax.traverse_util.flatten_dict(new, sep="/").items():
        np.testing.assert_allclose(value, tensors[path], rtol=1e-4, atol=1e-5)  # torch has updated its own


def test_the_decoders_see_the_last_features_and_nothing_else(little):
    module, planes = Generator(BOTH, width_mult=1 / 32), images(2, 32, 64, 5)
    variables = drawn(module, planes)
    assert set(variables["params"]) == {"encoder", *BOTH}

    def part(name):
        return {kind: tree[name] for kind, tree in variables.items()}

    @jit
    def apart(planes):
        features = encoder_of("resnet18", 1 / 32).apply(part("encoder"), planes)["layer4"]
        return {name: Decoder(out, 1 / 32).apply(part(name), features) for name, out in BOTH.items()}

    found, expected = jit(module.apply)(variables, planes), apart(planes)
    assert set(found) == set(expected)
    for name in BOTH:
        assert np.std(found[name][0]) > 1e-3
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_remat_changes_neither_values_nor_gradients_nor_averages(little):
    planes, weight = images(3, 32, 64, 5), images(3, 8, 16, 1, seed=2)
    found = {}
    for remat in (False, True):
        module = Generator({"map": 1}, width_mult=1 / 32, remat=remat)
        variables = drawn(module, planes)

        def loss(params, module=module, variables=variables):
            logits, new = module.apply({**variables, "params": params}, planes, True, mutable=["batch_stats"])
            return jnp.mean(weight * jnp.tanh(logits["map"])), (logits, new)

        found[remat] = jit(jax.grad(loss, has_aux=True))(variables["params"])
    flat = {remat: flax.traverse_util.flatten_dict(tree[0], sep="/") for remat, tree in found.items()}
    assert flat[True].keys() == flat[False].keys()
    for path, expected in flat[False].items():
        assert np.any(expected != 0), path
        assert relative_error(flat[True][path], expected) < 1e-3, path
    for got, expected in zip(jax.tree.leaves(found[True][1]), jax.tree.leaves(found[False][1]), strict=True):
        assert relative_error(got, expected) < 1e-4


@pytest.mark.parametrize("remat", [False, True])
def test_with_remat_one_activation_of_each_up_is_kept_and_none_of_the_encoder(shallow, capsys, remat):
    module = Generator({"map": 1}, width_mult=1 / 32, remat=remat)
    planes = jnp.zeros((3, 128, 128, 5))
    variables = drawn(module, planes)

    def loss(params):
        logits, _ = module.apply({**variables, "params": params}, planes, True, mutable=["batch_stats"])
        return jnp.mean(jnp.square(logits["map"]))

    print_saved_residuals(loss, variables["params"])  # by tracing: a CPU's compiler merges what is computed twice
    shapes = re.findall(r"^\w+\[3,(\d+),\1,\d+\] output", capsys.readouterr().out, re.MULTILINE)
    kept = Counter(int(side) for side in shapes if side != "128")  # of 128 are the planes and Conv 6 and 7, too
    if remat:
        assert kept == {4: 1, 8: 1, 16: 1, 32: 1, 64: 1}  # layer4, Up 1 to Up 4
    else:
        assert all(kept[side] > 5 for side in (4, 8, 16, 32, 64))


def test_extra_planes_of_a_pretrained_stem_change_nothing():
    planes = images(2, 12, 10, 5)
    kernel = np.random.default_rng(0).normal(size=(7, 7, 3, 4)).astype(np.float32)
    stem, wide = Conv(4, 7, 2, 3), with_extra_planes(kernel, 5)
    assert wide.shape == (7, 7, 5, 4) and wide.dtype == np.float32
    found = stem.apply({"params": {"kernel": jnp.asarray(wide)}}, planes)
    expected = stem.apply({"params": {"kernel": kernel}}, planes[..., :3])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(with_extra_planes(kernel, 3), kernel)


def test_bfloat16_compute_keeps_float32_parameters_and_draws_maps_finer_than_bfloat16(little):
    planes = images(2, 32, 32, 5)
    module, full = (Generator({"map": 1}, width_mult=1 / 32, dtype=dtype) for dtype in (jnp.bfloat16, None))
    variables = drawn(module, planes)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), planes))} == {
        jnp.dtype(jnp.float32)
    }
    apply, exact = (
        jit(functools.partial(module.apply, train=True, mutable=["batch_stats"])) for module in (module, full)
    )
    logits, new = apply(variables, planes)
    found = np.asarray(logits["map"])
    assert found.dtype == np.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.float32)}
    rounded = np.asarray(jnp.asarray(found).astype(jnp.bfloat16).astype(jnp.float32))
    assert np.mean(found == rounded) < 0.05
    expected, _ = exact(variables, planes)
    assert 1e-4 < relative_error(found, expected["map"]) < 0.1  # computed in bfloat16, but about the same


def test_decoders_start_as_dcgan_does_and_the_encoder_as_a_resnet(little):
    module = Generator({"map": 1}, width_mult=0.25)
    planes = jax.ShapeDtypeStruct((1, 32, 32, 5), jnp.float32)
    like = jax.eval_shape(module.init, jax.random.key(0), planes)
    init = jit(lambda key: module.init(key, jnp.zeros(planes.shape)))
    variables = init(jax.random.key(3, impl="rbg"))
    assert jax.tree.structure(variables) == jax.tree.structure(like)
    scales = []
    for path, value in flax.traverse_util.flatten_dict(variables["params"], sep="/").items():
        value, leaf = np.asarray(value), path.split("/")[-1]
        if leaf == "bias":
            assert not value.any(), path
        elif leaf == "kernel":
            he = np.sqrt(2 / (value.shape[0] * value.shape[1] * value.shape[3]))
            std = he if path.startswith("encoder") else 0.02
            assert value.std() == pytest.approx(std, rel=4 / np.sqrt(value.size)), path  # five sigma and a half
            assert abs(value.mean()) < 5 * std / np.sqrt(value.size), path
        elif path.startswith("encoder"):
            assert (value == 1).all(), path
        else:
            scales.append(value)
    scales = np.concatenate(scales)
    assert len(scales) == 3 * 384 // 4
    assert scales.mean() == pytest.approx(1, abs=0.004) and scales.std() == pytest.approx(0.02, rel=0.15)
