import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from jaxad.data import views
from jaxad.types import UserError, View


def context(index=0, n_normal=5, n_anomalous=0, side=4):
    def load(i):
        return tf.fill((side, side, 3), tf.cast(i, tf.uint8)), tf.fill((side, side), i >= n_normal)

    return views.Context(
        tf.constant(index), tf.constant(False), tf.zeros((side, side), bool), n_normal, n_anomalous, load
    )


def seed(n):
    return tf.constant([n, 7], tf.int32)


@pytest.mark.parametrize("degrees", [0.0, 15.0, -7.3, 90.0, 180.0, 33.0])
def test_turn_equals_scipy_rotate(degrees):
    image = ndimage.gaussian_filter(np.random.default_rng(0).random((31, 44, 3)), (1, 1, 0)).astype(np.float32)
    ours = views.turn(tf.constant(image), tf.constant(np.float32(np.deg2rad(degrees)))).numpy()
    theirs = np.stack(
        [ndimage.rotate(image[..., c], degrees, reshape=False, order=1, mode="nearest") for c in range(3)], axis=-1
    )
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_rotated_draws_its_angle_uniformly_within_the_bounds():
    side, degrees = 41, 20.0
    x = np.linspace(0, 1, side, dtype=np.float32)
    ramp = np.broadcast_to(x[None, :, None], (side, side, 3))  # after a turn the gradient's direction is the angle
    angles = []
    for n in range(200):
        turned = views.rotated(tf.constant(ramp), context(), seed(n), degrees=degrees).numpy().astype(float) / 255
        dy = turned[25, 20, 0] - turned[15, 20, 0]
        dx = turned[20, 25, 0] - turned[20, 15, 0]
        angles.append(np.rad2deg(np.arctan2(-dy, dx)))
    angles = np.array(angles)
    assert np.abs(angles).max() <= degrees + 1.0
    assert angles.min() < -17 and angles.max() > 17 and abs(np.median(angles)) < 4


def test_rotated_repeats_the_border_instead_of_black():
    white = tf.ones((16, 16, 3))
    assert views.rotated(white, context(), seed(3), degrees=45.0).numpy().min() == 255


def test_rotated_by_quarters_is_exact_and_never_the_image_itself():
    image = np.random.default_rng(2).integers(0, 256, (12, 12, 3), np.uint8)
    turned = [views.rotated(image / np.float32(255), context(), seed(n), mode="k90").numpy() for n in range(60)]
    counts = [sum(np.array_equal(t, np.rot90(image, quarters)) for t in turned) for quarters in range(4)]
    assert counts[0] == 0 and sum(counts) == 60 and min(counts[1:]) >= 8


def test_rotated_by_any_angle_is_the_small_rotation_with_180_degrees():
    image = tf.constant(np.random.default_rng(3).random((16, 16, 3)), tf.float32)
    for n in range(5):
        ours = views.rotated(image, context(), seed(n), mode="any")
        assert np.array_equal(ours, views.rotated(image, context(), seed(n), degrees=180.0))
        assert not np.array_equal(ours, views.rotated(image, context(), seed(n)))


def test_rotated_draws_the_same_as_before_it_had_modes():
    # Literal values: a resumed or repeated run must not change with this code.
    image = tf.constant(np.arange(48, dtype=np.float32).reshape(4, 4, 3) / 48)
    assert views.rotated(image, context(), seed(1), degrees=30.0).numpy()[..., 0].tolist() == [
        [13, 28, 67, 101],
        [30, 73, 116, 158],
        [81, 123, 166, 209],
        [138, 172, 211, 226],
    ]


def test_rotated_refuses_unknown_modes_and_quarters_of_oblong_images():
    with pytest.raises(UserError, match="mode='k45' .*'k90'.* use small, k90, any"):
        views.rotated(tf.ones((4, 4, 3)), context(), seed(0), mode="k45")
    with pytest.raises(UserError, match="square images, not 4x6"):
        views.rotated(tf.ones((4, 6, 3)), context(), seed(0), mode="k90")


def test_a_seed_gives_one_result_and_another_seed_another():
    image = tf.constant(np.random.default_rng(1).random((16, 16, 3)), tf.float32)
    one, same, other = (views.rotated(image, context(), seed(n)).numpy() for n in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_draw_gives_every_other_normal_image_and_never_this_one():
    for index, expected in ((0, {1, 2, 3, 4}), (3, {0, 1, 2, 4}), (6, {0, 1, 2, 3, 4}), (-1, {0, 1, 2, 3, 4})):
        here = context(index, n_anomalous=2)
        assert {round(float(here.draw(seed(n))[0, 0, 0] * 255)) for n in range(80)} == expected


def test_draw_anomaly_gives_the_moved_anomalies_with_their_masks():
    here = context(1, n_anomalous=2)
    drawn = [here.draw_anomaly(seed(n)) for n in range(40)]
    assert {round(float(image[0, 0, 0] * 255)) for image, _ in drawn} == {5, 6}
    assert all(bool(mask[0, 0]) for _, mask in drawn)


def test_draws_from_too_few_images_are_refused():
    with pytest.raises(UserError, match="another normal image"):
        context(n_normal=1).draw(seed(0))
    with pytest.raises(UserError, match="data.n_anomalies"):
        context().draw_anomaly(seed(0))


def test_to_uint8_rounds_to_the_nearest_level_and_clips():
    values = tf.constant([-0.2, 0.49 / 255, 0.51 / 255, 1.3])
    assert views.to_uint8(values).numpy().tolist() == [0, 0, 1, 255]
    levels = tf.constant(np.arange(256, dtype=np.uint8))
    assert np.array_equal(views.to_uint8(views.to_float(levels)).numpy(), levels.numpy())


@pytest.mark.parametrize(
    "view, said",
    [
        (View("v", "rotatd"), "'rotated'"),
        (View("v", "rotated", {"degree": 3}), "'degrees'"),
        (View("v", "no_such_module:f"), "no_such_module"),
        (View("v", "jaxad.data.views:no_such_op"), "no_such_op"),
    ],
)
def test_an_unknown_op_or_option_is_refused_with_the_nearest(view, said):
    with pytest.raises(UserError, match=said):
        views.resolve(view)


def test_an_op_of_ones_own_is_named_by_its_module():
    op = views.resolve(View("v", "jaxad.data.views:rotated", {"degrees": 0.0}))
    image = tf.constant(np.random.default_rng(1).integers(0, 256, (8, 8, 3)) / 255, tf.float32)
    assert np.array_equal(op(image, context(), seed(0)).numpy(), np.rint(image.numpy() * 255))
