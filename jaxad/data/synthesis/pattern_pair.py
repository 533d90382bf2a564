"""What the comparison network of pattern generation learns from: a triple, and what is observed in its target's place.

Huang et al., section III-B. The generator predicts the target from far and near; whether what is observed matches the
prediction, and where it does not, is to be learned. The paper had labelled flaws; here most are drawn.

  kind     observed                                                     match  mask
  clean    the target                                                   yes    empty
  hard     the target as photographed again: brighter, noisier, moved   yes    empty
  defect   the target, with what of a defect of the image is in it      no     where the defect is
  context  the target; a defect is in far or near (fig. 4)              no     unknown
  wrong    a patch from elsewhere, in this image or in another          no     everywhere
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxad.data.synthesis import defects
from jaxad.data.synthesis.triple import PARTITIONS, PARTS, Partition, Partitions, cut, turned
from jaxad.data.views import Context, one_of, to_uint8
from jaxad.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

KINDS = ("clean", "hard", "defect", "context", "wrong")
CLEAN, HARD, DEFECT, CONTEXT, WRONG = range(len(KINDS))
SOURCES = ("synthetic", "labelled")
LEAST = 4  # masked pixels from which on a patch has a defect
TRIES = 6  # draws until some patch has one; then the pair is a clean one
BRIGHTNESS, CONTRAST, NOISE, SHIFT = 0.05, 0.05, 0.01, 1.0  # of hard matches: NOISE is Gaussian, SHIFT in pixels


class Pair(NamedTuple):
    """Images to cut a pair from, u8[S, S, 3] each: what far and near are of, the target and what is observed · marked:
    bool[S, S], where the latter is anomalous · row: i32[4], the triple, see `Partition` · place: i32[], the patch that
    is observed.
    """

    context: tf.Tensor
    target: tf.Tensor
    observed: tf.Tensor
    marked: tf.Tensor
    row: tf.Tensor
    place: tf.Tensor


def pattern_pair(
    image: tf.Tensor,
    data: Context,
    seed: tf.Tensor,
    *,
    n: Sequence[int] = PARTITIONS,
    patch: int = 0,
    coverage: str = "rows_cols",
    canonicalize: bool = True,
    source: str = "synthetic",
    clean: float = 0.35,
    hard: float = 0.15,
    defect: float = 0.5,
    context: float = 0.0,
    wrong: float = 0.0,
    textures: str = "",
) -> dict[str, tf.Tensor]:
    """{'far', 'near', 'target', 'observed': u8[p, p, 3], 'mask': bool[p, p], where observed is anomalous, 'match':
    bool[], 'masked': bool[], False where the mask is unknown, 'kind': i32[], a position in KINDS}.

    n, patch, coverage, canonicalize: see `triple`; observed and mask are turned with the triple · source: 'synthetic',
    defects are drawn on the image, see `defects.defect`; 'labelled', they are a real anomaly's, of which then the
    whole triple is, its far and near without defects where there are such · clean .. wrong: how likely each kind is,
    relative to the others · textures: a folder, see `defects.materials`.

    A patch has a defect where LEAST of its pixels have, and where it is seen, see `defects.Defect`. Where none of TRIES
    draws gives a pair of its kind, it is a clean one.
    UserError, when the graph is built, for other options, for images that are too small to draw defects on, and for
    source='labelled' where training has no anomalies.
    """
    import tensorflow as tf

    shares = _shares({"clean": clean, "hard": hard, "defect": defect, "context": context, "wrong": wrong})
    one_of("pattern_pair", "source", source, SOURCES)
    partitions = Partitions.of("pattern_pair", image, n, patch, coverage)
    lines, shown = _nearest(partitions, image.shape[0])
    for_pair, for_draws, for_hard = (tf.random.fold_in(seed, k) for k in range(3))

    uniform = tf.random.stateless_uniform((4,), for_pair)
    kind = tf.searchsorted(shares, uniform[:1], side="right")[0]
    partition = partitions.draw(uniform[1])
    row = partition.row(uniform[2])
    plain = to_uint8(image)
    clean_pair = Pair(plain, plain, plain, tf.zeros(plain.shape[:2], bool), row, row[2])
    draws = []
    if defect or context:
        if source == "labelled":
            anomaly = _labelled(data)
        else:
            anomaly = _synthetic(image, plain, defects.materials(image, data, textures), uniform[3])
        counts = tf.gather(shown, partition.index)
        draws.append(lambda seed: _anomalous(*anomaly(seed), kind, partition, counts, source == "labelled", seed))
    if wrong:
        draws.append(lambda seed: _wrong(data, clean_pair, partition, seed))
    pair = clean_pair
    if draws:
        pair, found = _first(draws, kind, clean_pair, for_draws)
        kind = tf.where(found, kind, CLEAN)

    corners = partition.corners(tf.concat([pair.row[:3], [pair.place]], axis=0))
    here = corners[3:]
    if hard:
        here = tf.where(kind == HARD, _moved(here, partition, for_hard), here)
    ahead = cut(pair.context, corners[:2], partition.n, partition.patch)
    target = cut(pair.target, corners[2:3], partition.n, partition.patch)
    observed = cut(pair.observed, here, partition.n, partition.patch)
    if hard:
        observed = tf.cond(kind == HARD, lambda: _photographed(observed, for_hard), lambda: observed)
    parts = to_uint8(tf.concat([ahead, target, observed], axis=0) / 255.0)
    mask = _marked(pair.marked, corners[2], tf.gather(lines, partition.index), partition.patch)
    if canonicalize:
        mask = tf.broadcast_to(tf.cast(mask, tf.uint8)[..., None], parts.shape[1:])
        parts = turned(tf.concat([parts, mask[None]], axis=0), pair.row[3])
        mask, parts = parts[4, ..., 0] > 0, parts[:4]
    return dict(zip((*PARTS, "observed"), tf.unstack(parts, 4), strict=True)) | {
        "mask": mask,
        "match": kind <= HARD,
        "masked": kind != CONTEXT,
        "kind": kind,
    }


def _first(draws: Sequence[Callable], kind: tf.Tensor, clean: Pair, seed: tf.Tensor) -> tuple[Pair, tf.Tensor]:
    """(the first of TRIES drawn pairs that is of i32[] `kind`, or `clean`; bool[] whether there is one).

    draws: i32[2] seed -> (pair, whether it is one), of defects and of wrong patches, where these are asked for.
    """
    import tensorflow as tf

    def attempt(k, *_):
        here = tf.random.fold_in(seed, k)
        options = [lambda draw=draw: draw(here) for draw in draws]
        pair, found = options[0]() if len(draws) == 1 else tf.cond(kind == WRONG, options[1], options[0])
        return k + 1, tf.cond(found, lambda: pair, lambda: clean), found

    _, pair, found = tf.while_loop(
        lambda k, _, found: (k < TRIES) & ~found, attempt, (0, clean, kind <= HARD), parallel_iterations=1
    )
    return pair, found


def _synthetic(image: tf.Tensor, plain: tf.Tensor, material: defects.Material, kind: tf.Tensor) -> Callable:
    """i32[2] seed -> (u8[S, S, 3] the image, the same with a defect)."""
    return lambda seed: (plain, defects.defect(image, plain, material, seed, kind))


def _labelled(data: Context) -> Callable:
    """As `_synthetic`, of a real anomaly: there is no image without its defect, and whoever labelled it saw it."""
    import tensorflow as tf

    def anomaly(seed):
        drawn, mask = data.draw_anomaly(seed)
        drawn = to_uint8(drawn)
        return drawn, defects.Defect(drawn, mask, tf.cast(mask, tf.int32))

    return anomaly


def _anomalous(
    before: tf.Tensor,
    after: defects.Defect,
    kind: tf.Tensor,
    partition: Partition,
    counts: tf.Tensor,
    real: bool,
    seed: tf.Tensor,
) -> tuple[Pair, tf.Tensor]:
    """(a pair of kind DEFECT or CONTEXT, bool[] whether any triple makes one).

    counts: f32[N, S], of `_nearest` · real: far, near and target are of one image, with a defect; of kind CONTEXT the
    target then must have none of it, of kind DEFECT far and near had better.
    """
    import tensorflow as tf

    # f32[2, N, N], exact sums over the patches: every line counts as often as it is shown, along both axes.
    sums = tf.stack([tf.cast(after.mask, tf.float32), tf.cast(after.excess, tf.float32)])
    sums = tf.matmul(tf.matmul(counts, sums), counts, transpose_b=True)
    patches = partition.rows[:, :3]
    patches = tf.stack([patches // partition.n, patches % partition.n], axis=-1)
    pixels, excess = (tf.gather_nd(of, patches) for of in tf.unstack(sums))
    touched, has = pixels > 0.0, (pixels >= LEAST) & (excess > 0.0)
    is_context = kind == CONTEXT
    possible = tf.where(is_context, has[:, 0] | has[:, 1], has[:, 2])
    order = tf.random.stateless_uniform(tf.shape(possible), tf.random.fold_in(seed, 3))
    if real:
        possible &= ~(is_context & touched[:, 2])
        order += tf.cast(~(touched[:, 0] | touched[:, 1]), tf.float32)
    row = partition.rows[tf.argmax(tf.where(possible, order, -1.0))]
    nowhere = tf.zeros_like(after.mask)
    shown = tf.cond(is_context, lambda: (after.image, before, nowhere), lambda: (before, after.image, after.mask))
    pair = Pair(context=shown[0], target=before, observed=shown[1], marked=shown[2], row=row, place=row[2])
    return pair, tf.reduce_any(possible)


def _wrong(data: Context, clean: Pair, partition: Partition, seed: tf.Tensor) -> tuple[Pair, tf.Tensor]:
    """(a pair of kind WRONG, bool[] whether most of what is observed is visibly another).

    Also of another image, another place is observed: of aligned objects the same place would show the same.
    """
    import tensorflow as tf

    patches = partition.n * partition.n
    elsewhere, other = tf.unstack(tf.random.stateless_uniform((2,), tf.random.fold_in(seed, 0)))
    step = 1 + tf.cast(elsewhere * tf.cast(patches - 1, tf.float32), tf.int32)
    place = (clean.place + step) % patches
    observed = clean.target
    if data.n_normal > 1:
        row = data.draw_row(tf.random.fold_in(seed, 1))
        observed = tf.cond(other < 0.5, lambda: data.load(row)[0], lambda: clean.target)
    corners = partition.corners(tf.stack([clean.place, place]))
    shown, target = (
        cut(of, at, partition.n, partition.patch) for of, at in ((observed, corners[1:]), (clean.target, corners[:1]))
    )
    change = tf.reduce_mean(tf.abs(shown - target), axis=-1)
    different = tf.reduce_mean(tf.cast(change > defects.VISIBLE, tf.float32)) >= 0.5
    everywhere = tf.ones(clean.marked.shape, bool)
    return clean._replace(observed=observed, marked=everywhere, place=place), different


def _moved(corner: tf.Tensor, partition: Partition, seed: tf.Tensor) -> tf.Tensor:
    """f32[1, 2] `corner` moved by up to SHIFT pixels along each axis, but not out of the image."""
    import tensorflow as tf

    by = tf.random.stateless_uniform((1, 2), tf.random.fold_in(seed, 0), -SHIFT, SHIFT)
    last = tf.cast((partition.n - 1) * partition.patch, tf.float32)
    return tf.clip_by_value(corner + by, 0.0, last)


def _photographed(levels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """f32[1, p, p, 3] in [0, 255] with another brightness and contrast, and with noise; grey where it was grey."""
    import tensorflow as tf

    factors = tf.random.stateless_uniform((2,), tf.random.fold_in(seed, 1), -1.0, 1.0)
    levels *= 1.0 + BRIGHTNESS * factors[0]
    mean = tf.reduce_mean(levels)
    levels = mean + (1.0 + CONTRAST * factors[1]) * (levels - mean)
    noise = tf.random.stateless_normal(levels.shape, tf.random.fold_in(seed, 2), 0.0, 255.0 * NOISE)
    grey = tf.reduce_all(levels[..., :1] == levels[..., 1:])
    return levels + tf.where(grey, noise[..., :1], noise)


def _nearest(partitions: Partitions, side: int) -> tuple[np.ndarray, np.ndarray]:
    """How masks are resized, by the nearest pixel as `images.resize_mask` does it: for each of G partitions, of up to N
    patches per side, (i32[G, N patch] the line of the mask that each line shows, f32[G, N, side] how many lines of each
    patch show it).
    """
    most, patch = int(partitions.n.max()), partitions.patch
    lines = np.zeros((len(partitions.n), most * patch), np.int32)
    counts = np.zeros((len(partitions.n), most, side), np.float32)
    for shown, count, n in zip(lines, counts, partitions.n, strict=True):
        at = np.arange(n * patch)
        shown[at] = (2 * at + 1) * side // (2 * n * patch)
        np.add.at(count, (at // patch, shown[at]), 1.0)
    return lines, counts


def _marked(mask: tf.Tensor, corner: tf.Tensor, lines: tf.Tensor, patch: int) -> tf.Tensor:
    """bool[patch, patch] of bool[S, S] `mask`, at f32[2] `corner` of the resized image; lines: see `_nearest`."""
    import tensorflow as tf

    top, left = tf.unstack(tf.cast(corner, tf.int32))
    rows, columns = (tf.slice(lines, [start], [patch]) for start in (top, left))
    return tf.gather(tf.gather(mask, rows), columns, axis=1)


def _shares(shares: Mapping[str, float]) -> np.ndarray:
    """f32[5], their running sums, the last 1. UserError where one is negative, and where all are 0."""
    for name, share in shares.items():
        if not 0 <= share < np.inf:
            raise UserError(f"op 'pattern_pair': {name}={share}; shares must be 0 or more")
    sums = np.cumsum(list(shares.values()))
    if not sums[-1]:
        raise UserError(f"op 'pattern_pair': the shares {', '.join(shares)} are all 0; set one of them")
    return np.float32(sums / sums[-1])
