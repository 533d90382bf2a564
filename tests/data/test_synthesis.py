import numpy as np
import pytest
import speed
import tensorflow as tf
from fake_data import FakeSource, assert_same, config, take
from scipy import ndimage

from jaxad.config import DATASETS
from jaxad.data import archive, catalog, materialize, pipeline, views
from jaxad.data.builders import BUILDERS
from jaxad.data.pipeline import Pipeline
from jaxad.data.synthesis import classes, nsa, patches
from jaxad.data.synthesis.poisson import SMALLEST
from jaxad.types import Feed, Stage, UserError, View


def texture(seed, side=64):
    """u8[side, side, 3], coloured noise."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side, 3)), (1.5, 1.5, 0))
    return np.rint(np.clip(128 + 160 * noise, 0, 255)).astype(np.uint8)


def thing(seed, side=96):
    """(u8[side, side, 3], bool[side, side]): a rough dark disc, its place varies, on a smooth bright ground."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5 + generator.uniform(-0.1, 0.1, (2, 1, 1))
    there = y**2 + x**2 < 0.2**2
    rough = ndimage.gaussian_filter(generator.normal(size=(side, side)), 1.5)
    values = np.where(there, 70 + 150 * rough, 200)
    return np.repeat(np.rint(np.clip(values, 0, 255)).astype(np.uint8)[..., None], 3, axis=2), there


def context(images, index=0, n_anomalous=0):
    """A Context of these images; the last `n_anomalous` are anomalies, masked all over."""
    stack, n_normal = np.stack(images), len(images) - n_anomalous
    side = stack.shape[1]

    def load(i):
        return tf.gather(tf.constant(stack), i), tf.fill((side, side), i >= n_normal)

    def fetch(rows):
        return stack[rows], np.zeros((len(rows), side, side), bool)

    here = tf.constant(index), tf.constant(False), tf.zeros((side, side), bool)
    return views.Context(*here, n_normal, n_anomalous, load, fetch)


def draws(images, n, index=0, op=nsa.nsa, **options):
    """[(image u8, mask)] of the op for seeds 0 .. n - 1, through a traced graph as in the pipeline."""
    here = context(images, index)

    @tf.function(input_signature=[tf.TensorSpec((2,), tf.int32)], autograph=False)
    def one(seed):
        return op(views.to_float(tf.constant(images[index])), here, seed, **options)

    made = [one(tf.constant([k, 7], tf.int32)) for k in range(n)]
    return [(result["image"].numpy(), result["mask"].numpy()) for result in made]


TEXTURES = [texture(seed) for seed in range(4)]
THINGS = [thing(seed)[0] for seed in range(4)]


def test_the_result_has_a_static_shape_and_no_python_in_its_graph():
    here = context(TEXTURES)

    @tf.function(input_signature=[tf.TensorSpec((64, 64, 3)), tf.TensorSpec((2,), tf.int32)], autograph=False)
    def traced(image, seed):
        return nsa.nsa(image, here, seed, kind="object", foreground="brightness")

    graph = traced.get_concrete_function().graph
    image, mask = (graph.structured_outputs[key] for key in ("image", "mask"))
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((64, 64, 3), tf.uint8, (64, 64), tf.bool)
    functions = graph.as_graph_def().library.function
    kinds = {node.op for node in graph.as_graph_def().node} | {node.op for f in functions for node in f.node_def}
    assert "StatelessWhile" in kinds or "While" in kinds
    assert not [kind for kind in kinds if "PyFunc" in kind]
    assert not [kind for kind in kinds if "Random" in kind and "Stateless" not in kind]


def test_a_seed_gives_one_picture_and_another_seed_another():
    first, again, other = draws(TEXTURES, 1)[0], draws(TEXTURES, 1)[0], draws(TEXTURES, 2)[1]
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_the_source_is_every_other_normal_image_and_never_the_destination():
    # Each image has a hue of its own, with blobs of it to cut out, and all lie on the same grey.
    channels = []
    for channel in range(3):
        image = np.full((64, 64, 3), 100, np.uint8)
        image[..., channel] = texture(channel)[..., 0]
        channels.append(image)
    for index in range(3):
        seen = set()
        for picture, mask in draws(channels, 30, index, gradients="normal", patches=1):
            change = np.abs(picture.astype(int) - channels[index]).max(axis=(0, 1))
            assert mask.any()
            # Blending the image into itself would change its own channel alone.
            seen |= {c for c in range(3) if c != index and change[c] > 1}
        assert seen == {0, 1, 2} - {index}


