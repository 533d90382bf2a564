"""For tests that run a network once: random variables, and programs that are not worth optimising."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

UNOPTIMISED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=UNOPTIMISED)  # compiles in half of the time


def drawn(module, inputs, seed=0):
    """Variables with every leaf random: kernels He-sized, scales and variances positive. inputs: arrays or shapes."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        value = rng.normal(size=leaf.shape)
        if path[-1].key == "kernel":
            value *= np.sqrt(2 / np.prod(leaf.shape[:3]))
        if path[-1].key in ("scale", "var"):
            value = 1 + 0.5 * np.tanh(value)
        return jnp.asarray(value, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(module.init, jax.random.key(0), inputs))
