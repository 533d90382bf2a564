"""BatchNorm in groups of rows against a BatchNorm for each of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from networks import drawn, jit

from jaxad.models import backbones, resnet
from jaxad.models.layers import BatchNorm


def rows(shape=(12, 3, 2, 4), seed=0):
    rng = np.random.default_rng(seed)
    far = rng.normal(size=(shape[0],) + (1,) * (len(shape) - 1)) * 3  # rows that differ in mean, so groups do
    return np.float32(rng.normal(size=shape) + far)


@functools.partial(jit, static_argnums=0)
def step(module, variables, x, weight):
    """Output, new averages, and the gradients of a weighted sum into parameters and input."""

    def loss(params, x):
        y, new = module.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y) * weight), (y, new["batch_stats"])

    gradients, (y, averages) = jax.grad(loss, argnums=(0, 1), has_aux=True)(variables.get("params", {}), x)
    return y, averages, *gradients


def in_a_loop(module, variables, x, weight, groups):
    """The same of one `module` call for each group: rows together, averages the mean, parameters' gradients added."""
    parts = [step(module, variables, *pair) for pair in zip(np.split(x, groups), np.split(weight, groups), strict=True)]
    y, averages, params, inputs = zip(*parts, strict=True)
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *averages)
    total = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *params)
    return np.concatenate(y), mean, total, np.concatenate(inputs)


def assert_close(got, want, **tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, **(tolerance or dict(rtol=2e-4, atol=2e-5)))


@pytest.mark.parametrize(
    ("groups", "shape", "affine"),
    [(2, (12, 3, 2, 4), False), (3, (12, 4), True), (6, (12, 3, 2, 4), True), (12, (12, 3, 2, 4), True)],
)
def test_grouped_batch_norm_equals_a_loop_over_its_groups(groups, shape, affine):
    options = dict(use_scale=affine, use_bias=affine)
    x, weight = rows(shape), rows(shape, seed=1)
    variables = drawn(BatchNorm(**options), x)
    got = step(BatchNorm(groups=groups, **options), variables, x, weight)
    want = in_a_loop(BatchNorm(**options), variables, x, weight, groups)
    assert_close(got, want)
    whole = step(BatchNorm(**options), variables, x, weight)
    assert np.abs(got[0] - whole[0]).max() > 0.1 and np.abs(got[1]["var"] - whole[1]["var"]).min() > 1e-3


def test_one_group_adds_nothing_to_the_program():
    x = rows()
    variables = drawn(BatchNorm(), x)

    def program(module):
        return step.lower(module, variables, x, x).as_text()

    one, two = program(BatchNorm()), program(BatchNorm(groups=2))
    assert "2x6x3x2x4" in two and "1x12x3x2x4" not in one
    assert one.count("stablehlo.reduce") < two.count("stablehlo.reduce")  # the mean over groups


def test_groups_count_in_training_only():
    x = rows()[:7]  # a last batch that no number of groups divides
    variables = drawn(BatchNorm(), x)
    np.testing.assert_array_equal(BatchNorm(groups=3).apply(variables, x), BatchNorm().apply(variables, x))


def test_the_running_variance_of_groups_is_the_mean_of_unbiased_ones():
    x = rows((6, 2))
    _, new = BatchNorm(groups=2).apply(BatchNorm().init(jax.random.key(0), x), x, True, mutable=["batch_stats"])
    unbiased = (np.var(x[:3], axis=0, ddof=1) + np.var(x[3:], axis=0, ddof=1)) / 2
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.9 + 0.1 * unbiased, rtol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * x.mean(0), rtol=1e-5, atol=1e-6)


@functools.cache
def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def sharded(array, *axes):
    return jax.device_put(array, NamedSharding(mesh(), PartitionSpec(*axes)))


def test_groups_equal_batch_norm_on_each_of_eight_devices_and_move_no_row_between_them():
    x, weight = rows((16, 3, 2, 4)), rows((16, 3, 2, 4), seed=1)
    variables = drawn(BatchNorm(), x)

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh(),
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=(PartitionSpec("data"), PartitionSpec()),
    )
    def each(variables, x):  # what a device does with its rows when nobody synchronises
        y, new = BatchNorm().apply(variables, x, True, mutable=["batch_stats"])
        return y, jax.lax.pmean(new["batch_stats"], "data")

    own = jax.jit(functools.partial(step.__wrapped__, BatchNorm(groups=8)))
    placed = sharded(variables), sharded(x, "data"), sharded(weight, "data")
    got = own(*placed)
    assert_close(got[:2], each(placed[0], placed[1]), rtol=1e-5, atol=1e-5)
    assert_close(got, own(variables, x, weight), rtol=1e-4, atol=1e-5)
    hlo = own.lower(*placed).compile().as_text()
    assert not any(move in hlo for move in ("all-gather", "all-to-all", "collective-permute"))