def test_another_destination_is_another_normal_image_and_the_source_may_be_any_but_that():
    images = [np.full((64, 64, 3), 40 * (i + 1), np.uint8) for i in range(4)]
    images = [
        image + texture(9)[..., :1] // 32 for image in images
    ]  # levels tell them apart, texture makes patches show
    options = dict(kind="texture", gradients="normal", patches=1)
    for destination, expected in (("own", {1}), ("other", {0, 2, 3})):
        found = draws(images, 40, index=1, destination=destination, **options)
        corners = [min(range(4), key=lambda i, p=p: abs(int(p[0, 0, 0]) - int(images[i][0, 0, 0]))) for p, _ in found]
        assert set(corners) == expected


def test_the_mask_is_where_pixels_changed_visibly():
    for picture, mask in draws(TEXTURES, 20):
        change = np.abs(picture.astype(int) - TEXTURES[0]).sum(axis=2) > 3
        expected = ndimage.median_filter(change.astype(np.uint8), 5, mode="nearest") > 0
        assert np.array_equal(mask, expected) and mask.any() and not mask.all()


def test_one_patch_changes_nothing_outside_one_box_within_its_bounds():
    for picture, _ in draws(TEXTURES, 25, patches=1, height=(0.1, 0.2), width=(0.2, 0.4)):
        rows, columns = (np.flatnonzero((picture != TEXTURES[0]).any(axis=(2, axis))) for axis in (1, 0))
        assert rows[-1] - rows[0] < 13 and columns[-1] - columns[0] < 26


def sizes(settings, side=256, n=1500):
    """f[n, 2]: blended height and width of `n` patches."""

    def one(seed):
        box, _ = patches.source_box(tf.random.fold_in(seed, 0), settings, (side, side), None)
        return patches.blended_size(tf.random.fold_in(seed, 1), settings, (side, side), box)

    seeds = tf.stack([tf.range(n), tf.zeros(n, tf.int32)], axis=1)
    return tf.function(lambda: tf.map_fn(one, seeds), autograph=False)().numpy().astype(float)


@pytest.mark.parametrize(
    "category, median, low, high, area",
    [("carpet", 49, 16, 101, 4.7), ("cable", 50, 19, 101, 4.7), ("screw", 30, 13, 31, 1.0)],
)
def test_patches_are_as_large_as_nsas(category, median, low, high, area):
    drawn = sizes(classes.settings("mvtec_ad", category))
    assert np.median(drawn[:, 0]) == pytest.approx(median, abs=3)
    assert np.percentile(drawn[:, 0], [5, 95]) == pytest.approx([low, high], abs=3)
    assert 100 * (drawn.prod(axis=1) / 256**2).mean() == pytest.approx(area, rel=0.1)


@pytest.mark.parametrize("category, mean", [("carpet", 2.5), ("bottle", 2.0)])
def test_the_number_of_patches_is_one_and_a_coin_for_each_of_the_others(category, mean):
    settings = classes.settings("mvtec_ad", category)
    counts = [int(patches.number(tf.constant([k, 3]), settings)) for k in range(400)]
    assert np.mean(counts) == pytest.approx(mean, abs=0.15)
    assert set(counts) == set(range(1, settings.patches + 1))


def test_within_equals_a_sum_over_the_box():
    generator = np.random.default_rng(0)
    for shape in ((50, 37), (32, 48), (256, 255)):
        mask = generator.random(shape) < 0.4
        tops, lefts = (generator.integers(0, side - 20, 60) for side in shape)
        tall, wide = (
            np.minimum(generator.integers(0, 60, 60), side - s) for side, s in zip(shape, (tops, lefts), strict=True)
        )
        boxes = np.stack([tops, lefts, tall, wide], axis=1)
        ours = patches.within(patches.summed(tf.constant(mask)), tf.constant(boxes, tf.int32)).numpy()
        assert ours.tolist() == [mask[t : t + h, s : s + w].sum() for t, s, h, w in boxes]


