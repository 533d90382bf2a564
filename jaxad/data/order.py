"""Which images batch n holds, and with which seeds: pure functions of (seed, stage, n), NumPy alone.

The stream of a shuffled feed is one permutation of the split per epoch, end to end; position p of the stream is image
p mod N of epoch p // N. Nothing is kept between batches, so a run resumes at any n at no cost. All draws are raw words
of Philox, a counter-based generator whose stream NumPy guarantees; NumPy's own `permutation` may change between
versions.
"""

from __future__ import annotations

import functools
import hashlib
import json

import numpy as np

from jaxad.types import Feed


def philox_key(*parts: str | int) -> np.ndarray:
    """u64[2], a Philox key that depends on every part."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()
    return np.frombuffer(digest, np.uint64)


@functools.lru_cache(maxsize=8)
def permutation(seed: int, stage: str, epoch: int, n: int) -> np.ndarray:
    """i64[n], the order of epoch `epoch`: a uniform permutation of 0 .. n - 1. Read-only, for it is kept.

    >>> sorted(permutation(0, "fit", 3, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    generator = np.random.Philox(key=philox_key(seed, stage, "order"), counter=[0, 0, 0, epoch])
    order = np.argsort(generator.random_raw(n), kind="stable")
    order.flags.writeable = False
    return order


def positions(feed: Feed, stage: str, n: int) -> tuple[str, np.ndarray]:
    """(the stage whose stream it is, i64[B] the positions there) of batch `n`: its own, or those that the feed replays.

    >>> positions(Feed(batch_size=4, replay=("contrast", 6)), "deviate", n=1)
    ('contrast', array([4, 5, 0, 1]))
    """
    position = n * feed.batch_size + np.arange(feed.batch_size)
    if feed.replay is None:
        return stage, position
    stage, length = feed.replay
    return stage, position % length


def rows_of(feed: Feed, n_images: int, *, seed: int, stage: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(index i32[B], valid bool[B]) of batch `n` of a split of `n_images`.

    Padding rows, in the last batch of an ordered feed, have index `n_images` or more, which no image has.

    >>> rows_of(Feed(batch_size=3, shuffle=False), 5, seed=0, stage="fit", n=1)
    (array([3, 4, 5], dtype=int32), array([ True,  True, False]))
    """
    stage, position = positions(feed, stage, n)
    if not feed.shuffle:
        return position.astype(np.int32), position < n_images
    epoch, offset = np.divmod(position, n_images)
    index = np.empty(feed.batch_size, np.int32)
    for e in np.unique(epoch):
        index[epoch == e] = permutation(seed, stage, int(e), n_images)[offset[epoch == e]]
    return index, np.ones(feed.batch_size, bool)


def example_seeds(feed: Feed, view: str, *, seed: int, stage: str, n: int) -> np.ndarray:
    """i32[B, 2], the seeds with which batch `n` makes the view named `view`: one per position of the stream.

    An image meets another seed in every epoch, and every view has its own, so adding a view changes no other.

    >>> feed = Feed(batch_size=2)
    >>> a, b = (example_seeds(feed, "rotated", seed=0, stage="fit", n=n) for n in (0, 1))
    >>> bool((a == b).any())
    False
    """
    stage, position = positions(feed, stage, n)
    key = philox_key(seed, stage, "view", view)
    runs = np.split(position, np.flatnonzero(np.diff(position) != 1) + 1)  # a replay may begin again in the middle
    # One block of 4 words per position.
    words = [np.random.Philox(key=key, counter=run[0]).random_raw(4 * len(run)).reshape(-1, 4) for run in runs]
    return np.ascontiguousarray(np.concatenate(words)[:, 0]).view(np.int32).reshape(feed.batch_size, 2)
