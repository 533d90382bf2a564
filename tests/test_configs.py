"""Every config in configs/, resolved, equals its golden text: a changed default shows up as a diff.

After a change that is meant: JAXAD_UPDATE_GOLDEN=1 python -m pytest tests/test_configs.py
"""

import json
import os
import pathlib

import pytest

from jaxad import config as configs
from jaxad import flags
from jaxad.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = pathlib.Path(__file__).parent / "golden"
FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
SPECS = [f"{name}{variant}" for name in FILES for variant in ("", ":small")]


def resolved(spec, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, _, variant = spec.partition(":")
    return flags.load(f"configs/{name}.py" + (f":{variant}" if variant else ""))


@pytest.mark.parametrize("spec", SPECS)
def test_resolved_config_equals_its_golden_text(spec, monkeypatch):
    text = json.dumps(json.loads(resolved(spec, monkeypatch).to_json()), indent=1, sort_keys=True) + "\n"
    path = GOLDEN / f"{spec.replace(':', '_')}.json"
    if os.environ.get("JAXAD_UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


@pytest.mark.parametrize("name", FILES)
def test_small_needs_no_download_and_no_folder(name, monkeypatch):
    config = resolved(f"{name}:small", monkeypatch)
    configs.check(config)
    assert config.data.dataset == "demo" and config.backbone.weights == "random"


@pytest.mark.parametrize("name", FILES)
def test_a_file_opens_with_the_command_that_runs_it(name):
    text = (ROOT / "configs" / f"{name}.py").read_text()
    assert f"python -m jaxad.main --config=configs/{name}.py" in text.split('"""')[1]


@pytest.mark.parametrize("name", FILES)
def test_an_unknown_variant_is_refused(name, monkeypatch):
    with pytest.raises(UserError, match="no variant 'smal'"):
        resolved(f"{name}:smal", monkeypatch)


def test_every_method_has_a_config_of_its_name():
    assert set(configs.METHODS) <= set(FILES)
