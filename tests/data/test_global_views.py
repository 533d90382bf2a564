import colorsys
import itertools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy import ndimage

from jaxad.data.synthesis import global_views as gv


def noise(height, width, seed=0):
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


def seeds(n):
    return tf.stack([tf.range(n), tf.fill([n], 9)], axis=1)


def each(function, over, like):
    """The function of every row of `over`, in a graph as in the pipeline."""

    @tf.function(autograph=False)
    def every(rows):
        return tf.map_fn(function, rows, fn_output_signature=like, parallel_iterations=1)

    return tf.nest.map_structure(lambda tensor: tensor.numpy(), every(over))


def slow_box(u, within, scale, relative):
    """torchvision's loop over ten tries, told what it draws."""
    top, left, height, width = within
    own = width / height if relative else 1.0
    low, high = 3 / 4 * own, 4 / 3 * own
    for k in range(10):
        pixels = height * width * (scale[0] + (scale[1] - scale[0]) * u[k])
        aspect = own * np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * u[10 + k])
        w, h = round((pixels * aspect) ** 0.5), round((pixels / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return [top + int(u[20] * (height - h + 1)), left + int(u[21] * (width - w + 1)), h, w]
    w, h = width, height
    if width / height < low:
        h = round(width / low)
    elif width / height > high:
        w = round(height * high)
    return [top + (height - h) // 2, left + (width - w) // 2, h, w]


def boxes(uniform, within, scale, relative=False):
    within = tf.constant(within)
    return each(lambda u: gv.crop_box(u, within, scale, relative=relative), tf.constant(uniform), tf.int32)


@pytest.mark.parametrize(
    "within, scale, relative",
    [
        ([0, 0, 64, 64], (0.2, 1.0), False),
        ([3, 7, 61, 47], (0.9, 1.0), True),
        ([5, 1, 40, 90], (0.3, 1.0), False),  # often none of the ten fits
        ([0, 2, 90, 40], (0.9, 1.0), False),
    ],
)
def test_a_box_is_the_first_of_ten_tries_that_fits_and_else_the_middle(within, scale, relative):
    uniform = np.random.default_rng(1).random((400, gv.BOX_DRAWS), np.float32)
    found = boxes(uniform, within, scale, relative)
    expected = np.array([slow_box(u.astype(float), within, scale, relative) for u in uniform])
    same = (found == expected).all(axis=1)
    assert same.mean() > 0.99 and np.abs(found - expected).max() <= 1  # single precision, at the odd half pixel
    top, left, height, width = (found - [*within[:2], 0, 0]).T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= within[2]).all() and (left + width <= within[3]).all()


def test_boxes_are_uniform_in_area_place_and_the_logarithm_of_the_aspect():
    uniform = np.random.default_rng(2).random((3000, gv.BOX_DRAWS), np.float32)
    top, left, height, width = boxes(uniform, [0, 0, 224, 224], (0.08, 0.7), False).T
    shares, ratios = height * width / 224**2, np.log(width / height) / np.log(4 / 3)
    tenths = [0, 0.1, 0.5, 0.9, 1]
    assert np.quantile(shares, tenths) == pytest.approx([0.08, 0.142, 0.39, 0.638, 0.7], abs=0.02)
    assert np.quantile(ratios, tenths) == pytest.approx([-1, -0.8, 0, 0.8, 1], abs=0.06)
    assert abs(np.corrcoef(shares, ratios)[0, 1]) < 0.06
    for start, size in ((top, height), (left, width)):
        places = (start + 0.5) / (225 - size)
        assert np.quantile(places, tenths) == pytest.approx([0, 0.1, 0.5, 0.9, 1], abs=0.04)


def test_the_fallback_is_the_widest_crop_in_the_middle_that_is_not_too_oblong():
    full = np.full((1, gv.BOX_DRAWS), 0.999, np.float32)
    assert boxes(full, [0, 0, 30, 100], (1.0, 1.0)).tolist() == [[0, 30, 30, 40]]
    assert boxes(full, [0, 0, 100, 30], (1.0, 1.0)).tolist() == [[30, 0, 40, 30]]
    assert boxes(full, [4, 6, 50, 50], (1.0, 1.0)).tolist() == [[4, 6, 50, 50]]
    assert boxes(full, [4, 6, 30, 100], (1.0, 1.0), relative=True).tolist() == [[4, 6, 30, 100]]


@pytest.mark.parametrize("how, tolerance", [("bilinear", 1e-5), ("bicubic", 2e-3)])
@pytest.mark.parametrize("box", [(3, 5, 11, 9), (2, 1, 37, 30), (1, 4, 38, 10)])  # magnified, shrunk, one of either
def test_a_crop_is_resampled_as_pillow_does_without_what_is_outside(how, tolerance, box):
    image, (top, left, height, width) = noise(40, 36), box
    made = gv.resample(tf.constant(image), gv.Place(tf.constant(box), tf.constant(False)), 16, how).numpy()
    method = getattr(Image.Resampling, how.upper())
    cut = image[top : top + height, left : left + width]
    planes = [Image.fromarray(cut[..., k]).resize((16, 16), method) for k in range(3)]
    expected = np.clip(np.stack([np.asarray(plane) for plane in planes], axis=-1), 0, 1)
    np.testing.assert_allclose(made, expected, atol=tolerance)
    flipped = gv.resample(tf.constant(image), gv.Place(tf.constant(box), tf.constant(True)), 16, how)
    assert np.array_equal(flipped, made[:, ::-1])


def slow_jitter(pixels, by, order, weights):
    """f64[n, 3] through the four changes, one pixel at a time."""

    def grey(pixel):
        return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]

    for k in order:
        mean = np.average([grey(pixel) for pixel in pixels], weights=weights)
        done = []
        for pixel in pixels:
            if k == 3:
                hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
                done.append(colorsys.hsv_to_rgb((hue + by[3]) % 1.0, saturation, value))
            else:
                other = (0.0, mean, grey(pixel))[k]
                done.append([min(max(by[k] * x + (1 - by[k]) * other, 0.0), 1.0) for x in pixel])
        pixels = np.array(done)
    return pixels


@pytest.mark.parametrize("by", [(1.4, 0.6, 1.3, 0.07), (0.5, 1.7, 0.2, -0.19)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_jitter_equals_a_loop_over_pixels_in_every_order(by, weighted):
    corners = np.array(list(itertools.product([0.0, 0.5, 1.0], repeat=3)), np.float32)
    pixels = np.concatenate([corners, noise(3, 4).reshape(-1, 3)])
    weights = (np.arange(len(pixels)) % 3 == 0).astype(np.float32) if weighted else None
    orders = np.array(list(itertools.permutations(range(4))), np.int32)
    planes = gv.to_planes(tf.constant(pixels))

    def one(order):
        return gv.from_planes(gv.jitter(planes, gv.Jitter(tf.constant(by, tf.float32), order), weights))

    found = each(one, tf.constant(orders), tf.float32)
    expected = [slow_jitter(pixels.astype(float), by, order, weights) for order in orders]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert len({made.round(4).tobytes() for made in found}) >= 12  # the order matters


def test_factors_are_uniform_about_one_never_negative_and_every_order_is_as_likely():
    uniform = np.random.default_rng(3).random((4800, gv.JITTER_DRAWS), np.float32)
    like = gv.Jitter(tf.float32, tf.int32)
    by, order = each(lambda u: gv.draw_jitter(u, (0.4, 1.5, 0.1, 0.2)), tf.constant(uniform), like)
    assert by.min(axis=0) == pytest.approx([0.6, 0.0, 0.9, -0.2], abs=0.01) and by.min(axis=0)[1] >= 0
    assert by.max(axis=0) == pytest.approx([1.4, 2.5, 1.1, 0.2], abs=0.01)
    assert by.mean(axis=0) == pytest.approx([1.0, 1.25, 1.0, 0.0], abs=0.03)
    kinds, counts = np.unique(order, axis=0, return_counts=True)
    assert len(kinds) == 24 and counts.min() > 140 and counts.max() < 260


def test_colours_go_to_planes_and_back_bit_for_bit():
    image = noise(9, 5)
    planes = gv.to_planes(tf.constant(image))
    assert np.array_equal(planes, image.reshape(-1, 3).T)
    assert np.array_equal(gv.from_planes(planes), image.reshape(-1, 3))


def test_the_soft_focus_is_a_gaussian_and_at_the_border_one_of_what_is_inside():
    size, sigma = 24, 1.3
    image = noise(size, size)
    planes = tf.constant(image.reshape(-1, 3).T)
    made = gv.softened(planes, tf.constant(sigma), size).numpy().T.reshape(size, size, 3)
    smooth = [ndimage.gaussian_filter(image[..., k], sigma, truncate=8, mode="constant") for k in range(3)]
    inside = ndimage.gaussian_filter(np.ones((size, size)), sigma, truncate=8, mode="constant")
    np.testing.assert_allclose(made, np.stack(smooth, -1) / inside[..., None], atol=1e-5)


def recipe(**changed):
    off = dict(jitter_p=0.0, grey_p=0.0, blur=(1.5, 2.0), blur_p=0.0)
    return gv.STRENGTHS["simsiam"] | off | changed


@pytest.mark.parametrize("change", ["jitter_p", "grey_p", "blur_p"])
def test_each_change_is_done_with_its_own_probability(change):
    image = tf.constant(noise(64, 64))
    chosen = recipe(**{change: 0.3})
    same = each(lambda seed: tf.reduce_all(gv.look(image, seed, chosen) == image), seeds(400), tf.bool)
    assert np.mean(~same) == pytest.approx(0.3, abs=0.08)
    always = recipe(**{change: 1.0})
    made = each(lambda seed: gv.look(image, seed, always), seeds(20), tf.float32)
    assert made.shape == (20, 64, 64, 3) and made.min() >= 0 and made.max() <= 1.000001
    assert (made != image.numpy()).any(axis=(1, 2, 3)).all()
    grey = np.ptp(made, axis=-1).max(axis=(1, 2)) < 1e-6
    assert grey.all() if change == "grey_p" else not grey.any()


def test_moco_v1_makes_grey_before_the_jitter_and_the_others_after_it():
    image, seed = tf.constant(noise(16, 16)), tf.constant([4, 1])
    grey = (image.numpy() @ gv.LUMA).repeat(3, axis=-1)
    colours = dict(jitter=(0.0, 0.0, 0.9, 0.4), jitter_p=1.0, grey_p=1.0)
    before = gv.look(image, seed, recipe(grey_first=True, **colours))
    after = gv.look(image, seed, recipe(grey_first=False, **colours))
    np.testing.assert_allclose(before, grey, atol=1e-5)  # grey has no saturation and no hue
    assert np.abs(after - grey).max() > 0.02
    assert [name for name, chosen in gv.STRENGTHS.items() if chosen["grey_first"]] == ["moco_v1"]


def test_deviations_scale_with_the_side():
    for size in (112, 224):
        image = np.zeros((size, size, 3), np.float32)
        image[size // 2, size // 2] = 1.0
        made = gv.look(tf.constant(image), tf.constant([1, 1]), recipe(blur=(2.0, 2.0), blur_p=1.0)).numpy()
        away = np.arange(size) - size // 2
        variance = (made[..., 0].sum(axis=0) * away**2).sum()
        assert variance**0.5 == pytest.approx(2.0 * size / 224, rel=0.06)


def test_where_the_weak_focus_is_too_faint_for_a_level_it_is_left_out_and_else_it_is_not():
    chosen = gv.STRENGTHS["weak"] | dict(jitter_p=0.0, blur_p=1.0, blur=(0.3, 0.3))
    small, large = (tf.constant(noise(size, size)) for size in (64, 224))
    assert gv.look(small, tf.constant([1, 1]), chosen) is small
    change = np.abs(gv.look(large, tf.constant([1, 1]), chosen) - large).max()
    assert 1 / 255 < change < 5 / 255


@pytest.mark.parametrize("strength", ["moco_v1", "simclr", "weak"])
def test_a_view_depends_on_its_seed_alone_and_has_a_static_shape(strength):
    image = tf.constant(noise(30, 40))

    def one(seed):
        return gv.global_view(image, seed, size=24, strength=strength)

    order = np.random.default_rng(0).permutation(12)
    made = each(one, seeds(12), tf.float32)
    again = each(one, tf.gather(seeds(12), order), tf.float32)
    assert made.shape == (12, 24, 24, 3) and made.min() >= 0 and made.max() <= 1.000001
    assert np.array_equal(made[order], again)
    assert len({view.tobytes() for view in made}) == 12
    graph = tf.function(one, autograph=False).get_concrete_function(tf.TensorSpec((2,), tf.int32)).graph
    assert graph.structured_outputs.shape == (24, 24, 3)
    kinds = {node.op for f in graph.as_graph_def().library.function for node in f.node_def}
    kinds |= {node.op for node in graph.as_graph_def().node}
    assert not [kind for kind in kinds if "Random" in kind and "Stateless" not in kind]


def test_supervised_views_are_crops_and_flips_and_nothing_else():
    brighter = np.linspace(0, 1, 64, dtype=np.float32)[None, :, None]  # to the right
    ramp = np.broadcast_to(brighter, (64, 64, 3)) * np.float32([1, 0.5, 0])
    made = each(lambda s: gv.global_view(tf.constant(ramp), s, size=16, strength="supervised"), seeds(200), tf.float32)
    np.testing.assert_allclose(made[..., 1], made[..., 0] / 2, atol=1e-6)
    assert (made[..., 2] == 0).all()
    slope = made[:, 8, -1, 0] - made[:, 8, 0, 0]
    assert np.mean(slope < 0) == pytest.approx(0.5, abs=0.11)
    assert np.abs(slope).min() < 0.4 and np.abs(slope).max() > 0.85