def test_source_boxes_hold_enough_of_the_object_and_reach_all_of_it():
    image, there = thing(2)
    settings = classes.OBJECT._replace(height=(0.05, 0.1), width=(0.05, 0.15), min_object=0.6)
    foreground = patches.summed(tf.constant(there))
    covered = np.zeros_like(there)
    for k in range(150):
        (top, left, height, width), found = patches.source_box(tf.constant([k, 1]), settings, there.shape, foreground)
        box = (slice(int(top), int(top + height)), slice(int(left), int(left + width)))
        assert bool(found) and there[box].mean() > 0.6
        covered[box] = True
    assert covered[there].mean() > 0.95


def test_no_box_is_found_where_nothing_holds_enough():
    few = np.zeros((64, 64), bool)
    few[30:33, 30:33] = True
    foreground = patches.summed(tf.constant(few))
    _, found = patches.source_box(tf.constant([0, 1]), classes.OBJECT, (64, 64), foreground)
    assert not bool(found)
    size, solid = tf.constant([20, 20]), tf.ones((20, 20), bool)
    _, found = patches.destination_box(tf.constant([0, 1]), classes.OBJECT, (64, 64), size, solid, foreground)
    assert not bool(found)  # 9 of 400 pixels could overlap
    hollow = tf.concat([tf.ones((4, 20), bool), tf.zeros((16, 20), bool)], 0)
    everything = patches.summed(tf.ones((64, 64), bool))
    _, found = patches.destination_box(tf.constant([0, 1]), classes.OBJECT, (64, 64), size, hollow, everything)
    assert not bool(found)  # the patch is too little foreground itself


def test_destinations_overlap_the_object_and_are_the_first_that_do():
    _, there = thing(3)
    solid = np.ones((18, 15), bool)
    solid[:, :5] = False
    settings = classes.OBJECT._replace(min_overlap=0.4)
    foreground = patches.summed(tf.constant(there))
    for k in range(60):
        box, found = patches.destination_box(
            tf.constant([k, 1]), settings, there.shape, tf.constant([18, 15]), tf.constant(solid), foreground
        )
        corners = tf.random.stateless_uniform((patches.TRIES, 2), tf.constant([k, 1])).numpy()
        places = (corners * (np.array(there.shape) - (18, 15) + 1)).astype(int)
        shares = [(there[y : y + 18, x : x + 15] & solid).sum() / solid.sum() for y, x in places]
        expected = next(place for place, share in zip(places, shares, strict=True) if share > 0.4)
        assert bool(found) and box.numpy()[:2].tolist() == expected.tolist()


def test_destinations_are_uniform_inside_the_image_to_its_very_border():
    size = tf.constant([60, 10])
    boxes = [
        patches.destination_box(tf.constant([k, 5]), classes.TEXTURE, (64, 64), size, None, None)[0].numpy()
        for k in range(300)
    ]
    assert {int(box[0]) for box in boxes} == {0, 1, 2, 3, 4}
    lefts = [int(box[1]) for box in boxes]
    assert min(lefts) < 3 and max(lefts) > 51 and abs(np.mean(lefts) - 27) < 3


def test_anomalies_of_an_object_lie_at_the_object():
    image, there = thing(0)
    near = ndimage.binary_dilation(there, iterations=12)  # up to three quarters of a patch may hang over
    options = dict(kind="object", height=(0.05, 0.12), width=(0.05, 0.12))
    objects, anywhere = draws(THINGS, 40, **options), draws(THINGS, 40, **options, foreground="all")
    assert all(mask.any() and not mask[~near].any() for _, mask in objects)
    assert any(mask[~near].any() for _, mask in anywhere)


