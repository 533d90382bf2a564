"""Two real processes, joined by jax.distributed on the loopback address, do what one does."""

import os
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
from test_train import config, run

SCRIPT = """
    import pathlib, sys
    import jax, numpy as np
    from ml_collections import ConfigDict
    from jaxad import checkpoint, inference, sharding, train
    from jaxad.log import Log
    import toy
    from test_train import config
    made = config(0, optimiser="sgd")
    mesh = sharding.start(made.mesh)
    assert jax.process_count() == 2 and mesh.size == 4
    folder, data, carry = pathlib.Path(sys.argv[1]), toy.ArrayData(), None
    with jax.set_mesh(mesh), Log(str(folder), sharding.is_main()) as log:
        for stage in toy.stages(made, data.spec):
            carry, _ = train.train(stage, data, carry, seed=3, mesh=mesh, folder=str(folder / stage.name), config=made,
                                   log=log)
        found = inference.predictions(stage, carry, data, split="test", batch_size=8, seed=3,
                                     rows=sharding.my_rows(mesh, 8),
                                     place=lambda batch: sharding.place_batch(batch, mesh), collect=sharding.to_host)
    host = sharding.to_host(carry)
    np.savez(folder / f"process{jax.process_index()}.npz", scores=found.scores,
             **{str(i): leaf for i, leaf in enumerate(jax.tree.leaves(host))})
"""


def two_processes(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for number in (0, 1):
        environment = {
            **os.environ,
            "PYTHONPATH": os.path.dirname(os.path.abspath(__file__)),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(number),
        }
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]


def test_two_processes_equal_one(tmp_path):
    (tmp_path / "two").mkdir()
    two_processes(tmp_path / "two")
    first, second = (np.load(tmp_path / "two" / f"process{number}.npz") for number in (0, 1))
    one = jax.tree.leaves(run(tmp_path / "one", config(4, optimiser="sgd")))
    assert len(first.files) == len(one) + 1
    for i, leaf in enumerate(one):
        np.testing.assert_allclose(first[str(i)], leaf, rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(first["scores"], second["scores"])
    assert len(first["scores"]) == 13

    # and one process picks up what two have left: it finds both stages done
    resumed = jax.tree.leaves(run(tmp_path / "two", config(1, optimiser="sgd")))
    for i, leaf in enumerate(resumed):
        np.testing.assert_array_equal(first[str(i)], leaf)
