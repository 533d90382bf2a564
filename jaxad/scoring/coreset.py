"""Coresets by exact greedy k-centre (farthest-point) selection, in rounds of matrix products, not one pass per pick.

The plain loop reads all N rows for each of k picks and is bound by memory bandwidth. Here a round
  1. takes the M rows with the highest scores as candidates, and the next one as the bound,
  2. picks greedily inside the candidates for as long as the best of them is still above the bound: scores only ever
     fall, so no row outside can be the farthest before that,
  3. brings all N scores up to date with the picks of the round by blocked matrix products.
The picks are those of the plain loop, lowest row first among equals. The cost is the 2 N k d operations of the
distances themselves, at the speed of a matmul; 32,768 picks from 327,680 rows take about 20 rounds.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxad.errors import UserError
from jaxad.scoring.neighbours import data_shards, pad_rows, take
from jaxad.types import AXIS, Array

PROJECTIONS = ("linear", "gaussian", "sparse")
CANDIDATES = 4096  # M: rows that compete in a round; their [M, M] distances are kept
CHUNK = 256  # picks per matrix product when scores are brought up to date
BLOCK = 2048  # rows per matrix product
HIGHEST = jax.lax.Precision.HIGHEST
LAST = jnp.iinfo(jnp.int32).max


def random_projection(key: Array, d_in: int, d_out: int, kind: str = "linear") -> Array:
    """f32[d_in, d_out], to be multiplied from the right: `features @ random_projection(...)`.

    kind: 'linear', the initial weights of a PyTorch linear layer, U(-1, 1) / sqrt(d_in) (as the PatchCore authors
    project; distances shrink by sqrt(d_out / (3 d_in)), which changes no choice) ·
    'gaussian', N(0, 1) / sqrt(d_out) ·
    'sparse', 0 or +-sqrt(s / d_out) with probability 1 / s of a nonzero, s = sqrt(d_in) (Li, Hastie, Church 2006).
    The latter two keep distances in expectation. Raises UserError for another kind.

    >>> random_projection(jax.random.key(0), 512, 128, 'gaussian').shape
    (512, 128)
    """
    shape = (d_in, d_out)
    if kind == "linear":
        limit = 1.0 / math.sqrt(d_in)
        return jax.random.uniform(key, shape, jnp.float32, -limit, limit)
    if kind == "gaussian":
        return jax.random.normal(key, shape, jnp.float32) / math.sqrt(d_out)
    if kind == "sparse":
        s = math.sqrt(d_in)
        draw = jax.random.uniform(key, shape, jnp.float32)
        sign = jnp.where(draw < 0.5 / s, 1.0, jnp.where(draw > 1.0 - 0.5 / s, -1.0, 0.0))
        return sign * math.sqrt(s / d_out)
    raise UserError(f"projection {kind!r} is not known: set it to one of {', '.join(PROJECTIONS)}")


def k_centre(
    features: Array,
    k: int,
    *,
    key: Array | None = None,
    start_points: int = 10,
    start_scores: Array | None = None,
    valid: Array | None = None,
    candidates: int = CANDIDATES,
) -> Array:
    """Rows of `features: f[N, d]` that greedy farthest-point selection picks, in order: i32[k], exact and distinct.

    Each pick is the row with the highest score, the lowest row among equals, and a row's score is its Euclidean
    distance to the nearest pick so far. Before the first pick the scores are
      - the mean distances to `start_points` random rows drawn with `key` (which are not themselves picked), as in the
        PatchCore authors' sampler; they go on to cap the score, so that a pick far from everything does not reset it;
      - with `start_points=0`, such that the first pick is a random row;
      - `start_scores: f[N]`, distances, where given (to extend an earlier selection, say).
    `valid: bool[N]` leaves rows out; at least k must be left, otherwise the surplus picks mean nothing.
    `candidates` changes the speed, never the result. Distances are computed as in `neighbours.nearest`: rows whose
    distances differ by less than float32 rounding may come in either order.

    Under a mesh in context with an axis 'data' of more than one device, rows are sharded over it, only candidates
    travel, and the picks are the same.
    Raises ValueError if k is not in 1 .. N, or neither `key` nor `start_scores` is given.

    >>> line = jnp.array([[0.0], [1.0], [2.0], [10.0]])
    >>> k_centre(line, 3, start_scores=jnp.array([99.0, 50.0, 50.0, 50.0])).tolist()
    [0, 3, 2]
    """
    n = features.shape[0]
    if not 1 <= k <= n:
        raise ValueError(f"k_centre: k is {k}, there are {n} rows")
    if key is None and start_scores is None:
        raise ValueError("k_centre: give a key for the random start, or start_scores")
    features = jnp.asarray(features, jnp.float32)
    valid = jnp.ones(n, bool) if valid is None else valid
    shards = data_shards()
    features, valid = pad_rows(features, shards), pad_rows(valid, shards)
    scores = _start(features, valid, n, key, start_points, start_scores)
    if shards == 1:
        return _greedy(features, scores, k, candidates, axis=None)

    @functools.partial(jax.shard_map, in_specs=(P(AXIS), P(AXIS)), out_specs=P(), axis_names={AXIS}, check_vma=False)
    def greedy(features, scores):
        return _greedy(features, scores, k, -(-candidates // shards), axis=AXIS)

    return greedy(features, scores)


def _start(
    features: Array, valid: Array, n: int, key: Array | None, start_points: int, start_scores: Array | None
) -> Array:
    """Squared scores before the first pick, f32[N]; -inf for rows that cannot be picked."""
    if start_scores is not None:
        scores = pad_rows(jnp.square(jnp.asarray(start_scores, jnp.float32)), features.shape[0])[: features.shape[0]]
    else:
        # The draw is over the n rows without padding, so that it is the same on any number of devices.
        lottery = jnp.where(valid[:n], jax.random.uniform(key, (n,)), -1.0)
        drawn = jax.lax.top_k(lottery, max(1, min(start_points, n)))[1]
        if start_points == 0:
            first = jnp.arange(features.shape[0]) == drawn[0]
            scores = jnp.where(first, jnp.inf, jnp.finfo(jnp.float32).max)
        else:
            points = take(features, drawn)
            scores = jnp.square(jnp.mean(jnp.sqrt(_distances(points, features)), axis=0))
    return jnp.where(valid, scores, -jnp.inf)


class _State(NamedTuple):
    """picks: i32[k], rows in order · count: i32[], how many are set · scores: f32[n], squared, -inf once picked."""

    picks: Array
    count: Array
    scores: Array


def _greedy(features: Array, scores: Array, k: int, m: int, axis: str | None) -> Array:
    """The rounds, on this device's rows. m: candidates that this device puts forward · axis: of the mesh, or None."""
    n, d = features.shape
    m = min(m, n)
    offset = 0 if axis is None else jax.lax.axis_index(axis) * n
    gather = (lambda x: x) if axis is None else functools.partial(jax.lax.all_gather, axis_name=axis, tiled=True)

    def nominate(scores):
        """The candidates in row order (rows, features, scores), and the best that is not one of them (score, row)."""
        value, row = jax.lax.top_k(scores, min(m + 1, n))
        runner_up = (value[m:], row[m:] + offset) if m < n else (jnp.full(1, -jnp.inf), jnp.full(1, LAST, jnp.int32))
        bound, bound_row = gather(runner_up[0]), gather(runner_up[1])
        best = jnp.max(bound)
        bound_row = jnp.min(jnp.where(bound == best, bound_row, LAST))
        row = jnp.sort(row[:m])
        return gather(row + offset), gather(features[row]), gather(scores[row]), best, bound_row

    def round_(state):
        rows, points, score, bound, bound_row = nominate(state.scores)
        between = _distances(points, points)

        def safe(inner):
            picks, count, score, j = inner
            # Nothing outside comes before (bound, bound_row) in the order (highest score, lowest row).
            first = (score[j] > bound) | ((score[j] == bound) & (rows[j] < bound_row))
            return first & (count < k)

        def pick(inner):
            picks, count, score, j = inner
            score = jnp.minimum(score, between[j]).at[j].set(-jnp.inf)
            return picks.at[count].set(j), count + 1, score, _first_max(score)

        places = jnp.zeros(k, jnp.int32)  # where in the candidates pick number i is
        places, count, *_ = jax.lax.while_loop(safe, pick, (places, state.count, score, _first_max(score)))
        number = jnp.arange(k)
        new = (number >= state.count) & (number < count)
        picked = rows[places]
        scores = _refresh(features, state.scores, points, places, state.count, count)
        here = jnp.where(new, picked - offset, n)
        scores = scores.at[jnp.where(here < 0, n, here)].set(-jnp.inf, mode="drop")
        return _State(jnp.where(new, picked, state.picks), count, scores)

    state = _State(jnp.zeros(k, jnp.int32), jnp.zeros((), jnp.int32), scores)
    return jax.lax.while_loop(lambda state: state.count < k, round_, state).picks


