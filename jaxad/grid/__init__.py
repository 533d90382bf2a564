"""Runs many configurations as one command, and puts their numbers into one table.

  python -m jaxad.grid --grid=configs/grids/siamese_unet.py --workdir=runs/grid --data=FOLDER --weights=FILE

A grid is a Python file with a function `cells(data, weights)` that returns a list of `Cell`; `data` and `weights` are
what the flags say, for the cells' settings. Each cell is a process of its own, `python -m jaxad.main`, one at a time in
the order of the file, with WORKDIR/NAME as its workdir and WORKDIR/NAME.log as its log. The same command goes on where
the grid was: finished cells are not run again, a cell that was stopped resumes. A cell that fails is told and does not
stop the others; the exit code is then 1.

After every cell, WORKDIR/table.csv holds one row per finished cell and category, and WORKDIR/table.md one row per group
and the cells not run. A file that also says `study = Study(...)` and gives its cells labels has WORKDIR/study.csv and
WORKDIR/study.png as well: the metrics over those labels. `--study` writes the two from what is finished.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import posixpath
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxad.errors import UserError
from jaxad.flags import nearest


class Cell(NamedTuple):
    """One configuration of a grid.

    name: also its folder under the workdir, e.g. 'screw/ours_r/0' · config: FILE or FILE:VARIANT · settings: {'seed':
    1, 'data.root': ...}, as --config.KEY=VALUE · group: the row of the table that it is averaged into; empty: its name
    without the last part · note: free words, printed with that row · labels: {'texture': 'carpet', 'n': 4}, what a
    `Study` sorts it by. A setting may name what another cell has left as '{workdir}/NAME'.
    """

    name: str
    config: str
    settings: Mapping[str, Any]
    group: str = ""
    note: str = ""
    labels: Mapping[str, Any] = {}

    @property
    def row(self) -> str:
        """The row of table.md that the cell belongs to.

        >>> Cell('screw/ours_r/0', 'configs/siamese_unet.py', {}).row
        'screw/ours_r'
        """
        return self.group or self.name.rpartition("/")[0] or self.name

    def arguments(self) -> list[str]:
        """The cell's part of a command line of jaxad.main.

        >>> Cell('a', 'configs/patchcore.py:small', {'seed': 1, 'patchcore.layers': ('layer2',)}).arguments()
        ['--config=configs/patchcore.py:small', '--config.seed=1', "--config.patchcore.layers=('layer2',)"]
        """
        return [f"--config={self.config}", *(f"--config.{key}={value}" for key, value in self.settings.items())]


class Study(NamedTuple):
    """What study.csv and study.png of a grid show; labels are those of its cells, or 'category'.

    x: the label along the axis, in its order where all values are numbers · series: the label with a colour each ·
    metrics: a panel each; 'facts/STAGE/NAME' is what a stage told of itself · xlabel: of the axis; empty: `x` ·
    oracle: the label whose value with the largest first metric is marked in each series; it was chosen by looking at
    test labels, and is called so; empty: none.
    """

    x: str
    series: str
    metrics: Sequence[str] = ("image_auroc", "pixel_auroc")
    xlabel: str = ""
    title: str = ""
    oracle: str = ""


def execute(path: str) -> dict[str, Any]:
    """What a grid file defines, by name. Raises `UserError` for no such file and for an error inside it."""
    if not os.path.isfile(path):
        raise UserError(f"no grid file {path!r} (looked in {os.getcwd()})")
    scope: dict[str, Any] = {"__name__": "grid_file", "__file__": os.path.abspath(path)}
    with _errors_in(path), open(path, encoding="utf-8") as file:
        exec(compile(file.read(), path, "exec"), scope)
    return scope


@contextlib.contextmanager
def _errors_in(path: str) -> Iterator[None]:
    """Any error becomes a UserError that names the line of the file `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        raise UserError(f"{path}{f':{lines[-1]}' if lines else ''}: {' '.join(str(error).split())}") from error


def load(path: str, data: str = "", weights: str = "", workdir: str = "") -> list[Cell]:
    """The cells of a grid file, in its order; '{workdir}' in a setting becomes `workdir`.

    Raises:
      UserError: no such file, no `cells` in it, an error inside it, or cells that cannot stand beside each other.
    """
    scope = execute(path)
    if "cells" not in scope:
        raise UserError(f"{path} has no function cells(data, weights)")
    with _errors_in(path):
        found = list(scope["cells"](data, weights))
    cells = []
    for place, one in enumerate(found):
        # not isinstance(one, Cell): a plain tuple of the same is understood too
        understood = isinstance(one, tuple) and 3 <= len(one) <= 6 and isinstance(one[2], Mapping)
        if not understood or not all(isinstance(labels, Mapping) for labels in one[5:]):
            raise UserError(f"{path}: cells()[{place}] is not a Cell(name, config, settings)")
        name, config, settings, *rest = one
        settings = {
            key: value.replace("{workdir}", workdir) if isinstance(value, str) else value
            for key, value in settings.items()
        }
        cells.append(Cell(name, config, settings, *rest))
    if not cells:
        raise UserError(f"{path}: cells() returned no cell")
    _check_names(path, [cell.name for cell in cells])
    return cells


def _check_names(path: str, names: Sequence[str]) -> None:
    """Every cell has a folder of its own, inside the workdir."""
    folders: set[str] = set()
    for name in names:
        inside = isinstance(name, str) and name and posixpath.normpath(name) == name and "\\" not in name
        if not inside or name.startswith(("/", ".")):
            raise UserError(
                f"{path}: the cell name {name!r} is not a folder inside the workdir, as 'screw/ours_r/0' is"
            )
        if name in folders:
            raise UserError(f"{path}: two cells are called {name!r}")
        folders.add(name)
    for name in names:
        for other in _parents(name):
            if other in folders:
                raise UserError(f"{path}: the folder of cell {name!r} lies inside that of cell {other!r}; rename one")


def _parents(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def choose(cells: Sequence[Cell], pattern: str) -> list[Cell]:
    """The cells whose name fits `pattern`, as in a shell; all of them where it is empty."""
    chosen = [cell for cell in cells if not pattern or fnmatch.fnmatchcase(cell.name, pattern)]
    if not chosen:
        raise UserError(f"no cell fits --only={pattern}{nearest(pattern, [cell.name for cell in cells])}")
    return chosen
