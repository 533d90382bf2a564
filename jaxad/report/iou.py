"""IoU against the threshold for all categories of a run (AnoSeg, fig. 6b): curves/iou.csv and curves/iou.png.

The threshold is a place on the scale of the maps, 0 at its lower end and 1 at its upper, so that categories and
methods can be averaged and compared at equal thresholds. The mean is over categories. Of the 10,000 thresholds the
CSV holds 1,001, evenly, and those where a category or the mean is at its best. jax is not imported.
"""

from __future__ import annotations

import csv
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxad.errors import UserError
from jaxad.metrics import IouSteps
from jaxad.metrics.iou import peak
from jaxad.report import files, plots

MEAN = "mean"
COLUMNS = ("category", "threshold", "raw_threshold", "iou")
POINTS = 1001  # of the CSV
NUMBERS = ("oracle_max", "at_half", "oracle_max_defect_only", "oracle_max_per_image")
Curves = dict[str, tuple[np.ndarray, np.ndarray]]  # {category: (threshold f64[n] in [0, 1], IoU f64[n])}


def mean_curve(steps: Mapping[str, IouSteps]) -> np.ndarray:
    """f64[T]: the mean over categories at equal places of their scales."""
    return np.mean([of.pooled for of in steps.values()], axis=0)


def mean(results: Mapping[str, Mapping[str, Any]], steps: Mapping[str, IouSteps]) -> dict[str, Any] | None:
    """The 'iou' of the mean in results.json; None where no category has one.

    Each number of the categories averaged, over those that have it, and 'oracle_max_of_mean', the largest of the mean
    curve: one threshold for all categories, at 'oracle_threshold_of_mean' in [0, 1].

    Args:
      results: {category: its part of results.json}.
      steps: {category: its curve}.
    """
    present = [result["iou"] for result in results.values() if result.get("iou")]
    if not present:
        return None
    values = {name: float(np.mean([of[name] for of in present])) for name in NUMBERS}
    if steps:
        curve = mean_curve(steps)
        best = peak(curve)
        places = next(iter(steps.values())).places
        values |= {"oracle_max_of_mean": float(curve[best]), "oracle_threshold_of_mean": float(places[best])}
    return values


def write(folder: pathlib.Path, steps: Mapping[str, IouSteps]) -> list[pathlib.Path]:
    """Writes iou.csv and iou.png for {category: its curve}; without any, removes those of an earlier run."""
    written = []
    if steps:
        written.append(files.write_csv(folder / "iou.csv", COLUMNS, rows(steps)))
        written.append(files.write_bytes(folder / "iou.png", plots.png(picture(steps))))
    files.remove_others(folder, r"iou\.(csv|png)", written)
    return written


def rows(steps: Mapping[str, IouSteps]) -> list[tuple[str, ...]]:
    """The lines of iou.csv: each category in order, then the mean, all at the same thresholds.

    The mean has a raw threshold where all categories are on one scale.
    """
    curves = {category: of.pooled for category, of in steps.items()} | {MEAN: mean_curve(steps)}
    raw: dict[str, np.ndarray | None] = {category: of.thresholds for category, of in steps.items()}
    first = next(iter(steps.values()))
    raw[MEAN] = first.thresholds if all(np.array_equal(of, first.thresholds) for of in raw.values()) else None
    size = first.thresholds.size
    even = np.rint(np.linspace(0, size - 1, min(POINTS, size))).astype(int)
    kept = np.unique([*even, *map(peak, curves.values())])
    return [
        (
            category,
            f"{first.places[at]:.9g}",
            "" if raw[category] is None else f"{raw[category][at]:.9g}",
            repr(float(curve[at])),  # reads back as the number in results.json
        )
        for category, curve in curves.items()
        for at in kept
    ]


def picture(steps: Mapping[str, IouSteps]):
    """A line per category and, of several, a thick one for their mean."""
    import matplotlib

    figure, axes = plots.figure("IoU against the threshold", "threshold, as a place on the map's scale", "IoU, pooled")
    figure.set_size_inches(8.2, max(4.2, 1.2 + 0.19 * len(steps)))
    figure.subplots_adjust(left=0.085, right=0.68)
    palette = matplotlib.colormaps["tab20"]
    for number, (category, of) in enumerate(steps.items()):
        axes.plot(of.places, of.pooled, color=palette(number % 20), linewidth=1.2, label=_label(category, of.pooled))
    if len(steps) > 1:
        curve = mean_curve(steps)
        axes.plot(of.places, curve, color="#111111", linewidth=2.8, label=_label(f"mean of {len(steps)}", curve))
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.02, 1.02)
    axes.legend(title="largest IoU", frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.02))
    return figure


def _label(name: str, curve: np.ndarray) -> str:
    return f"{name if len(name) <= 24 else name[:23] + '…'}: {curve.max():.4f}"


def read(run: str | os.PathLike) -> Curves:
    """The curves of a finished run, the last one being MEAN.

    Raises UserError where the run has none.
    """
    path = os.path.join(run, "curves", "iou.csv")
    try:
        with open(path, newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise UserError(
            f"{os.fspath(run)!r} has no curves/iou.csv: it is of an older jaxad, drew no curves, or its data has no "
            f"masks; run the same command again with --config.report.curves=True"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not readable; run the same command again") from error
    points: dict[str, list[tuple[float, float]]] = {}
    try:
        for row in found:
            points.setdefault(row["category"], []).append((float(row["threshold"]), float(row["iou"])))
        curves = {category: tuple(np.array(of).T) for category, of in points.items()}
        if MEAN not in curves:
            raise ValueError("no mean")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not that of a jaxad run; run the same command again") from error
    return curves
