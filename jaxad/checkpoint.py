"""The only file that knows Orbax: save, restore, and the state carried from stage to stage.

A checkpoint is one `TrainState`, all of it: step, params, opt, stats, frozen, memory (jaxad/types.py says who writes
which slot), and a small JSON record beside it (`info`: seconds of training so far). Batches and random
keys are functions of (seed, stage, step), so there is no data position to keep.

  WORKDIR/CATEGORY/STAGE/steps/N    after step N: every config.checkpoint.every steps, and at Ctrl-C; the last few
  WORKDIR/CATEGORY/STAGE/final/N    the finished state: what the next stage and `predict` get

A checkpoint appears under its name only when it is complete; what a killed process leaves is passed over. To load one
without the trainer, build the same stages and call `restore` with the abstract state, as jaxad/train.py does: restoring
always needs the explicit target, and so works on another number of devices than it was saved from.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxad import sharding
from jaxad.errors import UserError, disk_full
from jaxad.types import TrainState


def abstract(state: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a state: the target that `restore` fills."""
    shardings = sharding.state_shardings(state, mesh)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), state, shardings
    )


class Checkpoints:
    """The checkpoints in one folder. Close it, or use it in a `with` statement: saving may go on in the background."""

    def __init__(self, folder: str, keep: int = 1):
        self.folder = os.path.abspath(folder)
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_names=("state", "info"),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                # The step donates its buffers. Accelerators copy them to the host before `save` returns; on CPU the
                # "copy" may be the donated buffer itself, so there the save is finished first.
                enable_async_checkpointing=jax.default_backend() != "cpu",
            ),
        )

    def save(self, step: int, state: TrainState, info: dict) -> None:
        """Writes the state after `step` steps, whole or not at all."""
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), info=ocp.args.JsonSave(info))
        with self._whole_or_not_at_all():
            self._manager.save(step, args=items)

    def restore(self, target: TrainState) -> tuple[TrainState, dict] | None:
        """The newest complete checkpoint as (state like `target`, info), or None where there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), info=ocp.args.JsonRestore())
        try:
            found = self._manager.restore(step, args=items)
        except ValueError as error:
            raise UserError(
                f"the state in {self.folder} has other arrays than this config builds: give the config that it was "
                f"written with, or choose another --workdir"
            ) from error
        return found["state"], dict(found["info"])

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: Any) -> None:
        with self._whole_or_not_at_all():
            self._manager.wait_until_finished()
        self._manager.close()

    @contextlib.contextmanager
    def _whole_or_not_at_all(self) -> Iterator[None]:
        """Removes what a failed save has left, and says once what Orbax's threads would log with a traceback each."""
        logger = logging.getLogger("absl")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        except Exception as error:
            for name in os.listdir(self.folder) if os.path.isdir(self.folder) else ():
                if "orbax-checkpoint-tmp" in name:
                    shutil.rmtree(os.path.join(self.folder, name), ignore_errors=True)
            if disk_full(error):
                raise UserError(
                    f"the disk is full: no checkpoint could be written to {self.folder}; earlier ones are kept: free "
                    f"some space and run the same command again, or choose another --workdir"
                ) from error
            raise
        finally:
            logger.setLevel(level)


def remove(folder: str) -> None:
    """Deletes a stage's step checkpoints, once its final state is safe."""
    sharding.barrier("checkpoint.remove")
    if sharding.is_main():
        shutil.rmtree(folder, ignore_errors=True)
