import colorsys
import itertools

import numpy as np
import pytest
import tensorflow as tf

from jaxad.data.synthesis import hard_augment as augment
from jaxad.types import UserError


def noise(height, width, seed=0):
    """f32[height, width, 3] on 256 levels; no two pixels are equal."""
    levels = (np.arange(height * width) + 1000 * seed) * 10368889 % 2**24  # an odd factor: all differ
    return (
        np.stack([levels >> 16, levels >> 8 & 255, levels & 255], -1).reshape(height, width, 3).astype(np.float32) / 255
    )


def colour(contrast=1.0, saturation=1.0, brightness=1.0, hue=0.0, hsv_first=False):
    return augment.Colour(
        tf.constant([1.0, contrast][:: 1 if hsv_first else -1]), tf.constant([hue, saturation, brightness])
    )


def drawn(n, **options):
    """Hard of arrays [n], each from its own uniform numbers."""
    uniform = tf.random.stateless_uniform((n, augment.HARD_DRAWS), (4, 2))

    @tf.function(autograph=False)
    def every():
        like = augment.Hard(tf.int32, tf.int32, tf.bool, augment.Colour(tf.float32, tf.float32))
        return tf.map_fn(lambda u: augment.draw(u, **options), uniform, fn_output_signature=like)

    return tf.nest.map_structure(lambda tensor: tensor.numpy(), every())


@pytest.mark.parametrize("side", [6, 7])
def test_rotate_turns_by_quarters_and_four_of_them_are_none(side):
    image = noise(side, side)
    for quarters in (-1, 0, 1, 2, 3, 4, 6):
        assert np.array_equal(augment.rotate(image, quarters), np.rot90(image, quarters))
    again = tf.constant(image)
    for _ in range(4):
        again = augment.rotate(again, tf.constant(1))
    assert np.array_equal(again, image)


def test_permuting_halves_shifts_cyclically_by_half_a_side():
    image = noise(6, 10)
    for state, shift in enumerate([(0, 0), (0, 5), (3, 0), (3, 5)]):
        assert np.array_equal(augment.permute(image, state), np.roll(image, shift, (0, 1)))


@pytest.mark.parametrize("shape", [(6, 10), (7, 10), (7, 5)])
def test_permuting_halves_twice_is_no_change(shape):
    image = noise(*shape)
    for state in range(4):
        once = augment.permute(image, tf.constant(state))
        assert (state == 0) == np.array_equal(once, image)
        assert np.array_equal(augment.permute(once, tf.constant(state)), image)


def test_permuting_quadrants_gives_every_order_of_them_once():
    image = noise(4, 6)
    parts = [image[:2, :3], image[:2, 3:], image[2:, :3], image[2:, 3:]]
    for state, order in enumerate(itertools.permutations(range(4))):
        a, b, c, d = (parts[i] for i in order)
        expected = np.vstack([np.hstack([a, b]), np.hstack([c, d])])
        assert np.array_equal(augment.permute(image, state, "quadrants"), expected)
    assert len(augment.STATES["quadrants"]) == 24


def test_of_odd_sides_the_middle_stays_between_the_halves_and_no_pixel_is_lost():
    image = noise(5, 7)
    for mode in augment.STATES:
        for state in range(len(augment.STATES[mode])):
            made = augment.permute(image, state, mode).numpy()
            assert np.array_equal(made[2, 3], image[2, 3])
            assert sorted(map(tuple, made.reshape(-1, 3))) == sorted(map(tuple, image.reshape(-1, 3)))
    assert np.array_equal(augment.permute(image, 1), image[:, [4, 5, 6, 3, 0, 1, 2]])
    assert np.array_equal(augment.permute(image, 2), image[[3, 4, 2, 0, 1]])


def slow_hsv(pixel, hue, saturation, brightness):
    h, s, v = colorsys.rgb_to_hsv(*map(float, pixel))
    return colorsys.hsv_to_rgb((h + hue) % 1.0, min(s * saturation, 1.0), min(v * brightness, 1.0))


def slow_jitter(pixels, whole, contrast, saturation, brightness, hue, hsv_first):
    """colour_jitter of lists of pixels, one pixel at a time."""

    def in_hsv(pixels):
        return np.array([slow_hsv(pixel, hue, saturation, brightness) for pixel in pixels])

    def more_contrast(pixels, of):
        mean = np.mean(of, axis=0)
        return np.clip((pixels - mean) * contrast + mean, 0.0, 1.0)

    if hsv_first:
        return more_contrast(in_hsv(pixels), in_hsv(whole))
    return in_hsv(more_contrast(pixels, whole))


@pytest.mark.parametrize("hsv_first", [False, True])
@pytest.mark.parametrize(
    "contrast, saturation, brightness, hue",
    [(0.6, 1.0, 1.0, 0.0), (1.4, 1.0, 1.0, 0.0), (1.0, 0.6, 1.0, 0.0), (1.0, 1.4, 1.0, 0.0), (1.0, 1.0, 0.6, 0.0)]
    + [(1.0, 1.0, 1.4, 0.0), (1.0, 1.0, 1.0, 0.07), (1.0, 1.0, 1.0, -0.07), (0.7, 1.3, 1.2, 0.4), (1.0, 1.0, 1.0, 0.0)],
)
def test_the_colour_jitter_equals_a_loop_over_pixels(contrast, saturation, brightness, hue, hsv_first):
    corners = np.array(list(itertools.product([0.0, 0.5, 1.0], repeat=3)))  # black, greys, primaries, ties of channels
    pixels = np.concatenate([corners, noise(6, 6).reshape(-1, 3)]).astype(np.float32)
    whole = noise(5, 4, seed=3).reshape(-1, 3)
    given = (contrast, saturation, brightness, hue, hsv_first)
    for of in (None, whole):
        ours = augment.colour_jitter(tf.constant(pixels.reshape(9, 7, 3)), colour(*given), of)
        expected = slow_jitter(pixels.astype(float), pixels if of is None else of, *given)
        assert ours.shape == (9, 7, 3)
        np.testing.assert_allclose(ours.numpy().reshape(-1, 3), expected, atol=3e-6)


