import numpy as np
import pytest
import tensorflow as tf

from jaxad.data import views
from jaxad.data.synthesis.flip_jitter import flip_jitter
from jaxad.types import UserError, View

HEIGHT, WIDTH = 6, 9


@pytest.fixture(scope="module")
def image():
    """No two pixels are equal, none is near black or white."""
    return np.random.default_rng(0).integers(60, 180, (HEIGHT, WIDTH, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def mask():
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    drawn[1:3, 5:8] = True
    return drawn


def made(image, mask, n, **options):
    context = views.Context(tf.constant(2), tf.constant(True), tf.constant(mask), 5, 3, None)
    result = flip_jitter(views.to_float(tf.constant(image)), context, tf.constant([n, 7]), **options)
    return result["image"].numpy(), result["mask"].numpy()


def flips(mask, flipped):
    """Which (vertical, horizontal) flips lead from one mask to the other."""
    return [
        (v, h)
        for v in (False, True)
        for h in (False, True)
        if (mask[:: -1 if v else 1, :: -1 if h else 1] == flipped).all()
    ]


def test_image_and_mask_are_flipped_together_each_way_half_of_the_time(image, mask):
    seen = []
    for n in range(120):
        changed, flipped = made(image, mask, n, jitter=0.0)
        ((v, h),) = flips(mask, flipped)
        np.testing.assert_array_equal(changed, image[:: -1 if v else 1, :: -1 if h else 1])
        seen.append((v, h))
    counts = [seen.count(each) for each in ((False, False), (False, True), (True, False), (True, True))]
    assert min(counts) >= 15 and sum(counts) == 120


def test_jitter_changes_the_colours_a_little_and_never_the_mask(image, mask):
    changes = []
    for n in range(60):
        changed, same = made(image, mask, n, flip=False, jitter=0.1)
        np.testing.assert_array_equal(same, mask)
        changes.append(np.abs(changed.astype(float) - image).mean())
    assert 2 < np.mean(changes) < 20 and min(changes) > 0
    stronger = [np.abs(made(image, mask, n, flip=False, jitter=0.4)[0].astype(float) - image).mean() for n in range(60)]
    assert np.mean(stronger) > 2 * np.mean(changes)


def test_without_flip_and_jitter_it_is_the_image(image, mask):
    changed, same = made(image, mask, 3, flip=False, jitter=0.0)
    np.testing.assert_array_equal(changed, image)
    np.testing.assert_array_equal(same, mask)
    assert changed.dtype == np.uint8 and same.dtype == bool


def test_a_seed_gives_one_result_and_another_seed_another(image, mask):
    (one, _), (same, _), (other, _) = (made(image, mask, n) for n in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_colours_do_not_depend_on_whether_the_image_is_flipped(image, mask):
    for n in range(8):
        (flipped, there), (plain, _) = (made(image, mask, n, flip=flip, jitter=0.2) for flip in (True, False))
        ((v, h),) = flips(mask, there)
        assert np.abs(flipped.astype(int) - plain[:: -1 if v else 1, :: -1 if h else 1]).max() <= 1  # order of the mean


def test_it_is_the_op_flip_jitter_and_shapes_are_static(image, mask):
    op = views.resolve(View("augmented", "flip_jitter", {"flip": True, "jitter": 0.1}))

    @tf.function
    def graph(seed):
        context = views.Context(tf.constant(2), tf.constant(True), tf.constant(mask), 5, 3, None)
        result = op(views.to_float(tf.constant(image)), context, seed)
        assert result["image"].shape == (HEIGHT, WIDTH, 3) and result["mask"].shape == (HEIGHT, WIDTH)
        return result

    found = graph(tf.constant([4, 7]))
    eager = made(image, mask, 4)
    assert np.abs(found["image"].numpy().astype(int) - eager[0]).max() <= 1
    np.testing.assert_array_equal(found["mask"], eager[1])


@pytest.mark.parametrize("jitter", [-0.1, 1.5])
def test_a_jitter_outside_0_to_1_is_refused(image, mask, jitter):
    with pytest.raises(UserError, match=f"jitter={jitter}"):
        made(image, mask, 0, jitter=jitter)
