"""The types every room of the house speaks in.

Axis letters, used in all docstrings:
  B images in a batch · H, W image height and width in pixels · h, w feature-map height and width ·
  C channels · D descriptor length · N rows (images or patches) · M rows of a bank · K neighbours or picks
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxad.errors import UserError as UserError  # raised by every room; defined where nothing heavy is imported

Array = jax.Array
Tree = Any
AXIS = "data"  # the mesh axis over which batches and the rows of banks are split


class Batch(flax.struct.PyTreeNode):
    """What a pipeline serves and every update and predict takes.

    image: f32[B, H, W, 3] in [0, 1], RGB · mask: bool[B, H, W] · label: bool[B], True = anomalous ·
    index: i32[B], the row in its split · valid: bool[B], False = padding ·
    views: the extra views that a stage's feed asks for, by the view's name.
    """

    image: Array
    mask: Array
    label: Array
    index: Array
    valid: Array
    views: Mapping[str, Array] = flax.struct.field(default_factory=dict)


class TrainState(flax.struct.PyTreeNode):
    """All that training changes, in one tree. The slots are named by who writes them.

    step: i32[], by the loop · params: {network: tree}, by optimisers · opt: {network: optax state}, by optimisers ·
    stats: {network: BatchNorm averages}, by forward passes · frozen: {network: tree}, by nobody ·
    memory: {name: array}, by the method's own rule (banks, queues, moments).
    """

    step: Array
    params: Mapping[str, Tree]
    opt: Mapping[str, Tree]
    stats: Mapping[str, Tree]
    frozen: Mapping[str, Tree]
    memory: Mapping[str, Tree]

    @classmethod
    def create(cls, *, params=None, stats=None, frozen=None, memory=None) -> TrainState:
        """A state at step 0; optimiser states are added by `Update.init`."""
        return cls(jnp.zeros((), jnp.int32), params or {}, {}, stats or {}, frozen or {}, memory or {})


class AnomalyMap(NamedTuple):
    """pixel: f32[B, H, W], image: f32[B]; larger = more anomalous, raw, never rescaled by test-set extremes.

    extras: what a reader of the results wants to look at beside them, by name; nothing is decided by it.
    f32[B]: another score of the image, larger = more anomalous · f32[B, H, W, 3] in [0, 1]: a picture.
    """

    pixel: Array
    image: Array
    extras: Mapping[str, Array] = {}


Metrics = dict[str, Array]  # {name: f32[]}
SKIPPED = float(np.finfo(np.float32).min)  # the value of a metric that was not computed at this step; never logged


class Update(NamedTuple):
    """One training rule: `init(state) -> state` adds what it keeps, `apply(state, batch, key) -> (state, metrics)`."""

    init: Callable[[TrainState], TrainState]
    apply: Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class View:
    """An extra view of each training image, made by the pipeline.

    name: its key in `Batch.views` · op: a name in `jaxad.data.views`, or 'my_package.my_module:function' ·
    options: keyword arguments of the op, JSON-able.
    """

    name: str
    op: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Feed:
    """The batches a stage asks the pipeline for.

    split: 'train' (moved anomalies after the normals), 'train_normal' (without them), 'holdout' or 'test'.
    shuffle=True: batch n holds positions [n B, (n + 1) B) of an endless stream of per-epoch permutations, all valid.
    shuffle=False: the split once, in index order; the last batch is padded (`valid=False`).
    replay=(stage, positions): the first `positions` of the stream of that stage, again and again, instead of a stream
    of its own: the same images in the same order and, under the same name, op and options, the same views. Needs
    shuffle.
    """

    batch_size: int
    split: str = "train"
    shuffle: bool = True
    views: tuple[View, ...] = ()
    replay: tuple[str, int] | None = None

    def __post_init__(self):
        if self.replay and (not self.shuffle or self.replay[1] < 1):
            raise ValueError(f"a feed that replays {self.replay} must be shuffled, and replay 1 position or more")

    def one_pass(self, n: int) -> int:
        """Batches in one ordered pass over `n` images."""
        return -(-n // self.batch_size)


class Record(NamedTuple):
    """One image of a split.

    path: relative to the data root, '/'-separated · defect: 'good' for a normal image ·
    kind: its class, in a data set to pre-train on; '' in all others.
    """

    path: str
    label: bool
    defect: str
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What a method may know of the data when its stages are built. Counts are of images.

    n_train: the split 'train', of which n_train_anomalous are real anomalies moved there from the test set; the split
    'train_normal' has the others, under the same indices.
    kinds: the classes of the training images, sorted, in a data set to pre-train on; () in all others.
    """

    dataset: str
    category: str
    image_size: int
    n_train: int
    n_holdout: int
    n_test_normal: int
    n_test_anomalous: int
    has_masks: bool
    n_train_anomalous: int = 0
    kinds: tuple[str, ...] = ()

    @property
    def n_train_normal(self) -> int:
        """Images of the split 'train_normal'."""
        return self.n_train - self.n_train_anomalous