def test_a_draw_that_changes_nothing_visible_is_drawn_again():
    # Three of the four sources give nothing: a single draw would be empty three times of four.
    plain = np.full((64, 64, 3), 120, np.uint8)
    images = [plain, plain, plain + 3, plain, TEXTURES[0]]
    filled = np.mean([mask.any() for _, mask in draws(images, 60)])
    assert filled == pytest.approx(1 - 0.75**6, abs=0.13)  # 0.82; 0.25 without redrawing


def test_what_stays_empty_is_the_image_itself():
    plain = np.full((64, 64, 3), 120, np.uint8)
    for picture, mask in draws([plain, plain + 20], 3):
        assert np.array_equal(picture, plain) and not mask.any()


def test_mixed_and_normal_gradients_differ():
    mixed, normal = (draws(TEXTURES, 1, gradients=name)[0][0] for name in ("mixed", "normal"))
    assert not np.array_equal(mixed, normal)
    assert np.array_equal(mixed, draws(TEXTURES, 1)[0][0])  # textures: NSA issue 4


@pytest.mark.parametrize("side", [32, 64, 512])
@pytest.mark.parametrize("category", ["screw", "carpet"])
def test_all_sizes_work_and_boxes_scale(side, category):
    images = [texture(seed, side) for seed in range(2)]
    made = draws(images, 6, category=category)
    assert all(picture.shape == (side, side, 3) for picture, _ in made)
    assert any(mask.any() for _, mask in made)
    drawn = sizes(classes.settings("", category), side, 200)
    assert drawn.min() >= SMALLEST and drawn.max() <= max(round(0.4 * side), SMALLEST)
    if side == 512:
        assert np.median(drawn[:, 0]) == pytest.approx({"screw": 60, "carpet": 98}[category], rel=0.15)


def test_categories_have_the_settings_of_their_tables():
    screw = classes.settings("mvtec_ad", "screw")
    assert screw == classes.settings("folder", "screw") == classes.settings("", "screw", "object")
    assert (screw.background, screw.height, screw.min_object, screw.patches) == (((200, 60),), (0.03, 0.12), 0.5, 4)
    assert classes.settings("mvtec_ad", "toothbrush").width == (0.03, 0.20)
    assert classes.settings("mvtec_3d_ad", "bagel") == classes.OBJECT != classes.settings("mvtec_3d_ad", "carrot")
    assert classes.settings("folder", "bolt") == classes.TEXTURE == classes.settings("", "screw", "texture")
    assert classes.settings("folder", "bolt", "object") == classes.OBJECT
    assert set(classes.MVTEC_AD) == set(BUILDERS["mvtec_ad"].CATEGORIES)
    assert set(classes.MVTEC_3D_AD_SMALL) < set(BUILDERS["mvtec_3d_ad"].CATEGORIES)
    assert {s.kind for s in classes.MVTEC_AD.values()} == set(classes.KINDS)


def test_options_replace_settings_one_by_one():
    own = classes.settings("", "bolt", "object")
    given = nsa.choose("", "bolt", "object", "mixed", 7, [0.1, 0.2], (), 0.0, 0.9)
    assert given == own._replace(gradients="mixed", patches=7, height=(0.1, 0.2), min_object=0.0, min_overlap=0.9)
    assert nsa.choose("", "bolt", "object", "auto", 0, (), (), -1.0, -1.0) == own


@pytest.mark.parametrize(
    "options, said",
    [
        ({"kind": "objekt"}, r"kind='objekt' .*nearest.*object.* use auto, object, texture"),
        ({"foreground": "brightnes"}, "foreground='brightnes' .*use auto, brightness, xyz, all"),
        ({"gradients": "source"}, "gradients='source' .*use auto, normal, mixed"),
        ({"dataset": "mvtec_4d"}, "dataset='mvtec_4d' .*use " + ", ".join(DATASETS)),
        ({"patches": -1}, "patches=-1"),
        ({"height": (0.4, 0.1)}, r"height=\(0.4, 0.1\)"),
        ({"width": (0.1,)}, r"width=\(0.1,\)"),
        ({"min_object": 1.0}, "min_object=1.0"),
        ({"min_overlap": -0.5}, "min_overlap=-0.5"),
        ({"colour": 1}, "no option 'colour'"),
    ],
)
def test_bad_options_are_refused_before_the_first_batch(options, said):
    feed = Feed(2, views=(View("nsa", "nsa", options),))
    with pytest.raises(UserError, match=said):
        Pipeline(config(), FakeSource()).batches(feed, seed=0, stage="s", start=0, stop=1, rows=slice(None))


