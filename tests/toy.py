"""A method outside jaxad, small enough to run in a blink: one stage that descends, one that remembers.

Its data is a NumPy array, so the tests of the loop need neither images nor TensorFlow.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxad.data import order
from jaxad.types import AnomalyMap, Batch, DataSpec, Feed, Record, Stage, TrainState
from jaxad.updates import Aux, descend, ema, every, remember, sequence

SIZE = 8
TRACES = {"learn": 0, "bank": 0}


class Net(nn.Module):
    """Convolution, BatchNorm, dropout, convolution: statistics and randomness, for resuming to lose."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, images, train=False):
        # no bias before BatchNorm: its gradient is zero up to rounding, which Adam would blow up
        x = nn.Conv(4, (3, 3), use_bias=False, param_dtype=self.dtype)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, param_dtype=self.dtype)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Conv(3, (3, 3), param_dtype=self.dtype)(x)


def stages(config, spec: DataSpec) -> tuple[Stage, ...]:
    options = config.toy
    net = Net(options.dtype)

    def init_learn(key, spec, carry):
        variables = jax.jit(net.init)(key, jnp.zeros((1, SIZE, SIZE, 3), options.dtype))
        stats = jax.tree.map(lambda leaf: leaf.astype(options.dtype), variables["batch_stats"])  # flax: float32 always
        return TrainState.create(params={"net": variables["params"]}, stats={"net": stats})

    def objective(params, state, batch, key):
        TRACES["learn"] += 1
        out, new = net.apply(
            {"params": params, "batch_stats": state.stats["net"]},
            batch.image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        loss = jnp.mean(jnp.square(out - batch.image)) * options.scale
        return loss, Aux(stats={"net": new["batch_stats"]}, metrics={"mean": jnp.mean(out)})

    def count(state, batch, key):
        return {"seen": state.memory.get("seen", jnp.zeros((), jnp.int32)) + jnp.sum(batch.valid).astype(jnp.int32)}

    optimiser = optax.sgd(options.lr) if options.optimiser == "sgd" else optax.adam(options.lr)
    learn = Stage(
        "learn",
        Feed(config.data.batch_size),
        config.train.steps.learn,
        init_learn,
        sequence(descend(objective, optimiser, "net"), every(2, ema("net", "slow", 0.9))),
    )

    def init_bank(key, spec, carry):
        rows = np.zeros((-(-spec.n_train // 8) * 8, 3), options.dtype)
        frozen = {"net": {"params": carry.params["net"], "batch_stats": carry.stats["net"]}}
        return TrainState.create(frozen=frozen, memory={"bank": rows, "seen": jnp.zeros((), jnp.int32)})

    def write(state, batch, key):
        TRACES["bank"] += 1
        rows = jnp.mean(net.apply(state.frozen["net"], batch.image), axis=(1, 2))
        where = jnp.where(batch.valid, batch.index, state.memory["bank"].shape[0])
        return {"bank": state.memory["bank"].at[where].set(rows, mode="drop")}

    def finish(state):
        centre = jnp.sum(state.memory["bank"], axis=0, keepdims=True) / spec.n_train
        return state.replace(memory={"centre": centre, "seen": state.memory["seen"]})

    def predict(state, batch):
        out = net.apply(state.frozen["net"], batch.image)
        pixel = jnp.sum(jnp.square(out - state.memory["centre"][:, None, None, :].astype(out.dtype)), axis=-1)
        return AnomalyMap(pixel, jnp.max(pixel, axis=(1, 2)))

    bank = Stage(
        "bank",
        Feed(config.data.batch_size, shuffle=False),
        0,
        init_bank,
        sequence(remember(count), remember(write)),
        finish,
        predict,
    )
    return learn, bank


def views(feed, image, truth):
    """The views of a feed, by NumPy: 'rotated' is the image upside down, 'flip_jitter' mirrors it and its mask `truth`,
    'spot_the_difference' makes the views it is asked for, brighter each, 'triple' and 'pattern_pair' cut patches of a
    quarter of the side from the top row, every other op puts a bright square on."""
    made = {}
    for view in feed.views:
        if view.op == "rotated":
            made[view.name] = image[:, ::-1]
            continue
        if view.op == "flip_jitter":
            made |= {view.name: image[:, :, ::-1], f"{view.name}_mask": truth[:, :, ::-1]}
            continue
        if view.op == "spot_the_difference":
            for number, name in enumerate(view.options["views"]):
                made[f"{view.name}_{name}"] = image * image.dtype.type(1 + 0.1 * number)
            continue
        if view.op in ("triple", "pattern_pair"):
            made |= {f"{view.name}_{name}": part for name, part in _patches(view, image).items()}
            continue
        mask = np.zeros(image.shape[:3], bool)
        mask[:, : image.shape[1] // 3, image.shape[2] // 4 : image.shape[2] // 2] = True
        made |= {view.name: np.where(mask[..., None], image.dtype.type(0.9), image), f"{view.name}_mask": mask}
    return made


def _patches(view, image):
    """What 'triple' and 'pattern_pair' make: every second pair has a bright square in the patch that is observed."""
    size, side = view.options["patch"], image.shape[1] // 4
    rows = np.arange(size) * side // size  # nearest, where patches have another size
    made = {name: image[:, rows][:, :, place * side + rows] for place, name in enumerate(("far", "near", "target"))}
    if view.op == "pattern_pair":
        match, mask = np.arange(len(image)) % 2 == 0, np.zeros((len(image), size, size), bool)
        mask[~match, size // 4 : size // 2, size // 4 : size // 2] = True
        made["observed"] = np.where(mask[..., None], image.dtype.type(0.9), made["target"])
        made |= {"mask": mask, "match": match, "masked": np.ones(len(image), bool)}
        made["kind"] = np.where(match, 0, 2).astype(np.int32)
    return made


class ArrayData:
    """`n` random images; with `anomalies`, so many more in the test set that have a bright square.

    moved: the first so many anomalies are in the split 'train', too, behind the normals.
    """

    notes = ()

    def __init__(
        self, n: int = 13, seed: int = 7, dtype: str = "float32", size: int = SIZE, anomalies: int = 0, moved: int = 0
    ):
        rng = np.random.default_rng(seed)
        normal = rng.uniform(0.3, 0.5, size=(n, size, size, 3)).astype(dtype)
        bad = rng.uniform(0.3, 0.5, size=(anomalies, size, size, 3)).astype(dtype)
        masks = np.zeros((n + anomalies, size, size), bool)
        masks[n:, size // 4 : size // 2, size // 2 : -size // 8] = True
        bad[masks[n:]] = 1.0
        self.images, self.masks = np.concatenate([normal, bad]), masks
        self.spec = DataSpec("toy", "toy", size, n + moved, 0, n, anomalies, anomalies > 0, moved)

    def _count(self, split):
        if split == "train_normal":
            return self.spec.n_train_normal
        return len(self.images) if split == "test" else self.spec.n_train

    def records(self, split):
        n = self.spec.n_train_normal
        return tuple(
            Record(f"{split}/{'good' if i < n else 'square'}/{i:03}.png", i >= n, "good" if i < n else "square")
            for i in range(self._count(split))
        )

    def image(self, split, index):
        return (self.images[index] * 255).astype(np.uint8)

    def manifest(self):
        return {split: [record.path for record in self.records(split)] for split in ("train", "test")}

    def batches(self, feed, *, seed, stage, start, stop, rows):
        n = self._count(feed.split)
        zero = self.images.dtype.type(0)
        for step in range(start, stop):
            index, valid = (part[rows] for part in order.rows_of(feed, n, seed=seed, stage=stage, n=step))
            place = np.minimum(index, n - 1)
            image = np.where(valid[:, None, None, None], self.images[place], zero)
            mask = self.masks[place] & valid[:, None, None]
            yield Batch(
                image, mask, (index >= self.spec.n_train_normal) & valid, index, valid, views(feed, image, mask)
            )
