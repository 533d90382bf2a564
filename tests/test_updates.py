import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxad.types import SKIPPED, Batch, TrainState, Update
from jaxad.updates import Aux, descend, ema, every, masked_mean, remember, sequence, weighted_sum


def state(**params):
    return TrainState.create(params={name: {"w": jnp.float32(value)} for name, value in params.items()})


BATCH = Batch(*(jnp.zeros((1,), jnp.float32),) * 5)
KEY = jax.random.key(0)


def quadratic(params, state, batch, key):
    return jnp.square(params["w"] - state.params["b"]["w"]), Aux(metrics={"w": params["w"]})


def test_descend_moves_only_the_network_it_names():
    update = descend(quadratic, optax.sgd(0.25), "a")
    after, metrics = update.apply(update.init(state(a=3.0, b=1.0)), BATCH, KEY)
    assert after.params["a"]["w"] == 3.0 - 0.25 * 2 * (3.0 - 1.0)
    assert after.params["b"]["w"] == 1.0
    assert metrics == {"a/loss": 4.0, "w": 3.0}
    assert set(after.opt) == {"a"}


def test_descend_names_a_network_that_does_not_exist():
    with pytest.raises(KeyError, match="no network 'c'"):
        descend(quadratic, optax.sgd(0.25), "c").init(state(a=3.0, b=1.0))


def test_sequence_shows_the_second_update_the_first_ones_result():
    def follow(params, state, batch, key):
        return jnp.square(params["w"] - state.params["a"]["w"]), Aux()

    update = sequence(descend(quadratic, optax.sgd(0.5), "a"), descend(follow, optax.sgd(0.5), "b"))
    after, _ = update.apply(update.init(state(a=3.0, b=1.0)), BATCH, KEY)
    assert after.params["a"]["w"] == 1.0  # 3 - 0.5 * 4: onto b
    assert after.params["b"]["w"] == 1.0  # and b follows the new a, which is where b is
    other, _ = sequence(
        *reversed([descend(quadratic, optax.sgd(0.5), "a"), descend(follow, optax.sgd(0.5), "b")])
    ).apply(update.init(state(a=3.0, b=1.0)), BATCH, KEY)
    assert other.params["b"]["w"] == 3.0


def test_sequence_gives_each_update_its_own_key():
    draw = remember(lambda state, batch, key: {f"draw{len(state.memory)}": jax.random.uniform(key)})
    after, _ = sequence(draw, draw).apply(state(), BATCH, KEY)
    assert after.memory["draw0"] != after.memory["draw1"]


def test_every_runs_at_multiples_and_marks_skipped_metrics():
    update = every(3, descend(quadratic, optax.sgd(0.25), "a"))
    now = update.init(state(a=3.0, b=1.0))
    values, marks = [], []
    for step in range(7):
        now, metrics = jax.jit(update.apply)(now.replace(step=jnp.int32(step)), BATCH, KEY)
        values.append(float(now.params["a"]["w"]))
        marks.append(float(metrics["a/loss"]) == SKIPPED)
    assert values == [2.0, 2.0, 2.0, 1.5, 1.5, 1.5, 1.25]
    assert marks == [False, True, True, False, True, True, False]


def test_every_refuses_zero():
    with pytest.raises(ValueError, match="at least 1"):
        every(0, Update(lambda state: state, lambda state, batch, key: (state, {})))


def test_ema_follows_at_its_decay_and_does_not_share_buffers():
    update = ema("a", "slow", 0.75)
    start = update.init(state(a=3.0, b=1.0))
    assert start.params["slow"]["w"].unsafe_buffer_pointer() != start.params["a"]["w"].unsafe_buffer_pointer()
    moved = start.replace(params={**start.params, "a": {"w": jnp.float32(7.0)}})
    after, _ = update.apply(moved, BATCH, KEY)
    assert after.params["slow"]["w"] == 0.75 * 3.0 + 0.25 * 7.0
    donated = jax.jit(update.apply, donate_argnums=0)(start, BATCH, KEY)[0]  # fails where two names share a buffer
    assert donated.params["slow"]["w"] == 3.0


def test_objective_hands_memory_to_the_state():
    def objective(params, state, batch, key):
        return params["w"] ** 2, Aux(memory={"queue": params["w"] + 1.0})

    update = descend(objective, optax.sgd(0.5), "a")
    after, _ = update.apply(update.init(state(a=3.0)), BATCH, KEY)
    assert after.memory["queue"] == 4.0


def test_masked_mean_ignores_padding_and_its_gradient():
    values, valid = jnp.array([2.0, 4.0, jnp.nan]), jnp.array([True, True, False])
    assert masked_mean(values, valid) == 3.0
    np.testing.assert_array_equal(jax.grad(masked_mean)(values, valid), [0.5, 0.5, 0.0])
    assert masked_mean(values, jnp.zeros(3, bool)) == 0.0


def test_weighted_sum_logs_the_unweighted_terms():
    value, metrics = weighted_sum({"a": (2.0, jnp.float32(3.0)), "b": (0.5, jnp.float32(4.0))})
    assert value == 8.0 and metrics == {"a": 3.0, "b": 4.0}
