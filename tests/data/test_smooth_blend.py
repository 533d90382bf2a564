import numpy as np
import pytest
import tensorflow as tf
from fake_data import FakeSource, config, take
from scipy import ndimage

from jaxad.data import views
from jaxad.data.pipeline import Pipeline
from jaxad.data.synthesis import global_views as gv
from jaxad.data.synthesis import smooth_blend as sb
from jaxad.data.synthesis.cutpaste import GEOMETRY_DRAWS, corner_of, geometry
from jaxad.types import Feed, UserError, View

PLAIN = (0.0, 0.0, 0.0, 0.0)  # no jitter


def noise(side, seed=0):
    return np.random.default_rng(seed).random((side, side, 3), np.float32)


def each(function, n, like):
    """The function of the seeds (0, 7) .. (n - 1, 7), in a graph as in the pipeline."""

    @tf.function(autograph=False)
    def every(n):
        return tf.map_fn(
            lambda k: function(tf.stack([k, 7])), tf.range(n), fn_output_signature=like, parallel_iterations=1
        )

    return tf.nest.map_structure(lambda tensor: tensor.numpy(), every(tf.constant(n)))


def blends(image, n, **options):
    """(f32[n, H, W, 3], f32[n, patches, H, W])"""
    options = sb.read_options("smooth_blend", options)
    return each(lambda seed: sb.blend(tf.constant(image), seed, options), n, (tf.float32, tf.float32))


def boxes(n, side, options):
    """i[n, 6]: height, width, source row and column, target row and column of the first patch, as `blend` draws it."""

    def one(seed):
        uniform = tf.random.stateless_uniform((GEOMETRY_DRAWS + gv.JITTER_DRAWS,), tf.random.fold_in(seed, 0))
        drawn = geometry(uniform[:GEOMETRY_DRAWS], (side, side), "normal", options.area, options.aspect)
        size, _, corners = drawn
        return tf.concat([size, *(corner_of(corner, size, (side, side)) for corner in tf.unstack(corners))], axis=0)

    return each(one, n, tf.int32)


def box_of(mask):
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1


def test_without_jitter_and_softness_it_is_an_exact_copy_at_the_target():
    image = noise(64)
    made, alphas = blends(image, 40, jitter=PLAIN, alpha_sigma=0.0)
    assert set(np.unique(alphas)) == {0.0, 1.0}
    moved = 0
    for picture, mask in zip(made, alphas[:, 0] == 1, strict=True):
        assert np.array_equal(picture[~mask], image[~mask])
        top, left, height, width = box_of(mask)
        assert mask.sum() == height * width
        part = picture[top : top + height, left : left + width]
        ((y, x),) = np.argwhere((image == part[0, 0]).all(axis=-1))
        assert np.array_equal(image[y : y + height, x : x + width], part)
        moved += (y, x) != (top, left)
    assert moved > 35


def test_patches_cover_half_to_one_percent_and_lie_everywhere():
    options = sb.Options(alpha_sigma=0.0)
    found = boxes(1500, 224, options)
    shares, ratios = found[:, 0] * found[:, 1] / 224**2, np.log(found[:, 0] / found[:, 1]) / -np.log(0.3)
    tenths = [0, 0.1, 0.5, 0.9, 1]
    assert np.quantile(shares, tenths) == pytest.approx([0.005, 0.0055, 0.0075, 0.0095, 0.01], abs=2e-4)
    assert np.quantile(ratios, tenths) == pytest.approx([-1, -0.8, 0, 0.8, 1], abs=0.08)
    assert found[:, :2].min() >= 8 and found[:, :2].max() <= 42
    for side, start in ((0, 2), (1, 3), (0, 4), (1, 5)):
        room = 224 - found[:, side]
        assert ((found[:, start] + 0.5) / (room + 1)).mean() == pytest.approx(0.5, abs=0.03)
        assert (found[:, start] <= room).all()
    assert abs(np.corrcoef(found[:, 2], found[:, 4])[0, 1]) < 0.08  # where to does not depend on where from
    _, alphas = blends(noise(64), 20)
    tops = [box_of(alpha > 0)[0] for alpha in alphas[:, 0]]
    assert len(set(tops)) > 8


@pytest.mark.parametrize("sigma", [0.4, 2.0, 4.0])
def test_alpha_is_the_box_convolved_with_a_gaussian_cut_at_four_deviations(sigma):
    side = 48
    for (top, left), (height, width) in (((20, 11), (7, 5)), ((0, 40), (13, 8))):
        mask = np.zeros((side, side))
        mask[top : top + height, left : left + width] = 1
        expected = ndimage.gaussian_filter(mask, sigma, mode="constant", truncate=4)
        rows = sb.soft_edge(tf.constant(top), tf.constant(height), side, sb.running_kernel(sigma)).numpy()
        columns = sb.soft_edge(tf.constant(left), tf.constant(width), side, sb.running_kernel(sigma)).numpy()
        np.testing.assert_allclose(rows[:, None] * columns, expected, atol=1e-6)


