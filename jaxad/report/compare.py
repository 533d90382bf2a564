"""Several runs in one figure: IoU against the threshold, a panel per category (AnoSeg, figs. 6b and 10 to 12).

Reads each run's curves/iou.csv. Where two runs hold different thresholds, the values between are interpolated; the
steps are a thousandth of the scale. jax is not imported.
"""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxad.errors import UserError
from jaxad.metrics.iou import peak
from jaxad.report import files, iou, plots

COLUMNS = ("run", "category", "threshold", "iou")
ACROSS = 4  # panels
SOLID, DASHED = "-", "--"


class Means(NamedTuple):
    """The mean curves of all runs. categories: those that every run has · threshold: f64[n] · iou: {run: f64[n]}."""

    categories: tuple[str, ...]
    threshold: np.ndarray
    iou: dict[str, np.ndarray]


def check(path: str, flag: str = "--iou") -> str:
    """`path`, or a UserError where it is no place for the figure that `flag` asks for."""
    if not path.lower().endswith(".png") or os.path.basename(path).lower() == ".png":
        raise UserError(f"{flag}={path!r} does not end in .png: {flag}=FILE.png")
    return path


def write(path: str, curves: Mapping[str, iou.Curves], methods: Mapping[str, str]) -> list[str]:
    """Writes the figure to `path` and its numbers to the .csv beside it; returns what is to be said of them.

    Args:
      path: ends in .png.
      curves: {run: `iou.read(run)`}; of each the categories count, its own mean does not.
      methods: {run: its method}.

    Raises UserError where a file cannot be written.
    """
    shared = means(curves)
    table = pathlib.Path(path).with_suffix(".csv")
    files.write_csv(table, COLUMNS, rows(curves, shared))
    files.write_bytes(path, plots.png(picture(curves, shared, methods)))
    return [*claims(shared), f"wrote {path} and {table}"]


def means(curves: Mapping[str, iou.Curves]) -> Means:
    """Each run's mean over the categories that all runs have, at the thresholds of all of them."""
    categories = [name for of in curves.values() for name in of if name != iou.MEAN]
    common = tuple(name for name in dict.fromkeys(categories) if all(name in of for of in curves.values()))
    grid = np.unique(np.concatenate([of[name][0] for of in curves.values() for name in common] or [np.zeros(0)]))
    averaged = {
        run: np.mean([np.interp(grid, *of[name]) for name in common], axis=0) if common else grid
        for run, of in curves.items()
    }
    return Means(common, grid, averaged)


def rows(curves: Mapping[str, iou.Curves], shared: Means) -> list[tuple[str, ...]]:
    """Run by run: its categories as they were read, then its mean over the shared ones."""
    lines = []
    for run, of in curves.items():
        parts = {name: curve for name, curve in of.items() if name != iou.MEAN}
        parts[iou.MEAN] = (shared.threshold, shared.iou[run])
        for name, curve in parts.items():
            lines += [(run, name, f"{at:.9g}", repr(float(value))) for at, value in zip(*curve, strict=True)]
    return lines


def span(shared: Means, run: str) -> tuple[float, float] | None:
    """The thresholds around a run's best one over which its mean IoU stays above every other run's best value.

    None where it is not above them even at its best. What AnoSeg's section 4.3.4 claims of itself for 0.2 to 0.8.
    """
    curve = shared.iou[run]
    others = [values.max() for name, values in shared.iou.items() if name != run]
    best = peak(curve)
    if not others or curve[best] <= max(others):
        return None
    below = np.flatnonzero(curve <= max(others))
    left, right = below[below < best], below[below > best]
    first = left[-1] + 1 if left.size else 0
    last = right[0] - 1 if right.size else curve.size - 1
    return float(shared.threshold[first]), float(shared.threshold[last])


