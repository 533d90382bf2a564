"""A grid of runs that take no time: its file, its workdir, and what stands for jaxad.main."""

from __future__ import annotations

import csv
import os
import pathlib
import sys
import textwrap

from jaxad.grid import Cell, runner
from jaxad.grid.__main__ import main

ROOT = pathlib.Path(__file__).parents[1]
# What stands for jaxad.main: results that follow from the seed, a failure at seed 13, an endless run at seed 99.
MAIN = """
    import json, os, sys, time
    from absl import flags
    from jaxad.flags import parse

    own = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "", flag_values=own)
    config, own = parse(sys.argv, own, "")
    os.makedirs(own.workdir, exist_ok=True)
    with open(os.path.join(os.path.dirname(__file__), "calls"), "a") as file:
        file.write(own.workdir + "\\n")
    with open(os.path.join(own.workdir, "cache"), "w") as file:
        names = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
        json.dump([os.environ.get(name) for name in names], file)
    with open(os.path.join(own.workdir, "config.json"), "w") as file:
        file.write(config.to_json())
    with open(os.path.join(own.workdir, "environment.json"), "w") as file:
        json.dump(dict(machine="Linux, 2 cores", devices=["cpu:cpu"] * 2), file)
    try:
        print("it begins", file=sys.stderr)
        time.sleep(60 if config.seed == 99 else 0)
    except KeyboardInterrupt:
        open(os.path.join(own.workdir, "saved"), "w").close()
        sys.exit(130)
    if config.seed == 13:
        sys.exit("jaxad: loss is nan at step 7\\n")

    def values(shift):
        metrics = dict(image_auroc=0.5 + config.seed**2 / 100 + shift, image_ap=0.25, pixel_auroc=None)
        return metrics | {"aupro_0.3": 0.125}

    entry = lambda shift: values(shift) | dict(
        fit_seconds=10.0 + config.seed,
        predict_ms_per_image=2.0,
        stages=dict(contrast=values(shift - 0.25), deviate=values(shift)),
        notes=dict(pixel_auroc="no masks"),
        facts=dict(measure=dict(nmse=0.125 * config.seed)),
    )
    names = config.data.category.split(",")
    categories = {name: entry(0.1 * place) for place, name in enumerate(names)}
    results = dict(method=config.method, commit="abc", seed=config.seed, categories=categories)
    with open(os.path.join(own.workdir, "results.json"), "w") as file:
        json.dump(results, file)
"""


class Place:
    """A grid file, a workdir, and the fake main."""

    def __init__(self, folder):
        self.folder, self.workdir = folder, folder / "w"
        self.main, self.file = folder / "fake_main.py", folder / "grid.py"
        self.main.write_text(textwrap.dedent(MAIN))
        self.command = (sys.executable, str(self.main))

    def cells(self, *cells, study=None):
        lines = "".join(f"        Cell(*{tuple(cell)!r}),\n" for cell in cells)
        text = f"from jaxad.grid import Cell, Study\n\ndef cells(data, weights):\n    return [\n{lines}    ]\n"
        self.file.write_text(text + (f"\nstudy = {study!r}\n" if study else ""))

    def __call__(self, *argv):
        return main(["grid", f"--grid={self.file}", f"--workdir={self.workdir}", *argv], self.command)

    def calls(self):
        """The cells that the fake main was started for, in order."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [os.path.relpath(line, self.workdir) for line in lines]

    def csv(self, name="table.csv"):
        with open(self.workdir / name, newline="") as file:
            return list(csv.DictReader(file))

    def markdown(self):
        return (self.workdir / "table.md").read_text()


def place_in(folder, monkeypatch):
    """A `Place` in `folder`, whose cells find jaxad and no compiled programs."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("JAX_COMPILATION_CACHE_DIR", *runner.CACHE):
        monkeypatch.delenv(name, raising=False)
    return Place(folder)


def cell(name, seed=1, category="weave", **more):
    """A cell that the fake main understands."""
    return Cell(name, "configs/patchcore.py:small", {"seed": seed, "data.category": category}, **more)
