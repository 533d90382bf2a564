"""The only file that knows processes and devices: start-up, mesh, where each slot lives, host batch <-> global array.

One mesh axis, 'data'. Batches are split over it by rows; everything a network reads or writes is replicated; memory
arrays whose name begins with 'bank' are split by rows where the rows divide. Everything runs under `jit` with
`NamedSharding` (what `pmap` used to be for), so BatchNorm statistics and in-batch negatives are those of the global
batch.

Several hosts: start the same command on each with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set, as
launch/ does; on TPU pods and under Slurm, JAX_COORDINATOR_ADDRESS=auto lets jax find them.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxad.errors import UserError
from jaxad.types import AXIS, Batch, TrainState


def start(settings: Any) -> Mesh:
    """Joins the other processes, if any, and returns the mesh. settings: config.mesh. Raises `UserError`."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    if address and not jax.distributed.is_initialized():
        if address == "auto":
            jax.distributed.initialize()
        else:
            try:
                count, process = (int(os.environ[name]) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
            except (KeyError, ValueError) as error:
                raise UserError(
                    "JAX_COORDINATOR_ADDRESS is set, so JAX_NUM_PROCESSES and JAX_PROCESS_ID must be numbers too"
                ) from error
            jax.distributed.initialize(address, count, process)
    try:
        devices = jax.devices(settings.platform or None)
    except RuntimeError as error:
        kinds = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise UserError(
            f"config.mesh.platform={settings.platform!r} was asked for, but jax finds only: {kinds}; install the "
            f"matching extra (cuda12, cuda13, tpu) or drop the setting"
        ) from error
    if settings.devices:
        if settings.devices > len(devices):
            raise UserError(f"config.mesh.devices={settings.devices}, but there are {len(devices)}")
        devices = devices[: settings.devices]
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def describe() -> dict[str, Any]:
    """The devices of all processes and how many processes there are, for the record of a run."""
    devices = [f"{device.platform}:{device.device_kind}" for device in jax.devices()]
    return {"devices": devices, "processes": jax.process_count()}


def is_main() -> bool:
    """Whether this process writes the files of a run."""
    return jax.process_index() == 0


def agreed(value: bool) -> bool:
    """What the main process says, on every process: a clock, for one, differs between them."""
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value))) if jax.process_count() > 1 else value


def peak_bytes(mesh: Mesh) -> int | None:
    """The most bytes that one of this process's devices has held since the process began; None where none tells."""
    told = [device.memory_stats() or {} for device in mesh.local_devices]
    return max((stats["peak_bytes_in_use"] for stats in told if "peak_bytes_in_use" in stats), default=None)


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def my_rows(mesh: Mesh, batch_size: int) -> slice:
    """This process's rows of a global batch. Raises `UserError` where the batch does not divide over the devices."""
    if batch_size % mesh.size:
        raise UserError(
            f"batch size {batch_size} does not divide over {mesh.size} devices; set config.data.batch_size to a "
            f"multiple of {mesh.size}"
        )
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def round_up(batch_size: int, mesh: Mesh) -> int:
    """The next batch size that divides over the devices, for evaluation, where padding makes up the rest."""
    return -(-batch_size // mesh.size) * mesh.size


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Puts this process's rows on its devices: global arrays, split by rows."""
    sharding = NamedSharding(mesh, P(AXIS))
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch)


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """The sharding of every array of a state (real or abstract): banks by rows, the rest replicated."""

    def rule(path, leaf):
        names = [getattr(entry, "key", getattr(entry, "name", "")) for entry in path]
        is_bank = names[0] == "memory" and str(names[1]).startswith("bank")
        rows = is_bank and len(leaf.shape) > 0 and leaf.shape[0] % mesh.size == 0
        return NamedSharding(mesh, P(AXIS) if rows else P())

    return jax.tree_util.tree_map_with_path(rule, state)


def place_state(state: TrainState, mesh: Mesh) -> TrainState:
    """A fresh copy of a state on the mesh. A copy, because the step donates what it gets."""

    def place(leaf, sharding):
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding, may_alias=False)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.jit(jnp.copy, out_shardings=sharding)(leaf)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, state, state_shardings(state, mesh))


def to_host(tree: Any) -> Any:
    """The whole of every global array as NumPy, on every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return jax.tree.map(lambda leaf: np.asarray(multihost_utils.process_allgather(leaf, tiled=True)), tree)
