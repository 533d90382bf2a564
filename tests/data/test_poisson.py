import numpy as np
import pytest
import tensorflow as tf
from scipy import fft, ndimage

from jaxad.data.synthesis import poisson


def picture(seed, height, width, sigma=2.0):
    """u8[height, width, 3]: smooth noise over the whole range, no two seeds alike."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(height, width, 3)), (sigma, sigma, 0))
    return np.rint(255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


def clone(patch, destination, mixed=False):
    return poisson.clone(tf.constant(patch), tf.constant(destination), mixed=mixed).numpy()


def by_scipy(patch, destination, mixed):
    """The same blend written as the specification's text: all of R, slow loops over channels, scipy's transform."""
    result = destination.copy()
    for channel in range(3):
        p, d = (image[1:-1, 1:-1, channel].astype(float) for image in (patch, destination))
        gradients = []
        inner = np.zeros(p.shape, bool)
        inner[3:-3, 3:-3] = True
        (py, px), (dy, dx) = ([np.diff(i, axis=a, append=0) for a in (0, 1)] for i in (p, d))
        take = inner & (np.abs(px - py) > np.abs(dx - dy)) if mixed else inner
        gradients = [np.where(take, of_p, of_d) for of_p, of_d in ((py, dy), (px, dx))]
        divergence = np.zeros(p.shape)
        divergence[1:] += np.diff(gradients[0], axis=0)
        divergence[:, 1:] += np.diff(gradients[1], axis=1)
        ring = d.copy()
        ring[1:-1, 1:-1] = 0
        right = (divergence - ndimage.laplace(ring, mode="constant"))[1:-1, 1:-1]
        i, j = (np.arange(1, n - 1) for n in p.shape)
        values = 2 * np.cos(np.pi * i / (p.shape[0] - 1))[:, None] + 2 * np.cos(np.pi * j / (p.shape[1] - 1)) - 4
        solved = fft.idstn(fft.dstn(right, type=1) / values, type=1)
        result[2:-2, 2:-2, channel] = np.clip(solved, 0, 255).astype(np.uint8)
    return result


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("size", [(9, 9), (10, 9), (23, 40), (64, 31), (102, 102)])
def test_clone_equals_the_specification_in_float64_within_a_level(size, mixed):
    patch, destination = picture(1, *size), picture(2, *size)
    ours, theirs = clone(patch, destination, mixed), by_scipy(patch, destination, mixed)
    assert np.abs(ours.astype(int) - theirs).max() <= 1  # truncation: a rounding error can cost a level
    assert (ours != theirs).mean() < 0.01
    assert np.abs(ours.astype(int) - destination).max() > 5


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("size", [(40, 40), (41, 41), (24, 61), (33, 20), (10, 12), (101, 64)])
def test_clone_equals_opencv_within_a_level(size, mixed):
    cv2 = pytest.importorskip("cv2")
    height, width = size
    whole, patch = picture(3, 180, 200), picture(4, height, width)
    top, left = 37, 52
    destination = whole[top : top + height, left : left + width]
    mask = np.zeros(size, np.uint8)
    mask[1:-1, 1:-1] = 255
    flag = cv2.MIXED_CLONE if mixed else cv2.NORMAL_CLONE
    # OpenCV places a box of w pixels at centre - w // 2, so the centre of an odd width is rounded down.
    theirs = cv2.seamlessClone(patch, whole, mask, (left + width // 2, top + height // 2), flag)
    ours = whole.copy()
    ours[top : top + height, left : left + width] = clone(patch, destination, mixed)
    assert (theirs != whole).any(axis=2).sum() > 0.5 * (height - 9) * (width - 9)
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("mixed", [False, True])
def test_a_patch_equal_to_the_destination_changes_nothing(mixed):
    destination = picture(5, 37, 50)
    assert np.array_equal(clone(destination, destination, mixed), destination)


def test_a_constant_offset_of_the_patch_changes_nothing():
    destination, patch = picture(6, 40, 33), picture(7, 40, 33) // 2
    assert np.array_equal(clone(patch, destination), clone(patch + 90, destination))
    assert not np.array_equal(clone(patch, destination), destination)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_outer_two_pixels_stay(mixed):
    patch, destination = picture(8, 30, 44), picture(9, 30, 44)
    blended = clone(patch, destination, mixed)
    changed = (blended != destination).any(axis=2)
    assert not changed[:2].any() and not changed[-2:].any() and not changed[:, :2].any() and not changed[:, -2:].any()
    assert changed[2:-2, 2:-2].mean() > 0.5


def test_mixed_keeps_a_structured_destination_under_a_flat_patch_and_normal_does_not():
    flat, destination = np.full((40, 40, 3), 128, np.uint8), picture(10, 40, 40)
    assert np.array_equal(clone(flat, destination, mixed=True), destination)
    assert np.abs(clone(flat, destination).astype(int) - destination).max() > 20


def test_sizes_are_dynamic_and_the_result_does_not_depend_on_the_graph():
    @tf.function(input_signature=[tf.TensorSpec((None, None, 3), tf.uint8)] * 2, autograph=False)
    def traced(patch, destination):
        return poisson.clone(patch, destination, mixed=False)

    for size in ((9, 30), (17, 12)):
        patch, destination = picture(11, *size), picture(12, *size)
        assert np.array_equal(traced(patch, destination).numpy(), clone(patch, destination))
