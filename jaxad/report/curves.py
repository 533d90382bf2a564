"""The curves behind the numbers, as pictures and as thinned CSV, and the scores with their threshold."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxad import metrics
from jaxad.decision import Threshold
from jaxad.report import files, plots
from jaxad.types import Predictions

POINTS = 1000  # of each curve: finer than a picture shows, small enough for a spreadsheet
BINS = 40
PRO_LIMIT = 0.3  # the false positive rates that the PRO picture shows
NORMAL, ANOMALOUS, MARK = "#4878a8", "#d1495b", "#222222"
Line = tuple[str, np.ndarray, np.ndarray, np.ndarray]  # name, x, y, threshold


def write(
    folder: pathlib.Path, category: str, found: Predictions, limit: Threshold, result: Mapping[str, Any]
) -> list[pathlib.Path]:
    """Writes '<category>_{roc,pr,pro,iou}.{png,csv}' as far as the curves exist, and '<category>_scores.png'.

    result: what `evaluate.category_result` returned; its numbers stand in the legends.
    """
    name = files.safe_name(category)
    written = [files.write_bytes(folder / f"{name}_scores.png", plots.png(_histogram(category, found, limit)))]
    for kind, (lines, columns) in _lines(found, result).items():
        if lines:
            written.append(
                files.write_bytes(folder / f"{name}_{kind}.png", plots.png(_plot(category, kind, lines, limit)))
            )
            rows = [
                (line[0].split(" ")[0], *(f"{value:.9g}" for value in point[: len(columns)]))
                for line in lines
                for point in zip(*line[1:], strict=True)
            ]
            written.append(files.write_csv(folder / f"{name}_{kind}.csv", ("curve", *columns), rows))
    files.remove_others(folder, rf"{re.escape(name)}_(roc|pr|pro|iou|scores)\.(png|csv)", written)
    return written


def _lines(found: Predictions, result: Mapping[str, Any]) -> dict[str, tuple[list[Line], tuple[str, ...]]]:
    """{kind: (lines, columns)}; no line where the result has no number for it."""
    images, pixels = (found.scores, found.labels), (found.maps, found.masks)
    lines: dict[str, tuple[list[Line], tuple[str, ...]]] = {
        "roc": ([], ("false_positive_rate", "true_positive_rate", "threshold")),
        "pr": ([], ("recall", "precision", "threshold")),
        "pro": ([], ("false_positive_rate", "per_region_overlap", "threshold")),
        "iou": ([], ("threshold", "iou")),
    }
    for level, of in (("image", images), ("pixel", pixels)):
        if result[f"{level}_auroc"] is not None:
            lines["roc"][0].append((f"{level} AUROC {result[f'{level}_auroc']:.4f}", *metrics.roc_curve(*of, POINTS)))
        if result[f"{level}_ap"] is not None:
            lines["pr"][0].append((f"{level} AP {result[f'{level}_ap']:.4f}", *metrics.pr_curve(*of, POINTS)))
    if result["aupro_0.3"] is not None:
        words = f"pixel AUPRO {result['aupro_0.3']:.4f} to 0.3, {result['aupro_0.05']:.4f} to 0.05"
        lines["pro"][0].append((words, *metrics.pro_curve(*pixels, POINTS)))
    if result["iou_max"] is not None:
        at, iou = metrics.iou_curve(*pixels, points=POINTS)
        lines["iou"][0].append((f"pixel IoU, largest {result['iou_max']:.4f}", at, iou, at))
    return lines


def _plot(category: str, kind: str, lines: list[Line], limit: Threshold):
    words = {
        "roc": ("ROC", "false positive rate", "true positive rate"),
        "pr": ("precision and recall", "recall", "precision"),
        "pro": ("per-region overlap", "false positive rate of pixels", "mean overlap per region"),
        "iou": ("IoU", "threshold (raw map value)", "intersection over union"),
    }[kind]
    figure, axes = plots.figure(f"{category} · {words[0]}", words[1], words[2])
    for name, x, y, _ in lines:
        colour = NORMAL if name.startswith("image") else ANOMALOUS
        if kind == "pr":  # precision holds back to the recall before it: the area under the steps is the AP
            x, y = np.concatenate([[0.0], x]), np.concatenate([y[:1], y])
        axes.plot(x, y, color=colour, label=name, linewidth=1.8, drawstyle="steps-pre" if kind == "pr" else "default")
    axes.set_ylim(-0.02, 1.02)
    if kind in ("roc", "pr"):
        axes.set_xlim(-0.02, 1.02)
    if kind == "roc":
        axes.plot([0, 1], [0, 1], color=plots.FAINT, linewidth=1, linestyle=":")
    if kind == "pro":
        axes.set_xlim(0, PRO_LIMIT)
        axes.axvline(0.05, color=plots.FAINT, linewidth=1, linestyle=":")
    if kind == "iou":
        axes.axvline(limit.pixel, color=MARK, linewidth=1, linestyle="--", label=f"pixel threshold {limit.pixel:.4g}")
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure


def _histogram(category: str, found: Predictions, limit: Threshold):
    figure, axes = plots.figure(f"{category} · image scores", "score (raw)", "images")
    low, high = min(found.scores.min(), limit.image), max(found.scores.max(), limit.image)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    for of, colour, word in ((~found.labels, NORMAL, "normal"), (found.labels, ANOMALOUS, "anomalous")):
        if of.any():
            axes.hist(found.scores[of], edges, color=colour, alpha=0.65, label=f"{of.sum()} {word}")
    axes.axvline(limit.image, color=MARK, linewidth=1.2, linestyle="--", label=f"threshold {limit.image:.4g}")
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure
