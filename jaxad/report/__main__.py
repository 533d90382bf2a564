"""Prints the numbers of finished runs, the paper's beside them where it has any.

  python -m jaxad.report RUN [RUN ...] [--iou=FILE.png] [--figure=FILE.png]

RUN is the workdir of a finished run: results.json and config.json in it are read.

--iou=FILE.png also draws IoU against the threshold, a panel per category and one for the mean over the categories that
all runs have, a colour per run, and writes the numbers to FILE.csv: run, category, threshold, iou. The threshold is a
place on the scale of the maps, from 0 to 1. Each run's curves/iou.csv is read. Printed for each run: over which
thresholds its mean IoU stays above every other run's best.

--figure=FILE.png also draws a row per anomalous test image that all runs have kept: the image, its ground truth, and
the map of each run over the image, coloured from the run's pixel threshold to the largest value of its maps. Each run's
maps/CATEGORY.npz is read.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jaxad.errors import UserError, exit_code
from jaxad.flags import debug_asked
from jaxad.report import compare, figure, iou, pretraining, targets

SELDOM = ("image_aupr", "pixel_aupr")  # a column of their own only beside a paper's
USAGE = "python -m jaxad.report RUN [RUN ...] [--iou=FILE.png] [--figure=FILE.png]"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: this process's) and returns its exit code."""
    argv = sys.argv if argv is None else argv

    def body() -> None:
        words = [argument for argument in argv[1:] if argument != "--debug"]
        if any(argument in ("--help", "-help", "-h") for argument in words):
            print(__doc__.strip())
            return
        names = [argument for argument in words if not argument.startswith("-")]
        path: dict[str, str] = {}
        for flag in (argument for argument in words if argument.startswith("-")):
            name, _, value = flag.partition("=")
            name = name.lstrip("-")
            if name not in ("iou", "figure"):
                raise UserError(f"unknown flag {flag!r}: {USAGE}")
            path[name] = compare.check(value, f"--{name}")
        if not names:
            raise UserError(f"no run given: {USAGE}")
        runs = {run: read(run) for run in names}
        methods = {run: results["method"] for run, results in runs.items()}
        curves = {run: iou.read(run) for run in runs} if "iou" in path else {}
        kept = {run: figure.read(run, list(runs[run]["categories"])) for run in runs} if "figure" in path else {}
        print(text(runs), flush=True)
        if "iou" in path:
            print("\n".join(compare.write(path["iou"], curves, methods)), flush=True)
        if "figure" in path:
            print("\n".join(figure.write(path["figure"], kept, methods)), flush=True)

    return exit_code(body, debug_asked(argv))


def read(run: str) -> dict[str, Any]:
    """What results.json of a finished run holds, the paper's numbers added where the run was before them.

    Raises UserError where `run` is not a finished run.
    """
    found = []
    for name in ("results.json", "config.json"):
        try:
            with open(os.path.join(run, name), encoding="utf-8") as file:
                found.append(json.load(file))
        except OSError as error:
            raise UserError(f"{run!r} is not the workdir of a finished run: it has no {name}") from error
        except ValueError as error:
            raise UserError(f"{os.path.join(run, name)} is not readable; run the same command again") from error
    results, config = found
    if not isinstance(results, dict) or "categories" not in results:
        raise UserError(f"{os.path.join(run, 'results.json')} is not that of a jaxad run")
    if not config["data"].get("source"):  # of a materialised file, only the run itself knew the data set
        for category, result in results["categories"].items():
            result.setdefault("paper", targets.of_run(config, config["data"]["dataset"], category))
        results["mean"].setdefault("paper", targets.of_mean(config, list(results["categories"])))
    return results


def text(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """The table: a line per run and category, and the mean of several; below it where the paper's numbers stand.

    runs: {name: what `read` returned}.
    """
    pretrained = [run for run, results in runs.items() if pretraining.is_one(results)]
    entries = []
    for run, results in runs.items():
        if run in pretrained:
            continue
        entries += [(run, name, values) for name, values in results["categories"].items()]
        if len(results["categories"]) > 1:
            entries.append((run, "mean", results["mean"]))
    printed = {key for *_, values in entries for key in (values.get("paper") or ())}
    shown = {key: name for key, name in targets.METRICS.items() if key in printed or key not in SELDOM}
    head = ["run", "category"]
    for key, name in shown.items():
        head += [name, "paper"] if key in printed else [name]
    table = [head]
    for run, name, values in entries:
        cells, paper = [run, name], values.get("paper") or {}
        for key in shown:
            cells.append("n/a" if values.get(key) is None else f"{values[key]:.4f}")
            cells += [f"{paper[key]:.3f}" if key in paper else ""] if key in printed else []
        table.append(cells)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [cell.ljust(width) if place < 2 else cell.rjust(width) for place, (cell, width) in _places(row, widths)]
        lines.append("  ".join(cells).rstrip())
    told = [line for run in pretrained for line in pretraining.lines(runs[run])]
    return "\n".join([*(lines if entries else ()), *told, *_sources(runs)])


def _places(row: Sequence[str], widths: Sequence[int]):
    return enumerate(zip(row, widths, strict=True))


def _sources(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What each run is, where its paper's numbers stand, and what is wrong with them."""
    lines = []
    for run, results in runs.items():
        lines.append(f"{run}: {results['method']}, seed {results['seed']}, commit {results['commit']}")
        named = {**results["categories"], "mean": results["mean"]}
        papers = {name: values["paper"] for name, values in named.items() if values.get("paper")}
        places = dict.fromkeys(targets.where(paper, results["method"]) for paper in papers.values())
        lines += [f"{run}: paper: {'; '.join(places)}"] if places else []
        lines += [f"{run}: {name}: paper: {paper['note']}" for name, paper in papers.items() if "note" in paper]
    return lines


if __name__ == "__main__":
    sys.exit(main())