def test_shuffled_groups_come_out_the_same_on_one_device_and_on_eight():
    x, order = rows((16, 3, 2, 4)), np.random.default_rng(2).permutation(16)
    module = BatchNorm(groups=8)
    variables = drawn(module, x)

    @jax.jit
    def shuffled(variables, x, order):
        y, new = module.apply(variables, x[order], True, mutable=["batch_stats"])
        return y[jnp.argsort(order)], new

    want = shuffled(variables, x, order)
    assert_close(shuffled(sharded(variables), sharded(x, "data"), sharded(order)), want, rtol=1e-5, atol=1e-5)
    kept = shuffled(variables, x, np.arange(16))
    assert np.abs(want[0] - kept[0]).max() > 0.1  # the shuffle does give rows another company
    swapped = np.arange(16).reshape(8, 2)[::-1].ravel()  # whole groups change places: each row keeps its own
    assert_close(shuffled(variables, x, swapped), kept, rtol=1e-5, atol=1e-5)


def blocks():
    small = dict(base=4, blocks=(1, 1))
    yield "basic", resnet.BasicBlock(8, up=True), (6, 3, 2, 4)
    yield "bottleneck", resnet.Bottleneck(3, 8, up=True), (6, 3, 2, 4)
    yield "resnet", resnet.resnet("resnet18", ("layer2",), **small), (6, 20, 20, 3)
    yield "backbone", backbones.build("resnet50", ("layer2",), **small), (6, 20, 20, 3)


@pytest.mark.parametrize(("module", "shape"), [case[1:] for case in blocks()], ids=[case[0] for case in blocks()])
def test_every_batch_norm_of_a_block_and_of_a_resnet_is_in_groups(module, shape):
    x = rows(shape)
    variables = drawn(module, x)

    @functools.partial(jit, static_argnums=0)
    def forward(groups, x):
        y, new = module.clone(groups=groups).apply(variables, x, True, mutable=["batch_stats"])
        return jax.tree.leaves(y)[0], new

    parts = [forward(1, part) for part in np.split(x, 3)]
    averages = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *(new for _, new in parts))
    assert_close(forward(3, x), (np.concatenate([y for y, _ in parts]), averages), rtol=1e-3, atol=1e-4)


def test_build_hands_the_groups_on():
    assert backbones.build("resnet18", ("layer1",), groups=4).groups == 4
    assert resnet.resnet("resnet50", groups=2).groups == 2 and backbones.build("resnet18", ("layer1",)).groups == 1


def test_groups_that_do_not_fit_are_refused_while_tracing():
    x = rows()
    variables = drawn(BatchNorm(), x)

    def run(groups, mask=None):
        module = BatchNorm(groups=groups)
        jax.eval_shape(lambda x: module.apply(variables, x, True, mask, mutable=["batch_stats"]), x)

    for groups in (5, 0, -2, 24):
        with pytest.raises(ValueError, match=f"{groups} groups do not divide a batch of 12 rows"):
            run(groups)
    with pytest.raises(ValueError, match="a mask"):
        run(2, np.ones(12, bool))
    run(1, np.ones(12, bool))


@pytest.mark.parametrize(("scale", "bias"), [(True, True), (True, False), (False, True), (False, False)])
def test_factor_and_offset_can_be_left_out(scale, bias):
    x = rows()
    whole = drawn(BatchNorm(), x)
    module = BatchNorm(use_scale=scale, use_bias=bias)
    kept = {name: whole["params"][name] for name, has in (("scale", scale), ("bias", bias)) if has}
    neutral = {"scale": jnp.ones(4), "bias": jnp.zeros(4)} | kept
    for train in (True, False):
        got, _ = module.apply({**whole, "params": kept}, x, train, mutable=["batch_stats"])
        want, _ = BatchNorm().apply({**whole, "params": neutral}, x, train, mutable=["batch_stats"])
        np.testing.assert_allclose(got, want, rtol=1e-6)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    assert set(shapes.get("params", {})) == set(kept) and set(shapes["batch_stats"]) == {"mean", "var"}
