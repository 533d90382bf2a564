"""From a score to a decision: the threshold, set by normals.

It comes from normal images that are not in the test set, and stays in the raw units of the scores.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxad import metrics
from jaxad.types import DataSpec, Predictions, UserError

PIXEL_QUANTILE = 0.999  # of the pixels of normal images: one normal pixel in a thousand lies inside a contour


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Where normal ends, in raw units: an image is called anomalous when its score is above `image`.

    image: of image scores · pixel: of map values, for contours · pixel_median: the middle of the normal map values, the
    lower end of the colour scale · rule, quantile: how `image` was set · source: 'holdout' or 'train' ·
    n_images: how many normals.
    """

    image: float
    pixel: float
    pixel_median: float
    rule: str
    quantile: float
    source: str
    n_images: int

    def calls(self, scores: np.ndarray) -> np.ndarray:
        """scores: f32[...] -> bool[...], True = called anomalous: the score is above the threshold."""
        return np.asarray(scores, np.float32) > np.float32(self.image)

    @property
    def notes(self) -> tuple[str, ...]:
        """What makes the threshold less than it seems."""
        notes = []
        if self.source == "train":
            notes.append("threshold from training normals: optimistic; set data.holdout")
        if (self.n_images - 1) * (1 - self.quantile) < 1:
            notes.append(f"the {self.quantile:g} quantile of {self.n_images} images is their maximum")
        return tuple(notes)

    def describe(self) -> str:
        """One line: value, unit, rule, and which images set it."""
        images = {"holdout": "held-out normals", "train": "training normals"}[self.source]
        return f"{self.image:.6g} (raw score) = {self.quantile:g} {self.rule} of {self.n_images} {images}"

    def summary(self) -> dict[str, Any]:
        """As `results.json` holds it."""
        return {
            "value": self.image,
            "unit": "raw score",
            "rule": self.rule,
            "quantile": self.quantile,
            "source": self.source,
            "n_images": self.n_images,
            "pixel_value": self.pixel,
            "pixel_quantile": PIXEL_QUANTILE,
        }


def threshold_split(spec: DataSpec) -> str:
    """The split whose normals set the threshold: 'holdout' where there is one, else 'train'; never 'test'."""
    return "holdout" if spec.n_holdout > 0 else "train"


def threshold(normals: Predictions, *, source: str, rule: str = "quantile", quantile: float = 0.995) -> Threshold:
    """The threshold from `predictions(..., split=threshold_split(spec))`. Anomalies among them are left out.

    The image threshold is the `quantile` of the image scores, the pixel threshold the PIXEL_QUANTILE of all map values.

    Raises:
      UserError: a rule or a split that does not exist, no normal image.
    """
    if rule != "quantile":
        raise UserError(f"threshold.rule={rule!r} is not known; the rule is 'quantile'")
    if source not in ("holdout", "train"):
        raise UserError(f"a threshold comes from split 'holdout' or 'train', not from {source!r}")
    keep = ~normals.labels
    if not keep.any():
        raise UserError(f"no normal image in split {source!r} to set a threshold from")
    median, pixel = np.quantile(normals.maps[keep], [0.5, PIXEL_QUANTILE])
    # in the scores' own precision, so that comparing again from predictions.csv gives the same decisions
    value = np.float32(metrics.quantile_threshold(normals.scores[keep], quantile))
    return Threshold(float(value), float(pixel), float(median), rule, float(quantile), source, int(keep.sum()))
