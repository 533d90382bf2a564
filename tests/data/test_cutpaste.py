import numpy as np
import pytest
import speed
import tensorflow as tf
from fake_data import FakeSource, config, take
from scipy import ndimage

from jaxad.data import views
from jaxad.data.pipeline import Pipeline
from jaxad.data.synthesis import cutpaste as cp
from jaxad.data.synthesis import hard_augment as augment
from jaxad.types import Feed, UserError, View


def noise(side, seed=0):
    """u8[side, side, 3], no two pixels alike and all 256 levels in it."""
    levels = (np.arange(side * side) + 5000 * seed) * 10368889 % 2**24
    return np.stack([levels >> 16, levels >> 8 & 255, levels & 255], -1).reshape(side, side, 3).astype(np.uint8)


def flat(level, side=64):
    return np.full((side, side, 3), level, np.uint8)


def context(stack, index=0):
    """A Context of u8[n, side, side, 3]."""
    n, side = stack.shape[:2]

    def load(i):
        return tf.gather(stack, i), tf.zeros((side, side), bool)

    return views.Context(tf.constant(index), tf.constant(False), tf.zeros((side, side), bool), n, 0, load)


GRAPHS = {}


def draws(images, n, index=0, **options):
    """(u8[n, H, W, 3], bool[n, H, W]), the op for seeds 0 .. n - 1, in a graph as in the pipeline."""
    stack = np.stack(images)
    key = stack.shape, index, tuple(sorted(options.items())), augment.SIMCLR, augment.draw

    def one(k, stack):
        made = cp.cutpaste(views.to_float(stack[index]), context(stack, index), tf.stack([k, 7]), **options)
        return made["image"], made["mask"]

    @tf.function(autograph=False)
    def every(n, stack):
        kinds = tf.uint8, tf.bool
        return tf.map_fn(lambda k: one(k, stack), tf.range(n), fn_output_signature=kinds, parallel_iterations=1)

    graph = GRAPHS.setdefault(key, every)  # traced once for all images of a size
    return [tensor.numpy() for tensor in graph(tf.constant(n), tf.constant(stack))]


def boxes(masks):
    """i[n, 4]: top, left, height, width of what is True."""
    found = []
    for mask in masks:
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        found.append([rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1])
    return np.array(found)


def geometries(n, side=256, variant="normal", area=(0.02, 0.15), aspect=0.3):
    """(sizes i[n, 2], angles f[n]) of `n` draws."""
    uniform = tf.random.stateless_uniform((n, cp.GEOMETRY_DRAWS), (3, 5))

    def one(u):
        size, angle, _ = cp.geometry(u, (side, side), variant, area, aspect)
        return size, tf.zeros(()) if angle is None else angle

    @tf.function(autograph=False)
    def every():
        return tf.map_fn(one, uniform, fn_output_signature=(tf.int32, tf.float32))

    return [tensor.numpy() for tensor in every()]


def packed(image):
    """i[H, W]: one number per colour."""
    return image.astype(np.int64) @ [65536, 256, 1]


def found_in(whole, part):
    """Whether the packed `part` is cut out of the packed `whole`, in which no two pixels are alike."""
    at = np.argwhere(whole == part[0, 0])
    if len(at) != 1:
        return False
    (y, x), (height, width) = at[0], part.shape
    return np.array_equal(whole[y : y + height, x : x + width], part)


def pasted(pictures, masks):
    """The rectangles, packed."""
    for picture, (y, x, height, width) in zip(pictures, boxes(masks), strict=True):
        yield packed(picture[y : y + height, x : x + width])


def rearranged(whole, order):
    """[H, W] with its quadrants in this order. Of odd sides, halves alone are swapped; their middle stays."""
    height, width = whole.shape
    if height % 2 or width % 2:
        assert order in augment.STATES["halves"]
        rows, columns = np.arange(height), np.arange(width)
        for index, swap in ((rows, order[0] >= 2), (columns, order[0] % 2)):
            half = len(index) // 2
            if swap:
                index[:half], index[-half:] = index[-half:].copy(), index[:half].copy()
        return whole[np.ix_(rows, columns)]
    parts = [half for row in np.vsplit(whole, 2) for half in np.hsplit(row, 2)]
    a, b, c, d = (parts[i] for i in order)
    return np.vstack([np.hstack([a, b]), np.hstack([c, d])])


