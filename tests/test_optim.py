import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxad.errors import UserError
from jaxad.optim import optimiser, schedule


def settings(**changes):
    keys = dict(name="adam", lr=0.05, b1=0.5, b2=0.99, momentum=0.9, weight_decay=0.0, clip=0.0)
    keys |= dict(schedule="constant", warmup=0)
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


@pytest.mark.parametrize(
    "changes",
    [
        dict(name="adam"),
        dict(name="adam", weight_decay=0.3),
        dict(name="adamw", weight_decay=0.3),
        dict(name="sgd", lr=1e-3),
        dict(name="sgd", lr=1e-3, momentum=0.0, weight_decay=0.3),
        dict(name="adam", schedule="cosine"),
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
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(torch_optim, 20) if optim.schedule == "cosine" else None
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
def test_state_and_update_are_float32_for_half_precision_gradients(name):
    params = {"w": jnp.ones(3)}
    tx = optimiser(settings(name=name), 5)
    with jax.numpy_dtype_promotion("standard"):
        change, state = tx.update({"w": jnp.ones(3, jnp.bfloat16)}, tx.init(params), params)
    floats = [leaf for leaf in jax.tree.leaves((change, state)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert len(floats) >= 2 and all(leaf.dtype == jnp.float32 for leaf in floats)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(name="lion"), "adam, adamw, sgd"),
        (dict(schedule="step"), "constant, cosine"),
        (dict(warmup=50), "config.optim.warmup=50"),
        (dict(lr=0.0), "config.optim.lr=0.0"),
    ],
)
def test_a_wrong_setting_is_one_line_with_the_key(changes, said):
    with pytest.raises(UserError, match=said):
        optimiser(settings(**changes), 10)
