"""What a run leaves behind: results.json, predictions.csv, overlays, sheets, curves, and a table on the terminal.

    W/results.json                   the numbers; a metric that does not exist is null, its reason in "notes"
    W/predictions.csv                one line per test image: score, threshold, decision
    W/overlays/CATEGORY_000_*.png    one panel per image, the worst mistakes first
    W/sheets/CATEGORY.png            all at one glance
    W/maps/CATEGORY.npz              a few anomalous images with their maps, for python -m jaxad.report --figure
    W/sheets/CATEGORY_maps.png       maps on a scale of their own before thresholding, and other pictures of the method
    W/curves/CATEGORY_*.{png,csv}    ROC, precision-recall, PRO, IoU, and the scores with the threshold
    W/curves/iou.{png,csv}           IoU against the threshold on the map's scale, all categories and their mean

`category` is called once per category, while its maps are in memory; `write` once at the end, so that results.json
exists only where everything else does. Every file is whole or not there; the same predictions give the same bytes.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxad.metrics import IouSteps
from jaxad.report import files, iou, targets
from jaxad.report.tables import METRICS, plain, show, summary_lines

if TYPE_CHECKING:
    from jaxad.decision import Threshold
    from jaxad.types import Data, Predictions

__all__ = ["COLUMNS", "Entry", "category", "csv_rows", "mean", "pictures", "plain", "show", "summary_lines", "write"]

COLUMNS = ("category", "path", "defect", "label", "score", "threshold", "decision")
_WORDS = {False: "normal", True: "anomalous"}


class Entry(NamedTuple):
    """What remains of a category once its maps are gone.

    result: its part of results.json · rows: its lines of predictions.csv, in COLUMNS' order, then the extra scores ·
    iou: its curve, where there are masks.
    """

    result: dict[str, Any]
    rows: list[tuple[str, ...]]
    iou: IouSteps | None = None


def category(
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    data: Data,
    normals: Predictions,
    test: Predictions,
    *,
    fit_seconds: float,
    stages: Mapping[str, Mapping[str, float | None]] | None = None,
    n_train: int | None = None,
    facts: Mapping[str, Mapping[str, float | None]] | None = None,
) -> Entry:
    """Measures one category and draws its pictures.

    Args:
      config: the resolved config as nested dicts; `seed`, `threshold`, `eval`, `data` and `report` are read, and what
        `targets.column` looks at.
      data: the category, open.
      normals: predictions of split `decision.threshold_split(data.spec)`, which set the threshold.
      test: predictions of split 'test'.
      fit_seconds: wall time of training.
      stages: {stage: metrics after it}, where several stages predict.
      n_train: training images; None: those of the category.
      facts: {stage: what it says of itself}, of the stages that do.

    Raises:
      UserError: a file cannot be written; a rule or mode that does not exist.
    """
    from jaxad import decision, evaluate  # in the functions: python -m jaxad.report answers without jax

    spec = data.spec
    limit = decision.threshold(normals, source=decision.threshold_split(spec), **config["threshold"])
    steps = evaluate.iou_steps(test)
    result = evaluate.category_result(
        test,
        limit,
        n_train=spec.n_train if n_train is None else n_train,
        fit_seconds=fit_seconds,
        metrics_mode=config["eval"]["metrics"],
        seed=config["seed"],
        stages=stages,
        # Where anomalies did move, the test set lacks them already.
        n_drawn=0 if config["data"]["n_anomalies"] else config["eval"]["without_drawn"],
        steps=steps,
        visa202=config["eval"]["visa202"],
    )
    if facts:
        result["facts"] = {stage: dict(values) for stage, values in facts.items()}
    paper = targets.of_run(config, spec.dataset, spec.category)
    if paper:
        result["paper"] = paper
    drawn = config["report"]
    pictures(
        workdir,
        spec.category,
        test,
        limit,
        result,
        lambda row: data.image("test", row),
        count=drawn["overlays"],
        curves=drawn["curves"],
    )
    return Entry(result, csv_rows(spec.category, test, limit), steps)


def csv_rows(category: str, found: Predictions, limit: Threshold) -> list[tuple[str, ...]]:
    """The lines of predictions.csv for one category: COLUMNS, then each extra score.

    The numbers read back as the same float32.
    """
    called = limit.calls(found.scores)
    value = str(np.float32(limit.image))
    extra = [values for values in found.extras.values() if values.ndim == 1]
    return [
        (
            category,
            record.path,
            record.defect,
            _WORDS[record.label],
            str(np.float32(found.scores[row])),
            value,
            _WORDS[bool(called[row])],
            *(str(np.float32(values[row])) for values in extra),
        )
        for row, record in enumerate(found.records)
    ]


def pictures(
    workdir: str | os.PathLike,
    category: str,
    found: Predictions,
    limit: Threshold,
    result: Mapping[str, Any],
    image_of: Callable[[int], np.ndarray],
    *,
    count: int = 20,
    curves: bool = True,
) -> None:
    """Writes the overlays, the sheets, a few maps and the curves of one category; removes those of an earlier run.

    Args:
      found, limit: predictions of the test split and its threshold.
      result: what `evaluate.category_result` made of them.
      image_of: row of the test split -> u8[H, W, 3], resized as the batches were.
      count: overlays to draw; 0: no sheets and no maps either.
      curves: whether to draw the curves.

    Raises:
      UserError: a file cannot be written.
    """
    from jaxad.report import curves as _curves
    from jaxad.report import drawing, figure, maps, overlays

    workdir = pathlib.Path(workdir)
    overlays.write(workdir / "overlays", category, found, limit, image_of, count)
    figure.keep(workdir, category, found, limit, image_of, figure.MOST if count else 0)
    if count:
        picture = overlays.sheet(category, found, limit, image_of)
        files.write_bytes(workdir / "sheets" / f"{files.safe_name(category)}.png", drawing.png(picture))
    if count and (found.map_range or maps.extras(found)):
        picture = maps.sheet(category, found, limit, image_of)
        files.write_bytes(workdir / "sheets" / f"{files.safe_name(category)}_maps.png", drawing.png(picture))
    if curves:
        _curves.write(workdir / "curves", category, found, limit, result)


def write(
    workdir: str | os.PathLike, config: Mapping[str, Any], entries: Mapping[str, Entry], commit: str
) -> dict[str, Any]:
    """Writes predictions.csv, the IoU of all categories, then results.json, and returns what results.json holds.

    Args:
      config: its `method` and `seed` are recorded; `data` and the method's keys say what the paper has for the mean;
        `report.curves` whether the IoU is drawn.
      entries: {category: what `category` returned}.
      commit: of the code that ran.
    """
    workdir = pathlib.Path(workdir)
    categories = {name: entry.result for name, entry in entries.items()}
    steps = {name: entry.iou for name, entry in entries.items() if entry.iou is not None}
    results = {
        "method": config["method"],
        "commit": commit,
        "seed": config["seed"],
        "categories": categories,
        "mean": mean(categories, steps),
    }
    paper = targets.of_mean(config, list(categories))
    if paper:
        results["mean"]["paper"] = paper
    extra = next((tuple(result.get("scores", ())) for result in categories.values()), ())  # the same in all
    rows = [row for entry in entries.values() for row in entry.rows]
    files.write_csv(workdir / "predictions.csv", (*COLUMNS, *extra), rows)
    if config.get("report", {}).get("curves"):
        iou.write(workdir / "curves", steps)
    files.write_json(workdir / "results.json", results)
    return results


def mean(categories: Mapping[str, Mapping[str, Any]], steps: Mapping[str, IouSteps] | None = None) -> dict[str, Any]:
    """The mean of each metric over the categories that have it; None where none has. Says so in 'notes'.

    steps: {category: its IoU curve}; 'iou' of the mean is what `iou.mean` makes of them.

    >>> values = mean({'a': {'image_auroc': 0.5}, 'b': {'image_auroc': 1.0}, 'c': {'image_auroc': None}})
    >>> values['image_auroc'], values['notes']['image_auroc']
    (0.75, 'mean of 2 of 3 categories; without c')
    """
    result: dict[str, Any] = {}
    notes = {}
    for name in (*METRICS, "iou") if any("iou" in of for of in categories.values()) else METRICS:
        values = {category: result.get(name) for category, result in categories.items()}
        present = [value for value in values.values() if value is not None]
        absent = [category for category, value in values.items() if value is None]
        if name == "iou":
            result[name] = iou.mean(categories, steps or {})
        else:
            result[name] = float(np.mean(present)) if present else None
        if not present:
            notes[name] = "in no category"
        elif absent:
            notes[name] = f"mean of {len(present)} of {len(values)} categories; without {', '.join(absent)}"
    if any("visa202" in of for of in categories.values()):
        result["visa202"] = _mean_visa202(categories)
    return {**result, "notes": notes}


def _mean_visa202(categories: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """The mean of each of VisA's metrics over the categories that have it, as the notes of the same metric say."""
    found = [of["visa202"] for of in categories.values() if "visa202" in of]
    columns = {key: [values[key] for values in found if values[key] is not None] for key in found[0]}
    return {key: float(np.mean(values)) if values else None for key, values in columns.items()}