def test_a_class_of_one_image_and_images_too_small_are_refused():
    feed = Feed(2, views=(View("nsa", "nsa"),))
    with pytest.raises(UserError, match="another normal image"):
        take(Pipeline(config(), FakeSource(n_train=1)), feed, 0, 1)
    with pytest.raises(UserError, match="32 pixels"):
        draws([texture(seed, 12) for seed in range(2)], 1)


def test_real_anomaly_gives_the_moved_anomalies_with_their_masks():
    data = Pipeline(config(n_anomalies=3), FakeSource())
    batches = take(data, Feed(4, "train_normal", views=(View("a", "real_anomaly"),)), 0, 6)
    (everything,) = take(data, Feed(14, shuffle=False), 0, 1)
    seen = set()
    for batch in batches:
        for image, mask in zip(batch.views["a"], batch.views["a_mask"], strict=True):
            (row,) = [r for r in range(14) if np.array_equal(everything.image[r], image)]
            assert np.array_equal(everything.mask[row], mask)
            seen.add(row)
    assert seen == {11, 12, 13}
    with pytest.raises(UserError, match="data.n_anomalies"):
        take(Pipeline(config(), FakeSource()), Feed(4, views=(View("a", "real_anomaly"),)), 0, 1)


def test_measured_constants_come_from_evenly_spaced_training_normals():
    here = context([np.full((8, 8, 3), level, np.uint8) for level in range(10)], n_anomalous=2)
    assert here.normals(4)[:, 0, 0, 0].tolist() == [0, 2, 4, 6]
    assert here.normals()[:, 0, 0, 0].tolist() == list(range(8))


VIEWS = (View("nsa", "nsa", {"kind": "object", "foreground": "brightness"}), View("real", "real_anomaly"))


def test_a_materialised_file_serves_the_same_anomalies(tmp_path, monkeypatch):
    source = FakeSource()
    feed = Feed(4, "train_normal", views=VIEWS)

    def stages(config, spec):
        return (Stage("fit", feed, 6, init=None, update=None),)

    monkeypatch.setattr(catalog, "categories", lambda config: ("bolt",))
    monkeypatch.setattr(catalog, "open_source", lambda config, category: source)
    monkeypatch.setattr("jaxad.methods.resolve", lambda method: type("Method", (), {"stages": staticmethod(stages)}))
    path, settings = str(tmp_path / "one.data"), dict(n_anomalies=2)
    materialize.write(config(**settings), path, n_bank=3)
    held = archive.read_header(path)["categories"]["bolt"]["banks"]["fit"]
    assert set(held["keys"]) == {"nsa", "nsa_mask", "real", "real_mask"}
    original = take(pipeline.open(config(**settings), "bolt"), feed, 0, 3, seed=3)
    assert original[0].views["nsa"].dtype == np.float32 and original[0].views["nsa_mask"].dtype == bool
    assert any(batch.views["nsa_mask"].any() for batch in original)
    assert_same(take(pipeline.open(config(source=path, **settings), "bolt"), feed, 0, 3, seed=3), original)


def timed(kind, options):
    """For speed.milliseconds."""
    images = [texture(seed, 256) if kind == "texture" else thing(seed, 256)[0] for seed in range(4)]
    here = context(images)

    def one(i):
        seed = tf.stack([tf.cast(i, tf.int32), 1])
        return nsa.nsa(views.to_float(tf.constant(images[0])), here, seed, **options)

    return one


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, options", [("texture", {}), ("thing", {"kind": "object"}), ("thing", {"category": "screw"})]
)
def test_an_image_of_256_pixels_takes_no_more_than_five_milliseconds_of_one_core(kind, options):
    found = speed.milliseconds("test_synthesis", f"t.timed({kind!r}, {options!r})", images=40)
    assert found < 7.5, f"{found:.1f} ms; 5 on a quiet machine"
