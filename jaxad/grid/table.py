"""The numbers of a grid: a row per finished cell and category, and their means over seeds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from jaxad.grid import Cell
from jaxad.grid.folder import Grid

METRICS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_aupr": "image AUPR",
    "pixel_auroc": "pixel AUROC",
    "pixel_aupr": "pixel AUPR",
    "aupro_0.3": "AUPRO 0.3",
}
PRETRAINED = {"knn_top1": "k-NN top 1", "linear_top1": "linear top 1", "spread": "spread"}  # of a backbone
SHORT = ("image_auroc", "pixel_auroc", "aupro_0.3")
TIMES = {"fit_seconds": "fit, s", "predict_ms_per_image": "predict, ms"}


def write(grid: Grid) -> None:
    """Writes table.csv and table.md: what is finished by now."""
    from jaxad.report import files

    found = rows(grid)
    columns = ["name", "group", "seed", "category", *METRICS, *PRETRAINED, *TIMES]
    columns += [key for key in dict.fromkeys(key for row in found for key in row) if "/" in key]
    columns += ["commit", "note"]
    lines = [["" if row.get(column) is None else row[column] for column in columns] for row in found]
    files.write_csv(os.path.join(grid.workdir, "table.csv"), columns, lines)
    files.write_bytes(os.path.join(grid.workdir, "table.md"), markdown(grid).encode())


def rows(grid: Grid) -> list[dict[str, Any]]:
    """table.csv: one row per finished cell and category; keys 'STAGE/metric' and 'without_drawn/metric' too."""
    found = []
    for cell in grid.cells:
        results = grid.results(cell)
        if results is None:
            continue
        for category, values in results["categories"].items():
            row = {"name": cell.name, "group": cell.row, "seed": results["seed"], "category": category}
            row |= {key: values.get(key) for key in (*METRICS, *PRETRAINED, *TIMES)}
            parts = {**(values.get("stages") or {}), "without_drawn": values.get("without_drawn")}
            for part, of_part in parts.items():
                row |= {f"{part}/{key}": value for key, value in (of_part or {}).items() if is_number(value)}
            found.append(row | {"commit": results.get("commit", ""), "note": cell.note})
    return found


def markdown(grid: Grid) -> str:
    """table.md: the groups, their metrics after each stage where there are several, and the cells not run."""
    found, groups = rows(grid), list(dict.fromkeys(cell.row for cell in grid.cells))
    parts = list(dict.fromkeys(key.rpartition("/")[0] for row in found for key in row if "/" in key))
    stages = [part for part in parts if part != "without_drawn"]
    text = [
        "Mean over seeds, and behind it their sample standard deviation (±; of two seeds, the range between them). "
        "A seed's value is the mean over its categories.",
        _table(grid, found, groups, {**METRICS, **PRETRAINED, **TIMES}, notes=True),
    ]
    if len(stages) > 1:
        keys = {f"{stage}/{key}": f"{stage}: {name}" for stage in stages for key, name in METRICS.items()}
        text += ["After each stage:", _table(grid, found, groups, keys)]
    if "without_drawn" in parts:
        keys = {f"without_drawn/{key}": name for key, name in METRICS.items()}
        text += ["Without the test images that other runs draw into training:", _table(grid, found, groups, keys)]
    commits = dict.fromkeys(row["commit"] for row in found if row["commit"])
    if commits:
        text.append(f"Commit{'s' * (len(commits) > 1)}: {', '.join(commits)}.")
    machines = dict.fromkeys(filter(None, (_machine(grid, cell) for cell in grid.cells if grid.results(cell))))
    if machines:
        text.append(f"Machine{'s' * (len(machines) > 1)}: {'; '.join(machines)}.")
    missing = [cell for cell in grid.cells if grid.results(cell) is None]
    text.append(f"Cells not run: {len(missing) or 'none'}")
    text += ["\n".join(f"- `{cell.name}`{_why(grid, cell)}" for cell in missing)] if missing else []
    return "\n\n".join(text) + "\n"


def _why(grid: Grid, cell: Cell) -> str:
    if cell.name in grid.failures:
        return f" failed: {grid.failures[cell.name]}"
    return " not finished" if grid.read(cell, "config.json") else ""


def _machine(grid: Grid, cell: Cell) -> str:
    found = grid.read(cell, "environment.json") or {}
    devices = found.get("devices", [])
    kinds = [f"{devices.count(kind)} x {kind}" for kind in dict.fromkeys(devices)]
    return ", ".join([*filter(None, [found.get("machine")]), *kinds])


def _table(grid: Grid, rows: Sequence[dict], groups: Sequence[str], columns: Mapping[str, str], notes: bool = False):
    """One line per group with a finished cell. columns: {key of a row: heading}; those that no row has are left."""
    columns = {key: name for key, name in columns.items() if any(row.get(key) is not None for row in rows)}
    lines = [["group", "seeds", *columns.values(), *["note"] * notes]]
    for group in groups:
        members = [cell for cell in grid.cells if cell.row == group]
        own = [row for row in rows if row["group"] == group]
        if not own:
            continue
        found = [over_seeds(own, key) for key in columns]
        cells = [_value(key, values) for key, values in zip(columns, found, strict=True)]
        seeds = str(len({row["seed"] for row in own}))
        done = len({row["name"] for row in own})
        seeds += f" ({done} of {len(members)} cells)" if done < len(members) else ""
        note = "; ".join(dict.fromkeys(cell.note for cell in members if cell.note))
        lines.append([group, seeds, *cells, *[note] * notes])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def over_seeds(rows: Iterable[dict], key: str) -> list[float]:
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
    from jaxad.report import pretraining

    parts, categories = [], list(results["categories"].values())
    keys = (
        PRETRAINED
        if pretraining.is_one(results)
        else {key: METRICS[key] for key in ("image_auroc", "pixel_auroc", "aupro_0.3")}
    )
    for key, name in keys.items():
        values = [category[key] for category in categories if category.get(key) is not None]
        parts.append(f"{name} {_value(key, [fmean(values)] if values else [])}")
    return ", ".join(parts)


def is_number(value: Any) -> bool:
    """A number, or None where there is none."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
