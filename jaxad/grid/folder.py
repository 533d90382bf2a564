"""The cells of a grid over their folder: which are finished, and what they left there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

from absl import flags

from jaxad.errors import UserError
from jaxad.flags import parse
from jaxad.grid import Cell, Study


@dataclasses.dataclass
class Grid:
    """The cells of a grid, in its order, over the folder that they run in."""

    cells: Sequence[Cell]
    workdir: str
    study: Study | None = None
    failures: dict[str, str] = dataclasses.field(default_factory=dict)  # {name of a failed cell: its last line}
    finished: dict[str, dict] = dataclasses.field(default_factory=dict)  # {name: its results}, where known already

    def results(self, cell: Cell) -> dict[str, Any] | None:
        """The results.json of a finished cell: one that is there, under the config that the cell has now."""
        if cell.name not in self.finished:
            results, config = (self.read(cell, name) for name in ("results.json", "config.json"))
            with contextlib.suppress(UserError):  # of another --data, say: then it is not this cell that is finished
                if results is not None and config is not None and config == resolved(cell):
                    self.finished[cell.name] = results
        return self.finished.get(cell.name)

    def folder(self, cell: Cell) -> str:
        """The workdir of a cell."""
        return os.path.join(self.workdir, cell.name)

    def log(self, cell: Cell) -> str:
        """The file that holds what a cell printed."""
        return os.path.join(self.workdir, f"{cell.name}.log")

    def read(self, cell: Cell, name: str) -> dict[str, Any] | None:
        """A JSON file in the folder of a cell."""
        try:
            with open(os.path.join(self.folder(cell), name), encoding="utf-8") as file:
                return json.load(file)
        except (OSError, ValueError):
            return None  # not there, or not readable: the run that belongs there will say so


def resolved(cell: Cell) -> dict[str, Any]:
    """The resolved config of a cell, as config.json holds it. Raises `UserError` as jaxad.main would."""
    found = parse(["jaxad.grid", *cell.arguments()], flags.FlagValues(), "")
    return json.loads(found[0].to_json())
