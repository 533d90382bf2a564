"""What a user sees of a run while it goes on: a progress bar or plain lines, metrics.jsonl, TensorBoard events."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxad.types import SKIPPED


class Log:
    """One category's log, for a `with` statement. On a process that is not `main` it says and writes nothing."""

    def __init__(self, folder: str, main: bool = True):
        self.main = main
        self._file = os.path.join(folder, "metrics.jsonl")
        self._console = Console(stderr=True)
        self._events = None
        if main:
            from tensorboardX import SummaryWriter

            os.makedirs(folder, exist_ok=True)
            self._events = SummaryWriter(os.path.join(folder, "tensorboard"))

    def say(self, line: str) -> None:
        """One plain line."""
        if self.main:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def rewind(self, stage: str, step: int) -> None:
        """Drops the rows of `stage` after `step`: a resumed run writes them again."""
        if not self.main or not os.path.exists(self._file):
            return
        with open(self._file, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.endswith("\n")]
        kept = [row for row in rows if row["stage"] != stage or row["step"] <= step]
        with open(self._file + ".tmp", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
        os.replace(self._file + ".tmp", self._file)

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """One row of numbers, to metrics.jsonl and TensorBoard."""
        if not self.main:
            return
        values = {name: float(value) for name, value in values.items() if value is not None and value != SKIPPED}
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(f"{stage}/{name}", value, step)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_) -> None:
        if self._events is not None:
            self._events.close()


class Meter:
    """The progress of one stage: a bar with ETA on a terminal, a line every few seconds elsewhere."""

    def __init__(self, log: Log, stage: str, steps: int, start: int):
        self._log, self._stage, self._steps = log, stage, steps
        self._last = 0.0
        self._bar = None
        if log.main and log._console.is_terminal and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn(f"{stage:>12}"),
                BarColumn(bar_width=None),  # takes what the numbers leave
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=log._console,
                expand=True,
            )
            self._task = self._bar.add_task(stage, total=steps, completed=start, note="")
            self._bar.start()

    def update(self, step: int, loss: float | None, images_per_second: float) -> None:
        """Shows that `step` steps are done."""
        note = f"{images_per_second:.1f} img/s" if loss is None else f"loss {loss:.4g} · {images_per_second:.1f} img/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif time.monotonic() - self._last >= 5 or step == self._steps:
            self._last = time.monotonic()
            self._log.say(f"{self._stage}: step {step}/{self._steps} · {note}")

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()
