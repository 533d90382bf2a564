import jax
import jax.numpy as jnp
import numpy as np
import pytest
import speed
import tensorflow as tf
from fake_data import FakeSource, config, take
from scipy import ndimage, stats

from jaxad.data import views
from jaxad.data.pipeline import Pipeline
from jaxad.data.synthesis import triple as tr
from jaxad.scoring import triples
from jaxad.types import Feed, UserError, View


def cloudy(side, seed=0):
    """u8[side, side, 3], smooth, no two patches alike."""
    clouds = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side, 3)), (2, 2, 0))
    return np.clip(128 + 400 * clouds, 0, 255).astype(np.uint8)


def draws(image, count, **options):
    """{name: u8[count, p, p, 3]}, the op for seeds 0 .. count - 1, in a graph as in the pipeline."""

    @tf.function(autograph=False)
    def every():
        def one(k):
            return tr.triple(views.to_float(tf.constant(image)), None, tf.stack([k, 7]), **options)

        kinds = dict.fromkeys(tr.PARTS, tf.uint8)
        return tf.map_fn(one, tf.range(count), fn_output_signature=kinds, parallel_iterations=1)

    return {name: made.numpy() for name, made in every().items()}


def resized(image, n, patch):
    """f32[n * n, patch, patch, 3] in grey levels: the patches that the network is shown when it is used."""
    whole = jnp.asarray(image, jnp.float32)[None] / 255
    whole = jax.image.resize(whole, (1, n * patch, n * patch, 3), "linear", antialias=True)
    return np.asarray(triples.partition(whole, n))[0] * 255


def found_in(made, image, patch, ns, coverage="rows_cols", canonical=True):
    """(n, row of its triples) of every drawn triple, by comparison with what inference takes."""
    where = []
    expected = {}
    for n in ns:
        table, patches = triples.triples(n, coverage), jnp.asarray(resized(image, n, patch))[None]
        taken = [np.asarray(triples.take(patches, getattr(table, name), table, canonical))[0] for name in tr.PARTS]
        expected[n] = np.stack(taken, axis=1)
    for parts in np.stack([made[name] for name in tr.PARTS], axis=1).astype(np.float32):
        near = [(np.abs(e - parts).max(axis=(1, 2, 3, 4)), n) for n, e in expected.items()]
        hits = [(n, row) for error, n in near for row in np.flatnonzero(error < 0.6)]  # rounded to a grey level
        assert len(hits) == 1
        where += hits
    return where


def test_where_nothing_is_resized_a_triple_is_the_images_own_pixels():
    image = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    made = draws(image, 150, n=(4,), canonicalize=False)
    patches = np.asarray(triples.partition(jnp.asarray(image)[None], 4))[0]
    table, seen = triples.triples(4), set()
    for parts in zip(*(made[name] for name in tr.PARTS), strict=True):
        numbers = [np.flatnonzero((patches == part).all(axis=(1, 2, 3))) for part in parts]
        assert all(len(number) == 1 for number in numbers)
        rows = np.flatnonzero((np.stack(table[:3], axis=1) == np.concatenate(numbers)).all(axis=1))
        assert len(rows) == 1
        seen.add(int(rows[0]))
    assert len(seen) == 32


@pytest.mark.parametrize("n, patch", [(4, 14), (5, 14), (6, 14), (7, 14), (4, 9)])
def test_patches_equal_those_of_the_resized_image_that_inference_cuts(n, patch):
    # 56 pixels made 56, 70, 84, 98, and 36, where resizing averages.
    image = cloudy(56)
    numbers = tf.range(n * n)
    corners = tr.Partition(None, tf.constant(n), None, patch).corners(numbers)
    ours = tr.cut(views.to_float(tf.constant(image)), corners, tf.constant(n), patch).numpy() * 255
    np.testing.assert_allclose(ours, resized(image, n, patch), atol=0.01)
    levels = tr.cut(tf.constant(image), corners, tf.constant(n), patch).numpy()  # of whole levels, too
    np.testing.assert_allclose(levels, ours, atol=0.01)


def test_every_partition_and_every_triple_of_it_is_as_likely_as_any_other():
    partitions = tr.Partitions.of("triple", tf.zeros((64, 64, 3)), (4, 5, 6, 7), 0, "rows_cols")
    assert partitions.patch == 16

    @tf.function(autograph=False)
    def every():
        def one(k):
            uniform = tf.random.stateless_uniform((2,), tf.stack([k, 3]))
            drawn = partitions.draw(uniform[0])
            return tf.concat([[drawn.n], drawn.row(uniform[1])], axis=0)

        return tf.map_fn(one, tf.range(6000), fn_output_signature=tf.int32)

    drawn = every().numpy()
    assert stats.chisquare(np.bincount(drawn[:, 0])[4:]).pvalue > 0.01
    for n in (4, 5, 6, 7):
        table = np.stack(triples.triples(n), axis=1)
        rows = (drawn[drawn[:, 0] == n, None, 1:] == table).all(axis=2)
        assert (rows.sum(axis=1) == 1).all() and rows.any(axis=0).all()  # a triple of this N, and all of them
        assert stats.chisquare(rows.sum(axis=0)).pvalue > 0.01


def test_drawn_triples_are_those_of_inference_for_every_partition():
    image = cloudy(64)
    where = np.array(found_in(draws(image, 250, n=(4, 5, 6), patch=12), image, 12, (4, 5, 6)))
    for n in (4, 5, 6):
        rows = where[where[:, 0] == n, 1]
        assert len(rows) > 60 and set(triples.triples(n).direction[rows]) == {0, 1, 2, 3}


