"""The comparison network: the table of its layers, the whole of it against PyTorch's functions, and that it learns."""

import re
import types

import flax.traverse_util
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxad.errors import UserError
from jaxad.losses.comparison import hinge, mask_loss, pool_mask
from jaxad.models.comparator import Comparator, check, halved

TINY = dict(widths=(4, 6, 8))
VARIANTS = [dict(), dict(sim_pool="flatten"), dict(diff_feature=True)]


def pair_of(sides=(8, 12), batch=3, seed=1):
    """Generated and observed patches, of much contrast: scores that differ."""
    rng = np.random.default_rng(seed)
    return tuple(4 * rng.random((batch, *sides, 3), np.float32) for _ in range(2))


def shapes(sides=(56, 56), **options):
    """(Compared, number of parameters, {module: shape of what it gave last}), without computing anything."""
    module, patch = Comparator(**options), jax.ShapeDtypeStruct((5, *sides, 3), jnp.float32)
    found, variables = jax.eval_shape(
        lambda *pair: module.init_with_output(jax.random.key(0), *pair, capture_intermediates=True, mutable=True),
        patch,
        patch,
    )
    calls = {name: call["__call__"][-1] for name, call in variables["intermediates"].items() if name != "__call__"}
    total = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return found, total, {name: leaf.shape for name, leaf in calls.items()}


def drawn(module, pair):
    return networks.drawn(types.SimpleNamespace(init=lambda key, pair: module.init(key, *pair)), pair)


def applied(module, variables, pair, train=False):
    """(Compared, {"batch_stats": what they became})."""
    return networks.jit(lambda variables, pair: module.apply(variables, *pair, train, mutable=["batch_stats"]))(
        variables, pair
    )


def test_every_layer_of_the_table_has_its_shape_and_the_whole_its_number_of_parameters():
    found, total, seen = shapes()
    assert total == 1_578_498
    for branch in ("generated", "observed"):
        assert seen[f"{branch}1"] == (5, 56, 56, 64) and seen[f"{branch}2"] == (5, 28, 28, 128)
    assert seen["shared3"] == (10, 14, 14, 256)  # of both branches
    assert seen["score1"] == (5, 256) and seen["score2"] == (5, 1)
    assert seen["mask1"] == (5, 14, 14, 128) and seen["mask2"] == (5, 14, 14, 1)
    assert found.score.shape == (5,) and found.mask.shape == (5, 14, 14)


@pytest.mark.parametrize(
    ("options", "total"),
    [
        (dict(sim_pool="flatten"), 1_578_498 + (14 * 14 * 512 - 1024) * 256),  # 27.0 M
        (dict(diff_feature=True), 1_578_498 + 2 * 256 * 256 + 9 * 256 * 128),  # 256 channels more, of both heads
        (dict(widths=(96, 192, 256)), 2_247_746),
        (dict(widths=(32, 64, 128)), 465_922),
    ],
)
def test_parameters_of_the_variants(options, total):
    assert shapes(**options)[1] == total


