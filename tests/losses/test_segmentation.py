import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.losses.segmentation import SEGMENTATIONS, balanced_l1, bce, dice, false_alarms, l1, recall, segmentation


def maps(channels, seed=0):
    """(logits, normal) of four images of 3 x 5: anomalous in a corner, nowhere, everywhere, in one pixel."""
    rng = np.random.default_rng(seed)
    logits = np.float32(rng.normal(size=(4, 3, 5, channels), scale=2) + 0.7)
    normal = np.ones((4, 3, 5, 1), np.float32)
    normal[0, :2, 3:] = 0
    normal[2] = 0
    normal[3, 1, 2] = 0
    return logits, normal


def sigmoid(z):
    return 1 / (1 + math.exp(-z)) if z > 0 else math.exp(z) / (1 + math.exp(z))


def pixels(logits, normal):
    """(z, A) of every pixel and channel."""
    for i, j, c in np.ndindex(*logits.shape):
        yield float(logits[i, j, c]), float(normal[i, j, 0])


def slow(kind, logits, normal):
    if kind == "bce":
        terms = [-a * math.log(sigmoid(z)) - (1 - a) * math.log(sigmoid(-z)) for z, a in pixels(logits, normal)]
        return np.mean(terms)
    distances = [(abs(a - sigmoid(z)), a) for z, a in pixels(logits, normal)]
    if kind == "l1":
        return np.mean([distance for distance, _ in distances])
    sides = [[distance for distance, a in distances if a == side] for side in (0, 1)]
    return np.mean([np.mean(side) for side in sides if side])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", SEGMENTATIONS)
def test_losses_equal_slow_loops(kind, channels):
    logits, normal = maps(channels)
    found = segmentation(logits, normal, kind)
    expected = [slow(kind, *image) for image in zip(logits, normal, strict=True)]
    assert found.shape == (4,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(set(np.round(expected, 3))) == 4


def test_a_kind_is_the_function_of_its_name_and_l1_the_papers_is_the_default():
    logits, normal = maps(1)
    for kind, function in (("l1", l1), ("bce", bce), ("balanced_l1", balanced_l1)):
        np.testing.assert_array_equal(segmentation(logits, normal, kind), function(logits, normal))
    np.testing.assert_array_equal(segmentation(logits, normal), l1(logits, normal))


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(ValueError, match="l1, bce, balanced_l1, got 'l2'"):
        segmentation(*maps(1), "l2")


@pytest.mark.parametrize("channels", [1, 3])
def test_all_ones_pay_the_anomalous_share_in_l1_and_a_half_in_balanced_l1(channels):
    _, normal = maps(1)
    ones = np.full((4, 3, 5, channels), 50, np.float32)
    np.testing.assert_allclose(l1(ones, normal), [4 / 15, 0, 1, 1 / 15], atol=1e-6)
    np.testing.assert_allclose(balanced_l1(ones, normal), [0.5, 0, 1, 0.5], atol=1e-6)
    np.testing.assert_allclose(l1(-ones, normal), [11 / 15, 1, 0, 14 / 15], atol=1e-6)
    np.testing.assert_allclose(balanced_l1(-ones, normal), [0.5, 1, 0, 0.5], atol=1e-6)


def test_a_right_map_costs_nothing():
    _, normal = maps(1)
    for kind in SEGMENTATIONS:
        np.testing.assert_allclose(segmentation(100 * (2 * normal - 1), normal, kind), 0, atol=1e-6)


def test_l1_of_a_nearly_right_pixel_does_not_round_to_zero():
    found = l1(jnp.full((1, 1, 1, 1), 30.0), jnp.ones((1, 1, 1, 1)))  # 1 - sigmoid(30) is 0 in float32
    assert found[0] == pytest.approx(math.exp(-30), rel=1e-5, abs=0)


@pytest.mark.parametrize("logit", [100.0, -100.0])
@pytest.mark.parametrize("truth", [0.0, 1.0])
@pytest.mark.parametrize("kind", SEGMENTATIONS)
def test_a_saturated_pixel_has_a_finite_loss_and_gradient(kind, truth, logit):
    normal = jnp.full((1, 1, 1, 1), truth)
    value, slope = jax.value_and_grad(lambda z: jnp.sum(segmentation(z, normal, kind)))(jnp.full((1, 1, 1, 1), logit))
    wrong = (logit > 0) != (truth > 0)
    assert value == pytest.approx(wrong * (100 if kind == "bce" else 1), abs=1e-6)
    assert np.all(np.isfinite(slope))
    assert slope[0, 0, 0, 0] == pytest.approx(wrong * math.copysign(1, logit) if kind == "bce" else 0, abs=1e-6)


def test_a_saturated_wrong_pixel_gets_no_gradient_from_l1_and_a_whole_one_from_bce():
    logits, normal = np.full((1, 2, 2, 1), 30, np.float32), np.ones((1, 2, 2, 1), np.float32)
    normal[0, 1, 0] = 0
    for loss, slope in ((l1, 0), (balanced_l1, 0), (bce, 1 / 4)):
        gradient = jax.grad(lambda z, loss=loss: jnp.sum(loss(z, normal)))(logits)[0, 1, 0, 0]
        assert gradient == pytest.approx(slope, abs=1e-9)


@pytest.mark.parametrize("kind", SEGMENTATIONS)
def test_a_step_against_the_gradient_makes_every_pixel_more_like_the_truth(kind):
    logits, normal = maps(3)
    gradient = jax.grad(lambda z: jnp.sum(segmentation(z, normal, kind)))(logits)
    np.testing.assert_array_equal(np.sign(-gradient), np.broadcast_to(2 * normal - 1, gradient.shape))


def test_images_do_not_see_one_another():
    logits, normal = maps(1)
    for kind in SEGMENTATIONS:
        whole = segmentation(logits, normal, kind)
        alone = [segmentation(logits[i : i + 1], normal[i : i + 1], kind)[0] for i in range(4)]
        np.testing.assert_allclose(whole, alone, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "side"), [(recall, 0), (false_alarms, 1)])
