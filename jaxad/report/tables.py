"""The results as text: a table per category, defect type and mean, and the short lines of a log."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from jaxad.report import targets

HEADINGS = {
    "image_auroc": "AUROC",
    "image_ap": "AP",
    "image_f1max": "F1max",
    "pixel_auroc": "AUROC",
    "pixel_ap": "AP",
    "pixel_f1max": "F1max",
    "aupro_0.3": "PRO.3",
    "aupro_0.05": "PRO.05",
    "iou_max": "IoUmax",
}
# evaluate.METRICS, without importing jax; those without a heading stand in results.json only.
METRICS = ("image_auroc", "image_ap", "image_aupr", "image_f1max") + (
    "pixel_auroc",
    "pixel_ap",
    "pixel_aupr",
    "pixel_f1max",
    "aupro_0.3",
    "aupro_0.05",
    "iou_max",
)
MAY_LACK = (*METRICS, "iou", "visa202")  # a note of theirs is the reason why they do not exist
SUMMARY = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro_0.3": "AUPRO@0.3"}
Row = tuple[str, ...]


def rows(results: Mapping[str, Any]) -> list[tuple[str, Row]]:
    """(kind, cells) with kind 'category', 'defect' or 'mean'; cells: name, images, [image metrics], [pixel metrics].

    results: as in `results.json`.
    """
    table = []
    for category, result in results["categories"].items():
        images = f"{result['n_test_normal']}+{result['n_test_anomalous']}"
        table.append(("category", (category, images, *_cells(result))))
        for defect, values in result["defects"].items():
            table.append(("defect", (f"  {defect}", str(values["n"]), *_cells(values))))
    if len(results["categories"]) > 1:
        table.append(("mean", ("mean", "", *_cells(results["mean"]))))
    return table


def _cells(values: Mapping[str, Any]) -> Row:
    return tuple("n/a" if values.get(name) is None else f"{values[name]:.4f}" for name in HEADINGS)


def footnotes(results: Mapping[str, Any]) -> list[str]:
    """Under the table: what the paper has, intervals, thresholds and what they let pass, other scores, time, reasons of
    'n/a'."""
    lines = []
    for category, result in results["categories"].items():
        paper = targets.line(result, results["method"])
        lines += [f"{category}: {paper}"] if paper else []
        interval = result["image_auroc_ci95"]
        if interval is not None:
            lines.append(f"{category}: image AUROC 95 % interval {interval[0]:.4f} to {interval[1]:.4f} (bootstrap)")
        lines.append(f"{category}: {decisions(result)}")
        lines += [f"{category}: {extra_scores(result['scores'])}"] if result.get("scores") else []
        lines.append(
            f"{category}: fitted on {result['n_train']} images in {result['fit_seconds']:.1f} s, "
            f"predicts in {result['predict_ms_per_image']:.1f} ms per image"
        )
        lines += [f"{category}: {note}" for note in group_notes(result["notes"])]
    paper = targets.line(results["mean"], results["method"])
    lines += [f"mean: {paper}"] if paper and len(results["categories"]) > 1 else []
    lines += [f"mean: {note}" for note in group_notes(results["mean"].get("notes", {}))]
    return lines


def decisions(result: Mapping[str, Any]) -> str:
    """One line: the threshold, which images set it, and the mistakes at it.

    >>> limit = dict(value=2.5, unit='raw score', rule='quantile', quantile=0.995, source='train', n_images=9)
    >>> decisions(dict(threshold=limit, false_alarms=1, n_test_normal=4, misses=0, n_test_anomalous=6))
    'threshold 2.5 (raw score, 0.995 quantile of 9 training normals): 1 of 4 normals flagged, 0 of 6 anomalies missed'
    """
    limit = result["threshold"]
    images = {"holdout": "held-out normals", "train": "training normals"}[limit["source"]]
    return (
        f"threshold {limit['value']:.6g} ({limit['unit']}, {limit['quantile']:g} {limit['rule']} of "
        f"{limit['n_images']} {images}): {result['false_alarms']} of {result['n_test_normal']} normals flagged, "
        f"{result['misses']} of {result['n_test_anomalous']} anomalies missed"
    )


def extra_scores(scores: Mapping[str, Mapping[str, float | None]]) -> str:
    """One line: how well the other scores of an image rank.

    >>> extra_scores({'feature': {'image_auroc': 0.81}, 'map_max': {'image_auroc': None}})
    'image AUROC of feature 0.8100, map_max n/a'
    """
    words = {name: of["image_auroc"] for name, of in scores.items()}
    parts = (f"{name} {'n/a' if value is None else f'{value:.4f}'}" for name, value in words.items())
    return f"image AUROC of {', '.join(parts)}"


def group_notes(notes: Mapping[str, str]) -> list[str]:
    """Notes with the same text on one line; a metric's note says that it is n/a.

    >>> group_notes({'pixel_ap': 'no masks', 'iou_max': 'no masks', 'threshold': 'optimistic'})
    ['pixel_ap, iou_max n/a (no masks)', 'optimistic']
    """
    grouped: dict[tuple[bool, str], list[str]] = {}
    for name, note in notes.items():
        grouped.setdefault((name in MAY_LACK, note), []).append(name)
    return [f"{', '.join(names)} n/a ({note})" if metric else note for (metric, note), names in grouped.items()]


def plain(results: Mapping[str, Any]) -> str:
    """The table in aligned columns, for logs and files."""
    table = [("", "images", *HEADINGS.values()), *(cells for _, cells in rows(results))]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [_line(row, widths) for row in table]
    over = " " * (widths[0] + 2 + widths[1] + 2)
    over += "image".ljust(sum(widths[2:5]) + 6) + "pixel"
    return "\n".join([over, *lines, *footnotes(results)])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
    return "  ".join(cells).rstrip()


def show(results: Mapping[str, Any], stream: TextIO | None = None) -> None:
    """Prints the table: coloured on a terminal, plain elsewhere."""
    stream = sys.stdout if stream is None else stream
    if not stream.isatty():
        print(plain(results), file=stream, flush=True)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, body = Console(file=stream), rows(results)
    shown = _fitting(console.width, max(len(cells[0]) for _, cells in body))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("images", justify="right", no_wrap=True)
    for name in shown:
        group = "image" if name.startswith("image") else "pixel"
        table.add_column(f"{group}\n{HEADINGS[name]}", justify="right", no_wrap=True)
    styles = {"category": "bold", "defect": "dim", "mean": "bold cyan"}
    for kind, cells in body:
        kept = [cell for name, cell in zip(HEADINGS, cells[2:], strict=True) if name in shown]
        table.add_row(*(Text(cell) for cell in (*cells[:2], *kept)), style=styles[kind])
    console.print(table)
    if len(shown) < len(HEADINGS):
        console.print(Text("more in results.json than this terminal is wide"), style="dim")
    for line in footnotes(results):
        console.print(Text(line), style="dim")


def _fitting(width: int, names: int) -> list[str]:
    """The metrics whose columns fit beside names of that many characters."""
    shown = list(HEADINGS)
    for name in ("pixel_f1max", "image_f1max", "iou_max", "image_ap", "pixel_ap", "aupro_0.05"):
        if names + 9 + 8 * len(shown) > width:
            shown.remove(name)
    return shown


def summary_lines(results: Mapping[str, Any]) -> list[str]:
    """One line per category, and one for the mean of several: what a log or a commit message wants."""
    entries = list(results["categories"].items())
    if len(entries) > 1:
        entries.append(("mean", results["mean"]))
    lines = []
    for name, values in entries:
        parts = [
            f"{label} {values[key]:.4f}" if values.get(key) is not None else f"{label} n/a"
            for key, label in (
                ("image_auroc", "image AUROC"),
                ("pixel_auroc", "pixel AUROC"),
                ("aupro_0.3", "AUPRO@0.3"),
            )
        ]
        lines.append(f"{name}: {', '.join(parts)}")
    return lines