def test_beyond_the_kernels_radius_every_pixel_is_the_images_own_and_within_it_it_changes():
    image = noise(112)
    options = sb.Options(alpha_sigma=4.0)  # 2 pixels of an image of 112
    made, alphas = blends(image, 30, alpha_sigma=4.0)
    assert alphas.shape == (30, 1, 112, 112) and alphas.min() >= 0 and alphas.max() <= 1
    for picture, alpha, (height, width, _, _, top, left) in zip(made, alphas, boxes(30, 112, options), strict=True):
        near = np.zeros((112, 112), bool)
        near[max(top - 8, 0) : top + height + 8, max(left - 8, 0) : left + width + 8] = True
        assert np.array_equal(alpha[0] > 0, near)
        assert np.array_equal(picture[~near], image[~near])
        assert np.abs(picture - image)[near].mean() > 0.01
        assert (picture != image)[alpha[0] > 0.01].mean() > 0.97


def test_the_peak_of_alpha_falls_with_sigma():
    def peak(length, sigma):
        edge = sb.soft_edge(tf.constant(100), tf.constant(length), 224, sb.running_kernel(sigma))
        return float(tf.reduce_max(edge)) ** 2

    assert peak(16, 8.0) == pytest.approx(0.47, abs=0.01) and peak(22, 8.0) == pytest.approx(0.69, abs=0.01)
    lengths = boxes(400, 224, sb.Options())[:, :2]
    for sigma, expected in ((2.0, 0.996), (4.0, 0.89), (8.0, 0.53)):
        sums = sb.running_kernel(sigma)
        edges = {n: float(tf.reduce_max(sb.soft_edge(tf.constant(100), tf.constant(n), 224, sums))) for n in range(43)}
        assert np.mean([edges[h] * edges[w] for h, w in lengths]) == pytest.approx(expected, abs=0.03)


def slow_blend(image, box, sigma, outside):
    """One patch without jitter, pixel by pixel."""
    height, width, y0, x0, top, left = box
    side = len(image)
    mask = np.zeros((side, side))
    mask[top : top + height, left : left + width] = 1
    alpha = ndimage.gaussian_filter(mask, sigma, mode="constant", truncate=4)
    made = image.astype(float)
    for y in range(side):
        for x in range(side):
            row, column = y - top + y0, x - left + x0
            if outside == "edge":
                row, column = np.clip(row, y0, y0 + height - 1), np.clip(column, x0, x0 + width - 1)
            there = image[np.clip(row, 0, side - 1), np.clip(column, 0, side - 1)]
            if outside == "zero":
                there = there * mask[y, x]
            made[y, x] = (1 - alpha[y, x]) * made[y, x] + alpha[y, x] * there
    return made


@pytest.mark.parametrize("outside", sb.OUTSIDE)
def test_each_kind_of_surroundings_equals_a_loop_over_pixels(outside):
    image = noise(56)
    options = sb.Options(jitter=PLAIN, alpha_sigma=8.0, fg_outside=outside, area=(0.02, 0.05))
    made, _ = blends(image, 8, **options._asdict())
    for picture, box in zip(made, boxes(8, 56, options), strict=True):
        np.testing.assert_allclose(picture, slow_blend(image, box, 2.0, outside), atol=1e-6)


def test_the_patch_alone_is_jittered_and_by_no_more_than_asked():
    flat = np.full((64, 64, 3), 0.5, np.float32)
    made, alphas = blends(flat, 200, jitter=(0.4, 0.0, 0.0, 0.0))
    factors = []
    for picture, alpha in zip(made, alphas[:, 0], strict=True):
        seen = alpha > 0.1
        factor = 1 + (picture[seen] - 0.5) / (alpha[seen][:, None] * 0.5)
        assert np.ptp(factor) < 1e-4
        factors.append(factor.mean())
    assert np.quantile(factors, [0, 0.5, 1]) == pytest.approx([0.6, 1.0, 1.4], abs=0.07)


def test_the_contrast_is_about_the_mean_of_the_patch():
    halves = np.full((64, 64, 3), 0.2, np.float32)
    halves[:, 32:] = 0.6
    made, alphas = blends(halves, 60, jitter=(0.0, 0.4, 0.0, 0.0), alpha_sigma=0.0)
    plain = [np.unique(picture[alpha > 0].round(5)) for picture, alpha in zip(made, alphas[:, 0], strict=True)]
    alike = [levels[0] for levels in plain if len(levels) == 1]  # patches from one side
    assert len(alike) > 30 and set(np.float32(alike)) == {np.float32(0.2), np.float32(0.6)}
    assert any(len(levels) == 2 and levels[0] not in alike for levels in plain)  # and those from both are changed


