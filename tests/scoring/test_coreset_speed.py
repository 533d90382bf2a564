"""How long an exact coreset takes, in a process of its own with one device, as a user has it."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
    import json, resource, sys, time
    import jax, jax.numpy as jnp, numpy as np
    from jaxad.scoring import coreset
    n, dim, kept = map(int, sys.argv[1:])
    rng = np.random.default_rng(0)
    # patch features are clustered and of low rank: 400 clusters in 40 directions, and some noise
    centres = rng.normal(size=(400, 40)).astype(np.float32)
    rows = centres[rng.integers(400, size=n)] + 0.3 * rng.normal(size=(n, 40)).astype(np.float32)
    bank = jnp.asarray(rows @ rng.normal(size=(40, dim)).astype(np.float32))
    bank += 0.1 * jax.random.normal(jax.random.key(1), bank.shape)

    @jax.jit
    def pick(bank, key):
        one, two = jax.random.split(key)
        projection = coreset.random_projection(one, dim, 128, "linear")
        projected = jnp.matmul(bank, projection, precision=jax.lax.Precision.HIGHEST)
        return coreset.k_centre(projected, kept, key=two)

    jax.block_until_ready((bank, pick.lower(bank, jax.random.key(0)).compile()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for seed in range(4):
        started = time.perf_counter()
        picks = jax.block_until_ready(pick(bank, jax.random.key(seed)))
        seconds.append(time.perf_counter() - started)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(set(np.asarray(picks).tolist())) == kept
    print(json.dumps({"seconds": min(seconds[1:]), "megabytes": (after - before) / 1024}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "n, dim, kept, seconds, megabytes", [(20_000, 1024, 2_000, 2.0, 300), (100_000, 384, 10_000, 20, 500)]
)
def test_an_exact_coreset_takes_seconds_and_little_memory(n, dim, kept, seconds, megabytes):
    environment = {**os.environ, "XLA_FLAGS": ""}
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(n), str(dim), str(kept)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout)
    print(
        f"\ncoreset of {n} x {dim} to {kept}: {measured['seconds']:.2f} s, {measured['megabytes']:.0f} MB more memory"
    )
    assert measured["seconds"] <= seconds
    assert measured["megabytes"] <= megabytes
