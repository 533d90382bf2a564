"""What the papers print, to show beside what a run reached: the tables in configs/targets/METHOD.csv.

One line of such a file is one number of one table, in percent as printed: `table, dataset, setting, category, method,
metric, value, note`. `setting` is 'full' (all normals), '16_shot' or an ablation, `category` a category or 'average',
`method` the column ('ours_r': with real anomalies, 'ours_s': with synthetic ones), `note` what is wrong with the
number. A printed average can differ from its rows, so the mean of a run stands beside the mean of the rows.

A run has targets where its data set is the paper's, under the paper's name for it. jax is not imported.
"""

from __future__ import annotations

import csv
import functools
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

AVERAGE = "average"
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro_0.3": "AUPRO"}
N_REAL = 10  # real anomalies that train in "(r)"
# Table 4 of siamese_unet: (attention, contrastive, deviation) -> (setting, column).
_ABLATIONS = {
    ("none", True, True): ("ablation_left", "wo_cpam"),
    ("cpam", True, False): ("ablation_left", "wo_finetune"),
    ("cpam", False, True): ("ablation_left", "wo_contrastive"),
    ("cbam", True, False): ("ablation_right", "cbam"),
}


class Target(NamedTuple):
    """One printed number; `value` in percent."""

    table: int
    dataset: str
    setting: str
    category: str
    method: str
    metric: str
    value: float
    note: str


class Column(NamedTuple):
    """Which numbers a run is compared with. source: the method whose file they are in · setting, method: as there."""

    source: str
    setting: str
    method: str


@functools.cache
def read(source: str) -> tuple[Target, ...]:
    """The targets in configs/targets/<source>.csv; none where there is no such file."""
    places = (pathlib.Path(__file__).parents[2] / "configs", pathlib.Path(sys.prefix) / "share" / "jaxad")
    for folder in places:
        path = folder / "targets" / f"{source}.csv"
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                rows = [Target(**row) for row in csv.DictReader(file)]
            return tuple(row._replace(table=int(row.table), value=float(row.value)) for row in rows)
    return ()


def column(config: Mapping[str, Any]) -> Column | None:
    """Which column a run of this config (nested dicts) is compared with; None: there is none.

    >>> column({'method': 'siamese_unet', 'data': {'n_shot': 0}, 'siamese_unet': {'anomalies': 'synthetic'}})
    Column(source='siamese_unet', setting='full', method='ours_s')
    >>> column({'method': 'patchcore', 'data': {}}) is None
    True
    """
    method = config["method"]
    setting = {0: "full", 16: "16_shot"}.get(config.get("data", {}).get("n_shot", 0))
    if setting is None or "." in method:  # a module of the user's own may have a paper's name
        return None
    if method == "reverse_distillation":
        return Column("siamese_unet", setting, "rd")  # its baseline
    if method != "siamese_unet":
        return None
    own = config[method]
    real = own["anomalies"] == "real"
    if real and config["data"].get("n_anomalies") != N_REAL:
        return None
    parts = own.get("attention", "cpam"), own.get("contrastive", True), own.get("deviation", True)
    if parts == ("cpam", True, True):
        return Column(method, setting, "ours_r" if real else "ours_s")
    if parts in _ABLATIONS and real and setting == "full":
        return Column(method, *_ABLATIONS[parts])
    return None


def beside(of: Column, dataset: str, categories: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{category: {metric: value in [0, 1], 'table': its number, 'column', 'source'[, 'note']}}, of those that have any.

    >>> beside(Column('siamese_unet', 'full', 'ours_r'), 'mvtec_ad', ['screw', 'weave'])
    {'screw': {'image_auroc': 1.0, 'pixel_auroc': 0.997, 'table': 1, 'column': 'ours_r', 'source': 'siamese_unet'}}
    """
    found: dict[str, dict[str, Any]] = {}
    for target in read(of.source):
        if (target.dataset, target.setting, target.method) == (dataset, of.setting, of.method):
            entry = found.setdefault(target.category, {"table": target.table, "column": of.method, "source": of.source})
            entry[target.metric] = round(target.value / 100, 6)
            if target.note:
                words = f"{METRICS[target.metric]}: {target.note}"
                entry["note"] = "; ".join(filter(None, (entry.get("note"), words)))
    return {category: _in_order(found[category]) for category in categories if category in found}


def _in_order(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in (*METRICS, "table", "column", "source", "note") if key in entry}


def mean(of: Column, dataset: str, categories: Sequence[str]) -> dict[str, Any] | None:
    """The same for the mean over `categories`: of their rows; the printed average where no rows are printed.

    None where a category has no row, or where only the average over the whole data set is known.
    """
    rows = list(beside(of, dataset, categories).values())
    if len(rows) == len(categories) and rows:
        metrics = {key: [row[key] for row in rows if key in row] for key in METRICS}
        values = {key: round(sum(of_key) / len(rows), 6) for key, of_key in metrics.items() if len(of_key) == len(rows)}
        return {**values, "table": rows[0]["table"], "column": of.method, "source": of.source}
    whole = {row.category for row in read(of.source) if row.dataset == dataset and row.category != AVERAGE}
    return beside(of, dataset, [AVERAGE]).get(AVERAGE) if not rows and whole == set(categories) else None


def of_run(config: Mapping[str, Any], dataset: str, category: str) -> dict[str, Any] | None:
    """What `beside` gives for one category of a run; None for nothing."""
    of = column(config)
    return beside(of, dataset, [category]).get(category) if of else None


def of_mean(config: Mapping[str, Any], categories: Sequence[str]) -> dict[str, Any] | None:
    """What `mean` gives for a run; None for nothing. The data set of a materialised file is not known here: nothing."""
    of, data = column(config), config.get("data", {})
    return mean(of, data.get("dataset", ""), categories) if of and not data.get("source") else None


def where(paper: Mapping[str, Any], method: str) -> str:
    """Where the numbers stand.

    >>> where({'table': 1, 'column': 'rd', 'source': 'siamese_unet'}, 'reverse_distillation')
    "siamese_unet's Table 1, rd"
    """
    of = f"{paper['source']}'s " if paper["source"] != method else ""
    return f"{of}Table {paper['table']}, {paper['column']}"


def line(values: Mapping[str, Any], method: str) -> str | None:
    """Ours beside the paper's in words; None where `values` has no 'paper'.

    >>> paper = {'image_auroc': 1.0, 'table': 1, 'column': 'ours_r', 'source': 'siamese_unet'}
    >>> line({'image_auroc': 0.9712, 'paper': paper}, 'siamese_unet')
    "image AUROC 0.9712, the paper's 1.000 (Table 1, ours_r)"
    """
    paper = values.get("paper")
    if not paper:
        return None
    parts = []
    for key, name in METRICS.items():
        if key in paper:
            ours = "n/a" if values.get(key) is None else f"{values[key]:.4f}"
            parts.append(f"{name} {ours}, the paper's {paper[key]:.3f}")
    note = f"; {paper['note']}" if "note" in paper else ""
    return f"{'; '.join(parts)} ({where(paper, method)}{note})"
