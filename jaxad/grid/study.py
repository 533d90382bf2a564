"""A study: metrics of the finished cells of a grid over two of their labels, as numbers and as a picture.

WORKDIR/study.csv   one line per finished cell and category: the labels, the metrics, the seed, the category
WORKDIR/study.png   a panel per metric: lines where x is a number, bars where it is a word. A point is the mean over
                    seeds, a seed's value its mean over categories and labels that are not shown; bars reach from the
                    lowest seed to the highest.
"""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from jaxad.errors import UserError
from jaxad.flags import nearest
from jaxad.grid import Cell, Study, execute, table
from jaxad.grid.folder import Grid

METRICS = {
    **table.METRICS,
    "image_f1max": "image F1-max",
    "pixel_ap": "pixel AP",
    "pixel_f1max": "pixel F1-max",
    "aupro_0.05": "AUPRO 0.05",
    "iou_max": "pixel IoU, largest",
    **table.PRETRAINED,
    **table.TIMES,
}
FACTS = "facts/"
CATEGORY = "category"  # every line has one, without a label
COLOURS = ("#4878a8", "#d1495b", "#3f8f5f", "#e09f3e", "#7b5ea7", "#4fb0ae", "#8c6d46", "#6c757d")
MARKERS = "osD^v"  # one for each turn through the colours
INK = "#222222"


def load(path: str, cells: Sequence[Cell]) -> Study | None:
    """The `study` of a grid file; None where it has none.

    Raises:
      UserError: it is not a Study, asks for a metric that no cell can have, or for a label that a cell has not.
    """
    found = execute(path).get("study")
    if found is None:
        return None
    if not isinstance(found, Study):
        raise UserError(f"{path}: study is not a Study(x=..., series=...) of jaxad.grid")
    if isinstance(found.metrics, str) or not found.metrics:
        raise UserError(
            f"{path}: the study's metrics={found.metrics!r} are not a tuple of names, as ('image_auroc',) is"
        )
    for name in found.metrics:
        fact = name.startswith(FACTS) and len(name.split("/")) == 3 and all(name.split("/"))
        if not fact and name not in METRICS:
            raise UserError(
                f"{path}: the study asks for an unknown metric {name!r}{nearest(name, METRICS)}, or 'facts/STAGE/NAME'"
            )
    if found.oracle and found.metrics[0].startswith(FACTS):
        raise UserError(f"{path}: an oracle chooses by a metric of the test set; put one first in the study's metrics")
    if found.series in (found.x, found.oracle):
        raise UserError(f"{path}: the study's series {found.series!r} cannot be its x or its oracle, too")
    for cell in cells:
        for label in (found.x, found.series, found.oracle):
            if label and label not in cell.labels and label != CATEGORY:
                raise UserError(
                    f"{path}: cell {cell.name!r} lacks the study's label {label!r}; give it labels={{{label!r}: ...}}"
                )
        for label, value in cell.labels.items():
            if not isinstance(value, str | int | float):
                raise UserError(f"{path}: label {label!r} of cell {cell.name!r} is neither a number nor a word")
    return found


def write(grid: Grid, study: Study) -> str:
    """Writes study.csv and study.png of what is finished by now, and returns a line that says so."""
    from jaxad.report import files, plots

    found = rows(grid, study)
    columns = _columns(grid, study)
    lines = [["" if row[column] is None else row[column] for column in columns] for row in found]
    told = files.write_csv(os.path.join(grid.workdir, "study.csv"), columns, lines)
    picture = pathlib.Path(grid.workdir, "study.png")
    if found:
        files.write_bytes(picture, plots.png(_draw(study, found)))
    else:
        picture.unlink(missing_ok=True)  # of cells that have changed since
    done = sum(grid.results(cell) is not None for cell in grid.cells)
    return f"{done} of {len(grid.cells)} cells finished; {told}{' and study.png' if found else ''}"


def rows(grid: Grid, study: Study) -> list[dict[str, Any]]:
    """The lines of study.csv, in the order of the cells; None where a cell has not such a label or number."""
    found, blank = [], dict.fromkeys(_columns(grid, study))
    for cell in grid.cells:
        results = grid.results(cell)
        for category, values in results["categories"].items() if results else ():
            row = blank | {"seed": results["seed"], CATEGORY: category} | dict(cell.labels)
            found.append(row | {_column(name): _number(values, name) for name in study.metrics})
    if study.oracle:
        best = _best(study, found)
        for row in found:
            row["oracle_best"] = row[study.oracle] == best.get(row[study.series])
    return found


