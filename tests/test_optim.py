import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxad.config import check, default
from jaxad.errors import UserError
from jaxad.optim import optimiser, schedule


def settings(**changes):
    keys = dict(name="adam", lr=0.05, b1=0.5, b2=0.99, momentum=0.9, trust=0.001, weight_decay=0.0, clip=0.0)
    keys |= dict(schedule="constant", warmup=0, decay="all", end=0.0)
    return SimpleNamespace(**{**keys, **changes})


def descend(tx, steps):
    """Minimises an uneven bowl from (3, -2); returns all the points."""
    point = {"w": jnp.array([3.0, -2.0])}
    state, path = tx.init(point), []
    for _ in range(steps):
        gradient = jax.grad(lambda p: jnp.sum(jnp.array([1.0, 7.0]) * (p["w"] - 1) ** 4))(point)
        with jax.numpy_dtype_promotion("standard"):  # as `updates.descend` does: optax is not strict
            change, state = tx.update(gradient, state, point)
        point = optax.apply_updates(point, change)
        path.append(np.asarray(point["w"]))
    return np.stack(path)


def test_cosine_with_warmup_is_the_formula():
    rate = schedule(0.3, 20, "cosine", warmup=4)
    for step in range(20):
        expected = 0.3 * (step + 1) / 4 if step < 4 else 0.15 * (1 + math.cos(math.pi * (step - 4) / 16))
        assert rate(step) == pytest.approx(expected, rel=1e-5)
    assert rate(20) == pytest.approx(0.0, abs=1e-7) and rate(100) == pytest.approx(0.0, abs=1e-7)


def test_cosine_ends_at_the_rate_asked_for():
    rate = schedule(0.3, 20, "cosine", warmup=4, end=0.03)
    for step in range(4, 20):
        assert rate(step) == pytest.approx(0.03 + 0.135 * (1 + math.cos(math.pi * (step - 4) / 16)), rel=1e-5)
    assert rate(3) == pytest.approx(0.3) and rate(20) == rate(100) == pytest.approx(0.03, rel=1e-6)


def test_a_cosine_that_ends_at_zero_has_the_bits_that_it_had_before_it_could_end_elsewhere():
    def before(step):
        step = jnp.asarray(step, jnp.float32)
        rest = jnp.clip((step - 7) / 993, 0.0, 1.0)
        return 0.3 * jnp.where(step < 7, (step + 1.0) / 7, 0.5 * (1.0 + jnp.cos(jnp.pi * rest)))

    steps = jnp.arange(1003)
    for way in (jax.vmap, lambda function: jax.jit(jax.vmap(function))):
        np.testing.assert_array_equal(way(schedule(0.3, 1000, "cosine", 7))(steps), way(before)(steps))


def test_constant_with_warmup_reaches_the_rate_and_stays():
    rate = schedule(0.3, 10, warmup=3)
    np.testing.assert_allclose([rate(step) for step in range(6)], [0.1, 0.2, 0.3, 0.3, 0.3, 0.3], rtol=1e-6)
    assert schedule(0.3, 10)(0) == pytest.approx(0.3)


@pytest.mark.parametrize(("steps", "warmup"), [(20, 0), (21, 0), (24, 4), (9, 2)])
def test_constant_linear_keeps_the_rate_for_half_of_the_steps_and_falls_in_a_line_to_zero(steps, warmup):
    rate = schedule(0.3, steps, "constant_linear", warmup)
    after = steps - warmup
    for step in range(steps + 1):
        if step < warmup:
            expected = 0.3 * (step + 1) / warmup
        elif step - warmup <= after / 2:
            expected = 0.3
        else:
            expected = 0.3 * (steps - step) / (after / 2)
        assert rate(step) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert rate(steps + 50) == 0.0


@pytest.mark.parametrize(("steps", "warmup"), [(200, 0), (10, 0), (24, 4), (13, 2), (1001, 7)])
def test_steps_falls_to_a_tenth_after_60_percent_and_to_a_hundredth_after_80(steps, warmup):
    rate = schedule(0.3, steps, "steps", warmup)
    for step in range(steps + 3):
        done = 10 * (step - warmup)
        after = steps - warmup
        expected = 0.3 * (1 if done < 6 * after else 0.1 if done < 8 * after else 0.01)
        expected = 0.3 * (step + 1) / warmup if step < warmup else expected
        assert rate(step) == pytest.approx(expected, rel=1e-6)


