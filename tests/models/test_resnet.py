"""ResNets against PyTorch's functions, driven by a state dict under torchvision's names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.models import backbones, resnet
from jaxad.models.layers import BatchNorm, conv, conv_transpose, max_pool
from jaxad.types import UserError

PUBLISHED = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "wide_resnet50_2": 68_883_240}
TO_LAYER3 = {"resnet18": 2_782_784, "resnet34": 8_170_304, "resnet50": 8_543_296, "wide_resnet50_2": 24_862_528}


def random_variables(module, seed=0):
    """Weights with every leaf different, from shapes alone: variances and scales positive, kernels He-sized."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape, np.float32)
        if len(leaf.shape) == 4:
            return values * np.float32(np.sqrt(2 / np.prod(leaf.shape[:3])))
        positive = path[-1].key in ("scale", "var")
        return 1 + np.float32(0.3) * np.abs(values) if positive else np.float32(0.2) * values

    return jax.tree_util.tree_map_with_path(draw, shapes)


def state_dict(variables):
    """The Flax tree as PyTorch tensors under torchvision's names."""
    torch = pytest.importorskip("torch")
    names = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    state = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        keys = [key.key for key in path]
        array = np.asarray(leaf)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        state[".".join(keys[1:-1]).replace("_", ".") + "." + names[keys[-1]]] = torch.tensor(array.copy())
    return state


