import numpy as np
import pytest
import speed
import tensorflow as tf
from fake_data import FakeSource, config, take

from jaxad.data import views
from jaxad.data.pipeline import Pipeline
from jaxad.data.synthesis import global_views as gv
from jaxad.data.synthesis.spot_the_difference import spot_the_difference
from jaxad.types import Feed, UserError, View

FOUR = ("first", "second", "weak", "local")


def noise(side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def ramps(side):
    """u8[side, side, 3]: red says the column, green the row."""
    levels = np.round(np.linspace(0, 255, side)).astype(np.uint8)
    rows, columns = np.meshgrid(levels, levels, indexing="ij")
    return np.stack([columns, rows, np.zeros_like(rows)], axis=-1)


GRAPHS = {}


def draws(image, n, **options):
    """{name: u8[n, size, size, 3]}, the op for seeds 0 .. n - 1, in a graph as in the pipeline."""
    names = options.get("views", ("first", "second"))

    def one(k):
        return spot_the_difference(views.to_float(tf.constant(image)), None, tf.stack([k, 7]), **options)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.int32)])
    def every(n):
        return tf.map_fn(one, n, fn_output_signature=dict.fromkeys(names, tf.uint8), parallel_iterations=1)

    graph = GRAPHS.setdefault((image.tobytes(), repr(options), repr(gv.STRENGTHS["weak"])), every)  # traced once
    return {name: made.numpy() for name, made in graph(tf.range(n) if isinstance(n, int) else tf.constant(n)).items()}


@pytest.fixture
def moved_only(monkeypatch):
    """Weak views keep their colours and focus, so that ramps tell where they are from."""
    monkeypatch.setitem(gv.STRENGTHS, "weak", gv.STRENGTHS["weak"] | dict(jitter_p=0.0, blur_p=0.0))


@pytest.fixture(scope="module")
def default():
    return draws(noise(40), 10, views=FOUR)


@pytest.mark.parametrize(
    "more",
    [
        dict(),
        dict(views=("second", "anchor", "weak", "first"), spd_anchor="rrc"),
        dict(views=(*FOUR, "anchor"), spd_anchor="plain", neg_base="independent", local="cutpaste"),
        dict(views=("first", "second", "local"), local_of="first"),
    ],
)
def test_asking_for_more_views_never_changes_the_strong_ones(more, default):
    made = draws(noise(40), 10, **more)
    for name in ("first", "second"):
        assert np.array_equal(made[name], default[name]), name


@pytest.mark.parametrize("strong", ["moco_v1", "simclr", "supervised"])
def test_strong_views_are_global_views_of_their_strength(strong):
    image, seed = views.to_float(tf.constant(noise(40))), tf.constant([3, 7])
    made = spot_the_difference(image, None, seed, strong=strong, views=("second",), size=24)["second"]
    alone = gv.global_view(image, tf.random.fold_in(seed, 1), size=24, strength=strong)
    assert np.array_equal(made, views.to_uint8(alone))


def test_the_local_view_is_as_it_is_alone(default):
    assert np.array_equal(draws(noise(40), 10, views=("local",))["local"], default["local"])


def test_a_view_depends_on_its_seed_alone(default):
    order = np.random.default_rng(0).permutation(10).astype(np.int32)
    again = draws(noise(40), order, views=FOUR)
    for name, made in default.items():
        assert (made.shape, made.dtype) == ((10, 40, 40, 3), np.uint8)
        assert np.array_equal(again[name], made[order]), name
        assert len({view.tobytes() for view in made}) == 10
    assert not any((default["first"] == default["second"]).all(axis=(1, 2, 3)))


def extent(view):
    """f[4]: the rows and columns, as shares, at the view's borders, and whether it is flipped, of a view of ramps."""
    columns, rows = view[..., 0].mean(axis=0) / 255.0, view[..., 1].mean(axis=1) / 255.0
    flip = columns[0] > columns[-1]
    columns = columns[::-1] if flip else columns
    return np.array([rows[0], rows[-1], columns[0], columns[-1]]), flip