def test_recall_and_false_alarms_count_pixels_called_anomalous(count, side, channels):
    logits, normal = maps(channels)
    called, of = (np.asarray(number) for number in count(logits, normal))
    for b in range(4):
        places = [(i, j) for i, j in np.ndindex(3, 5) if normal[b, i, j, 0] == side]
        assert of[b] == len(places)
        assert called[b] == sum(np.mean([sigmoid(z) for z in logits[b, i, j]]) < 0.5 for i, j in places)
    assert 0 < np.sum(called) < np.sum(of)


def test_a_pixel_is_called_by_the_mean_of_its_channels_and_not_by_their_majority_or_logits():
    logits = jnp.array([[3.0, -0.3, -0.3], [-9.0, 1.0, 1.0]]).reshape(1, 1, 2, 3)
    # sigmoids 0.95, 0.43, 0.43: mean 0.6, majority below 0.5 · 0.00, 0.73, 0.73: mean 0.49, majority above
    for normal in (jnp.zeros((1, 1, 2, 1)), jnp.ones((1, 1, 2, 1))):
        called = recall(logits, normal)[0] + false_alarms(logits, normal)[0]
        np.testing.assert_array_equal(called, [1])
    only_second = jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)
    assert recall(logits, only_second)[0][0] == 1 and false_alarms(logits, only_second)[0][0] == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_dice_counts_the_overlap_and_both_areas(channels):
    logits, truth = maps(channels)
    overlap, areas = (np.asarray(part) for part in dice(logits, truth))
    for b, image in enumerate(zip(logits, truth, strict=True)):
        drawn = [(sigmoid(z), t) for z, t in pixels(*image)]
        assert overlap[b] == pytest.approx(2 * sum(p * t for p, t in drawn), rel=1e-5)
        assert areas[b] == pytest.approx(sum(p for p, _ in drawn) + truth[b].sum(), rel=1e-5)
