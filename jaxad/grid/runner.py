"""Runs the cells of a grid, one process after the other."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from jaxad.errors import UserError
from jaxad.grid import Cell, study, table
from jaxad.grid.folder import Grid, resolved

COMMAND = (sys.executable, "-m", "jaxad.main")
# Cells that differ in what is not compiled (seed, category of the same size) then compile once.
CACHE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


def show(grid: Grid, cells: Sequence[Cell]) -> None:
    """Prints a line per cell: done with its numbers, or not."""
    for cell in cells:
        results = grid.results(cell)
        print(f"{cell.name}: {'not done' if results is None else f'done, {table.numbers(results)}'}")


def run(grid: Grid, cells: Sequence[Cell], command: Sequence[str] = COMMAND, minutes: float | None = None) -> list[str]:
    """Runs those of `cells` that are not finished, and returns the names of those that failed.

    command: what runs a cell; it is given jaxad.main's flags · minutes: no cell is started after that many; None: no
    limit.

    Raises:
      UserError: settings that no run can have, before anything is run.
      KeyboardInterrupt: after stopping the cell; it resumes.
    """
    named = {value for cell in cells for value in cell.settings.values() if isinstance(value, str)}
    for cell in grid.cells:
        if grid.folder(cell) in named:
            os.makedirs(grid.folder(cell), exist_ok=True)  # a setting that names it is checked before it is run
    for cell in cells:
        try:
            resolved(cell)
        except UserError as error:
            raise UserError(f"cell {cell.name!r}: {error}") from error
    began, late = time.monotonic(), []
    _write(grid)
    for place, cell in enumerate(cells, 1):
        title = f"[{place}/{len(cells)}] {cell.name}"
        results = grid.results(cell)
        if results is not None:
            _say(f"{title}: was done, {table.numbers(results)}")
            continue
        if minutes is not None and time.monotonic() - began >= 60 * minutes:
            late.append(cell.name)
            continue
        _say(f"{title}: starts")
        started = time.monotonic()
        try:
            code = _process(grid, cell, command)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(f"stopped in cell {cell.name}; the same command resumes") from error
        spent = f"{time.monotonic() - started:.0f} s"
        results = grid.read(cell, "results.json") if code == 0 else None
        if results is not None:
            grid.finished[cell.name] = results
            _say(f"{title}: {spent}, {table.numbers(results)}")
        else:
            grid.failures[cell.name] = _last_line(grid.log(cell)) or f"exit code {code}"
            _say(f"{title}: failed after {spent}: {grid.failures[cell.name]} (all of it: {grid.log(cell)})")
        _write(grid)
    done = sum(cell.name in grid.finished for cell in cells)
    _say(
        f"{done} of {len(cells)} cells done, {len(grid.failures)} failed, {len(late)} not started"
        f"; {os.path.join(grid.workdir, 'table.md')}"
    )
    return list(grid.failures)


def _write(grid: Grid) -> None:
    table.write(grid)
    if grid.study is not None:
        study.write(grid, grid.study)


def _process(grid: Grid, cell: Cell, command: Sequence[str]) -> int:
    """Runs one cell to its end and returns its exit code. Ctrl-C, or this process's end, ends it too."""
    folder, log = grid.folder(cell), grid.log(cell)
    environment = {"JAX_COMPILATION_CACHE_DIR": os.path.abspath(os.path.join(grid.workdir, ".jax_cache")), **CACHE}
    os.makedirs(os.path.dirname(log), exist_ok=True)
    with open(log, "ab") as file, _ends_politely():
        child = subprocess.Popen(
            [*command, *cell.arguments(), f"--workdir={folder}"],
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
