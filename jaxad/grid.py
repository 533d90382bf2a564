"""Runs many configurations as one command, and puts their numbers into one table.

  python -m jaxad.grid --grid=configs/grids/siamese_unet.py --workdir=runs/grid --data=FOLDER --weights=FILE

A grid is a Python file with a function `cells(data, weights)` that returns a list of `Cell`; `data` and `weights` are
what the flags say, for the cells' settings. Each cell is a process of its own, `python -m jaxad.main`, one at a time in
the order of the file, with WORKDIR/NAME as its workdir and WORKDIR/NAME.log as its log. The same command goes on where
the grid was: finished cells are not run again, a cell that was stopped resumes. A cell that fails is told and does not
stop the others; the exit code is then 1.

After every cell, WORKDIR/table.csv holds one row per finished cell and category, and WORKDIR/table.md one row per group
and the cells not run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import os
import posixpath
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from absl import flags

from jaxad.errors import UserError, exit_code
from jaxad.flags import debug_asked, nearest, parse

COMMAND = (sys.executable, "-m", "jaxad.main")
METRICS = {"image_auroc": "image AUROC", "image_ap": "image AP", "pixel_auroc": "pixel AUROC", "aupro_0.3": "AUPRO 0.3"}
TIMES = {"fit_seconds": "fit, s", "predict_ms_per_image": "predict, ms"}
# Cells that differ in what is not compiled (seed, category of the same size) then compile once.
CACHE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


class Cell(NamedTuple):
    """One configuration of a grid.

    name: also its folder under the workdir, e.g. 'screw/ours_r/0' · config: FILE or FILE:VARIANT · settings: {'seed':
    1, 'data.root': ...}, as --config.KEY=VALUE · group: the row of the table that it is averaged into; empty: its name
    without the last part · note: free words, printed with that row. A setting may name what another cell has left as
    '{workdir}/NAME'.
    """

    name: str
    config: str
    settings: Mapping[str, Any]
    group: str = ""
    note: str = ""

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


def main(argv: Sequence[str] | None = None, command: Sequence[str] = COMMAND) -> int:
    """Runs the command line `argv` (default: this process's) and returns its exit code.

    command: what runs a cell; it is given jaxad.main's flags.
    """
    argv = sys.argv if argv is None else argv
    failed = []

    def body() -> None:
        own = _flags(argv)
        if own is None:
            return
        cells = load(own.grid, own.data, own.weights, own.workdir)
        chosen = choose(cells, own.only)
        grid = Grid(cells, own.workdir, command)
        if own.list:
            grid.show(chosen)
            return
        failed.extend(grid.run(chosen, minutes=own.minutes))

    return exit_code(body, debug_asked(argv)) or int(bool(failed))


def _flags(argv: Sequence[str]) -> flags.FlagValues | None:
    """The command's flags; None after printing them for --help."""
    own = flags.FlagValues()
    flags.DEFINE_string("grid", None, "the grid, a Python file with cells(data, weights)", flag_values=own)
    flags.DEFINE_string("workdir", "runs/grid", "folder for the workdirs of the cells and the table", flag_values=own)
    flags.DEFINE_string("data", "", "handed to cells(): where the data sets are", flag_values=own)
    flags.DEFINE_string("weights", "", "handed to cells(): the file of pretrained weights", flag_values=own)
    flags.DEFINE_string("only", "", "run only cells whose name fits, e.g. 'screw/*'", flag_values=own)
    flags.DEFINE_float("minutes", None, "start no cell after that many minutes", lower_bound=0, flag_values=own)
    flags.DEFINE_bool("list", False, "print the cells, done or not, and run nothing", flag_values=own)
    flags.DEFINE_bool("debug", False, "show a traceback when something fails", flag_values=own)
    if any(argument in ("--help", "-help", "-h", "--helpshort", "--helpfull") for argument in argv[1:]):
        print(__doc__.strip(), "\n\nflags:")
        for flag in (own[name] for name in own):
            print(
                f"  --{flag.name}: {flag.help}" + (f" (default: {flag.value})" if flag.value not in (None, "") else "")
            )
        return None
    try:
        rest = own(list(argv))
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: say --grid=FILE")
    if not own.grid:
        raise UserError("no grid given: --grid=FILE, e.g. --grid=configs/grids/siamese_unet.py")
    return own


def load(path: str, data: str = "", weights: str = "", workdir: str = "") -> list[Cell]:
    """The cells of a grid file, in its order; '{workdir}' in a setting becomes `workdir`.

    Raises:
      UserError: no such file, no `cells` in it, an error inside it, or cells that cannot stand beside each other.
    """
    if not os.path.isfile(path):
        raise UserError(f"no grid file {path!r} (looked in {os.getcwd()})")
    scope: dict[str, Any] = {"__name__": "grid_file", "__file__": os.path.abspath(path)}
    try:
        with open(path, encoding="utf-8") as file:
            exec(compile(file.read(), path, "exec"), scope)
        if "cells" not in scope:
            raise UserError(f"{path} has no function cells(data, weights)")
        found = list(scope["cells"](data, weights))
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        raise UserError(f"{path}{f':{lines[-1]}' if lines else ''}: {' '.join(str(error).split())}") from error
    cells = []
    for place, one in enumerate(found):
        # not isinstance(one, Cell): run as a command, this file is __main__, and the grid file imports another Cell
        if not isinstance(one, tuple) or not 3 <= len(one) <= 5 or not isinstance(one[2], Mapping):
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


@dataclasses.dataclass
class Grid:
    """The cells of a grid over their folder: which are finished, what they reached, and running the others.

    command: what runs a cell; it is given jaxad.main's flags.
    """

    cells: Sequence[Cell]
    workdir: str
    command: Sequence[str] = COMMAND
    failures: dict[str, str] = dataclasses.field(default_factory=dict)  # {name of a failed cell: its last line}
    _finished: dict[str, dict] = dataclasses.field(default_factory=dict)

    def results(self, cell: Cell) -> dict[str, Any] | None:
        """The results.json of a finished cell: one that is there, under the config that the cell has now."""
        if cell.name not in self._finished:
            folder = os.path.join(self.workdir, cell.name)
            results, config = (_read(os.path.join(folder, name)) for name in ("results.json", "config.json"))
            with contextlib.suppress(UserError):  # of another --data, say: then it is not this cell that is finished
                if results is not None and config is not None and config == _config(cell):
                    self._finished[cell.name] = results
        return self._finished.get(cell.name)

    def show(self, cells: Sequence[Cell]) -> None:
        """Prints a line per cell: done with its numbers, or not."""
        for cell in cells:
            results = self.results(cell)
            print(f"{cell.name}: {'not done' if results is None else f'done, {numbers(results)}'}")

    def run(self, cells: Sequence[Cell], minutes: float | None = None) -> list[str]:
        """Runs those of `cells` that are not finished, and returns the names of those that failed.

        minutes: no cell is started after that many; None: no limit.

        Raises:
          UserError: settings that no run can have, before anything is run.
          KeyboardInterrupt: after stopping the cell; it resumes.
        """
        for cell in cells:
            try:
                _config(cell)
            except UserError as error:
                raise UserError(f"cell {cell.name!r}: {error}") from error
        began, late = time.monotonic(), []
        self.write()
        for place, cell in enumerate(cells, 1):
            title = f"[{place}/{len(cells)}] {cell.name}"
            results = self.results(cell)
            if results is not None:
                _say(f"{title}: was done, {numbers(results)}")
                continue
            if minutes is not None and time.monotonic() - began >= 60 * minutes:
                late.append(cell.name)
                continue
            _say(f"{title}: starts")
            started = time.monotonic()
            try:
                code = self._process(cell)
            except KeyboardInterrupt as error:
                raise KeyboardInterrupt(f"stopped in cell {cell.name}; the same command resumes") from error
            spent = f"{time.monotonic() - started:.0f} s"
            results = _read(os.path.join(self.workdir, cell.name, "results.json")) if code == 0 else None
            if results is not None:
                self._finished[cell.name] = results
                _say(f"{title}: {spent}, {numbers(results)}")
            else:
                self.failures[cell.name] = _last_line(self._log(cell)) or f"exit code {code}"
                _say(f"{title}: failed after {spent}: {self.failures[cell.name]} (all of it: {self._log(cell)})")
            self.write()
        done = sum(cell.name in self._finished for cell in cells)
        _say(
            f"{done} of {len(cells)} cells done, {len(self.failures)} failed, {len(late)} not started"
            f"; {os.path.join(self.workdir, 'table.md')}"
        )
        return list(self.failures)

    def _log(self, cell: Cell) -> str:
        return os.path.join(self.workdir, f"{cell.name}.log")

    def _process(self, cell: Cell) -> int:
        """Runs one cell to its end and returns its exit code. Ctrl-C, or this process's end, ends it too."""
        folder, log = os.path.join(self.workdir, cell.name), self._log(cell)
        environment = {"JAX_COMPILATION_CACHE_DIR": os.path.abspath(os.path.join(self.workdir, ".jax_cache")), **CACHE}
        os.makedirs(os.path.dirname(log), exist_ok=True)
        with open(log, "ab") as file, _ends_politely():
            child = subprocess.Popen(
                [*self.command, *cell.arguments(), f"--workdir={folder}"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**environment, **os.environ},
                process_group=0,  # a terminal's Ctrl-C reaches it once, through us: a second one stops it at once
            )
            try:
                return child.wait()
            except KeyboardInterrupt:
                child.send_signal(signal.SIGINT)
                child.wait()  # it saves a checkpoint; a second Ctrl-C kills it below
                raise
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()

    def rows(self) -> list[dict[str, Any]]:
        """table.csv: one row per finished cell and category; keys 'STAGE/metric' and 'without_drawn/metric' too."""
        table = []
        for cell in self.cells:
            results = self.results(cell)
            if results is None:
                continue
            for category, values in results["categories"].items():
                row = {"name": cell.name, "group": cell.row, "seed": results["seed"], "category": category}
                row |= {key: values.get(key) for key in (*METRICS, *TIMES)}
                parts = {**(values.get("stages") or {}), "without_drawn": values.get("without_drawn")}
                for part, of_part in parts.items():
                    row |= {f"{part}/{key}": value for key, value in (of_part or {}).items() if _is_number(value)}
                table.append(row | {"commit": results.get("commit", ""), "note": cell.note})
        return table

    def write(self) -> None:
        """Writes table.csv and table.md: what is finished by now."""
        from jaxad.report import files

        rows = self.rows()
        columns = ["name", "group", "seed", "category", *METRICS, *TIMES]
        columns += [key for key in dict.fromkeys(key for row in rows for key in row) if "/" in key]
        columns += ["commit", "note"]
        lines = [["" if row.get(column) is None else row[column] for column in columns] for row in rows]
        files.write_csv(os.path.join(self.workdir, "table.csv"), columns, lines)
        files.write_bytes(os.path.join(self.workdir, "table.md"), self.markdown().encode())

    def markdown(self) -> str:
        """table.md: the groups, their metrics after each stage where there are several, and the cells not run."""
        rows, groups = self.rows(), list(dict.fromkeys(cell.row for cell in self.cells))
        parts = list(dict.fromkeys(key.rpartition("/")[0] for row in rows for key in row if "/" in key))
        stages = [part for part in parts if part != "without_drawn"]
        text = [
            "Mean over seeds, and behind it their sample standard deviation (±; of two seeds, the range between them). "
            "A seed's value is the mean over its categories.",
            self._table(rows, groups, {**METRICS, **TIMES}, notes=True),
        ]
        if len(stages) > 1:
            keys = {f"{stage}/{key}": f"{stage}: {name}" for stage in stages for key, name in METRICS.items()}
            text += ["After each stage:", self._table(rows, groups, keys)]
        if "without_drawn" in parts:
            keys = {f"without_drawn/{key}": name for key, name in METRICS.items()}
            text += ["Without the test images that other runs draw into training:", self._table(rows, groups, keys)]
        commits = dict.fromkeys(row["commit"] for row in rows if row["commit"])
        if commits:
            text.append(f"Commit{'s' * (len(commits) > 1)}: {', '.join(commits)}.")
        machines = dict.fromkeys(filter(None, (self._machine(cell) for cell in self.cells if self.results(cell))))
        if machines:
            text.append(f"Machine{'s' * (len(machines) > 1)}: {'; '.join(machines)}.")
        missing = [cell for cell in self.cells if self.results(cell) is None]
        text.append(f"Cells not run: {len(missing) or 'none'}")
        text += ["\n".join(f"- `{cell.name}`{self._why(cell)}" for cell in missing)] if missing else []
        return "\n\n".join(text) + "\n"

    def _why(self, cell: Cell) -> str:
        if cell.name in self.failures:
            return f" failed: {self.failures[cell.name]}"
        return " not finished" if os.path.isdir(os.path.join(self.workdir, cell.name)) else ""

    def _machine(self, cell: Cell) -> str:
        found = _read(os.path.join(self.workdir, cell.name, "environment.json")) or {}
        devices = found.get("devices", [])
        kinds = [f"{devices.count(kind)} x {kind}" for kind in dict.fromkeys(devices)]
        return ", ".join([*filter(None, [found.get("machine")]), *kinds])

    def _table(self, rows: Sequence[dict], groups: Sequence[str], columns: Mapping[str, str], notes: bool = False):
        """One line per group with a finished cell. columns: {key of a row: heading}; those that no row has are left."""
        columns = {key: name for key, name in columns.items() if any(row.get(key) is not None for row in rows)}
        lines = [["group", "seeds", *columns.values(), *["note"] * notes]]
        for group in groups:
            members = [cell for cell in self.cells if cell.row == group]
            own = [row for row in rows if row["group"] == group]
            if not own:
                continue
            found = [_over_seeds(own, key) for key in columns]
            cells = [_value(key, values) for key, values in zip(columns, found, strict=True)]
            seeds = str(len({row["seed"] for row in own}))
            done = len({row["name"] for row in own})
            seeds += f" ({done} of {len(members)} cells)" if done < len(members) else ""
            note = "; ".join(dict.fromkeys(cell.note for cell in members if cell.note))
            lines.append([group, seeds, *cells, *[note] * notes])
        lines.insert(1, ["---"] * len(lines[0]))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _over_seeds(rows: Iterable[dict], key: str) -> list[float]:
    """One value per seed that has any: the mean over its rows."""
    seeds: dict[Any, list[float]] = {}
    for row in rows:
        if row.get(key) is not None:
            seeds.setdefault(row["seed"], []).append(row[key])
    return [fmean(values) for values in seeds.values()]


def _value(key: str, values: Sequence[float]) -> str:
    """Mean and spread, times to a tenth and metrics to the fourth digit.

    >>> _value('image_auroc', [0.5, 0.6, 0.7]), _value('image_auroc', [0.5, 0.75]), _value('fit_seconds', [3.0])
    ('0.6000 ± 0.1000', '0.6250 (range 0.2500)', '3.0')
    """
    digits = 1 if key in TIMES else 4
    if not values:
        return "n/a"
    text = f"{fmean(values):.{digits}f}"
    if key in TIMES or len(values) < 2:
        return text
    if len(values) == 2:
        return f"{text} (range {max(values) - min(values):.{digits}f})"
    return f"{text} ± {stdev(values):.{digits}f}"


def numbers(results: Mapping[str, Any]) -> str:
    """The metrics of a finished cell in a few words: its category's, or the mean of several.

    >>> numbers({'categories': {'screw': {'image_auroc': 0.5, 'pixel_auroc': None}}})
    'image AUROC 0.5000, pixel AUROC n/a, AUPRO 0.3 n/a'
    """
    parts = []
    for key in ("image_auroc", "pixel_auroc", "aupro_0.3"):
        values = [category[key] for category in results["categories"].values() if category.get(key) is not None]
        parts.append(f"{METRICS[key]} {_value(key, [fmean(values)] if values else [])}")
    return ", ".join(parts)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _config(cell: Cell) -> dict[str, Any]:
    """The resolved config of a cell, as config.json holds it. Raises `UserError` as jaxad.main would."""
    found = parse(["jaxad.grid", *cell.arguments()], flags.FlagValues(), "")
    return json.loads(found[0].to_json())


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None  # not there, or not readable: the run that belongs there will say so


def _last_line(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file.read().splitlines()]
    return next((line for line in reversed(lines) if line), "")


def _say(line: str) -> None:
    print(line, flush=True)


@contextlib.contextmanager
def _ends_politely() -> Iterator[None]:
    """Makes a scheduler's SIGTERM and a closed terminal what Ctrl-C is, so that the child does not outlive us."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup's choice stays
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
