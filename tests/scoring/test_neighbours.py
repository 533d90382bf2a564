"""Nearest neighbours against a slow loop, and the sharded search against one device, with its compiled program read."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxad.scoring import neighbours

RNG = np.random.default_rng(1)


def brute_force(query, bank, k, valid=None):
    """(squared distances, rows) by sorting every distance, the lowest row first among equals."""
    distance = ((query[:, None].astype(np.float64) - bank[None]) ** 2).sum(-1)
    if valid is not None:
        distance[:, ~valid] = np.inf
    row = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distance, row, axis=1), row


def mesh_of(n):
    return jax.make_mesh((n,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:n])


@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize("block", [None, 7, 64, 1000])  # 7 and 64 leave a short last block
def test_nearest_is_brute_force(k, block):
    query = RNG.normal(size=(37, 13)).astype(np.float32)
    bank = RNG.normal(size=(101, 13)).astype(np.float32)
    distance, row = neighbours.nearest(query, bank, k, block=block)
    expected, expected_row = brute_force(query, bank, k)
    assert distance.shape == row.shape == (37, k) and row.dtype == jnp.int32
    np.testing.assert_array_equal(row, expected_row)
    np.testing.assert_allclose(distance, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("shards", [1, 8])
def test_among_equal_distances_the_lowest_row_wins(k, shards):
    query = RNG.integers(-2, 3, size=(20, 3)).astype(np.float32)  # small integers: distances are exact and often equal
    bank = RNG.integers(-2, 3, size=(90, 3)).astype(np.float32)
    with jax.set_mesh(mesh_of(shards)):
        distance, row = neighbours.nearest(query, bank, k, block=8)
    expected, expected_row = brute_force(query, bank, k)
    np.testing.assert_array_equal(distance, expected)
    np.testing.assert_array_equal(row, expected_row)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("shards", [1, 8])
def test_rows_that_are_not_valid_are_never_found(k, shards):
    query = RNG.normal(size=(9, 5)).astype(np.float32)
    bank = RNG.normal(size=(50, 5)).astype(np.float32)
    valid = RNG.random(50) < 0.4
    with jax.set_mesh(mesh_of(shards)):
        _, row = neighbours.nearest(query, bank, k, valid=jnp.asarray(valid), block=16)
    np.testing.assert_array_equal(row, brute_force(query, bank, k, valid)[1])


def test_missing_neighbours_are_infinitely_far():
    distance, _ = neighbours.nearest(
        jnp.ones((2, 3)), jnp.ones((4, 3)), 3, valid=jnp.array([False, True, False, False])
    )
    np.testing.assert_array_equal(distance, [[0.0, np.inf, np.inf]] * 2)


def test_a_query_that_is_in_the_bank_is_not_at_a_negative_distance():
    bank = 30 + RNG.normal(size=(64, 256)).astype(np.float32)
    distance, row = neighbours.nearest(bank, bank)
    np.testing.assert_array_equal(row[:, 0], np.arange(64))
    assert 0 <= distance.min() and distance.max() < 3e-6 * (bank**2).sum(1).max()


@pytest.mark.parametrize("k", [1, 3, 12])  # 12 is more than the 10 or 9 rows that a device holds
@pytest.mark.parametrize("q, m", [(16, 80), (13, 75)])
def test_a_sharded_bank_gives_what_one_device_gives(k, q, m):
    query = RNG.normal(size=(q, 6)).astype(np.float32)
    bank = RNG.normal(size=(m, 6)).astype(np.float32)
    alone = neighbours.nearest(query, bank, k)
    with jax.set_mesh(mesh_of(8)):
        together = jax.jit(lambda query, bank: neighbours.nearest(query, bank, k))(query, bank)
    np.testing.assert_array_equal(alone[1], together[1])
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-5, atol=1e-6)


def collectives(text):
    """Shapes that cross devices in a compiled program: a list of (operation, [dimensions])."""
    found = re.findall(
        r"= (?:\()?\w+\[([\d,]*)\].*? (all-gather|all-to-all|all-reduce|collective-permute)(?:-start)?\(", text
    )
    return [(name, [int(n) for n in dims.split(",") if n]) for dims, name in found]


@pytest.mark.parametrize("k", [1, 5])
def test_neither_the_bank_nor_the_distances_travel_between_devices(k):
    q, m, d = 64, 4096, 24
    mesh = mesh_of(8)
    rows = NamedSharding(mesh, P("data"))
    shapes = jax.ShapeDtypeStruct((q, d), jnp.float32), jax.ShapeDtypeStruct((m, d), jnp.float32)
    with jax.set_mesh(mesh):
        search = jax.jit(lambda query, bank: neighbours.nearest(query, bank, k), in_shardings=(rows, rows))
        text = search.lower(*shapes).compile().as_text()
    moved = collectives(text)
    assert any(name == "all-gather" for name, _ in moved)  # the queries: the test does see what moves
    for name, dims in moved:
        assert np.prod(dims) <= max(q * d, 8 * q * k), f"{name} of {dims}"


def test_taking_rows_of_a_sharded_bank_does_not_gather_it():
    m, d = 4096, 24
    mesh = mesh_of(8)
    bank = RNG.normal(size=(m, d)).astype(np.float32)
    index = RNG.integers(0, m, 10).astype(np.int32)
    with jax.set_mesh(mesh):
        take = jax.jit(neighbours.take, in_shardings=(NamedSharding(mesh, P("data")), NamedSharding(mesh, P())))
        compiled = take.lower(bank, index).compile()
    np.testing.assert_array_equal(compiled(bank, index), bank[index])
    moved = collectives(compiled.as_text())
    assert moved and all(np.prod(dims) <= 10 * d for _, dims in moved)


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="k is 5"):
        neighbours.nearest(jnp.ones((2, 3)), jnp.ones((4, 3)), 5)
    with pytest.raises(ValueError, match="dimensions"):
        neighbours.nearest(jnp.ones((2, 3)), jnp.ones((4, 2)))