def test_steps_are_moco_v1_s_epochs_120_and_160_of_200():
    rate = schedule(0.03, 200 * 7, "steps")  # 7 steps an epoch
    found = [float(rate(step)) for step in (120 * 7 - 1, 120 * 7, 160 * 7 - 1, 160 * 7)]
    np.testing.assert_allclose(found, [0.03, 0.003, 0.003, 0.0003], rtol=1e-6)


LAYERS = {"kernel": (3, 4), "conv": (2, 2, 1, 3), "zero": (2, 2), "bias": (4,), "scale": (3,), "gamma": ()}


def slow_lars(params, gradients, rates, trust, momentum, decay):
    """SimCLR's LARS, a layer at a time: the buffer holds learning rate times adapted gradient."""
    params = {name: np.float64(value) for name, value in params.items()}
    buffers = {name: np.zeros_like(value) for name, value in params.items()}
    for step, rate in enumerate(rates):
        for name, w in params.items():
            g, ratio = np.float64(gradients[step][name]), 1.0
            if w.ndim > 1:
                g = g + decay * w
                norms = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
                ratio = trust * norms[0] / norms[1] if min(norms) > 0 else 1.0
            buffers[name] = momentum * buffers[name] + rate * ratio * g
            params[name] = w - buffers[name]
    return params


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(weight_decay=0.3),
        dict(weight_decay=0.3, momentum=0.5, trust=0.02, schedule="cosine", warmup=3),
    ],
    ids=str,
)
def test_lars_walks_as_its_formula_does(changes):
    optim = settings(name="lars", lr=2.0, **changes)
    rng = np.random.default_rng(0)
    params = {name: np.float32(rng.normal(size=shape) * (name != "zero")) for name, shape in LAYERS.items()}
    gradients = [{name: np.float32(rng.normal(size=shape)) for name, shape in LAYERS.items()} for _ in range(8)]
    tx = optimiser(optim, 8)
    point = jax.tree.map(jnp.asarray, params)
    state = tx.init(point)
    for gradient in gradients:
        with jax.numpy_dtype_promotion("standard"):
            change, state = tx.update(gradient, state, point)
        point = optax.apply_updates(point, change)
    rates = [float(schedule(2.0, 8, optim.schedule, optim.warmup)(step)) for step in range(8)]
    want = slow_lars(params, gradients, rates, optim.trust, optim.momentum, optim.weight_decay)
    for name in LAYERS:
        np.testing.assert_allclose(point[name], want[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_step_of_lars_is_a_share_of_the_weights_whatever_the_gradient_s_size():
    params = {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full(3, 2.0)}
    tx = optimiser(settings(name="lars", lr=0.5, trust=0.01), 5)
    for size in (1e-4, 1e4):
        gradient = jax.tree.map(lambda leaf, size=size: size * jnp.ones_like(leaf), params)
        with jax.numpy_dtype_promotion("standard"):
            change, _ = tx.update(gradient, tx.init(params), params)
        share = np.linalg.norm(change["kernel"]) / np.linalg.norm(params["kernel"])
        assert share == pytest.approx(0.005, rel=1e-5)
        np.testing.assert_allclose(change["bias"], -0.5 * size, rtol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        dict(name="adam"),
        dict(name="adam", weight_decay=0.3),
        dict(name="adamw", weight_decay=0.3),
        dict(name="sgd", lr=1e-3),
        dict(name="sgd", lr=1e-3, momentum=0.0, weight_decay=0.3),
        dict(name="adam", schedule="cosine"),
        dict(name="adamw", schedule="cosine", end=0.02, weight_decay=0.3),
        dict(name="sgd", lr=1e-2, clip=1.5, weight_decay=0.3),
    ],
    ids=str,
)
def test_optimisers_walk_as_torch_does(changes):
    torch = pytest.importorskip("torch")
    optim = settings(**changes)
    point = torch.tensor([3.0, -2.0], requires_grad=True)
    own = dict(lr=optim.lr, weight_decay=optim.weight_decay)
    if optim.name == "sgd":
        torch_optim = torch.optim.SGD([point], momentum=optim.momentum, **own)
    else:
        kind = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
        torch_optim = kind([point], betas=(optim.b1, optim.b2), **own)
    cosine = (
        torch.optim.lr_scheduler.CosineAnnealingLR(torch_optim, 20, optim.end) if optim.schedule == "cosine" else None
    )
    path = []
    for _ in range(20):
        torch_optim.zero_grad()
        (torch.tensor([1.0, 7.0]) * (point - 1) ** 4).sum().backward()
        if optim.clip:
            torch.nn.utils.clip_grad_norm_([point], optim.clip)
        torch_optim.step()
        path.append(point.detach().numpy().copy())
        if cosine:
            cosine.step()
    np.testing.assert_allclose(descend(optimiser(optim, 20), 20), np.stack(path), rtol=2e-4, atol=2e-5)


def test_weight_decay_of_adamw_is_decoupled_and_of_adam_is_not():
    paths = [descend(optimiser(settings(name=name, weight_decay=0.3), 5), 5) for name in ("adam", "adamw")]
    assert np.abs(paths[0] - paths[1]).max() > 1e-3


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_weight_decay_can_be_on_kernels_alone(name):
    rng = np.random.default_rng(0)
    shapes = {"dense": {"kernel": (3, 4), "bias": (4,)}, "norm": {"scale": (3,)}, "window": {"table": (5, 2)}}
    is_shape = dict(is_leaf=lambda node: isinstance(node, tuple))
    params, *gradients = (
        jax.tree.map(lambda shape: jnp.float32(rng.normal(size=shape)), shapes, **is_shape) for _ in range(6)
    )

    def walk(**changes):
        tx, point = optimiser(settings(name=name, **changes), 5), params
        state = tx.init(point)
        for gradient in gradients:
            with jax.numpy_dtype_promotion("standard"):
                change, state = tx.update(gradient, state, point)
            point = optax.apply_updates(point, change)
        return point

    kernels, every, none = walk(weight_decay=0.3, decay="kernels"), walk(weight_decay=0.3), walk()
    assert np.abs(every["norm"]["scale"] - none["norm"]["scale"]).max() > 1e-3
    for wanted, places in (
        (every, [("dense", "kernel")]),
        (none, [("dense", "bias"), ("norm", "scale"), ("window", "table")]),
    ):
        for network, leaf in places:
            np.testing.assert_array_equal(kernels[network][leaf], wanted[network][leaf], err_msg=leaf)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_state_and_update_are_float32_for_half_precision_gradients(name):
    params = {"w": jnp.ones((3, 1))}
    tx = optimiser(settings(name=name), 5)
    with jax.numpy_dtype_promotion("standard"):
        change, state = tx.update({"w": jnp.ones((3, 1), jnp.bfloat16)}, tx.init(params), params)
    floats = [leaf for leaf in jax.tree.leaves((change, state)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert len(floats) >= 2 and all(leaf.dtype == jnp.float32 for leaf in floats)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(name="lion"), "adam, adamw, sgd, lars"),
        (dict(schedule="step"), "constant, cosine, constant_linear, steps"),
        (dict(name="lars", trust=0.0), "config.optim.trust=0.0"),
        (dict(warmup=50), "config.optim.warmup=50"),
        (dict(lr=0.0), "config.optim.lr=0.0"),
        (dict(decay="kernel"), "config.optim.decay to one of all, kernels"),
        (dict(end=0.06), "config.optim.end=0.06 is not between 0 and the learning rate, 0.05"),
    ],
)
def test_a_wrong_setting_is_one_line_with_the_key(changes, said):
    with pytest.raises(UserError, match=said):
        optimiser(settings(**changes), 10)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(decay="kernel"), "config.optim.decay='kernel'"),
        (dict(end=0.1), r"end=0.1 must be in \[0, optim.lr=0.001\]"),
    ],
)
def test_the_config_is_checked_before_anything_is_built(changes, said):
    made = default("patchcore")
    made.optim.update(changes)
    with pytest.raises(UserError, match=said):
        check(made)