def _best(study: Study, rows: Sequence[Mapping[str, Any]]) -> dict[Any, Any]:
    """{series: the value of the oracle's label with the largest first metric, as a mean over seeds}."""
    best: dict[Any, Any] = {}
    for series in _values(rows, study.series):
        of_it = [row for row in rows if row[study.series] == series]
        means = {
            value: fmean(seeds)
            for value in _values(of_it, study.oracle)
            if (seeds := table.over_seeds([row for row in of_it if row[study.oracle] == value], study.metrics[0]))
        }
        if means:
            best[series] = max(means, key=means.__getitem__)
    return best


def _draw(study: Study, rows: Sequence[Mapping[str, Any]]):
    """A matplotlib figure of the lines of study.csv."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.2 * len(study.metrics), 5) + 1.2, 4.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(study.metrics), squeeze=False)[0]
    for axes, metric in zip(panels, study.metrics, strict=True):
        _panel(axes, study, rows, _column(metric))
    legend = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        legend.values(),
        legend,
        title=study.series,
        frameon=False,
        fontsize=9,
        alignment="left",
        loc="outside right upper",
    )
    figure.suptitle(study.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def _panel(axes, study: Study, rows: Sequence[Mapping[str, Any]], column: str) -> None:
    """Draws one metric: a line or bars for each series, and a ring where the oracle chose along x."""
    from jaxad.report import plots

    series, ticks = _values(rows, study.series), _values(rows, study.x)
    numeric = all(isinstance(tick, int | float) for tick in ticks)
    ticks = sorted(ticks) if numeric else ticks
    best = _best(study, rows) if study.oracle == study.x else {}
    gap = min((after - before for before, after in itertools.pairwise(ticks)), default=1) if numeric else 1
    rings = []
    for place, one in enumerate(series):
        of_it = [row for row in rows if row[study.series] == one]
        by_tick = {at: table.over_seeds([row for row in of_it if row[study.x] == at], column) for at in ticks}
        points = {at: seeds for at, seeds in by_tick.items() if seeds}
        aside = ((place + 0.5) / len(series) - 0.5) * gap  # so that no series covers another
        where = [at + 0.12 * aside if numeric else ticks.index(at) + 0.8 * aside for at in points]
        means = [fmean(seeds) for seeds in points.values()]
        style = {"color": COLOURS[place % len(COLOURS)], "label": str(one)}
        if numeric:
            marker = MARKERS[place // len(COLOURS) % len(MARKERS)]
            axes.plot(where, means, marker=marker, markersize=5, linewidth=1.8, **style)
        else:
            axes.bar(where, means, 0.8 * 0.92 / len(series), **style)
        low, high = map(min, points.values()), map(max, points.values())
        axes.vlines(where, list(low), list(high), color=style["color"] if numeric else INK, linewidth=1.2)
        rings += [spot for at, *spot in zip(points, where, means, strict=True) if at == best.get(one)]
    if rings:
        style = {"markersize": 12, "markerfacecolor": "none", "markeredgecolor": INK, "linestyle": "none"}
        axes.plot(*zip(*rings, strict=True), "o", label=f"oracle: best {study.oracle}\nby test labels", **style)
    plots.dress(axes)
    axes.set(xlabel=study.xlabel or study.x, ylabel=METRICS.get(column, column))
    axes.set_xticks(ticks if numeric else range(len(ticks)), [str(tick) for tick in ticks])


def _columns(grid: Grid, study: Study) -> list[str]:
    labels = list(dict.fromkeys(label for cell in grid.cells for label in cell.labels))
    ordered = [*labels, *sorted(map(_column, study.metrics), key=lambda name: "/" in name)]
    return list(dict.fromkeys([*ordered, "seed", CATEGORY, *["oracle_best"] * bool(study.oracle)]))


def _column(metric: str) -> str:
    """The column of a metric: 'facts/measure/nmse' is in 'measure/nmse'."""
    return metric.removeprefix(FACTS)


def _number(values: Mapping[str, Any], metric: str) -> float | None:
    """A metric, or a fact, of one category of results.json; None where it has none."""
    for part in metric.split("/"):
        values = (values or {}).get(part)
    return values if table.is_number(values) else None


def _values(rows: Sequence[Mapping[str, Any]], label: str) -> list[Any]:
    """The values of a label, in the order of first use."""
    return list(dict.fromkeys(row[label] for row in rows))
