"""What the papers print, to show beside what a run reached: the tables in configs/targets/METHOD.csv.

One line of such a file is one number of one table, in percent as printed: `table, dataset, setting, category, method,
metric, value, note`. `setting` is 'full' (all normals), '16_shot' or an ablation, `category` a category or 'average',
`method` the column ('ours_r': with real anomalies, 'ours_s': with synthetic ones), `note` what is wrong with the
number. A column may go over several tables, one for each metric. A printed average can differ from its rows, so the
mean of a run stands beside the mean of the rows.

patchcore, padim and two_class have the tables of the poster on SPD (Zou et al.): a number per pre-training of the
backbone, which is the column ('sup': supervised, on ImageNet; 'simsiam+spd'), and averages alone.

pattern_generation has one mean on MVTec AD; all else is of private data and stands there to be looked up. `table` 0 is
a figure, named by the setting, and 'best_n' no percentage but the best number of patches per side.

A run has targets where its data set is the paper's, under the paper's name for it. jax is not imported.
"""

from __future__ import annotations

import csv
import functools
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxad.report import columns
from jaxad.report.columns import Column

AVERAGE = "average"
METRICS = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro_0.3": "AUPRO",
    "iou_max": "IoU",
    "image_aupr": "image AUPR",
    "pixel_aupr": "pixel AUPR",
}
# The categories of a data set of which a paper prints averages only.
_CATEGORIES = {
    "mvtec_ad": "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw "
    "tile toothbrush transistor wood zipper",
    "visa": "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum",
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
    Column(source='siamese_unet', setting='full', method='ours_s', note='')
    >>> column({'method': 'patchcore', 'data': {}}) is None
    True
    """
    of = columns.of_config(config)
    printed = of and any((row.setting, row.method) == (of.setting, of.method) for row in read(of.source))
    return of if printed else None


def beside(of: Column, dataset: str, categories: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{category: {metric: value in [0, 1], 'table', 'column', 'source'[, 'note']}}, of those that have any.

    'table': the number of the table; a list of numbers where the metrics stand in several.

    >>> beside(Column('siamese_unet', 'full', 'ours_r'), 'mvtec_ad', ['screw', 'weave'])
    {'screw': {'image_auroc': 1.0, 'pixel_auroc': 0.997, 'table': 1, 'column': 'ours_r', 'source': 'siamese_unet'}}
    """
    printed = _printed(of, dataset)
    return {name: _entry(of, printed[name]) for name in categories if name in printed}


def _printed(of: Column, dataset: str) -> dict[str, dict[str, Target]]:
    """{category: {metric: what is printed}} of a column."""
    found: dict[str, dict[str, Target]] = {}
    for target in read(of.source):
        if (target.dataset, target.setting, target.method) == (dataset, of.setting, of.method):
            found.setdefault(target.category, {})[target.metric] = target
    return found


def _entry(of: Column, cells: Mapping[str, Target]) -> dict[str, Any]:
    """What `beside` says of one category."""
    chosen = {key: cells[key] for key in METRICS if key in cells}
    tables = sorted({target.table for target in chosen.values()})
    shared = len(chosen) > 1 and len({target.note for target in chosen.values()}) == 1
    notes = [f"{METRICS[key]}: {target.note}" for key, target in chosen.items() if target.note and not shared]
    notes += filter(None, [next(iter(chosen.values())).note if shared else "", of.note])
    return {
        **{key: round(target.value / 100, 6) for key, target in chosen.items()},
        "table": tables[0] if len(tables) == 1 else tables,
        "column": of.method,
        "source": of.source,
        **({"note": "; ".join(notes)} if notes else {}),
    }


def mean(of: Column, dataset: str, categories: Sequence[str]) -> dict[str, Any] | None:
    """The same for the mean over `categories`: of their rows; the printed average of a metric that has no rows.

    A metric is left out where a category has no row of it, or where only the average over the whole data set is known
    and these are not all; None where no metric is left.
    """
    printed = _printed(of, dataset)
    averages = printed.pop(AVERAGE, {})
    whole = {row.category for row in read(of.source) if row.dataset == dataset and row.category != AVERAGE}
    whole = whole or set(_CATEGORIES.get(dataset, "").split())
    cells = {}
    for key in METRICS:
        rows = [printed[name][key] for name in categories if key in printed.get(name, ())]
        if rows and len(rows) == len(categories):
            cells[key] = rows[0]._replace(value=sum(row.value for row in rows) / len(rows), note="")
        elif key in averages and whole == set(categories) and not any(key in row for row in printed.values()):
            cells[key] = averages[key]
    return _entry(of, cells) if cells else None


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
    >>> where({'table': [1, 2, 4], 'column': 'anoseg', 'source': 'anoseg'}, 'anoseg')
    'Tables 1, 2 and 4, anoseg'
    """
    of = f"{paper['source']}'s " if paper["source"] != method else ""
    tables = paper["table"]
    if isinstance(tables, int):
        return f"{of}Table {tables}, {paper['column']}"
    *first, last = map(str, tables)
    return f"{of}Tables {', '.join(first)} and {last}, {paper['column']}"


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
