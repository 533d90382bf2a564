"""Strict and simulated: 8 CPU devices, no silent dtype or rank promotion, compiled programs kept between runs."""

import os
import pathlib
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import networks
import pytest

_CACHE = os.environ.get("JAXAD_TEST_CACHE", os.path.join(tempfile.gettempdir(), "jaxad-test-cache"))
jax.config.update("jax_compilation_cache_dir", os.path.join(_CACHE, "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
# Two programs in flight on eight simulated devices and two cores may wait for each other's collectives for ever.
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def _folder(variable: str) -> pathlib.Path:
    value = os.environ.get(variable, "")
    if not value:
        pytest.skip(f"{variable} is not set")
    folder = pathlib.Path(value)
    if not folder.is_dir():
        pytest.fail(f"{variable}={value} is not a folder")
    return folder


@pytest.fixture
def real_data() -> pathlib.Path:
    """The folder of real data sets named by JAXAD_TEST_DATA; skips where the variable is not set."""
    return _folder("JAXAD_TEST_DATA")


@pytest.fixture
def real_weights() -> pathlib.Path:
    """The folder of real weights named by JAXAD_TEST_WEIGHTS; skips where the variable is not set."""
    return _folder("JAXAD_TEST_WEIGHTS")


@pytest.fixture
def shallow(monkeypatch):
    """ResNet-18 with one narrow block a stage: the same program, compiled in a fraction of the time."""
    from jaxad import pretrained
    from jaxad.models import resnet

    small = resnet.ARCHITECTURES["resnet18"]._replace(base=16, blocks=(1, 1, 1, 1))
    monkeypatch.setitem(resnet.ARCHITECTURES, "resnet18", small)
    pretrained._expected.cache_clear()  # it keeps what a name's weights look like
    yield
    pretrained._expected.cache_clear()


@pytest.fixture(scope="module")
def quick_compile():
    """Programs of the module's tests, and of what they call, are compiled without optimisation: in half of the time."""
    jit, options = jax.jit, networks.UNOPTIMISED

    class Quick:
        def __init__(self, function, **arguments):
            self.inner = jit(function, **arguments)  # JAX takes options of the outermost program only
            self.outer = jit(function, **arguments, compiler_options=options)
            self.lower = self.outer.lower

        def __call__(self, *args, **named):
            traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, named)))
            return (self.inner if traced else self.outer)(*args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", Quick)
        yield


@pytest.fixture(scope="session")
def demo_cache() -> str:
    """A folder for prepared data sets, kept between test runs: its key is the listing, so it cannot go stale."""
    return os.path.join(_CACHE, "data")