class Data(Protocol):
    """One category, open: tf.data pipelines and materialised files look the same from here."""

    spec: DataSpec
    notes: tuple[str, ...]

    def records(self, split: str) -> tuple[Record, ...]:
        """Split 'train', 'train_normal', 'holdout' or 'test'; row i belongs to `Batch.index == i`."""
        ...

    def image(self, split: str, index: int) -> np.ndarray:
        """u8[H, W, 3], resized as the batches are."""
        ...

    def manifest(self) -> dict[str, Any]:
        """Which image is in which split, JSON-able; saved with the run."""
        ...

    def batches(self, feed: Feed, *, seed: int, stage: str, start: int, stop: int, rows: slice) -> Iterator[Batch]:
        """NumPy batches n = start .. stop - 1, each only the `rows` of the global batch (one process's share).

        Batch n is a pure function of (seed, stage, n).
        """
        ...


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a method.

    init(key, spec, carry) -> state (before `update.init`); carry is the finished state of the stage before, or None.
    finish(state) -> state: pure, traceable; what the next stage and `predict` see.
    predict(state, batch) -> AnomalyMap, on a finished state; None where the stage predicts nothing.
    embed(state, batch) -> f32[B, D], features of whole images, on a finished state: what a stage that pre-trains a
    backbone is judged by.
    backbone(state) -> (name, {'params', 'batch_stats'}), of a finished state: the network that such a stage saves.
    facts(state) -> {name: f32[]}, of a finished state: what results.json should say of the stage, beside metrics.
    work: what predicting one image is made of, by name, to count it by: {'triples': 32}.
    map_range: the ends of the scale that map values are on by construction, (0, 1) of a probability; None: they are on
    none, as distances are not.
    """

    name: str
    feed: Feed
    steps: int
    init: Callable[[Array, DataSpec, TrainState | None], TrainState]
    update: Update
    finish: Callable[[TrainState], TrainState] = lambda state: state
    predict: Callable[[TrainState, Batch], AnomalyMap] | None = None
    map_range: tuple[float, float] | None = None
    embed: Callable[[TrainState, Batch], Array] | None = None
    backbone: Callable[[TrainState], tuple[str, Tree]] | None = None
    facts: Callable[[TrainState], Mapping[str, Array]] | None = None
    work: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What `predict` said of a whole split, on the host; row i belongs to records[i].

    extras: f32[N] scores, u8[N, H, W, 3] pictures · map_range: the stage's.
    """

    records: tuple[Record, ...]
    scores: np.ndarray  # f32[N]
    maps: np.ndarray  # f32[N, H, W]
    masks: np.ndarray  # bool[N, H, W]
    ms_per_image: float  # wall time of compiled `predict`, without loading
    extras: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    map_range: tuple[float, float] | None = None

    @property
    def labels(self) -> np.ndarray:
        """bool[N]"""
        return np.array([record.label for record in self.records], bool)
