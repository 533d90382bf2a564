"""Equations 4 and 6 against slow loops, and what the first term of eq. 4, as printed, trains."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.errors import UserError
from jaxad.losses import comparison
from jaxad.losses.comparison import MASK_LOSSES, hinge, mask_loss, patch_error, patch_variance, pool_mask

RNG = np.random.default_rng(0)


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def masks(soft=False, shape=(4, 3, 5)):
    """Logits, and true masks with 0, 1, 4 and all cells different; soft: shares of cells instead."""
    rng = np.random.default_rng(0)
    truth = np.zeros(shape, np.float32)
    truth[1, 2, 4] = truth[2, :2, :2] = truth[3] = 1
    if soft:
        truth = rng.random(shape, np.float32)
    return np.float32(2 * rng.normal(size=shape)), truth


def error(logits, truth, norm="mean"):
    """||I_o - I_g||_1 of one mask."""
    terms = [abs(sigmoid(logits[place]) - float(truth[place])) for place in np.ndindex(truth.shape)]
    return np.mean(terms) if norm == "mean" else np.sum(terms)


def slow(kind, norm, logits, truth):
    e = error(logits, truth, norm)
    if kind == "l1":
        return e
    if kind == "sigmoid_l1":
        return 2 / (1 + math.exp(-e)) - 1
    if kind == "as_printed":
        return 1 / (1 + math.exp(e))
    pairs = [(sigmoid(logits[place]), float(truth[place])) for place in np.ndindex(truth.shape)]
    bce = np.mean([-t * math.log(p) - (1 - t) * math.log(1 - p) for p, t in pairs])
    return bce + 1 - (2 * sum(p * t for p, t in pairs) + 1) / (sum(p + t for p, t in pairs) + 1)


def slope(kind, e):
    """d loss / d e, by the only cell of a mask whose truth is 0: there e is the probability that is drawn."""
    logit = jnp.log(e) - jnp.log1p(-e)
    return jax.grad(lambda z: mask_loss(z[None, None, None], jnp.zeros((1, 1, 1)), kind)[0])(logit) / (e * (1 - e))


def descended(kind, truth, steps=2000, rate=20.0):
    """The mask that plain descent ends at, from one that knows nothing."""
    gradient = jax.grad(lambda logits: jnp.sum(mask_loss(logits, truth, kind)))

    def step(_, logits):
        return logits - rate * gradient(logits)

    start = 0.1 * RNG.normal(size=truth.shape).astype(np.float32)
    return jax.nn.sigmoid(jax.jit(lambda logits: jax.lax.fori_loop(0, steps, step, logits))(start))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("norm", comparison.NORMS)
@pytest.mark.parametrize("kind", MASK_LOSSES)
def test_mask_losses_equal_slow_loops(kind, norm, soft):
    logits, truth = masks(soft)
    found = mask_loss(logits, truth, kind, norm)
    assert found.shape == (4,) and found.dtype == jnp.float32
    expected = [slow(kind, norm, *pair) for pair in zip(logits, truth, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.all(np.diff(np.sort(expected)) > 5e-5)


def test_the_corrected_sign_of_the_mean_is_the_default():
    logits, truth = masks()
    np.testing.assert_array_equal(mask_loss(logits, truth), mask_loss(logits, truth, "sigmoid_l1", "mean"))


def test_the_sign_of_the_first_term():
    for e in (0.1, 0.5, 0.9):
        s = sigmoid(e)
        assert slope("sigmoid_l1", e) == pytest.approx(2 * s * (1 - s), rel=1e-4)
        assert slope("as_printed", e) == pytest.approx(-s * (1 - s), rel=1e-4)
        assert slope("l1", e) == pytest.approx(1, rel=1e-4)
    # e = 0, 1 and 5: the worse the mask, the smaller what is printed
    truth = jnp.zeros((3, 1, 5)).at[1, 0, 0].set(1.0).at[2].set(1.0)
    drawn = jnp.full((3, 1, 5), -60.0)
    np.testing.assert_allclose(mask_loss(drawn, truth, "as_printed", "sum"), [0.5, 0.2689, 0.0067], atol=1e-4)
    np.testing.assert_allclose(mask_loss(drawn, truth, "sigmoid_l1", "sum"), [0, 0.4621, 0.9866], atol=1e-4)


@pytest.mark.parametrize("kind", MASK_LOSSES)
def test_descent_draws_the_mask_and_as_printed_the_inverted_one(kind):
    truth = jnp.zeros((1, 4, 4)).at[0, 1:3, 1:].set(1.0)
    distance = jnp.mean(jnp.abs(descended(kind, truth) - truth))
    assert distance > 0.99 if kind == "as_printed" else distance < 0.01


@pytest.mark.parametrize("norm", comparison.NORMS)
@pytest.mark.parametrize("kind", MASK_LOSSES)
def test_values_and_gradients_are_finite_up_to_an_error_of_196_cells(kind, norm):
    logits = jnp.broadcast_to(jnp.array([0.0, 100.0, -100.0])[:, None, None], (3, 14, 14))
    for value in (0.0, 1.0):
        truth = jnp.full((3, 14, 14), value)
        found, gradient = jax.value_and_grad(lambda z, t=truth: jnp.sum(mask_loss(z, t, kind, norm)))(logits)
        assert np.isfinite(found) and np.all(np.isfinite(gradient))


def test_of_a_sum_over_196_cells_no_gradient_is_left_and_of_their_mean_there_is():
    truth, logits = jnp.ones((1, 14, 14)), jnp.full((1, 14, 14), -1.0)  # e = 143 of 196
    summed, mean = (
        jax.grad(lambda z, norm=norm: mask_loss(z, truth, norm=norm)[0])(logits) for norm in ("sum", "mean")
    )
    np.testing.assert_array_equal(summed, 0)
    assert np.all(mean < -1e-4)
    # written as printed it is worse
    naive = jax.grad(lambda e: 1 / (1 + jnp.exp(e)))(100.0)
    assert np.isnan(naive)


def test_a_cell_that_is_nearly_right_keeps_its_error():
    for logit, truth in ((30.0, 1.0), (-30.0, 0.0)):  # 1 - sigmoid(30) is 0 in float32
        found = mask_loss(jnp.full((1, 1, 1), logit), jnp.full((1, 1, 1), truth), "l1")
        assert found[0] == pytest.approx(math.exp(-30), rel=1e-5, abs=0)


def test_an_empty_mask_drawn_empty_costs_nothing_and_a_full_one_drawn_full():
    for value in (0.0, 1.0):
        truth = jnp.full((1, 4, 4), value)
        right, wrong = (mask_loss(sign * 100 * (2 * truth - 1), truth, "bce_dice")[0] for sign in (1, -1))
        assert right == pytest.approx(0, abs=1e-6) and wrong > 100


def test_a_small_defect_that_is_missed_weighs_more_in_bce_dice():
    truth = jnp.zeros((1, 14, 14)).at[0, 3, 3:5].set(1.0)  # 2 of 196 cells
    nothing = jnp.full((1, 14, 14), -8.0)
    assert mask_loss(nothing, truth)[0] < 0.006 and mask_loss(nothing, truth, "bce_dice")[0] > 0.7


@pytest.mark.parametrize("kind", MASK_LOSSES)
def test_pairs_do_not_see_one_another(kind):
    logits, truth = masks(soft=True)
    alone = [mask_loss(logits[i : i + 1], truth[i : i + 1], kind)[0] for i in range(4)]
    np.testing.assert_allclose(mask_loss(logits, truth, kind), alone, rtol=1e-6)


def test_hinge_equals_eq_4():
    score = np.float32([-7, -1, -0.3, 0, 0.5, 1, 40])
    for match, y in ((True, 1), (False, -1)):
        labels = np.full(7, match)
        expected = [max(0, 1 - y * s) for s in score]
        np.testing.assert_allclose(hinge(score, labels), expected, rtol=1e-6)
        expected = [max(0, 1 - y * sigmoid(s)) for s in score.astype(np.float64)]
        np.testing.assert_allclose(hinge(score, labels, "prob"), expected, rtol=1e-6, atol=1e-9)


def test_hinge_of_the_score_has_a_margin_and_of_the_probability_a_floor():
    score, match = jnp.array([1.5, 0.5, -0.5, -1.5] * 2), jnp.array([True] * 4 + [False] * 4)
    slopes = {on: jax.grad(lambda s, on=on: jnp.sum(hinge(s, match, on)))(score) for on in comparison.HINGES}
    np.testing.assert_array_equal(slopes["score"], [0, -1, -1, -1, 1, 1, 1, 0])
    np.testing.assert_array_equal(np.sign(slopes["prob"]), [-1] * 4 + [1] * 4)
    assert np.all(hinge(score, match, "prob")[4:] > 1)


def test_eq_6_sums_over_colours_and_averages_over_pixels():
    predicted, target = (RNG.random((2, 3, 5, 3), np.float32) for _ in range(2))
    found = patch_error(predicted, target)
    for b in range(2):
        terms = [sum((predicted[b, i, j] - target[b, i, j]) ** 2) for i, j in np.ndindex(3, 5)]
        assert found[b] == pytest.approx(np.mean(terms), rel=1e-5)
    np.testing.assert_allclose(patch_error(predicted[None], target[None]), found[None], rtol=1e-6)  # triples of images


def test_patch_variance_is_the_least_error_of_a_flat_patch():
    target = RNG.random((2, 4, 6, 3), np.float32)
    found = patch_variance(target)
    np.testing.assert_allclose(found, target.astype(np.float64).var(axis=(1, 2)).sum(-1), rtol=1e-5)
    for colour in RNG.random((20, 1, 1, 1, 3), np.float32):
        assert np.all(patch_error(np.broadcast_to(colour, target.shape), target) > found)
    assert patch_variance(jnp.full((1, 4, 4, 3), 0.3))[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_pool_mask_equals_a_loop_over_cells(dtype):
    mask = (RNG.random((2, 8, 12)) < 0.06).astype(dtype)
    for how, of in (("max", np.max), ("mean", np.mean)):
        found = np.asarray(pool_mask(mask, how))
        assert found.shape == (2, 2, 3) and found.dtype == np.float32
        for b, i, j in np.ndindex(2, 2, 3):
            assert found[b, i, j] == of(mask[b, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].astype(np.float64))
    assert 0 < pool_mask(mask).mean() < 1
    np.testing.assert_array_equal(pool_mask(mask), pool_mask(mask, "max"))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda ones: mask_loss(ones, ones, "l2"),
            "compare.mask_loss='l2': it must be one of sigmoid_l1, l1, bce_dice, ",
        ),
        (lambda ones: mask_loss(ones, ones, norm="max"), "compare.mask_norm='max': it must be one of mean, sum"),
        (
            lambda ones: hinge(ones[0, 0], ones[0, 0] > 0, "logit"),
            "compare.hinge_on='logit': it must be one of score, ",
        ),
        (lambda ones: pool_mask(ones, "min"), "pairs.mask_pool='min': it must be one of max, mean"),
    ],
)
def test_an_unknown_name_is_refused_with_its_key(call, says):
    with pytest.raises(UserError) as raised:
        call(jnp.ones((1, 4, 4)))
    assert str(raised.value).startswith(f"config.pattern_generation.{says}")