@pytest.mark.parametrize("sides", [(4, 4), (20, 20), (64, 64), (8, 12)])
def test_any_multiple_of_four_pixels_is_compared_by_the_same_parameters(sides):
    found, total, _ = shapes(sides)
    assert found.mask.shape == (5, sides[0] // 4, sides[1] // 4) and total == 1_578_498


@pytest.mark.parametrize(("sides", "bad", "near"), [((30, 30), 30, 32), ((8, 6), 6, 8), ((2, 4), 2, 4), ((0,), 0, 4)])
def test_other_sizes_are_refused_with_the_next_that_is_not(sides, bad, near):
    with pytest.raises(UserError, match=rf"not {bad}; set config\.pattern_generation\.patch={near}$"):
        check(sides)


def test_what_check_refuses_the_network_refuses():
    with pytest.raises(UserError, match="not 30; set"):
        shapes((28, 30))
    with pytest.raises(UserError, match=r"compare\.sim_pool='max': it must be one of mean_max, flatten"):
        shapes(sim_pool="max")


def torch_comparator(torch, variables, pair, train, options):
    """(score, mask, tensors), written out in torch.nn.functional."""
    import torch.nn.functional as F

    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    tensors = {name: torch.tensor(np.array(value)) for name, value in flat.items()}

    def conv(x, name):
        kernel = tensors[f"params/{name}/kernel"].permute(3, 2, 0, 1)
        return F.conv2d(x, kernel, tensors.get(f"params/{name}/bias"), padding=kernel.shape[-1] // 2)

    def block(x, name):
        averages = (tensors[f"batch_stats/{name}/bn/{leaf}"] for leaf in ("mean", "var"))
        affine = (tensors[f"params/{name}/bn/{leaf}"] for leaf in ("scale", "bias"))
        return F.relu(F.batch_norm(conv(x, f"{name}/conv"), *averages, *affine, training=train, momentum=0.1))

    def dense(x, name):
        return F.linear(x, tensors[f"params/{name}/kernel"].T, tensors[f"params/{name}/bias"])

    branches = []
    for name, x in zip(("generated", "observed"), pair, strict=True):
        x = F.max_pool2d(block(torch.tensor(x).permute(0, 3, 1, 2), f"{name}1"), 2)
        branches.append(F.max_pool2d(block(x, f"{name}2"), 2))
    parts = list(torch.chunk(block(torch.cat(branches), "shared3"), 2))  # one BatchNorm over both branches
    if options.get("diff_feature"):
        parts.append((parts[0] - parts[1]).abs())
    x = torch.cat(parts, 1)
    pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
    if options.get("sim_pool") == "flatten":
        pooled = x.permute(0, 2, 3, 1).flatten(1)
    score = dense(F.relu(dense(pooled, "score1")), "score2")
    return score[:, 0], conv(block(x, "mask1"), "mask2")[:, 0], tensors


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("options", VARIANTS)
def test_score_mask_and_averages_equal_torch(options, train):
    torch = pytest.importorskip("torch")
    module, pair = Comparator(**TINY, **options), pair_of()
    variables = drawn(module, pair)
    score, mask, tensors = torch_comparator(torch, variables, pair, train, options)
    found, new = applied(module, variables, pair, train)
    np.testing.assert_allclose(found.score, score, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.mask, mask, rtol=1e-4, atol=1e-4)
    assert np.std(found.score) > 5e-3 and np.std(found.mask) > 0.1
    for path, value in flax.traverse_util.flatten_dict(new, sep="/").items():
        np.testing.assert_allclose(value, tensors[path], rtol=1e-4, atol=1e-5)  # torch has updated its own


def test_scores_and_masks_keep_float32_in_a_bfloat16_network():
    pair = pair_of(batch=16)
    variables = drawn(Comparator(**TINY), pair)
    wide, half = (applied(Comparator(**TINY, dtype=dtype), variables, pair)[0] for dtype in (None, jnp.bfloat16))
    for one, other in zip(wide, half, strict=True):
        assert other.dtype == jnp.float32
        assert len(np.unique(other)) == other.size  # no ties
        assert np.any(other != other.astype(jnp.bfloat16).astype(jnp.float32))
        assert np.linalg.norm(other - one) < 0.02 * np.linalg.norm(one)
    params = jax.eval_shape(Comparator(dtype=jnp.bfloat16).init, jax.random.key(0), *pair)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


def test_halving_is_max_pooling_and_so_is_its_gradient_behind_a_relu():
    rng = np.random.default_rng(0)
    x, change = rng.normal(size=(2, 4, 6, 3)).astype(np.float32), rng.normal(size=(2, 2, 3, 3)).astype(np.float32)
    x[0, :2, :2] = -1.0  # four equal maxima, of zeros

    def through(pool):
        y, back = jax.vjp(lambda x: pool(nn.relu(x)), x)
        return y, back(change)[0]

    for one, other in zip(through(halved), through(lambda x: nn.max_pool(x, (2, 2), (2, 2))), strict=True):
        np.testing.assert_array_equal(one, other)


def test_pairs_on_several_devices_stay_where_they_are():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split, pair = NamedSharding(mesh, P("data")), pair_of((4, 4), batch=16)
    module = Comparator(**TINY)
    variables = drawn(module, pair)
    placed = jax.device_put(pair, split)

    def program(train):
        call = networks.jit(lambda variables, pair: module.apply(variables, *pair, train, mutable=["batch_stats"]))
        return call.lower(variables, placed).compile()

    predict, learn = program(False), program(True)
    assert not re.search("all-gather|all-to-all|collective-permute|all-reduce", predict.as_text())
    assert not re.search("all-gather|all-to-all|collective-permute", learn.as_text())  # sums of BatchNorm alone
    for train, call in ((False, predict), (True, learn)):
        alone = applied(module, variables, pair, train)
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5),
            call(variables, placed),
            alone,
        )


def synthetic_pairs(batch=64, side=16):
    """Generated and observed waves, every other one with a rectangle of another brightness, and masks of these."""
    rng = np.random.default_rng(0)
    phase = np.arange(side) * rng.uniform(0.3, 1.2, (batch, 1)) + rng.uniform(0, 7, (batch, 1))
    observed = 0.5 + 0.2 * np.sin(phase)[:, None, :, None] * rng.uniform(0.5, 1, (batch, side, 1, 3))
    generated = observed + rng.normal(0, 0.02, observed.shape)
    mask = np.zeros((batch, side, side), bool)
    for i in range(0, batch, 2):
        (top, left), (height, width) = rng.integers(0, side - 4, 2), rng.integers(3, 9, 2)
        mask[i, top : top + height, left : left + width] = True
        observed[i][mask[i]] += rng.choice([-0.3, 0.3])
    return np.float32(generated), np.float32(observed), mask


def test_it_learns_64_synthetic_pairs_by_heart():
    generated, observed, mask = synthetic_pairs()
    match, truth = ~mask.any((1, 2)), pool_mask(mask)
    module, tx = Comparator(widths=(8, 16, 16)), optax.adam(1e-2)
    start = networks.jit(module.init)(jax.random.key(0), generated[:1], observed[:1])

    @jax.jit
    def step(params, stats, opt):
        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            found, new = module.apply(variables, generated, observed, True, mutable=["batch_stats"])
            return jnp.mean(mask_loss(found.mask, truth) + hinge(found.score, match)), new["batch_stats"]  # eq. 4

        gradient, new = jax.grad(loss, has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax is not strict
            change, opt = tx.update(gradient, opt)
        return optax.apply_updates(params, change), new, opt

    params, stats, opt = start["params"], start["batch_stats"], tx.init(start["params"])
    for _ in range(120):
        params, stats, opt = step(params, stats, opt)
    found = networks.jit(module.apply)({"params": params, "batch_stats": stats}, generated, observed)
    np.testing.assert_array_equal(found.score > 0, match)
    called, wanted = np.asarray(found.mask) > 0, np.asarray(truth) > 0
    assert np.sum(called & wanted) > 0.8 * np.sum(called | wanted)
