import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.losses.reconstruction import l1, masked_l1, mse, ratio


def batch(seed=0, channels=3):
    """(image, restored, normal) of three images of 4 x 5, anomalous in much, in little and nowhere."""
    rng = np.random.default_rng(seed)
    image, restored = (rng.random((3, 4, 5, channels), np.float32) for _ in range(2))
    restored[0] = 0.9 + 0.1 * restored[0]
    normal = np.ones((3, 4, 5, 1), np.float32)
    normal[0, 1:, :4] = 0
    normal[1, 2, 3] = 0
    return image, restored, normal


def slow_sums(image, restored, normal):
    """Eq. 4's two sums over one image: every pixel and channel."""
    over = under = 0.0
    for i, j, c in np.ndindex(*image.shape):
        a = float(normal[i, j, 0])
        over += abs(float(image[i, j, c]) * a - float(restored[i, j, c]) * a)
        under += a
    return over, under


@pytest.mark.parametrize("channels", [1, 3])
def test_eq_4_equals_slow_loops(channels):
    images = batch(channels=channels)
    over, under = masked_l1(*images)
    expected = [slow_sums(*image) for image in zip(*images, strict=True)]
    np.testing.assert_allclose(np.stack([over, under], 1), expected, rtol=1e-5)
    whole = np.sum(expected, axis=0)
    assert ratio(over, under) == pytest.approx(whole[0] / (whole[1] + 1e-8), rel=1e-5)


def test_it_is_the_ratio_of_sums_and_not_the_mean_of_ratios():
    over, under = masked_l1(*batch())
    assert abs(ratio(over, under) - np.mean(over / under)) > 0.01
    assert ratio(jnp.array([1.0, 6.0]), jnp.array([1.0, 3.0])) == pytest.approx(7 / 4)


def test_what_is_drawn_where_the_image_is_anomalous_costs_nothing_and_moves_nothing():
    image, _, normal = batch()
    anywhere = np.random.default_rng(5).random(image.shape, np.float32)
    restored = np.where(normal == 0, anywhere, image)
    assert np.any(restored != image)
    assert ratio(*masked_l1(image, restored, normal)) == 0
    gradient = jax.grad(lambda restored: ratio(*masked_l1(image, restored, normal)))(anywhere)
    moved = np.any(gradient != 0, axis=-1, keepdims=True)
    np.testing.assert_array_equal(moved, normal == 1)


def test_without_anomaly_it_is_the_plain_mean_and_not_three_times_that():
    image, restored, normal = batch()
    found = ratio(*masked_l1(image, restored, np.ones_like(normal)))
    assert found == pytest.approx(np.mean(np.abs(image - restored)), rel=1e-5)
    assert found == pytest.approx(float(np.mean(l1(image, restored))), rel=1e-5)


def test_a_batch_of_anomalies_alone_is_zero_and_has_a_finite_gradient():
    image, restored, normal = batch()
    value, gradient = jax.value_and_grad(lambda restored: ratio(*masked_l1(image, restored, 0 * normal)))(restored)
    assert value == 0 and np.all(gradient == 0)


def test_plain_losses_equal_slow_loops_image_by_image():
    image, restored, _ = batch()
    for b in range(3):
        differences = [float(image[b][at]) - float(restored[b][at]) for at in np.ndindex(4, 5, 3)]
        assert l1(image, restored)[b] == pytest.approx(np.mean(np.abs(differences)), rel=1e-5)
        assert mse(image, restored)[b] == pytest.approx(np.mean(np.square(differences)), rel=1e-5)
    assert l1(image, restored).shape == mse(image, restored).shape == (3,)