def test_with_a_shared_anchor_weak_views_lie_in_its_crop_and_are_flipped_as_it_is(moved_only):
    made = draws(ramps(96), 60, views=("first", "weak", "local"), strong="supervised", size=48, local="cutpaste")
    flips, smaller, shares = [], 0, []
    for first, weak in zip(made["first"], made["weak"], strict=True):
        (outer, flip), (inner, weak_flip) = extent(first), extent(weak)
        assert flip == weak_flip
        assert (inner[[0, 2]] >= outer[[0, 2]] - 0.011).all() and (inner[[1, 3]] <= outer[[1, 3]] + 0.011).all()
        areas = [(box[1] - box[0]) * (box[3] - box[2]) for box in (inner, outer)]
        shares.append(areas[0] / areas[1])
        smaller += not np.array_equal(first, weak)
        flips.append(flip)
    assert 0.3 < np.mean(flips) < 0.7 and min(shares) > 0.84 and smaller > 30


@pytest.mark.parametrize("anchor", ["plain", "rrc"])
def test_with_another_anchor_weak_views_are_of_the_whole_image(anchor, moved_only):
    image = ramps(64)
    made = draws(image, 60, views=("first", "weak", "anchor"), strong="supervised", spd_anchor=anchor)
    found = [extent(weak) for weak in made["weak"]]
    shares = [(box[1] - box[0]) * (box[3] - box[2]) for box, _ in found]
    assert min(shares) > 0.85
    firsts = [flip for _, flip in map(extent, made["first"])]
    flips = [flip for _, flip in found]
    assert 0.25 < np.mean(flips) < 0.75 and 0.25 < np.mean(np.array(flips) == firsts) < 0.75  # drawn on its own
    if anchor == "plain":
        assert np.array_equal(made["anchor"], np.broadcast_to(image, made["anchor"].shape))
    else:
        places = [extent(view) for view in made["anchor"]]
        shares = [(box[1] - box[0]) * (box[3] - box[2]) for box, _ in places]
        assert not any(flip for _, flip in places) and min(shares) < 0.25 and max(shares) > 0.75
        assert (made["anchor"][..., 2] == 0).all()  # colours are the image's


def test_a_plain_anchor_is_the_whole_image_at_the_size_of_the_views():
    image = ramps(64)
    made = draws(image, 2, views=("anchor",), spd_anchor="plain", size=32)["anchor"]
    expected = image.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(made[:, 2:-2, 2:-2] - expected[2:-2, 2:-2]).max() <= 1


def changed(one, other):
    return (one != other).any(axis=-1)


def test_the_local_view_is_the_weak_one_with_a_small_change(default):
    where = changed(default["local"], default["weak"])
    assert where.any(axis=(1, 2)).all() and where.mean(axis=(1, 2)).max() < 0.08
    for mask in where:
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        assert np.ptp(rows) < 16 and np.ptp(columns) < 16


def test_an_independent_local_view_is_of_another_weak_view_in_the_same_crop(moved_only):
    options = dict(views=FOUR, strong="supervised", smooth_blend={"alpha_sigma": 0, "jitter": (0, 0, 0, 0)})
    made = draws(ramps(64), 30, neg_base="independent", **options)
    assert changed(made["local"], made["weak"]).mean() > 0.5
    flips = [(extent(first)[1], extent(local)[1]) for first, local in zip(made["first"], made["local"], strict=True)]
    assert all(ours == theirs for ours, theirs in flips) and len(set(flips)) == 2


def test_for_the_supervised_recipe_the_change_is_of_the_first_view():
    made = draws(noise(40), 8, views=("first", "local"), strong="supervised", local_of="first")
    where = changed(made["local"], made["first"])
    assert where.any(axis=(1, 2)).all() and where.mean(axis=(1, 2)).max() < 0.08