OPTIONS = [
    {},
    {"hard": False},
    {"level": "patch", "perm_mode": "quadrants"},
    {"variant": "union", "level": "patch", "allow_identity": True},
    {"source": "other", "min_change": 0.05},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_outside_the_mask_every_pixel_is_the_images_own(options):
    images = [noise(64, seed) for seed in range(3)]
    pictures, masks = draws(images, 40, **options)
    assert (pictures.shape, pictures.dtype, masks.shape, masks.dtype) == ((40, 64, 64, 3), np.uint8, (40, 64, 64), bool)
    for picture, mask in zip(pictures, masks, strict=True):
        assert np.array_equal(picture[~mask], images[0][~mask])
        assert mask.any() and (picture[mask] != images[0][mask]).any(axis=-1).mean() > 0.95
    assert len(np.unique(images[0])) == 256  # so every level came back


def test_a_seed_gives_one_picture_and_another_seed_another():
    once, again = (draws([noise(64)], 2) for _ in range(2))
    assert np.array_equal(once[0], again[0]) and np.array_equal(once[1], again[1])
    assert not np.array_equal(once[0][0], once[0][1])


@pytest.mark.parametrize("options", [{"min_change": 0.02}, {"variant": "union", "mask_mode": "diff", "level": "patch"}])
def test_the_result_has_a_static_shape_and_its_graph_no_python_and_no_random_state(options):
    here = context(noise(32)[None])

    @tf.function(input_signature=[tf.TensorSpec((32, 32, 3)), tf.TensorSpec((2,), tf.int32)], autograph=False)
    def traced(image, seed):
        return cp.cutpaste(image, here, seed, **options)

    graph = traced.get_concrete_function().graph
    image, mask = (graph.structured_outputs[key] for key in ("image", "mask"))
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((32, 32, 3), tf.uint8, (32, 32), tf.bool)
    functions = graph.as_graph_def().library.function
    kinds = {node.op for node in graph.as_graph_def().node} | {node.op for f in functions for node in f.node_def}
    assert not [kind for kind in kinds if "PyFunc" in kind]
    assert not [kind for kind in kinds if "Random" in kind and "Stateless" not in kind]


@pytest.mark.parametrize("level", cp.LEVELS)
def test_the_mask_is_a_rectangle_of_two_to_fifteen_percent(level):
    _, masks = draws([noise(64)], 300, level=level)
    found = boxes(masks)
    for mask, (top, left, height, width) in zip(masks, found, strict=True):
        assert mask[top : top + height, left : left + width].all() and mask.sum() == height * width
    shares = masks.mean(axis=(1, 2))
    rounding = 0.5 * found[:, 2:].max() / 64**2
    assert shares.min() >= 0.02 - rounding and shares.max() <= 0.15 + rounding
    assert shares.mean() == pytest.approx(0.085, abs=0.006)


def test_rectangles_are_uniform_in_area_and_log_uniform_in_aspect():
    sizes, _ = geometries(4000)
    shares, ratios = sizes.prod(axis=1) / 256**2, np.log(sizes[:, 0] / sizes[:, 1])
    assert np.quantile(shares, [0, 0.1, 0.5, 0.9, 1]) == pytest.approx([0.02, 0.033, 0.085, 0.137, 0.15], abs=0.003)
    most = -np.log(0.3)
    assert np.quantile(ratios, [0, 0.1, 0.5, 0.9, 1]) / most == pytest.approx([-1, -0.8, 0, 0.8, 1], abs=0.05)
    assert sizes.min() == pytest.approx(20, abs=1) and sizes.max() == pytest.approx(181, abs=2)  # as the paper's crops
    assert abs(np.corrcoef(shares, ratios)[0, 1]) < 0.05


def test_options_change_area_and_aspect_and_a_side_never_exceeds_the_images():
    assert (np.ptp(geometries(200, 64, area=(0.25, 0.25), aspect=1.0)[0], axis=0) == 0).all()
    sizes, _ = geometries(500, 64, area=(0.9, 0.95), aspect=0.1)
    assert sizes.max() == 64 and sizes.min() >= 57
    assert (sizes.prod(axis=1) / 64**2).mean() == pytest.approx(0.925, abs=0.01)


def test_pastes_reach_every_place_and_are_uniform():
    _, masks = draws([noise(64)], 500)
    top, left, height, width = boxes(masks).T
    for start, size in ((top, height), (left, width)):
        room = 64 - size
        assert (start <= room).all() and (start == 0).any() and (start == room).any()
        assert ((start + 0.5) / (room + 1)).mean() == pytest.approx(0.5, abs=0.04)
    assert masks.any(axis=0).mean() > 0.98


def test_without_hard_augmentation_a_crop_of_the_image_is_pasted_elsewhere():
    whole = packed(noise(64))
    assert all(found_in(whole, part) for part in pasted(*draws([noise(64)], 100, hard=False, jitter=0.0)))


@pytest.fixture
def colours_kept(monkeypatch):
    monkeypatch.setattr(augment, "SIMCLR", augment.Strengths(0, 0, 0, 0))


@pytest.mark.parametrize("mode", augment.STATES)
def test_at_patch_level_a_turned_and_permuted_crop_is_pasted(mode, colours_kept):
    whole, seen, states = packed(noise(64)), [], augment.STATES[mode]
    for part in pasted(*draws([noise(64)], 300, level="patch", perm_mode=mode, jitter=0.0)):
        if mode == "quadrants" and (part.shape[0] % 2 or part.shape[1] % 2):
            continue
        befores = [rearranged(part, tuple(map(int, np.argsort(order)))) for order in states]
        which = [(k, s) for k in range(4) for s in range(len(states)) if found_in(whole, np.rot90(befores[s], -k))]
        assert len(which) == 1
        seen += which
    quarters, states = np.array(seen).T
    assert np.mean(quarters > 0) == pytest.approx(0.5, abs=0.15) and set(quarters) == {0, 1, 2, 3}
    assert np.mean(states > 0) == pytest.approx(0.5, abs=0.15)
    assert len(set(states)) == 4 if mode == "halves" else len(set(states)) > 10


@pytest.mark.parametrize("mode", augment.STATES)
def test_at_image_level_a_crop_of_the_turned_and_permuted_image_is_pasted(mode, colours_kept):
    whole, plain = packed(noise(64)), 0
    copies = {
        (k, s): rearranged(np.rot90(whole, k), order) for k in range(4) for s, order in enumerate(augment.STATES[mode])
    }
    for part in pasted(*draws([noise(64)], 250, perm_mode=mode, jitter=0.0)):
        which = [done for done, copy in copies.items() if found_in(copy, part)]
        assert which and len({k for k, _ in which}) == 1
        plain += any(s == 0 for _, s in which)
    assert 125 < plain < 250  # only some of the crops straddle a seam


@pytest.mark.parametrize("hsv_first", [False, True])
def test_a_crop_of_the_augmented_image_has_the_colours_that_the_whole_would_have(hsv_first, monkeypatch):
    image = noise(32)
    colour = augment.Colour(tf.constant([1.0, 1.3] if hsv_first else [1.3, 1.0]), tf.constant([0.05, 0.8, 1.1]))
    hard = augment.Hard(tf.constant(1), tf.constant(2), tf.constant(True), colour)
    monkeypatch.setattr(augment, "draw", lambda *_, **__: augment.Hard(*tf.nest.map_structure(tf.identity, hard)))
    copy = augment.colour_jitter(augment.permute(augment.rotate(views.to_float(image), 1), 2), colour)
    copy = views.to_uint8(copy).numpy().astype(int)
    pictures, masks = draws([image], 10, jitter=0.0)
    for picture, (y, x, height, width) in zip(pictures, boxes(masks), strict=True):
        part = picture[y : y + height, x : x + width].astype(int)
        windows = np.lib.stride_tricks.sliding_window_view(copy, part.shape)[:, :, 0]
        assert np.abs(windows - part).max(axis=(2, 3, 4)).min() <= 1


def test_the_contrast_is_about_the_mean_of_what_is_augmented():
    # 50 on the left and 150 on the right. A crop within one side is its own mean: only brightness changes it, and not
    # to levels under 0.6 x 50, nor to those between 1.4 x 50 and 0.6 x 150.
    image = np.concatenate([flat(50)[:, :32], flat(150)[:, 32:]], axis=1)
    for level in cp.LEVELS:
        pictures, masks = draws([image], 300, level=level, jitter=0.0)
        within = [picture[mask][:, 0] for picture, mask in zip(pictures, masks, strict=True)]
        levels = np.array([values[0] for values in within if np.ptp(values) == 0])
        impossible = np.sum((levels < 29) | ((levels > 71) & (levels < 89)))
        assert impossible == 0 if level == "patch" else impossible >= 5


def test_the_crops_own_jitter_is_of_its_strength_and_hard_jitter_of_simclrs_in_half_of_the_draws():
    def levels(**options):
        pictures, masks = draws([flat(100)], 300, **options)
        inside = np.stack([picture[mask][0] for picture, mask in zip(pictures, masks, strict=True)])
        assert (inside[:, :1] == inside).all()  # grey stays grey
        return inside[:, 0].astype(int)

    assert (levels(hard=False, jitter=0.0) == 100).all()
    small = levels(hard=False)
    assert small.min() in (90, 91) and small.max() in (109, 110) and np.mean(small == 100) < 0.15
    strong = levels(level="image", jitter=0.0)
    assert np.mean(strong == 100) == pytest.approx(0.5, abs=0.09)
    assert 60 <= strong.min() < 66 and 134 < strong.max() <= 140


def slow_turn(patch, angle):
    """`turned`, pixel by pixel."""
    height, width = patch.shape[:2]
    cos, sin = np.cos(angle), np.sin(angle)
    tall, wide = (int(np.ceil(a * abs(cos) + b * abs(sin) - 1e-3)) for a, b in ((height, width), (width, height)))
    out, inside = np.zeros((tall, wide, 3), patch.dtype), np.zeros((tall, wide), bool)
    for i in range(tall):
        for j in range(wide):
            y, x = i - (tall - 1) / 2, j - (wide - 1) / 2
            row, column = int(np.floor(y * cos + x * sin + height / 2)), int(np.floor(x * cos - y * sin + width / 2))
            if 0 <= row < height and 0 <= column < width:
                out[i, j], inside[i, j] = patch[row, column], True
    return out, inside


def test_a_scar_is_turned_about_its_centre_by_nearest_pixels():
    patch = views.to_float(noise(32)[:23, :9])
    for angle in np.linspace(-np.pi / 4, np.pi / 4, 20):
        made, inside = cp.turned(patch, tf.constant(angle, tf.float32))
        expected, there = slow_turn(patch.numpy(), angle)
        assert np.array_equal(inside, there) and np.array_equal(made.numpy()[there], expected[there])
        assert inside.numpy().sum() == pytest.approx(23 * 9, rel=0.1)
    for quarters in range(4):  # the direction in which a positive angle turns
        made, inside = cp.turned(patch, tf.constant(quarters * np.pi / 2, tf.float32))
        assert inside.numpy().all() and np.array_equal(made, np.rot90(patch, quarters))


@pytest.mark.parametrize("side", [256, 64, 512])
def test_scars_have_cutpastes_sizes_scaled_with_the_side(side):
    sizes, angles = geometries(2000, side, "scar")
    for axis, (low, high) in ((0, (10, 25)), (1, (2, 16))):
        least, most = (max(pixels * side / 256, 2) for pixels in (low, high))
        assert abs(sizes[:, axis].min() - least) <= 0.5 and abs(sizes[:, axis].max() - most) <= 0.5
    assert sizes[:, 0].mean() == pytest.approx(17.5 * side / 256, rel=0.03)
    degrees = np.degrees(angles)
    assert np.quantile(degrees, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx([-45, -22.5, 0, 22.5, 45], abs=2.5)


def test_the_mask_of_a_scar_is_one_thin_turned_piece():
    _, masks = draws([noise(256)], 150, variant="scar", hard=False)
    sizes = masks.sum(axis=(1, 2))
    assert 15 < sizes.min() < 45 and 300 < sizes.max() < 430
    slants = []
    for mask in masks:
        assert ndimage.label(mask, np.ones((3, 3)))[1] == 1
        y, x = np.nonzero(mask)
        spread, axes = np.linalg.eigh(np.cov(np.stack([y, x])))
        if spread[1] > 5 * spread[0]:
            long = axes[:, 1] * np.sign(axes[0, 1])
            slants.append(np.degrees(np.arctan2(long[1], long[0])))
    assert len(slants) > 40 and np.abs(slants).max() < 50
    assert min(slants) < -30 and max(slants) > 30 and np.mean(np.abs(slants) < 10) < 0.5


def test_union_is_either_as_likely():
    _, masks = draws([noise(64)], 300, variant="union")
    shares = masks.mean(axis=(1, 2))
    thin = shares < 0.012
    assert thin.mean() == pytest.approx(0.5, abs=0.09)
    assert (shares[~thin] > 0.019).all()
    upright = [mask for mask in masks[~thin] if mask.sum() == np.prod(boxes([mask])[0, 2:])]
    assert len(upright) == (~thin).sum()  # rectangles are not turned


def test_the_diff_mask_is_where_the_paste_changed_the_image_visibly():
    image = flat(100)
    image[20:44, 20:44] = noise(64)[20:44, 20:44]
    for options in ({"hard": False}, {"hard": False, "variant": "union"}):
        pictures, whole = draws([image], 80, jitter=0.0, **options)
        again, masks = draws([image], 80, jitter=0.0, mask_mode="diff", **options)
        assert np.array_equal(pictures, again) and (masks <= whole).all()
        for picture, mask, paste in zip(pictures, masks, whole, strict=True):
            change = (np.abs(picture.astype(int) - image).mean(axis=2) > 1) & paste
            expected = ndimage.median_filter(change.astype(np.uint8), 5, mode="nearest") > 0
            assert np.array_equal(mask, expected & paste)
        assert masks.any() and (masks != whole).any()
    assert not draws([flat(100)], 5, hard=False, jitter=0.0, mask_mode="diff")[1].any()


def changes(image, pictures, masks):
    return np.array([np.abs(p.astype(int) - image)[m].mean() / 255 for p, m in zip(pictures, masks, strict=True)])


def test_min_change_draws_again_where_little_changed():
    image = flat(100)
    for y, x in ((8, 8), (8, 48), (40, 30)):
        image[y : y + 8, x : x + 8] = 250
    options = dict(hard=False, jitter=0.0, area=(0.02, 0.04))
    plain, with_least = (draws([image], 150, min_change=least, **options) for least in (0.0, 0.05))
    before, after = changes(image, *plain), changes(image, *with_least)
    share = np.mean(before >= 0.05)
    assert 0.2 < share < 0.8
    assert np.mean(after >= 0.05) == pytest.approx(1 - (1 - share) ** 8, abs=0.05)
    kept = before >= 0.05  # a first draw that is good enough is not drawn again
    assert np.array_equal(plain[0][kept], with_least[0][kept]) and np.array_equal(plain[1][kept], with_least[1][kept])


def test_where_nothing_changes_enough_the_last_draw_is_kept():
    pictures, masks = draws([flat(100)], 4, hard=False, jitter=0.0, min_change=0.1)
    assert (pictures == 100).all() and masks.any(axis=(1, 2)).all()


def test_the_source_is_this_image_or_any_other():
    images = [flat(40 * (i + 1)) for i in range(4)]
    for source, expected in (("same", {80}), ("other", {40, 120, 160})):
        pictures, masks = draws(images, 60, index=1, source=source, hard=False, jitter=0.0)
        assert set(np.unique(pictures[masks])) == expected


def test_odd_and_unsquare_images_work_where_they_can():
    pictures, masks = draws([noise(33)], 20, level="patch", perm_mode="quadrants", variant="union")
    assert np.array_equal(pictures[~masks], np.broadcast_to(noise(33), pictures.shape)[~masks])
    image = noise(64)[:40]
    made = cp.cutpaste(
        views.to_float(image), context(noise(64)[None]), tf.constant([0, 1]), hard=False, variant="union"
    )
    assert made["image"].shape == (40, 64, 3) and np.array_equal(made["image"][~made["mask"]], image[~made["mask"]])


def test_the_pipeline_serves_the_view_and_its_mask():
    feed = Feed(4, views=(View("anomaly", "cutpaste", {"source": "other", "min_change": 0.01, "area": [0.1, 0.3]}),))
    for batch in take(Pipeline(config(), FakeSource()), feed, 0, 2):
        picture, mask = batch.views["anomaly"], batch.views["anomaly_mask"]
        assert picture.dtype == np.float32 and mask.dtype == bool
        assert np.array_equal(picture[~mask], batch.image[~mask])
        assert (mask.mean(axis=(1, 2)) > 0.08).all() and (picture != batch.image).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
    "options, said",
    [
        ({"level": "crop"}, "level='crop' is unknown.* use image, patch"),
        ({"perm_mode": "half"}, "perm_mode='half' is unknown; the nearest is 'halves'; use halves, quadrants"),
        ({"hard": False, "perm_mode": "half"}, "perm_mode='half'"),
        ({"variant": "scars"}, "variant='scars' is unknown.* use normal, scar, union"),
        ({"mask_mode": "difference"}, "mask_mode='difference' is unknown.* use paste, diff"),
        ({"source": "another"}, "source='another' is unknown.* use same, other"),
        ({"area": (0.2, 0.1)}, r"area=\(0.2, 0.1\); it must be \(low, high\) with 0 < low <= high < 1"),
        ({"area": (0.0, 0.1)}, r"area=\(0.0, 0.1\)"),
        ({"area": (0.1, 1.0)}, r"area=\(0.1, 1.0\)"),
        ({"area": (0.1,)}, r"area=\(0.1,\)"),
        ({"aspect": 0.0}, r"aspect=0.0; it must be in \(0, 1\]"),
        ({"aspect": 3.3}, "aspect=3.3"),
        ({"jitter": -0.1}, r"jitter=-0.1; it must be in \[0, 1\]"),
        ({"min_change": 1.0}, r"min_change=1.0; it must be in \[0, 1\)"),
        ({"colour": 1}, "no option 'colour'"),
    ],
)
def test_bad_options_are_refused_before_the_first_batch(options, said):
    feed = Feed(2, views=(View("anomaly", "cutpaste", options),))
    with pytest.raises(UserError, match=f"op 'cutpaste'.*{said}") as error:
        Pipeline(config(), FakeSource()).batches(feed, seed=0, stage="s", start=0, stop=1, rows=slice(None))
    assert "\n" not in str(error.value)


def test_images_that_it_cannot_do_and_a_class_of_one_image_are_refused():
    seed = tf.constant([0, 1])
    with pytest.raises(UserError, match="turns square images, not 40x64; set hard=False"):
        cp.cutpaste(views.to_float(noise(64)[:40]), context(noise(64)[None]), seed)
    with pytest.raises(UserError, match="images of 16 pixels or more, these have 12"):
        cp.cutpaste(views.to_float(noise(12)), context(noise(12)[None]), seed)
    with pytest.raises(UserError, match="another normal image"):
        cp.cutpaste(views.to_float(noise(32)), context(noise(32)[None]), seed, source="other")


def timed(options):
    """For speed.milliseconds."""
    image = noise(256)
    here = context(image[None])

    def one(i):
        seed = tf.stack([tf.cast(i, tf.int32), 1])
        # Not a constant to TensorFlow, or it would convert the image once.
        return cp.cutpaste(views.to_float(tf.constant(image) + tf.cast(i % 1, tf.uint8)), here, seed, **options)

    return one


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"level": "patch"}, {"perm_mode": "quadrants", "variant": "union"}])
def test_an_image_of_256_pixels_takes_no_more_than_a_millisecond_of_one_core(options):
    found = speed.milliseconds("test_cutpaste", f"t.timed({options!r})", images=200)
    assert found < 1.5, f"{found:.2f} ms; 1 on a quiet machine"
