import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from jaxad import sharding
from jaxad.errors import UserError
from jaxad.types import Batch, TrainState


def mesh(devices):
    return sharding.start(ConfigDict({"devices": devices, "platform": ""}))


def test_the_mesh_has_the_devices_asked_for_and_one_axis():
    assert mesh(0).size == len(jax.devices()) == 8
    assert mesh(3).axis_names == ("data",) and mesh(3).size == 3


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(UserError, match="mesh.devices=9, but there are 8"):
        mesh(9)


def test_a_platform_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="'gpu' was asked for, but jax finds only: cpu"):
        sharding.start(ConfigDict({"devices": 0, "platform": "gpu"}))


def test_a_batch_that_does_not_divide_names_the_key():
    with pytest.raises(UserError, match="batch size 30 does not divide over 8 devices; set config.data.batch_size"):
        sharding.my_rows(mesh(8), 30)
    assert sharding.my_rows(mesh(8), 32) == slice(0, 32)
    assert sharding.round_up(30, mesh(8)) == 32


def test_batches_are_split_by_rows_and_keep_their_values():
    image = np.arange(16 * 2 * 2 * 3, dtype=np.float32).reshape(16, 2, 2, 3)
    rows = np.arange(16, dtype=np.int32)
    batch = Batch(image, np.zeros((16, 2, 2), bool), rows > 3, rows, rows >= 0, {"rotated": image + 1})
    placed = sharding.place_batch(batch, mesh(8))
    assert placed.image.sharding.spec == P("data") and placed.views["rotated"].sharding.spec == P("data")
    assert placed.image.addressable_shards[1].data.shape == (2, 2, 2, 3)
    np.testing.assert_array_equal(placed.image, image)
    np.testing.assert_array_equal(sharding.to_host(placed).views["rotated"], image + 1)


def test_banks_are_split_by_rows_and_everything_else_is_replicated():
    state = TrainState.create(
        params={"bank": {"w": jnp.zeros((8, 2))}},
        memory={"bank": jnp.zeros((16, 3)), "bank_odd": jnp.zeros((9, 3)), "queue": jnp.zeros((16, 3))},
    )
    where = sharding.state_shardings(state, mesh(8))
    assert where.memory["bank"].spec == P("data")
    assert where.memory["bank_odd"].spec == where.memory["queue"].spec == where.params["bank"]["w"].spec == P()


def test_placing_a_state_copies_it_so_that_donating_leaves_the_original():
    state = TrainState.create(memory={"queue": jnp.arange(4.0)})
    placed = sharding.place_state(state, mesh(1))
    jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)(placed)
    np.testing.assert_array_equal(state.memory["queue"], [0, 1, 2, 3])