def _refresh(features: Array, scores: Array, points: Array, places: Array, start: Array, stop: Array) -> Array:
    """min(scores, distance to points[places[i]] for start <= i < stop)."""
    n, k = features.shape[0], places.shape[0]
    block, chunk = min(BLOCK, n), min(CHUNK, k)

    def chunks(carry):
        scores, begin = carry
        # dynamic_slice would move a window that sticks out at the end; earlier picks only repeat themselves.
        at = jnp.minimum(begin, k - chunk)
        number = at + jnp.arange(chunk, dtype=jnp.int32)
        new = (number >= begin) & (number < stop)
        centres = points[jax.lax.dynamic_slice_in_dim(places, at, chunk)]

        def blocks(i, scores):
            # The last block starts early to keep its shape; doing rows twice changes nothing.
            row = jnp.minimum(i * block, n - block)
            near = _distances(jax.lax.dynamic_slice_in_dim(features, row, block), centres, new)
            old = jax.lax.dynamic_slice_in_dim(scores, row, block)
            return jax.lax.dynamic_update_slice_in_dim(scores, jnp.minimum(old, jnp.min(near, axis=1)), row, 0)

        return jax.lax.fori_loop(0, -(-n // block), blocks, scores), begin + chunk

    return jax.lax.while_loop(lambda carry: carry[1] < stop, chunks, (scores, start))[0]


def _distances(a: Array, b: Array, use: Array | None = None) -> Array:
    """Squared distances f32[A, B] of rows; infinite in the columns where `use: bool[B]` is False."""
    product = jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision=HIGHEST)
    norm_b = jnp.sum(b * b, axis=1)
    if use is not None:
        norm_b = jnp.where(use, norm_b, jnp.inf)
    return jnp.maximum((norm_b[None, :] - 2.0 * product) + jnp.sum(a * a, axis=1)[:, None], 0.0)


def _first_max(score: Array) -> Array:
    """argmax, as two plain reductions: those vectorise on CPU."""
    place = jnp.arange(score.shape[0], dtype=jnp.int32)
    return jnp.min(jnp.where(score == jnp.max(score), place, LAST))