@pytest.mark.parametrize("coverage", triples.COVERAGES)
def test_coverages_are_those_of_inference(coverage):
    image = cloudy(48)
    where = found_in(draws(image, 150, n=(4,), coverage=coverage), image, 12, (4,), coverage)
    assert len({row for _, row in where}) > 0.9 * len(triples.triples(4, coverage).far)


def test_a_canonical_triple_reads_from_left_to_right():
    # Brightness tells the direction of the scan: of a ramp along it, far is darker than near, and each along its rows.
    ramp = np.broadcast_to(np.linspace(0, 255, 32)[None, :, None], (32, 32, 3)).astype(np.uint8)
    turned, plain = (draws(ramp, 80, n=(4,), canonicalize=canonicalize) for canonicalize in (True, False))
    kinds = set()
    for k in range(80):
        parts = [made[name][k].astype(int) for made in (turned, plain) for name in tr.PARTS]
        quarters = [q for q in range(4) if all(np.array_equal(np.rot90(parts[3 + i], q), parts[i]) for i in range(3))]
        assert quarters
        along = parts[2].mean() - parts[0].mean()
        if along > 0:  # with the ramp, which then rises to the right, or against it
            assert quarters == [0] and (np.diff(parts[0][0, :, 0]) > 0).all()
        elif along < 0:
            assert quarters == [2] and (np.diff(parts[0][0, :, 0]) < 0).all()
        else:
            assert quarters[0] in (1, 3) and np.ptp(parts[0][0]) == 0
        kinds.add(tuple(quarters))
    assert kinds == {(0,), (1,), (2,), (3,)}


def test_pieces_are_turned_as_numpy_turns_them():
    parts = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 2), np.uint8)
    for quarters in range(4):
        assert np.array_equal(tr.turned(tf.constant(parts), quarters), np.rot90(parts, quarters, axes=(1, 2)))


def test_a_seed_gives_one_triple_and_the_graph_has_static_shapes_and_no_random_state():
    image = cloudy(40)
    once, again = (draws(image, 8) for _ in range(2))
    assert all(np.array_equal(once[name], again[name]) for name in tr.PARTS)
    assert len({made.tobytes() for made in once["target"]}) > 5
    traced = tf.function(lambda seed: tr.triple(views.to_float(tf.constant(image)), None, seed), autograph=False)
    graph = traced.get_concrete_function(tf.TensorSpec((2,), tf.int32)).graph
    outputs = graph.structured_outputs
    assert list(outputs) == list(tr.PARTS)
    assert all(made.shape == (10, 10, 3) and made.dtype == tf.uint8 for made in outputs.values())
    kinds = {node.op for node in graph.as_graph_def().node}
    kinds |= {node.op for f in graph.as_graph_def().library.function for node in f.node_def}
    assert not [kind for kind in kinds if "PyFunc" in kind or ("Random" in kind and "Stateless" not in kind)]


def test_the_pipeline_serves_the_three_patches():
    feed = Feed(4, views=(View("triple", "triple", {"n": [4, 5], "patch": 7}),))
    (batch,) = take(Pipeline(config(), FakeSource()), feed, 0, 1)
    assert set(batch.views) == {"triple_far", "triple_near", "triple_target"}
    for made in batch.views.values():
        assert made.shape == (4, 7, 7, 3) and made.dtype == np.float32 and 0 <= made.min() < made.max() <= 1


@pytest.mark.parametrize(
    "options, said",
    [
        ({"n": ()}, r"n=\(\); it must be whole numbers from 4 on"),
        ({"n": (4, 3)}, r"n=\(4, 3\)"),
        ({"n": (4.5,)}, r"n=\(4.5,\)"),
        ({"n": 3}, r"n=\(3,\)"),
        ({"patch": -8}, "patch=-8; it must be a whole number of pixels, 0 for image_size / n"),
        ({"patch": 5.5}, "patch=5.5"),
        ({"coverage": "row_cols"}, "coverage='row_cols' is unknown; the nearest is 'rows_cols'"),
    ],
)
def test_bad_options_are_refused_before_the_first_batch(options, said):
    feed = Feed(2, views=(View("triple", "triple", options),))
    with pytest.raises(UserError, match=f"op 'triple'.*{said}") as error:
        Pipeline(config(), FakeSource()).batches(feed, seed=0, stage="s", start=0, stop=1, rows=slice(None))
    assert "\n" not in str(error.value)


def test_oblong_images_are_refused():
    with pytest.raises(UserError, match="op 'triple' cuts square images, not 32x40; set config.data.resize='square'"):
        tr.triple(tf.zeros((32, 40, 3)), None, tf.constant([0, 1]))


def timed():
    """For speed.milliseconds."""
    image = cloudy(224)

    def one(i):
        # Not a constant to TensorFlow, or it would convert the image once.
        changing = views.to_float(tf.constant(image) + tf.cast(i % 1, tf.uint8))
        return tr.triple(changing, None, tf.stack([tf.cast(i, tf.int32), 1]), patch=56)

    return one


@pytest.mark.slow
def test_a_triple_takes_no_more_than_half_a_millisecond_of_one_core():
    found = speed.milliseconds("test_triple", "t.timed()", images=300)
    assert found < 0.75, f"{found:.2f} ms; 0.5 on a quiet machine"