def torch_resnet(state, images, blocks, bottleneck, train=False):
    """{stage: features} of torchvision's ResNet in torch.nn.functional; if train, running averages are updated."""
    import torch.nn.functional as F

    def bn(x, name):
        averages = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, *averages, state[f"{name}.weight"], state[f"{name}.bias"], train, 0.1, 1e-5)

    def block(x, name, stride):
        shortcut = x
        if f"{name}.downsample.0.weight" in state:
            shortcut = bn(F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
        if bottleneck:
            x = F.relu(bn(F.conv2d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1"))
            x = F.relu(bn(F.conv2d(x, state[f"{name}.conv2.weight"], stride=stride, padding=1), f"{name}.bn2"))
            x = bn(F.conv2d(x, state[f"{name}.conv3.weight"]), f"{name}.bn3")
        else:
            x = F.relu(bn(F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1"))
            x = bn(F.conv2d(x, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        return F.relu(x + shortcut)

    x = F.relu(bn(F.conv2d(images, state["conv1.weight"], stride=2, padding=3), "bn1"))
    found = {"stem": x}
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate(blocks, 1):
        for number in range(count):
            x = block(x, f"layer{stage}.{number}", 2 if number == 0 and stage > 1 else 1)
        found[f"layer{stage}"] = x
    return found


def images(batch=2, height=64, width=48, seed=1):
    return np.random.default_rng(seed).standard_normal((batch, height, width, 3), np.float32)


def relative_error(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("name", resnet.ARCHITECTURES)
def test_every_stage_equals_pytorch(name):
    torch = pytest.importorskip("torch")
    module = resnet.resnet(name, resnet.STAGES)
    variables = random_variables(module)
    got = jax.jit(module.apply)(variables, images())
    arch = resnet.ARCHITECTURES[name]
    with torch.no_grad():
        x = torch.tensor(images()).permute(0, 3, 1, 2)
        want = torch_resnet(state_dict(variables), x, arch.blocks, arch.bottleneck)
    assert set(got) == set(resnet.STAGES)
    for stage in resnet.STAGES:
        assert relative_error(got[stage], want[stage].permute(0, 2, 3, 1)) < 1e-4, stage
        assert got[stage].shape[-1] == backbones.channels(name, stage)
        assert got[stage].shape[1] == 64 // backbones.stride(name, stage)
        assert got[stage].min() >= 0


@pytest.mark.parametrize("bottleneck", [False, True])
def test_gradients_and_running_averages_in_training_equal_pytorch(bottleneck):
    torch = pytest.importorskip("torch")
    arch = dict(blocks=(1, 2), base=8, bottleneck=bottleneck)
    module = resnet.resnet("resnet18", ("stem", "layer2"), **arch)
    variables = random_variables(module)
    weight = np.random.default_rng(3).standard_normal(
        (4, 8, 6, arch["base"] * 2 * (4 if bottleneck else 1)), np.float32
    )

    @jax.jit
    def step(params):
        def loss(params):
            features, new = module.apply({**variables, "params": params}, images(4), True, mutable=["batch_stats"])
            return jnp.sum(features["layer2"] * weight), new

        return jax.grad(loss, has_aux=True)(params)

    gradient, new = step(variables["params"])
    state = state_dict(variables)
    for name, tensor in state.items():
        tensor.requires_grad_("running" not in name)
    x = torch.tensor(images(4)).permute(0, 3, 1, 2)
    found = torch_resnet(state, x, arch["blocks"], bottleneck, train=True)
    (found["layer2"].permute(0, 2, 3, 1) * torch.tensor(weight)).sum().backward()
    want = {name: tensor.grad for name, tensor in state.items() if tensor.grad is not None}
    got = state_dict({"params": gradient})
    assert got.keys() == want.keys() and len(got) == sum("running" not in name for name in state)
    for name in want:
        assert relative_error(got[name], want[name]) < 2e-4, name
    for name, average in state_dict(new).items():
        assert relative_error(average, state[name]) < 1e-5, name


@pytest.mark.parametrize("name", resnet.ARCHITECTURES)
def test_parameter_counts_are_the_published_ones(name):
    def count(stages):
        module = resnet.resnet(name, stages)
        shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))

    fc = (backbones.channels(name, "layer4") + 1) * 1000
    assert count(("layer4",)) + fc == PUBLISHED[name]
    assert count(("layer2", "layer3")) == TO_LAYER3[name]


def test_wide_resnet_to_layer3_has_the_215_tensors_of_43_pairs():
    module = resnet.resnet("wide_resnet50_2", ("layer3",))
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert len(jax.tree.leaves(variables)) == 215


def test_nothing_is_built_beyond_the_last_stage_asked_for():
    module = resnet.resnet("resnet18", ("layer1",), base=4)
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert set(params) == {"conv1", "bn1", "layer1_0", "layer1_1"}


def test_odd_sizes_and_strided_pointwise_convolutions_equal_pytorch():
    torch = pytest.importorskip("torch")
    import torch.nn.functional as F

    x = np.random.default_rng(0).standard_normal((2, 7, 10, 5), np.float32)
    nchw = torch.tensor(x).permute(0, 3, 1, 2)
    for kernel, stride in ((1, 1), (1, 2), (3, 1), (3, 2), (7, 2)):
        module = conv(6, kernel, stride, use_bias=True)
        weight = np.random.default_rng(1).standard_normal((kernel, kernel, 5, 6), np.float32)
        bias = np.arange(6, dtype=np.float32)
        got = module.apply({"params": {"kernel": weight, "bias": bias}}, x)
        arguments = torch.tensor(weight.transpose(3, 2, 0, 1).copy()), torch.tensor(bias)
        want = F.conv2d(nchw, *arguments, stride=stride, padding=kernel // 2)
        assert relative_error(got, want.permute(0, 2, 3, 1)) < 1e-6
    assert relative_error(max_pool(jnp.asarray(x) - 9), F.max_pool2d(nchw - 9, 3, 2, 1).permute(0, 2, 3, 1)) < 1e-6


def test_transposed_convolution_equals_pytorch():
    torch = pytest.importorskip("torch")
    import torch.nn.functional as F

    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4), np.float32)
    weight = np.random.default_rng(1).standard_normal((2, 2, 4, 6), np.float32)
    got = conv_transpose(6).apply({"params": {"kernel": weight}}, x)
    want = F.conv_transpose2d(
        torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(weight.transpose(2, 3, 0, 1).copy()), stride=2
    )
    assert relative_error(got, want.permute(0, 2, 3, 1)) < 1e-6


def test_decoder_blocks_double_the_size_and_have_rd4ads_names():
    x = jnp.zeros((1, 3, 4, 16))
    for block in (resnet.BasicBlock(8, up=True), resnet.Bottleneck(4, 8, up=True)):
        shape, variables = jax.eval_shape(block.init_with_output, jax.random.key(0), x)
        assert shape.shape == (1, 6, 8, 8)
        assert {"upsample_0", "upsample_1"} <= set(variables["params"])
        assert "downsample_0" not in variables["params"]


def test_bfloat16_compute_keeps_float32_parameters_and_statistics():
    module = resnet.resnet("resnet18", ("stem", "layer1"), jnp.bfloat16, base=8, blocks=(1,))
    full = resnet.resnet("resnet18", ("stem", "layer1"), base=8, blocks=(1,))
    variables = random_variables(module)
    apply = jax.jit(lambda variables: module.apply(variables, images(), True, mutable=["batch_stats"]))
    features, new = apply(variables)
    assert {feature.dtype for feature in features.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    want = full.apply(variables, images(), True, mutable=["batch_stats"])[0]
    assert relative_error(features["layer1"].astype(jnp.float32), want["layer1"]) < 2e-2


def test_batch_norm_survives_a_mean_far_from_zero():
    x = 1000 + np.random.default_rng(0).standard_normal((4, 8, 8, 3), np.float32)
    module = BatchNorm()
    y, _ = module.apply(module.init(jax.random.key(0), x), x, True, mutable=["batch_stats"])
    assert np.allclose(np.std(y, (0, 1, 2)), 1, atol=1e-3)


def test_a_frozen_teacher_is_not_changed_by_its_forward_pass():
    module = resnet.resnet("resnet18", ("layer1",), base=4, blocks=(1,))
    variables = random_variables(module)
    features, new = module.apply(variables, images(), mutable=["batch_stats"])
    assert jax.tree.all(jax.tree.map(np.array_equal, new["batch_stats"], variables["batch_stats"]))
    assert not np.array_equal(features["layer1"][0], features["layer1"][1])


def test_unknown_names_and_stages_say_what_exists():
    with pytest.raises(UserError, match="no stage 'layer5'.*layer4"):
        resnet.resnet("resnet18", ("layer1", "layer5"))
    with pytest.raises(UserError, match="at least one stage"):
        resnet.resnet("resnet18", ())
    with pytest.raises(UserError, match="resnet19.*resnet18"):
        resnet.resnet("resnet19")


def test_a_sharded_batch_gives_global_statistics_and_moves_no_feature_between_devices():
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    module = resnet.resnet("resnet50", ("layer1", "layer2"), base=4, blocks=(1, 1))
    variables, batch = random_variables(module), images(8, 32, 32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    replicated = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    step = jax.jit(lambda variables, batch: module.apply(variables, batch, True, mutable=["batch_stats"]))
    hlo = step.lower(replicated, sharded).compile().as_text()
    assert "all-reduce" in hlo
    assert not any(move in hlo for move in ("all-gather", "all-to-all", "collective-permute"))
    (got, new), (want, new_want) = step(replicated, sharded), step(variables, batch)
    assert relative_error(got["layer2"], want["layer2"]) < 1e-4
    for path, leaf in jax.tree_util.tree_flatten_with_path(new)[0]:
        want_leaf = functools.reduce(lambda tree, key: tree[key.key], path, new_want)
        assert relative_error(leaf, want_leaf) < 1e-4, path