def test_several_patches_are_blended_one_after_the_other_and_may_reach_an_alpha_of_one():
    image = noise(64)
    made, alphas = blends(image, 12, n_patches=3, renormalise=True, alpha_sigma=8.0)
    assert alphas.shape == (12, 3, 64, 64) and np.all(alphas.max(axis=(2, 3)) == 1.0)
    one, first = blends(image, 12, renormalise=True, alpha_sigma=8.0)
    assert np.array_equal(first[:, 0], alphas[:, 0]) and not np.array_equal(alphas[:, 0], alphas[:, 1])
    for picture, single, alpha in zip(made, one, alphas, strict=True):
        assert np.array_equal(picture[(alpha == 0).all(axis=0)], image[(alpha == 0).all(axis=0)])
        first_alone = (alpha[1:] == 0).all(axis=0)
        assert np.array_equal(picture[first_alone], single[first_alone])
    softer = sb.soft_edge(tf.constant(20), tf.constant(5), 64, sb.running_kernel(8.0 * 64 / 224))
    assert float(tf.reduce_max(softer)) < 0.8


def op(image, seed, **options):
    made = sb.smooth_blend(tf.constant(image), None, seed, **options)
    return made["image"], made["mask"]


def test_the_mask_of_the_op_is_about_the_patch_for_every_sigma():
    image, options = noise(112), sb.Options(area=(0.02, 0.03), aspect=0.5)
    for sigma in (0.0, 6.0):
        given = dict(area=(0.02, 0.03), aspect=0.5, alpha_sigma=sigma)
        pictures, masks = each(lambda seed, given=given: op(image, seed, **given), 15, (tf.uint8, tf.bool))
        assert pictures.shape == (15, 112, 112, 3) and masks.shape == (15, 112, 112)
        for mask, (height, width, _, _, top, left) in zip(masks, boxes(15, 112, options), strict=True):
            patch = np.zeros((112, 112), bool)
            patch[top : top + height, left : left + width] = True
            shared = (mask & patch).sum() / (mask | patch).sum()
            assert shared == 1.0 if sigma == 0 else shared > 0.6
    assert not np.array_equal(pictures, np.broadcast_to(views.to_uint8(image), pictures.shape))


def test_a_seed_gives_one_picture_and_the_graph_has_no_random_state():
    image = noise(48)
    once, again = (blends(image, 4) for _ in range(2))
    assert np.array_equal(once[0], again[0]) and len({made.tobytes() for made in once[0]}) == 4
    traced = tf.function(lambda seed: op(image, seed, n_patches=2), autograph=False)
    graph = traced.get_concrete_function(tf.TensorSpec((2,), tf.int32)).graph
    assert [tuple(tensor.shape) for tensor in graph.structured_outputs] == [(48, 48, 3), (48, 48)]
    kinds = {node.op for f in graph.as_graph_def().library.function for node in f.node_def}
    kinds |= {node.op for node in graph.as_graph_def().node}
    assert not [kind for kind in kinds if "PyFunc" in kind or ("Random" in kind and "Stateless" not in kind)]


def test_the_pipeline_serves_the_view_and_its_mask():
    feed = Feed(4, views=(View("anomaly", "smooth_blend", {"area": [0.05, 0.1], "alpha_sigma": 2, "n_patches": 2}),))
    (batch,) = take(Pipeline(config(), FakeSource()), feed, 0, 1)
    picture, mask = batch.views["anomaly"], batch.views["anomaly_mask"]
    assert picture.dtype == np.float32 and mask.dtype == bool
    changed = (picture != batch.image).any(axis=-1)
    assert changed[mask].mean() > 0.95 and 0.03 < mask.mean() < 0.25 and 0.1 < changed.mean() < 0.6


@pytest.mark.parametrize(
    "options, said",
    [
        ({"sigma": 2.0}, "no option 'sigma' of SmoothBlend; the nearest is 'alpha_sigma'"),
        ({"area": (0.02, 0.01)}, r"area=\(0.02, 0.01\); it must be \(low, high\)"),
        ({"area": [0.0, 0.01]}, r"area=\(0.0, 0.01\)"),
        ({"aspect": 0.0}, r"aspect=0.0; it must be in \(0, 1\]"),
        ({"aspect": 3.0}, "aspect=3.0"),
        ({"jitter": (0.4, 0.4, 0.4)}, "jitter=.* four strengths"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "jitter=.*hue at most 0.5"),
        ({"jitter": (0.4, -0.4, 0.4, 0.1)}, "jitter="),
        ({"alpha_sigma": -1.0}, "alpha_sigma=-1.0"),
        ({"fg_outside": "black"}, "fg_outside='black'; it must be one of context, zero, edge"),
        ({"n_patches": 0}, "n_patches=0; it must be a whole number"),
        ({"n_patches": 1.5}, "n_patches=1.5"),
    ],
)
def test_bad_options_are_refused_before_the_first_batch(options, said):
    feed = Feed(2, views=(View("anomaly", "smooth_blend", options),))
    with pytest.raises(UserError, match=f"op 'smooth_blend'.*{said}") as error:
        Pipeline(config(), FakeSource()).batches(feed, seed=0, stage="s", start=0, stop=1, rows=slice(None))
    assert "\n" not in str(error.value)
