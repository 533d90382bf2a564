"""Moments, factors and distances against np.cov and scipy; batches, padding and devices do not matter."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxad.scoring import gaussian

RNG = np.random.default_rng(3)
N, POSITIONS, DIM = 13, 16, 5
MIX = RNG.normal(size=(POSITIONS, DIM, DIM))  # another covariance at every position
ROWS = (np.einsum("npd,pde->npe", RNG.normal(size=(N, POSITIONS, DIM)), MIX) + RNG.normal(size=DIM)).astype(np.float32)


def moments_of(rows, sizes, batch=None):
    """In batches of `sizes` rows, each padded to `batch` with rows that would spoil everything."""
    moments, start = gaussian.no_moments(*rows.shape[1:]), 0
    for size in sizes:
        padding = np.full(((batch or size) - size, *rows.shape[1:]), 1e6, np.float32)
        valid = np.arange(batch or size) < size
        moments = gaussian.update(moments, np.concatenate([rows[start : start + size], padding]), valid)
        start += size
    assert start == len(rows)
    return moments


def covariance(rows):
    """f64[P, D, D]"""
    return np.stack([np.cov(rows[:, p].astype(np.float64), rowvar=False) for p in range(rows.shape[1])])


@pytest.mark.parametrize("sizes, batch", [((13,), None), ((1, 4, 8), None), ((6, 6, 1), 6), ((0, 5, 0, 8), 9)])
def test_moments_are_those_of_numpy_whatever_the_batches_and_the_padding(sizes, batch):
    count, mean, scatter = moments_of(ROWS, sizes, batch)
    assert count == N and mean.dtype == scatter.dtype == jnp.float32
    np.testing.assert_allclose(mean, ROWS.astype(np.float64).mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scatter / (N - 1), covariance(ROWS), rtol=1e-4, atol=1e-5)


def test_rows_far_from_zero_lose_no_digits():
    rows = ROWS + np.float32(1000)  # rounded to 6e-5 here: that is what the expected values are of
    _, mean, scatter = moments_of(rows, (4, 4, 5))
    exact = covariance(rows)
    naive = np.einsum("npd,npe->pde", rows, rows) / N - np.einsum("pd,pe->pde", rows.mean(0), rows.mean(0))
    np.testing.assert_allclose(mean, rows.astype(np.float64).mean(0), rtol=3e-7)
    np.testing.assert_allclose(scatter / (N - 1), exact, rtol=1e-5, atol=1e-4)
    assert np.abs(naive * N / (N - 1) - exact).max() > 0.05


def test_many_batches_drift_no_more_than_one():
    rows = (0.1 * RNG.normal(size=(2000, 2, 3)) + 100).astype(np.float32)
    count, mean, scatter = jax.lax.fori_loop(
        0,
        500,
        lambda i, moments: gaussian.update(
            moments, jax.lax.dynamic_slice_in_dim(jnp.asarray(rows), 4 * i, 4), jnp.ones(4, bool)
        ),
        jax.tree.map(jnp.asarray, gaussian.no_moments(2, 3)),
    )
    assert count == 2000
    np.testing.assert_allclose(mean, rows.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(scatter / 1999, covariance(rows), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("n", [13, 3])  # 3 rows of 5 dimensions: without regularisation there would be no inverse
@pytest.mark.parametrize("regularisation", [0.01, 0.7])
def test_distances_are_those_of_scipy(n, regularisation):
    rows, test = ROWS[:n], RNG.normal(size=(4, POSITIONS, DIM)).astype(np.float32)
    count, mean, scatter = moments_of(rows, (n,))
    factor = gaussian.factors(scatter, count, regularisation)
    assert np.all(np.triu(factor, 1) == 0)
    found = gaussian.mahalanobis(test, mean, factor)
    inverse = np.linalg.inv(covariance(rows) + regularisation * np.eye(DIM))
    expected = [
        [scipy.spatial.distance.mahalanobis(one[p], rows[:, p].mean(0), inverse[p]) for p in range(POSITIONS)]
        for one in test
    ]
    assert found.shape == (4, POSITIONS)
    np.testing.assert_allclose(found, expected, rtol=5e-4)
    np.testing.assert_allclose(gaussian.mahalanobis(mean[None], mean, factor), 0.0, atol=1e-6)


def test_blocks_of_positions_change_nothing(monkeypatch):
    count, _, scatter = moments_of(ROWS, (13,))
    whole = gaussian.factors(scatter, count, 0.01)
    monkeypatch.setattr(gaussian, "BLOCK_BYTES", 4 * DIM * DIM * 5)  # 5 positions at once: 16 leave a short last block
    np.testing.assert_allclose(gaussian.factors(scatter, count, 0.01), whole, rtol=1e-5, atol=1e-6)


def test_factoring_needs_little_more_than_what_goes_in_and_comes_out(monkeypatch):
    monkeypatch.setattr(gaussian, "BLOCK_BYTES", 4 * DIM * DIM * 60)  # 4096 leave a short last block
    many = jax.ShapeDtypeStruct((4096, DIM, DIM), jnp.float32)
    compiled = jax.jit(lambda scatter: gaussian.factors(scatter, jnp.float32(9), 0.01)).lower(many).compile()
    used = compiled.memory_analysis()
    assert used.argument_size_in_bytes == used.output_size_in_bytes == 4 * 4096 * DIM * DIM
    assert used.temp_size_in_bytes < 0.25 * used.output_size_in_bytes


def test_eight_devices_agree_with_one_and_gather_no_matrices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:8])
    rows, valid = ROWS[:8], np.arange(8) != 2
    other = ROWS[5:13]

    def everything(moments, rows, valid, other):
        moments = gaussian.update(moments, rows, valid)
        moments = gaussian.update(moments, other, jnp.ones(8, bool))
        factor = gaussian.factors(moments.scatter, moments.count, 0.01)
        return moments, factor, gaussian.mahalanobis(rows, moments.mean, factor)

    start = gaussian.no_moments(POSITIONS, DIM)
    alone = jax.jit(everything)(start, rows, valid, other)
    with jax.set_mesh(mesh):
        split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
        placed = jax.device_put(start, gaussian.Moments(whole, split, split))
        batch = jax.device_put((rows, valid, other), split)  # as batches come: by images
        run = jax.jit(everything)
        text = run.lower(placed, *batch).compile().as_text()
        together = run(placed, *batch)
    assert together[0].scatter.sharding.is_equivalent_to(split, 3) and together[1].sharding.is_equivalent_to(split, 3)
    for one, eight in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-5)
    assert re.search(r" all-to-all(-start)?\(", text)  # features, from images to positions
    gathers = [line for line in text.splitlines() if re.search(r" all-gather(-start)?\(", line)]
    assert not any(f"{DIM},{DIM}]" in line for line in gathers)


def test_positions_that_do_not_divide_over_the_devices_are_kept_whole():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:8])
    alone = moments_of(ROWS[:, :11], (13,))
    with jax.set_mesh(mesh):
        together = moments_of(ROWS[:, :11], (13,))
    np.testing.assert_allclose(together.scatter, alone.scatter, rtol=1e-5, atol=1e-5)
