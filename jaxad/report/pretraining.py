"""What a run that only pre-trains leaves behind: results.json, and a few lines on the terminal.

W/CATEGORY/STAGE/final            the states of its stages; --config.start.run=W goes on from them
W/CATEGORY/backbone.safetensors   the backbone, where it trains one; --config.backbone.weights=W stands any other method
                                  on it
W/results.json                    how well its features tell the classes of held-out images, and what stages tell
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from jaxad.report import files

METRICS = ("knn_top1", "linear_top1", "chance", "spread")


def write(
    workdir: str | os.PathLike, config: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]], commit: str
) -> dict[str, Any]:
    """Writes results.json and returns what it holds; files are named relative to `workdir`."""
    workdir = pathlib.Path(workdir)
    categories = {
        name: {key: _relative(value, workdir) if key == "file" else value for key, value in entry.items()}
        for name, entry in entries.items()
    }
    results = {
        "method": config["method"],
        "commit": commit,
        "seed": config["seed"],
        "categories": categories,
        "mean": {name: _mean([values.get(name) for values in categories.values()]) for name in METRICS},
    }
    files.write_json(workdir / "results.json", results)
    return results


def show(results: Mapping[str, Any], file: TextIO | None = None) -> None:
    """Prints `lines`."""
    print("\n".join(lines(results)), file=file or sys.stdout, flush=True)


def lines(results: Mapping[str, Any]) -> list[str]:
    """Of each category what its stages and features tell, by chance what they would, and where the backbone is."""
    told = []
    for category, values in results["categories"].items():
        for stage, facts in values.get("facts", {}).items():
            words = (f"{name} {'n/a' if value is None else f'{value:.4g}'}" for name, value in facts.items())
            told.append(f"{category}: {stage}: {', '.join(words)}")
        if "backbone" not in values:
            told.append(f"{category}: pre-trained in {values['fit_seconds']:.0f} s on {values['n_train']} images")
            continue
        parts = [f"{category}: {values['backbone']}, spread of features {values['spread']:.3f}"]
        if values["knn_top1"] is None:
            parts.append(f"not judged by classes ({values['notes']['knn_top1']})")
        else:
            linear = "n/a" if values["linear_top1"] is None else f"{values['linear_top1']:.4f}"
            parts.append(
                f"top-1 accuracy of k-NN {values['knn_top1']:.4f}, linear {linear}, chance {values['chance']:.4f} "
                f"({values['n_judged']} images of {values['n_kinds']} classes)"
            )
        told += ["; ".join(parts), f"{category}: pre-trained in {values['fit_seconds']:.0f} s, {values['file']}"]
    return told


def is_one(results: Mapping[str, Any]) -> bool:
    """Whether a results.json is that of a pre-training run: of one that predicts, every category has an AUROC or null.

    >>> is_one({"categories": {"pets": {"spread": 0.5}}}), is_one({"categories": {"screw": {"image_auroc": None}}})
    (True, False)
    """
    return any("image_auroc" not in values for values in results["categories"].values())


def _relative(path: str, workdir: pathlib.Path) -> str:
    return pathlib.Path(os.path.relpath(path, workdir)).as_posix()


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
