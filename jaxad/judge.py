"""What finished states say of images, on the host: in the middle of training, between stages, and at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import evaluate, inference, representation, sharding
from jaxad.types import Data, Predictions, Stage, TrainState


@dataclasses.dataclass(frozen=True)
class Judge:
    """Shows the images of `data` to finished states, config.eval.batch_size at a time, over the devices of `mesh`."""

    config: ConfigDict
    mesh: jax.sharding.Mesh
    data: Data

    def predict(self, stage: Stage, state: TrainState, split: str) -> Predictions:
        """`inference.predictions` of a split."""
        return inference.predictions(stage, state, self.data, split=split, **self._how())

    def features(self, stage: Stage, state: TrainState, linear: bool) -> dict[str, Any]:
        """`representation.judge` of what a stage that pre-trains a backbone makes of images."""

        def embed(split: str, limit: int):
            return inference.embeddings(stage, state, self.data, split=split, limit=limit, **self._how())

        probe = configs.section(self.config).get("probe", representation.PROBE)
        return representation.judge(embed, self.data, probe, linear=linear, seed=self.config.seed)

    def watch(self, stage: Stage) -> Callable[[TrainState, int], dict[str, float]] | None:
        """What is looked at in the middle of training, never to choose a step by; None: nothing.

        Test metrics, or of a stage that pre-trains a backbone, k-NN accuracy.
        """

        def test(state: TrainState, step: int) -> dict[str, float]:
            values = evaluate.glance(self.predict(stage, state, "test"))
            return {f"test/{name}": value for name, value in values.items() if value is not None}

        def probe(state: TrainState, step: int) -> dict[str, float]:
            values = self.features(stage, state, linear=False)
            return {f"probe/{name}": values[name] for name in ("knn_top1", "spread") if values[name] is not None}

        return probe if stage.embed else test if stage.predict else None

    def _how(self) -> dict[str, Any]:
        size = sharding.round_up(self.config.eval.batch_size, self.mesh)
        return dict(
            batch_size=size,
            seed=self.config.seed,
            rows=sharding.my_rows(self.mesh, size),
            place=lambda batch: sharding.place_batch(batch, self.mesh),
            collect=sharding.to_host,
        )
