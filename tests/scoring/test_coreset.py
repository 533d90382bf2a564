"""Greedy k-centre against the plain loop, in every start, with ties and duplicates; sharded against one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxad.errors import UserError
from jaxad.scoring import coreset

RNG = np.random.default_rng(2)


def plain_loop(features, k, scores, valid=None):
    """One pass over all rows per pick, in float64; a row is picked once."""
    features = features.astype(np.float64)
    scores = np.array(scores, np.float64)
    allowed = np.ones(len(features), bool) if valid is None else valid.copy()
    picks = []
    for _ in range(k):
        pick = int(np.argmax(np.where(allowed, scores, -np.inf)))
        picks.append(pick)
        allowed[pick] = False
        scores = np.minimum(scores, np.sqrt(((features - features[pick]) ** 2).sum(1)))
    return picks


def mesh_of(n):
    return jax.make_mesh((n,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:n])


def clusters(n, d):
    """Rows around a few centres of different spread, in no order: what patch descriptors look like."""
    centres = RNG.normal(size=(12, d)) * 4
    spread = RNG.gamma(1.0, size=(12, 1))
    which = RNG.integers(0, 12, n)
    return (centres[which] + spread[which] * RNG.normal(size=(n, d))).astype(np.float32)


@pytest.mark.parametrize("candidates", [1, 7, 64, 5000])  # one row per round ... one round for all
def test_picks_are_those_of_the_plain_loop(candidates):
    features = clusters(3000, 10)
    start = RNG.gamma(2.0, size=3000).astype(np.float32) * 5
    picks = coreset.k_centre(features, 300, start_scores=jnp.asarray(start), candidates=candidates)
    assert picks.dtype == jnp.int32
    assert picks.tolist() == plain_loop(features, 300, start)


@pytest.mark.parametrize("candidates", [3, 50, 1000])
@pytest.mark.parametrize("shards", [1, 8])
def test_ties_go_to_the_lowest_row(candidates, shards):
    features = RNG.integers(0, 4, size=(500, 4)).astype(np.float32)  # 256 places: duplicates and ties
    start = np.full(500, 100.0, np.float32)  # and at first all are equal
    with jax.set_mesh(mesh_of(shards)):
        picks = coreset.k_centre(features, 200, start_scores=jnp.asarray(start), candidates=candidates)
    assert picks.tolist() == plain_loop(features, 200, start)


def test_all_rows_can_be_picked_though_some_are_duplicates():
    features = np.repeat(RNG.integers(0, 9, size=(20, 3)).astype(np.float32), 3, axis=0)
    start = np.ones(60, np.float32)
    picks = coreset.k_centre(features, 60, start_scores=jnp.asarray(start), candidates=16)
    assert picks.tolist() == plain_loop(features, 60, start)
    assert sorted(picks.tolist()) == list(range(60))


@pytest.mark.parametrize("shards", [1, 8])
def test_the_authors_start_is_the_mean_distance_to_random_rows_that_caps_later_scores(shards):
    features, key = clusters(401, 6), jax.random.key(3)
    with jax.set_mesh(mesh_of(shards)):
        picks = coreset.k_centre(features, 60, key=key, start_points=10, candidates=32)
    drawn = np.argsort(-np.asarray(jax.random.uniform(key, (401,))))[:10]
    start = np.sqrt(((features[:, None].astype(np.float64) - features[drawn]) ** 2).sum(-1)).mean(1)
    assert picks.tolist() == plain_loop(features, 60, start)


def test_without_start_points_the_first_pick_is_random_and_counts():
    features = clusters(300, 6)
    firsts = set()
    for seed in range(4):
        picks = coreset.k_centre(features, 30, key=jax.random.key(seed), start_points=0).tolist()
        start = np.full(300, 1e9)
        start[picks[0]] = np.inf
        assert picks == plain_loop(features, 30, start)
        firsts.add(picks[0])
    assert len(firsts) > 1


@pytest.mark.parametrize("shards", [1, 8])
@pytest.mark.parametrize("start_points", [0, 5])
def test_rows_that_are_not_valid_are_neither_picked_nor_drawn(shards, start_points):
    features = clusters(203, 5)
    valid = np.zeros(203, bool)
    valid[RNG.choice(203, 40, replace=False)] = True
    features[~valid] = 1e4  # would be picked first, and would move the mean start
    with jax.set_mesh(mesh_of(shards)):
        picks = coreset.k_centre(
            features, 40, key=jax.random.key(0), start_points=start_points, valid=jnp.asarray(valid), candidates=16
        )
    assert sorted(picks.tolist()) == np.flatnonzero(valid).tolist()


def test_eight_devices_pick_what_one_device_picks_and_the_bank_stays_where_it_is():
    n, d, k = 4096, 8, 200
    features = clusters(n, d)
    mesh = mesh_of(8)
    key = jax.random.key(1)
    alone = coreset.k_centre(features, k, key=key, candidates=64)

    def select(features, key):
        return coreset.k_centre(features, k, key=key, candidates=64)

    with jax.set_mesh(mesh):
        places = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
        compiled = jax.jit(select, in_shardings=places).lower(features, key).compile()
    assert compiled(features, key).tolist() == alone.tolist()
    gathers = [
        line for line in compiled.as_text().splitlines() if " all-gather(" in line or " all-gather-start(" in line
    ]
    assert any(f"[64,{d}]" in line for line in gathers)  # the candidates: the test does see what moves
    assert not any(f"[{n}" in line for line in gathers)


def test_selection_is_traceable():
    shape = jax.eval_shape(
        lambda x, key: coreset.k_centre(x, 17, key=key), jax.ShapeDtypeStruct((1000, 4), jnp.float32), jax.random.key(0)
    )
    assert shape.shape == (17,) and shape.dtype == jnp.int32


def test_projections_keep_distances_in_expectation():
    x, y = RNG.normal(size=(2, 1, 1024)).astype(np.float32)
    true = ((x - y) ** 2).sum()
    for kind, shrink in [("gaussian", 1.0), ("sparse", 1.0), ("linear", 256 / (3 * 1024))]:
        projection = coreset.random_projection(jax.random.key(5), 1024, 256, kind)
        assert projection.shape == (1024, 256) and projection.dtype == jnp.float32
        np.testing.assert_allclose((((x - y) @ projection) ** 2).sum(), shrink * true, rtol=0.25)
    assert 0.9 < np.mean(np.asarray(coreset.random_projection(jax.random.key(5), 1024, 256, "sparse")) == 0) < 0.98


def test_the_linear_projection_has_the_range_of_a_pytorch_layer():
    projection = np.asarray(coreset.random_projection(jax.random.key(0), 400, 128, "linear"))
    assert 0.0499 < np.abs(projection).max() <= 0.05 and abs(projection.mean()) < 1e-3


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="k is 4"):
        coreset.k_centre(jnp.ones((3, 2)), 4, key=jax.random.key(0))
    with pytest.raises(ValueError, match="key"):
        coreset.k_centre(jnp.ones((3, 2)), 1)
    with pytest.raises(UserError, match="linear, gaussian, sparse"):
        coreset.random_projection(jax.random.key(0), 3, 2, "pca")
