import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import drawn, jit

from jaxad.models import heads, layers

RESNET50 = 2048  # channels of its pooled features


def inputs(rows=6, width=8, seed=5):
    return np.float32(np.random.default_rng(seed).normal(size=(rows, width)) * 2 + 0.5)


@functools.partial(jit, static_argnums=(0, 3))
def forward(module, variables, x, train=True):
    return module.apply(variables, x, train, mutable=["batch_stats"])


def shapes(module, width=RESNET50):
    return jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((2, width), jnp.float32))


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def dense(variables, name, x):
    layer = variables["params"][name]
    return x @ np.float64(layer["kernel"]) + np.float64(layer.get("bias", 0))


def norm(variables, name, x, train=True):
    """BatchNorm of f64[B, C] with what parameters there are."""
    own, kept = variables["params"].get(name, {}), variables["batch_stats"][name]
    mean, var = (x.mean(0), x.var(0)) if train else (np.float64(kept["mean"]), np.float64(kept["var"]))
    return (x - mean) / np.sqrt(var + 1e-5) * np.float64(own.get("scale", 1)) + np.float64(own.get("bias", 0))


def relu(x):
    return np.maximum(x, 0)


def slow_simsiam_projector(v, x, train):
    x = relu(norm(v, "bn1", dense(v, "dense1", x), train))
    x = relu(norm(v, "bn2", dense(v, "dense2", x), train))
    return norm(v, "bn3", dense(v, "dense3", x), train)


def slow_simsiam_predictor(v, x, train):
    return dense(v, "dense2", relu(norm(v, "bn1", dense(v, "dense1", x), train)))


def slow_simclr_projector(v, x, train):
    x = relu(norm(v, "bn1", dense(v, "dense1", x), train))
    x = relu(norm(v, "bn2", dense(v, "dense2", x), train))
    return norm(v, "bn3", dense(v, "dense3", x), train)


HEADS = {
    "simsiam_projector": (heads.SimSiamProjector(dim=5), slow_simsiam_projector, 5),
    "simsiam_predictor": (heads.SimSiamPredictor(hidden=3), slow_simsiam_predictor, 8),
    "simclr_projector": (heads.SimCLRProjector(dim=5), slow_simclr_projector, 5),
    "moco_v1": (heads.MoCoHead(dim=5), lambda v, x, train: dense(v, "dense1", x), 5),
    "moco_v2": (heads.MoCoHead(5, 7), lambda v, x, train: dense(v, "dense2", relu(dense(v, "dense1", x))), 5),
    "linear": (heads.Linear(5), lambda v, x, train: dense(v, "dense", x), 5),
}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_each_head_equals_its_layers_in_numpy(name, train):
    module, slow, width = HEADS[name]
    variables = drawn(module, inputs())
    got, new = forward(module, variables, inputs(), train)
    assert got.shape == (6, width) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, slow(variables, np.float64(inputs()), train), rtol=1e-4, atol=1e-4)
    for old, moved in zip(
        jax.tree.leaves(variables.get("batch_stats", {})), jax.tree.leaves(new.get("batch_stats", {})), strict=True
    ):
        assert np.all(old != moved) == train


@pytest.mark.parametrize(
    ("module", "parameters", "averages"),
    [
        # three kernels of 2048 x 2048, factor and offset of two BatchNorms, averages of three
        (heads.SimSiamProjector(), 3 * 4_194_304 + 2 * 4_096, 3 * 4_096),
        # 2048 x 512, factor and offset of 512, 512 x 2048 with bias
        (heads.SimSiamPredictor(), 1_048_576 + 1_024 + 1_048_576 + 2_048, 1_024),
        # two kernels of 2048 x 2048 and one of 2048 x 128; factor and offset of two BatchNorms, factor of the last
        (heads.SimCLRProjector(), 2 * 4_194_304 + 262_144 + 2 * 4_096 + 128, 2 * 4_096 + 256),
        (heads.SimCLRProjector(layers=2), 4_194_304 + 262_144 + 4_096 + 128, 4_096 + 256),
        (heads.MoCoHead(), 262_144 + 128, 0),
        (heads.MoCoHead(hidden=2048), 4_194_304 + 2_048 + 262_144 + 128, 0),
        (heads.Linear(1000), 2_048_000 + 1_000, 0),
    ],
    ids=str,
)
def test_parameters_on_resnet_50_counted_by_hand(module, parameters, averages):
    variables = shapes(module)
    assert count(variables["params"]) == parameters
    assert count(variables.get("batch_stats", {})) == averages


def test_hidden_layers_are_as_wide_as_the_input():
    params = shapes(heads.SimSiamProjector(dim=32), width=24)["params"]
    kernels = [params[f"dense{number}"]["kernel"].shape for number in (1, 2, 3)]
    assert kernels == [(24, 24), (24, 24), (24, 32)]
    params = shapes(heads.SimCLRProjector(dim=4, layers=4), width=24)["params"]
    assert [params[f"dense{number}"]["kernel"].shape for number in (1, 2, 3, 4)] == 3 * [(24, 24)] + [(24, 4)]


def test_the_last_batch_norms_have_what_the_authors_left_them():
    assert "bn3" not in shapes(heads.SimSiamProjector())["params"]
    assert set(shapes(heads.SimCLRProjector())["params"]["bn3"]) == {"scale"}


def test_simsiam_s_projections_are_standardised_over_the_batch():
    module = heads.SimSiamProjector(dim=5)
    z, _ = forward(module, drawn(module, inputs()), inputs() * 9)
    np.testing.assert_allclose(np.mean(z, axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(z, axis=0), 1, atol=1e-2)


@pytest.mark.parametrize("bias", [False, True])
def test_dense_layers_begin_uniform_within_one_over_the_root_of_their_inputs(bias):
    params = layers.Dense(4_000, use_bias=bias).init(jax.random.key(3), jnp.zeros((1, 16)))["params"]
    assert set(params) == ({"kernel", "bias"} if bias else {"kernel"})
    for leaf in params.values():
        assert 0.249 < np.abs(leaf).max() <= 0.25 and np.std(leaf) == pytest.approx(0.5 / np.sqrt(12), rel=0.05)


def test_simclr_s_kernels_begin_as_a_normal_of_a_hundredth():
    params = jit(heads.SimCLRProjector(dim=64).init)(jax.random.key(0), jnp.zeros((1, 64)))["params"]
    for number in (1, 2, 3):
        kernel = params[f"dense{number}"]["kernel"]
        assert np.std(kernel) == pytest.approx(0.01, rel=0.05) and np.abs(kernel).max() > 0.025


@pytest.mark.parametrize("name", HEADS)
def test_bfloat16_compute_keeps_float32_parameters_and_statistics(name):
    module, slow, _ = HEADS[name]
    half = module.clone(dtype=jnp.bfloat16)
    variables = drawn(half, inputs())
    got, new = forward(half, variables, jnp.asarray(inputs(), jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((shapes(half), new))} == {jnp.dtype(jnp.float32)}
    want = slow(variables, np.float64(inputs()), True)
    assert np.abs(np.float64(got) - want).max() < 0.1 * np.abs(want).max()