def test_strengths_of_zero_change_nothing():
    image = noise(16, 16)
    for seed in range(4):
        uniform = tf.random.stateless_uniform((augment.COLOUR_DRAWS,), (seed, 1))
        same = augment.colour_jitter(tf.constant(image), augment.draw_colour(uniform, augment.Strengths(0, 0, 0, 0)))
        np.testing.assert_allclose(same, image, atol=1e-6)
        assert np.abs(augment.colour_jitter(image, augment.draw_colour(uniform, augment.SIMCLR)) - image).max() > 0.01


def test_each_fires_in_half_of_the_draws_independently():
    hard = drawn(3000)
    fired = np.stack([hard.quarters > 0, hard.state > 0, hard.jittered])
    assert fired.mean(axis=1) == pytest.approx([0.5] * 3, abs=0.03)
    patterns = np.bincount(fired.T @ [4, 2, 1], minlength=8) / 3000
    assert patterns == pytest.approx([0.125] * 8, abs=0.025)
    for values in (hard.quarters, hard.state):
        assert np.bincount(values) / 3000 == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6], abs=0.03)


def test_colours_are_drawn_within_simclrs_strengths_and_reach_them():
    contrast, hsv = drawn(3000).colour
    assert (contrast == 1).sum(axis=1).max() == 1 and (contrast[:, 0] == 1).mean() == pytest.approx(0.5, abs=0.03)
    factors = [contrast.prod(axis=1), *hsv.T]
    for values, middle, reach in zip(factors, (1, 0, 1, 1), (0.4, 0.1 * 255 / 360, 0.4, 0.4), strict=True):
        assert np.abs(values - middle).max() <= reach * 1.0001
        quantiles = [middle - 0.8 * reach, middle, middle + 0.8 * reach]
        assert np.quantile(values, [0.1, 0.5, 0.9]) == pytest.approx(quantiles, abs=0.06 * reach)
    assert np.abs(np.corrcoef(factors) - np.eye(4)).max() < 0.08


def test_options_of_the_draw():
    some = drawn(3000, allow_identity=True)
    assert np.mean(some.quarters > 0) == pytest.approx(0.375, abs=0.03)
    assert np.mean(some.state > 0) == pytest.approx(0.375, abs=0.03)
    orders = drawn(3000, perm_mode="quadrants", probability=1.0)
    assert set(orders.state) == set(range(1, 24)) and set(orders.quarters) == {1, 2, 3} and orders.jittered.all()
    never = drawn(300, probability=0.0)
    assert not never.quarters.any() and not never.state.any() and not never.jittered.any()


@pytest.mark.parametrize("mode", augment.STATES)
def test_hard_augment_turns_then_permutes_then_jitters(mode):
    image = noise(12, 12)

    @tf.function(input_signature=[tf.TensorSpec((2,), tf.int32)], autograph=False)
    def one(seed):
        return augment.hard_augment(tf.constant(image), seed, perm_mode=mode)

    assert one.get_concrete_function().output_shapes == (12, 12, 3)
    seen = set()
    for k in range(30):
        seed = tf.constant([k, 9])
        hard = augment.draw(tf.random.stateless_uniform((augment.HARD_DRAWS,), seed), perm_mode=mode)
        expected = augment.permute(np.rot90(image, int(hard.quarters)).copy(), hard.state, mode)
        if hard.jittered:
            expected = augment.colour_jitter(expected, hard.colour)
        np.testing.assert_allclose(one(seed), expected, atol=1e-6)
        seen.add((bool(hard.quarters), bool(hard.state), bool(hard.jittered)))
    assert len(seen) == 8
    assert np.array_equal(one(tf.constant([3, 9])), one(tf.constant([3, 9])))


def test_the_sample_has_the_mean_of_the_image():
    side = 256
    y, x = np.mgrid[:side, :side] / side
    image = (0.5 + 0.3 * np.sin(40 * np.pi * x) * y + 0.1 * noise(side, side)[..., 0])[..., None].repeat(3, -1)
    some = augment.sample(tf.constant(image, tf.float32))
    assert len(some) == pytest.approx(augment.SAMPLE, rel=0.1)
    assert some.numpy().mean() == pytest.approx(image.mean(), abs=2 / 255)
    assert np.array_equal(augment.sample(noise(40, 40)), noise(40, 40).reshape(-1, 3))


def test_mistakes_are_one_line_that_says_what_to_do():
    image, seed = tf.zeros((8, 8, 3)), tf.constant([0, 1])
    for call, said in (
        (
            lambda: augment.hard_augment(image, seed, perm_mode="quarters"),
            "'quarters' is unknown.*use halves, quadrants",
        ),
        (lambda: augment.permute(image, 1, "half"), "'half' is unknown.*nearest is 'halves'"),
        (lambda: augment.hard_augment(image, seed, probability=1.5), r"probability=1.5; it must be in \[0, 1\]"),
        (lambda: augment.hard_augment(image[:6], seed), "square images, not 6x8"),
        (lambda: augment.rotate(image[:, :4], 1), "square images, not 8x4"),
    ):
        with pytest.raises(UserError, match=said) as error:
            call()
        assert "\n" not in str(error.value)