def claims(shared: Means) -> list[str]:
    """A line per run: its best mean IoU, and over which thresholds it stays above every other run's best."""
    if not shared.categories:
        return ["IoU: no category is in every run: no mean"]
    lines = []
    for run, curve in shared.iou.items():
        best = peak(curve)
        over = f"over {len(shared.categories)} categories" if len(shared.categories) > 1 else shared.categories[0]
        line = f"{run}: mean IoU {over}: at most {curve[best]:.4f}, at {shared.threshold[best]:.4f}"
        others = {name: values.max() for name, values in shared.iou.items() if name != run}
        if others:
            rival = max(others, key=others.get)
            found = span(shared, run)
            where = "nowhere above" if found is None else f"from {found[0]:.4f} to {found[1]:.4f} above"
            line += f"; {where} every other run's best, {others[rival]:.4f} ({rival})"
        lines.append(line)
    return lines


def picture(curves: Mapping[str, iou.Curves], shared: Means, methods: Mapping[str, str]):
    """A panel per category that any run has, and the last one for the mean; one colour per run."""
    import matplotlib
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for of in curves.values() for name in of if name != iou.MEAN))
    panels: dict[str, Mapping[str, tuple[np.ndarray, np.ndarray]]] = {
        name: {run: of[name] for run, of in curves.items() if name in of} for name in names
    }
    if shared.categories:
        count = len(shared.categories)
        words = (
            f"mean over the {count} categories\nthat all the runs have" if count > 1 else "mean: the category of all"
        )
        panels[words] = {run: (shared.threshold, values) for run, values in shared.iou.items()}
    across = min(ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    head = 0.35 + 0.22 * len(curves)  # inches, for the legend
    height = head + 2.7 * down
    figure = Figure(figsize=(max(3.1 * across, 6.2), height), dpi=100)
    figure.subplots_adjust(
        left=0.5 / figure.get_figwidth(),
        right=1 - 0.12 / figure.get_figwidth(),
        bottom=0.5 / height,
        top=1 - (head + 0.4) / height,
        hspace=0.5,
        wspace=0.18,
    )
    # Past ten runs the colours come again, dashed.
    palette = matplotlib.colormaps["tab10"]
    style = {run: (palette(n % 10), SOLID if n < 10 else DASHED) for n, run in enumerate(curves)}
    for place, (title, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(down, across, place)
        plots.dress(axes)
        mean = shared.categories and place == len(panels)
        axes.set_title(title, loc="left", fontsize=9, fontweight="bold" if mean else "normal")
        for run, (at, values) in lines.items():
            colour, kind = style[run]
            width = 2.4 if mean else 1.4
            axes.plot(at, values, kind, color=colour, linewidth=width, label=f"{values.max():.4f}")
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.02, 1.02)
        axes.tick_params(labelsize=8)
        axes.legend(title="largest", title_fontsize=7, fontsize=7, frameon=False, loc="best", handlelength=1.2)
        if place > len(panels) - across:
            axes.set_xlabel("threshold, as a place on the map's scale", fontsize=8)
        if place % across == 1 % across:
            axes.set_ylabel("IoU, pooled", fontsize=8)
    handles = [
        matplotlib.lines.Line2D([], [], color=style[run][0], linestyle=style[run][1], linewidth=2.4) for run in curves
    ]
    figure.legend(
        handles, _labels(curves, shared, methods), loc="upper left", frameon=False, fontsize=9, bbox_to_anchor=(0, 1)
    )
    return figure


def _labels(curves: Mapping[str, iou.Curves], shared: Means, methods: Mapping[str, str]) -> list[str]:
    """'method · run folder, oracle IoU 0.5420': the folder's own name where no two are alike."""
    own = {run: pathlib.PurePath(os.path.abspath(run)).name for run in curves}
    alike = len(set(own.values())) < len(own)
    labels = []
    for run in curves:
        best = f", oracle IoU of the mean {shared.iou[run].max():.4f}" if shared.categories else ""
        labels.append(f"{methods[run]} · {run if alike else own[run]}{best}")
    return labels
