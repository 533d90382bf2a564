import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.losses.adversarial import KINDS, fake, feature_matching, generator, real

LOGITS = np.array([-3.0, -0.4, 0.0, 0.9, 2.5], np.float32)


def textbook(who, d, kind):
    """What is minimised for one logit, from D = sigmoid(d)."""
    if kind == "lsgan":
        return (d if who is fake else d - 1) ** 2 / 2
    judged = 1 / (1 + math.exp(-d))
    if who is fake:
        return -math.log(1 - judged)
    if who is generator and kind == "minimax":
        return math.log(1 - judged)
    return -math.log(judged)


@pytest.mark.parametrize("who", [real, fake, generator])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_equal_the_textbooks_formulas(who, kind):
    found = who(LOGITS, kind)
    assert found.shape == (5,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, [textbook(who, float(d), kind) for d in LOGITS], rtol=1e-5)


def test_a_critic_that_knows_nothing_pays_twice_log_two():
    for kind in ("ns", "minimax"):
        np.testing.assert_allclose(real(jnp.zeros(2), kind) + fake(jnp.zeros(2), kind), 2 * math.log(2), rtol=1e-6)


def test_lsgan_wants_one_of_the_real_and_zero_of_the_fake():
    logits = jnp.array([0.0, 1.0, 3.0])
    np.testing.assert_allclose(real(logits, "lsgan"), [0.5, 0, 2])
    np.testing.assert_allclose(generator(logits, "lsgan"), [0.5, 0, 2])
    np.testing.assert_allclose(fake(logits, "lsgan"), [0, 0.5, 4.5])


def test_the_generators_gradient_vanishes_at_a_sure_critic_in_minimax_and_not_in_ns():
    slope = {kind: float(jax.grad(lambda d, kind=kind: generator(d, kind))(-20.0)) for kind in KINDS}
    assert slope["ns"] == pytest.approx(-1, abs=1e-6)
    assert slope["minimax"] == pytest.approx(-math.exp(-20), rel=1e-4)
    assert slope["lsgan"] == pytest.approx(-21)


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_pulls_a_logit_up_and_the_critic_pulls_it_where_it_belongs(kind):
    def slopes(who):
        return jax.grad(lambda d: jnp.sum(who(d, kind)))(jnp.array([0.2, 0.7]))

    assert np.all(slopes(generator) < 0) and np.all(slopes(real) < 0) and np.all(slopes(fake) > 0)


@pytest.mark.parametrize("who", [real, fake, generator])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sure_critic_gives_finite_values_and_gradients(who, kind):
    logits = jnp.array([-100.0, 100.0])
    value, slope = who(logits, kind), jax.grad(lambda d: jnp.sum(who(d, kind)))(logits)
    assert np.all(np.isfinite(value)) and np.all(np.isfinite(slope))


def test_ns_is_the_default():
    for who in (real, fake, generator):
        np.testing.assert_array_equal(who(LOGITS), who(LOGITS, "ns"))


@pytest.mark.parametrize("who", [real, fake, generator])
def test_an_unknown_kind_names_the_known_ones(who):
    with pytest.raises(ValueError, match="ns, minimax, lsgan, got 'wgan'"):
        who(LOGITS, "wgan")


def test_feature_matching_equals_slow_loops_and_is_a_mean():
    rng = np.random.default_rng(0)
    one, other = (rng.normal(size=(3, 2, 4, 5)).astype(np.float32) for _ in range(2))
    found = feature_matching(one, other)
    assert found.shape == (3,)
    for b in range(3):
        squares = [(float(one[b][at]) - float(other[b][at])) ** 2 for at in np.ndindex(2, 4, 5)]
        assert found[b] == pytest.approx(sum(squares) / 40, rel=1e-5)
    twice = [np.concatenate([features, features], axis=-1) for features in (one, other)]
    np.testing.assert_allclose(feature_matching(*twice), found, rtol=1e-5)  # the squared norm would double


def test_feature_matching_compares_images_and_not_the_means_of_batches():
    features = np.random.default_rng(0).normal(size=(4, 2, 2, 3)).astype(np.float32)
    assert np.all(feature_matching(features, features[::-1]) > 0.1)  # of equal means
    np.testing.assert_array_equal(feature_matching(features, features), 0)
