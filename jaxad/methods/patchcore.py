"""PatchCore (Roth et al. 2022, "Towards Total Recall in Industrial Anomaly Detection", arXiv:2106.08265).

One stage that fits in one ordered pass: patch descriptors of a frozen backbone are written into a bank at their image's
index, `finish` keeps a coreset of it, and `predict` scores a patch by its distance to the nearest descriptors kept.

The defaults follow the authors' code (amazon-science/patchcore-inspection) where it and the article differ:
`squared` distances (faiss takes no root), no re-weighting of the image score (`reweight_b=0`; the article's eq. 7 is
`reweight_b=3` or 9), adaptive pooling of descriptors, and a start of the selection that the article does not mention.

`ones_pass` is what their code does unawares: to measure its feature dimensions it runs one image of ones through the
backbone while that is still in training mode, which moves every BatchNorm average by a tenth. Numbers measured with
their code hold this in. Departure from the article, which does not mention it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxad.methods import features
from jaxad.scoring import coreset, maps, neighbours
from jaxad.types import AnomalyMap, Array, Batch, DataSpec, Feed, Stage, TrainState, UserError
from jaxad.updates import remember

ROWS = 256  # the bank is padded to a multiple of this many rows, so that it divides over the devices of a mesh


def stages(config: Any, spec: DataSpec) -> tuple[Stage, ...]:
    """One stage, 'fit'. Raises UserError where config.patchcore or the backbone make no sense."""
    options, score = config.patchcore, config.score
    _check(options)
    backbone = features.extractor(config, options.layers, spec.image_size)
    describe = _descriptor(options)
    _, height, width, dim = jax.eval_shape(describe, [jnp.zeros((1, *shape)) for shape in backbone.shapes]).shape
    patches = height * width
    filled = spec.n_train_normal * patches
    rows = -(-filled // ROWS) * ROWS
    kept = max(1, int(options.coreset * filled))
    for name in ("neighbours", "reweight_b"):
        if options[name] > kept:
            raise UserError(
                f"config.patchcore.{name}={options[name]}, but the coreset has {kept} patches: "
                f"raise config.patchcore.coreset"
            )

    def descriptors(state: TrainState, image: Array) -> Array:
        """f[B, H, W, 3] to f32[B * patches, dim]"""
        return describe(backbone.apply(state.frozen["backbone"], image)).reshape(-1, dim)

    def init(key: Array, spec: DataSpec, carry: TrainState | None) -> TrainState:
        memory = {
            "bank": np.zeros((rows, dim), np.float32),  # NumPy: no second copy on the device when the state is placed
            "bank_written": jnp.zeros(rows, bool),
            "key": jax.random.key_data(key),  # of the projection and the random start: all that `finish` draws
        }
        variables = backbone.load()
        if options.ones_pass:
            variables = features.after_ones_pass(config, options.layers, spec.image_size, variables)
        return TrainState.create(frozen={"backbone": variables}, memory=memory)

    def write(state: TrainState, batch: Batch, key: Array) -> dict[str, Array]:
        place = jnp.arange(patches, dtype=jnp.int32)
        row = batch.index[:, None] * patches + place[None, :]
        # Padding goes past the end, each to a row of its own, and is dropped.
        beyond = rows + jnp.arange(row.size, dtype=jnp.int32).reshape(row.shape)
        row = jnp.where(batch.valid[:, None], row, beyond).reshape(-1)
        bank, written = state.memory["bank"].at[row], state.memory["bank_written"].at[row]
        return {
            "bank": bank.set(descriptors(state, batch.image), mode="drop", unique_indices=True),
            "bank_written": written.set(True, mode="drop", unique_indices=True),
        }

    def finish(state: TrainState) -> TrainState:
        bank = state.memory["bank"]
        if options.coreset == 1:
            return state.replace(memory={"bank": bank[:filled]})
        projection_key, start_key = jax.random.split(jax.random.wrap_key_data(state.memory["key"]))
        projected = bank
        if options.projection != "none":
            projection = coreset.random_projection(projection_key, dim, options.projection_dim, options.projection)
            projected = jnp.matmul(bank, projection, precision=jax.lax.Precision.HIGHEST)
        picks = coreset.k_centre(
            projected, kept, key=start_key, start_points=options.start_points, valid=state.memory["bank_written"]
        )
        return state.replace(memory={"bank": neighbours.take(bank, picks)})

    def predict(state: TrainState, batch: Batch) -> AnomalyMap:
        bank = state.memory["bank"]
        query = descriptors(state, batch.image)
        squared, row = neighbours.nearest(query, bank, options.neighbours)
        distance = squared if options.squared else jnp.sqrt(squared)
        patch = jnp.mean(distance, axis=1).reshape(-1, patches)
        image = maps.image_score(patch.reshape(-1, height, width), options.image_score)  # before any smoothing
        if options.reweight_b:
            query = query.reshape(-1, patches, dim)
            farthest = jnp.argmax(patch, axis=1)[:, None]
            nearest = jnp.take_along_axis(row[:, 0].reshape(-1, patches), farthest, axis=1)[:, 0]
            test = jnp.take_along_axis(query, farthest[..., None], axis=1)[:, 0]
            image = image * reweighting(test, nearest, bank, options.reweight_b)
        pixel = maps.anomaly_map(
            patch.reshape(-1, height, width),
            batch.image.shape[1:3],
            interpolation=score.interpolation,
            sigma=score.sigma,
        )
        return AnomalyMap(pixel, image)

    feed = Feed(config.data.batch_size, split="train_normal", shuffle=False)
    return (Stage("fit", feed, feed.one_pass(spec.n_train_normal), init, remember(write), finish, predict),)


def reweighting(test: Array, nearest: Array, bank: Array, b: int) -> Array:
    """The factor of eq. 7, f32[B] in [0, 1]: 1 - exp ||m_test - m*|| / sum over m in N_b(m*) of exp ||m_test - m||.

    test: f32[B, D], each image's farthest patch m_test · nearest: i32[B], the row of its nearest neighbour m* in
    `bank: f32[M, D]` · N_b: the b rows nearest to m*, itself among them. Computed as a softmax, which cannot overflow.

    >>> bank = jnp.array([[0.0], [1.0], [9.0]])
    >>> reweighting(jnp.array([[0.5]]), jnp.array([0]), bank, b=2).tolist()  # two equally far: half
    [0.5]
    """
    star = neighbours.take(bank, nearest)
    _, around = neighbours.nearest(star, bank, b)
    support = neighbours.take(bank, around.reshape(-1)).reshape(*around.shape, -1)
    distance = jnp.linalg.norm(test[:, None] - support, axis=-1)
    least = jnp.linalg.norm(test - star, axis=-1)
    return jnp.clip(1.0 - jnp.exp(least - jax.nn.logsumexp(distance, axis=1)), 0.0, 1.0)


def _descriptor(options: Any) -> Callable[[Sequence[Array]], Array]:
    """Features of each layer -> f32[B, h, w, D] on the grid of the first."""
    weights = tuple(options.layer_weights) or (1.0,) * len(options.layers)

    def describe(layers: Sequence[Array]) -> Array:
        layers = [weight * layer for weight, layer in zip(weights, layers, strict=True)]
        if options.descriptor == "concat":
            return features.concat(layers, options.neighbourhood)
        return features.adaptive(layers, options.neighbourhood, options.layer_dim, options.dim)

    return describe


def _check(options: Any) -> None:
    """Raises UserError for values that make no sense, before anything is loaded."""

    def demand(ok: bool, name: str, what: str) -> None:
        if not ok:
            raise UserError(f"config.patchcore.{name}={options[name]!r}: it must be {what}")

    projections = (*coreset.PROJECTIONS, "none")
    demand(options.descriptor in ("adaptive", "concat"), "descriptor", "'adaptive' or 'concat'")
    demand(options.neighbourhood >= 1 and options.neighbourhood % 2 == 1, "neighbourhood", "an odd number, 1 or more")
    demand(0 < options.coreset <= 1, "coreset", "in (0, 1]")
    demand(options.projection in projections, "projection", f"one of {', '.join(projections)}")
    demand(options.neighbours >= 1, "neighbours", "1 or more")
    demand(len(options.layer_weights) in (0, len(options.layers)), "layer_weights", "one number per layer, or empty")
    demand(options.image_score in maps.REDUCTIONS, "image_score", f"one of {', '.join(maps.REDUCTIONS)}")
    if options.reweight_b and options.image_score != "max":
        raise UserError("config.patchcore.reweight_b re-weights a maximum: set config.patchcore.image_score=max")
    for name in ("layer_dim", "dim", "projection_dim"):
        demand(options[name] >= 1, name, "1 or more")
    for name in ("start_points", "reweight_b"):
        demand(options[name] >= 0, name, "0 or more")
