"""The walls of the house: who may import whom, and what may stand in one file only."""

import ast
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "jaxad").rglob("*.py"))


def imports(path, *, top_level_only=False):
    """Full names of the modules that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def room(path):
    return path.relative_to(ROOT / "jaxad").parts[0].removesuffix(".py")


def test_tensorflow_is_imported_in_data_only():
    found = {
        room(path) for path in FILES for name in imports(path) if name.startswith(("tensorflow", "tensorflow_datasets"))
    }
    assert found == {"data"}


@pytest.mark.parametrize(
    "rooms, may_not",
    [
        (("losses", "models", "scoring", "metrics"), ("methods", "train", "run", "data", "config", "checkpoint")),
        (("methods",), ("train", "run", "checkpoint", "sharding", "report", "data")),
        (("train",), ("methods", "run", "report", "data", "models")),
        (("metrics",), ("types", "models", "scoring")),
        (("data",), ("train", "checkpoint", "sharding", "report", "models")),
    ],
)
def test_arrows_point_one_way(rooms, may_not):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        if room(path) in rooms
        for name in imports(path)
        if name.startswith(tuple(f"jaxad.{other}" for other in may_not))
    ]
    assert not wrong


def test_only_sharding_knows_processes():
    words = re.compile(r"process_index|process_count|local_devices|multihost|jax\.distributed")
    found = {path.name for path in FILES if words.search(path.read_text(encoding="utf-8"))}
    assert found == {"sharding.py"}


def test_only_checkpoint_knows_orbax():
    assert {path.name for path in FILES for name in imports(path) if name.startswith("orbax")} == {"checkpoint.py"}


def test_only_maps_upsamples_and_blurs_maps():
    words = re.compile(r"def \w*(gaussian|blur)\w*\(")
    found = {str(path.relative_to(ROOT)) for path in FILES if words.search(path.read_text(encoding="utf-8"))}
    assert found == {"jaxad/scoring/maps.py"}


def test_the_loop_names_no_method():
    text = (ROOT / "jaxad/train.py").read_text(encoding="utf-8") + (ROOT / "jaxad/run.py").read_text(encoding="utf-8")
    methods = [path.stem for path in (ROOT / "jaxad/methods").glob("[a-z]*.py")]
    assert methods and not [name for name in methods if name != "features" and name in text]


def test_everything_outside_data_imports_without_tensorflow():
    modules = sorted(
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for path in FILES
        if room(path) != "data"
    )
    script = f"""
        import importlib, sys
        for name in ("tensorflow", "tensorflow_datasets", "torch", "cv2", "faiss"):
            sys.modules[name] = None
        for name in {modules!r} + ["jaxad.data.pipeline"]:
            importlib.import_module(name)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_metrics_import_without_jax():
    script = "import sys; sys.modules['jax'] = None; import jaxad.metrics, jaxad.config, jaxad.flags"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
