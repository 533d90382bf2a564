import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jaxad import checkpoint, sharding
from jaxad.errors import UserError
from jaxad.types import TrainState


@pytest.fixture
def mesh():
    return sharding.start(ConfigDict({"devices": 2, "platform": ""}))


def state(mesh, value=1.0):
    params = {"net": {"w": jnp.full((4, 3), value), "empty": {}}}
    made = TrainState.create(params=params, memory={"bank": jnp.arange(8.0).reshape(4, 2), "flag": jnp.ones(3, bool)})
    return sharding.place_state(made.replace(opt={"net": optax.adam(0.1).init(params["net"])}), mesh)


def test_a_checkpoint_gives_back_every_slot_its_types_and_its_info(tmp_path, mesh):
    saved = state(mesh, 2.5)
    with checkpoint.Checkpoints(str(tmp_path / "c")) as checkpoints:
        checkpoints.save(3, saved, {"seconds": 1.5})
    with checkpoint.Checkpoints(str(tmp_path / "c")) as checkpoints:
        found, info = checkpoints.restore(checkpoint.abstract(saved, mesh))
    assert info == {"seconds": 1.5}
    assert jax.tree.structure(found) == jax.tree.structure(saved)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(saved), strict=True):
        assert left.dtype == right.dtype and left.sharding == right.sharding
        np.testing.assert_array_equal(left, right)


def test_an_empty_folder_has_no_checkpoint(tmp_path, mesh):
    with checkpoint.Checkpoints(str(tmp_path / "c")) as checkpoints:
        assert checkpoints.restore(checkpoint.abstract(state(mesh), mesh)) is None


def test_only_the_last_few_are_kept_and_the_newest_is_restored(tmp_path, mesh):
    with checkpoint.Checkpoints(str(tmp_path / "c"), keep=2) as checkpoints:
        for step in (1, 2, 5):
            checkpoints.save(step, state(mesh, float(step)), {})
    assert sorted(name for name in os.listdir(tmp_path / "c") if name.isdigit()) == ["2", "5"]
    with checkpoint.Checkpoints(str(tmp_path / "c")) as checkpoints:
        found, _ = checkpoints.restore(checkpoint.abstract(state(mesh), mesh))
    assert found.params["net"]["w"][0, 0] == 5.0


def test_a_full_disk_is_one_line_keeps_earlier_checkpoints_and_leaves_nothing_half_written(tmp_path, mesh):
    with checkpoint.Checkpoints(str(tmp_path / "c"), keep=2) as checkpoints:
        checkpoints.save(1, state(mesh), {})

        def full(step, args):
            os.makedirs(tmp_path / "c" / f"{step}.orbax-checkpoint-tmp" / "state")
            raise ValueError(
                "RESOURCE_EXHAUSTED: Failed to write 16 bytes: No space left on device [os_error_code='28']"
            )

        checkpoints._manager.save = full
        with pytest.raises(UserError, match="disk is full.*earlier ones are kept"):
            checkpoints.save(2, state(mesh), {})
    assert not [name for name in os.listdir(tmp_path / "c") if "tmp" in name]
    with checkpoint.Checkpoints(str(tmp_path / "c")) as checkpoints:
        assert checkpoints.restore(checkpoint.abstract(state(mesh), mesh)) is not None


def test_removing_a_folder_that_is_not_there_is_fine(tmp_path):
    checkpoint.remove(str(tmp_path / "nothing"))
