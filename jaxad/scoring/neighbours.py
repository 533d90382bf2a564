"""Exact nearest neighbours in a bank of descriptors, block by block, on one device or with the bank's rows sharded.

Where `jax.set_mesh` has set a mesh with an axis 'data' of more than one device, the search runs under `shard_map`:
every device looks through its own rows of the bank for all queries, and only the K best of each device travel. Left to
itself, XLA gathers the whole [Q, M] distance matrix for `top_k`, and the whole bank for `bank[index]`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxad.types import AXIS, Array

BLOCK_BYTES = (
    1 << 25
)  # of one block of the distance matrix: small enough to stay near the cores, large enough for a matmul


def nearest(
    query: Array, bank: Array, k: int = 1, *, valid: Array | None = None, block: int | None = None
) -> tuple[Array, Array]:
    """The `k` rows of `bank: f[M, D]` nearest to each row of `query: f[Q, D]`, exactly.

    Returns (squared Euclidean distance f32[Q, k], row of the bank i32[Q, k]), nearest first; among equal distances the
    lowest row comes first. `valid: bool[M]` leaves rows out; where fewer than k are left the distance is infinite.
    Distances are ||q||^2 + ||b||^2 - 2 q.b in float32 at the highest matmul precision, clamped at 0: exact to about
    2e-6 of the squared norms. `block` rows of the bank are compared at a time: memory is O(Q block), never O(Q M).
    Raises ValueError if k is larger than M or the lengths D differ.

    >>> bank = jnp.array([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    >>> distance, row = nearest(jnp.array([[0.0, 2.0]]), bank, k=2)
    >>> distance.tolist(), row.tolist()
    ([[1.0, 4.0]], [[2, 0]])
    """
    if query.shape[1] != bank.shape[1]:
        raise ValueError(f"nearest: queries have {query.shape[1]} dimensions, the bank has {bank.shape[1]}")
    if not 1 <= k <= bank.shape[0]:
        raise ValueError(f"nearest: k is {k}, the bank has {bank.shape[0]} rows")
    query, bank = jnp.asarray(query, jnp.float32), jnp.asarray(bank, jnp.float32)
    shards = data_shards()
    if shards == 1:
        return _search(query, bank, valid, k, block)

    q, m = query.shape[0], bank.shape[0]
    valid = jnp.ones(m, bool) if valid is None else valid
    query, bank, valid = pad_rows(query, shards), pad_rows(bank, shards), pad_rows(valid, shards)
    rows = bank.shape[0] // shards

    @functools.partial(
        jax.shard_map, in_specs=(P(AXIS), P(AXIS), P(AXIS)), out_specs=P(AXIS), axis_names={AXIS}, check_vma=False
    )
    def search(query, bank, valid):
        everyone = jax.lax.all_gather(query, AXIS, tiled=True)
        distance, row = _search(everyone, bank, valid, min(k, rows), block)
        row = row + jax.lax.axis_index(AXIS) * rows
        # Each device keeps its own queries and receives every device's candidates for them: [shards, Q / shards, k].
        split = functools.partial(jax.lax.all_to_all, axis_name=AXIS, split_axis=0, concat_axis=1, tiled=True)
        return _best(split(distance), split(row), k)

    distance, row = search(query, bank, valid)
    return distance[:q], row[:q]


def take(bank: Array, index: Array) -> Array:
    """`bank[index]`, `bank: [M, ...]`, `index: i32[N]` in [0, M): also of a bank with sharded rows, not gathering it.

    >>> take(jnp.arange(6.0).reshape(3, 2), jnp.array([2, 0])).tolist()
    [[4.0, 5.0], [0.0, 1.0]]
    """
    shards = data_shards()
    if shards == 1:
        return jnp.asarray(bank)[index]
    bank = pad_rows(bank, shards)
    rows = bank.shape[0] // shards

    @functools.partial(jax.shard_map, in_specs=(P(AXIS), P()), out_specs=P(), axis_names={AXIS}, check_vma=False)
    def local(bank, index):
        return jax.lax.psum(take_local(bank, index - jax.lax.axis_index(AXIS) * rows), AXIS)

    return local(bank, index)


def take_local(rows: Array, index: Array) -> Array:
    """`rows[index]`, and zeros where the index is not a row of this shard: the sum over shards is the row."""
    here = (index >= 0) & (index < rows.shape[0])
    found = rows[jnp.where(here, index, 0)]
    return jnp.where(here.reshape(-1, *(1,) * (rows.ndim - 1)), found, jnp.zeros((), rows.dtype))


def data_shards() -> int:
    """Devices on the axis 'data' of the mesh in context (`jax.set_mesh`); 1 without one."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(AXIS, 1)


def pad_rows(array: Array, multiple: int) -> Array:
    """Zero (False) rows at the end up to a multiple of `multiple`."""
    extra = -array.shape[0] % multiple
    return jnp.pad(array, ((0, extra), *((0, 0),) * (array.ndim - 1))) if extra else array


def _search(query: Array, bank: Array, valid: Array | None, k: int, block: int | None) -> tuple[Array, Array]:
    """`nearest` on one device."""
    q, m = query.shape[0], bank.shape[0]
    block = min(m, block or max(256, min(8192, BLOCK_BYTES // (4 * max(q, 1)))))

    def compare(i, best):
        # The last block starts early, at m - block, to keep its shape, and leaves out what the one before has seen.
        start = jnp.minimum(i * block, m - block)
        rows = jax.lax.dynamic_slice_in_dim(bank, start, block)
        index = start + jnp.arange(block, dtype=jnp.int32)
        use = index >= i * block
        if valid is not None:
            use &= jax.lax.dynamic_slice_in_dim(valid, start, block)
        norm = jnp.where(use, jnp.sum(rows * rows, axis=1), jnp.inf)
        product = jax.lax.dot_general(query, rows, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST)
        distance = norm[None, :] - 2.0 * product  # without ||q||^2, which changes no order within a query
        if k == 1:
            least = jnp.min(distance, axis=1, keepdims=True)
            # The first row that attains the minimum, as a minimum over integers: argmin does not vectorise on CPU.
            first = jnp.min(jnp.where(distance == least, index[None, :], m - 1), axis=1, keepdims=True)
            closer = least < best[0]
            return jnp.where(closer, least, best[0]), jnp.where(closer, first, best[1])
        value, place = jax.lax.top_k(-distance, min(k, block))
        return _best(jnp.concatenate([best[0], -value], 1), jnp.concatenate([best[1], start + place], 1), k)

    best = jnp.full((q, k), jnp.inf, jnp.float32), jnp.zeros((q, k), jnp.int32)
    distance, row = jax.lax.fori_loop(0, -(-m // block), compare, best)
    return jnp.maximum(distance + jnp.sum(query * query, axis=1, keepdims=True), 0.0), row


def _best(distance: Array, row: Array, k: int) -> tuple[Array, Array]:
    """The k least of f32[Q, c] and their rows; `top_k` keeps the earlier of equals first."""
    value, place = jax.lax.top_k(-distance, k)
    return -value, jnp.take_along_axis(row, place, axis=1)