def test_cutpaste_pastes_a_hard_rectangle_of_two_to_fifteen_percent():
    made = draws(noise(40), 30, views=("weak", "local"), local="cutpaste", strong="supervised")
    where = changed(made["local"], made["weak"])
    shares = where.mean(axis=(1, 2))
    assert shares.min() > 0.012 and shares.max() < 0.17 and shares.max() > 0.1
    for mask, share in zip(where, shares, strict=True):
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1) / mask.size
        assert share > 0.6 * box  # all of it changes, but for pixels that chance makes alike


def test_options_of_smooth_blend_reach_it(default):
    hard = dict(alpha_sigma=0.0, jitter=(0, 0, 0, 0), area=(0.05, 0.05), aspect=1.0)
    made = draws(noise(40), 10, views=("weak", "local"), smooth_blend=hard)
    assert np.array_equal(made["weak"], default["weak"])
    assert changed(made["local"], made["weak"]).mean() == pytest.approx(0.05, abs=0.015)


def test_the_pipeline_serves_each_view_under_its_name():
    options = {"views": list(FOUR), "size": 24}
    feed = Feed(3, views=(View("spd", "spot_the_difference", options),))
    (batch,) = take(Pipeline(config(), FakeSource()), feed, 0, 1)
    assert set(batch.views) == {f"spd_{name}" for name in FOUR}
    for made in batch.views.values():
        assert (made.shape, made.dtype) == ((3, 24, 24, 3), np.float32) and 0 <= made.min() and made.max() <= 1


@pytest.mark.parametrize(
    "options, said",
    [
        ({"strong": "simclar"}, "strong='simclar' is unknown; the nearest is 'simclr'"),
        ({"views": ["first", "thrid"]}, "views='thrid' is unknown"),
        ({"views": []}, r"views=\(\); name one or more of first"),
        ({"views": ["first", "first"]}, "each once"),
        ({"views": ["anchor"]}, "with spd_anchor='shared' the anchor is the view 'first'"),
        ({"spd_anchor": "whole"}, "spd_anchor='whole' is unknown.* use shared, plain, rrc"),
        ({"neg_base": "other"}, "neg_base='other' is unknown"),
        ({"local": "smoothblend"}, "local='smoothblend' is unknown; the nearest is 'smooth_blend'"),
        ({"local_of": "second"}, "local_of='second' is unknown"),
        ({"local_of": "first", "neg_base": "independent"}, "set neg_base='same'"),
        ({"size": 8}, "size=8; views need 16 pixels or more"),
        ({"size": 24.5}, "size=24.5"),
        ({"smooth_blend": {"alpha": 1}}, "no option 'alpha' of SmoothBlend; the nearest is 'alpha_sigma'"),
        ({"smooth_blend": {"aspect": 2}}, "aspect=2; it must be"),
        ({"crop": 24}, "no option 'crop'"),
    ],
)
def test_bad_options_are_refused_before_the_first_batch(options, said):
    feed = Feed(2, views=(View("spd", "spot_the_difference", options),))
    with pytest.raises(UserError, match=f"op 'spot_the_difference'.*{said}") as error:
        Pipeline(config(), FakeSource()).batches(feed, seed=0, stage="s", start=0, stop=1, rows=slice(None))
    assert "\n" not in str(error.value)


def timed(side, options):
    """For speed.milliseconds."""
    image = noise(side)

    def one(i):
        # Not a constant to TensorFlow, or it would convert the image once.
        changing = views.to_float(tf.constant(image) + tf.cast(i % 1, tf.uint8))
        return spot_the_difference(changing, None, tf.stack([tf.cast(i, tf.int32), 1]), views=FOUR, **options)

    return one


@pytest.mark.slow
@pytest.mark.parametrize("side, limit", [(224, 15.0), (64, 4.0)])
def test_four_views_take_no_more_than_ten_milliseconds_of_one_core(side, limit):
    found = speed.milliseconds("test_spot_the_difference", f"t.timed({side}, {{}})", images=60)
    assert found < limit, f"{found:.2f} ms; {limit / 1.5:.1f} on a quiet machine"
