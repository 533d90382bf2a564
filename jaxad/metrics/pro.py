"""Per-region overlap (PRO): how much of each defect is found, every defect counting the same whatever its size.

PRO(t) is the mean over all ground-truth regions of the share of the region's pixels with score >= t. AUPRO is the area
under PRO against the false positive rate up to a limit, divided by the limit (Bergmann et al., The MVTec Anomaly
Detection Dataset, IJCV 2021). The false positive rate is over all normal pixels of all images, normal
images included; every distinct score is a threshold; regions are 8-connected; between thresholds, and at the limit, the
curve is linear.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from jaxad.metrics import ranking

EIGHT_CONNECTED = np.ones((3, 3), int)


class Regions(NamedTuple):
    """The ground-truth regions of a set of masks.

    pixel: i64[P], the region of each anomalous pixel, in the order of `masks[masks]` · area: i64[R], pixels per region.
    """

    pixel: np.ndarray
    area: np.ndarray


def regions(masks: np.ndarray) -> Regions:
    """The 8-connected components of `masks`, bool[N, H, W]; a region never crosses from one image to the next.

    >>> regions(np.eye(3, dtype=bool)[None]).area
    array([3])
    """
    pixels, n = [np.zeros(0, np.int64)], 0
    for mask in masks[masks.any(axis=(1, 2))]:
        labelled, found = ndimage.label(mask, EIGHT_CONNECTED)
        pixels.append(labelled[mask].astype(np.int64) + (n - 1))
        n += found
    pixel = np.concatenate(pixels)
    return Regions(pixel, np.bincount(pixel, minlength=n))


def check_limit(limit: float) -> float:
    if not 0.0 < limit <= 1.0:
        raise ValueError(f"PRO limit {limit}: it is a false positive rate in (0, 1]")
    return float(limit)


def check_maps(maps, masks) -> tuple[np.ndarray, np.ndarray]:
    """(maps real[N, H, W], masks bool[N, H, W]), or a ValueError with the shapes as given."""
    maps = ranking.check_scores(maps, "map pixels")
    masks = ranking.check_labels(masks, maps, "masks", "maps")
    if maps.ndim != 3:
        raise ValueError(f"maps and masks must be [N, H, W], got shape {maps.shape}")
    return maps, masks


def aupro(t: ranking.Tally, r: Regions, limit: float) -> float:
    """Area under the PRO curve for false positive rates in [0, limit], divided by `limit`; in [0, 1].

    The area is taken pixel by pixel. A pixel of a region of n pixels lifts the curve by 1 / (n R), from x = `above`
    false alarms (none of them tied with it) to x = `alarms` (all tied ones too) along a straight ramp, and the lift
    lasts to the limit X. A pixel whose ramp ends before the limit adds X - (above + alarms) / 2 false alarms of length,
    a whole number of halves; so per region the sums are exact, and `math.fsum` over regions does not depend on their
    order.
    """
    x = check_limit(limit) * t.n_normal
    n_full = int(np.count_nonzero(t.alarms <= x))  # `alarms` rises along the rows
    full = t.group < n_full
    pixels = np.bincount(r.pixel[full], minlength=r.area.size)
    twice_middle = np.zeros(r.area.size, np.int64)
    np.add.at(twice_middle, r.pixel[full], (t.above + t.alarms)[t.group[full]])
    length = pixels - twice_middle / (2 * x)
    if n_full < t.scores.size and t.above[n_full] < x:  # one set of ties may straddle the limit: part of a ramp
        above, alarms = int(t.above[n_full]), int(t.alarms[n_full])
        part = (x - above) ** 2 / (2 * (alarms - above) * x)
        length = length + part * np.bincount(r.pixel[t.group == n_full], minlength=r.area.size)
    return math.fsum(length / r.area) / r.area.size


def pro(maps, masks, thresholds) -> np.ndarray:
    """PRO at given thresholds.

    Args:
      maps: real[N, H, W], larger = more anomalous.
      masks: bool[N, H, W], with at least one anomalous pixel.
      thresholds: real[T], in units of the maps.

    Returns:
      f64[T]: the mean over regions of the share of pixels with score >= threshold.

    >>> pro([[[0.9, 0.1, 0.8]]], [[[1, 0, 1]]], [0.85, 0.0])
    array([0.5, 1. ])
    """
    maps, masks = check_maps(maps, masks)
    if not masks.any():
        raise ValueError("PRO does not exist: no anomalous pixels")
    r, scores = regions(masks), maps[masks]
    overlaps = (np.bincount(r.pixel[scores >= at], minlength=r.area.size) / r.area for at in np.ravel(thresholds))
    return np.array([math.fsum(overlap) / r.area.size for overlap in overlaps])


def pro_curve(maps, masks, points: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The PRO curve.

    Args:
      maps: real[N, H, W], larger = more anomalous.
      masks: bool[N, H, W].
      points: at most so many points, evenly along the curve; None: every point where it turns.

    Returns:
      (false positive rate f64[n], PRO f64[n], thresholds f64[n]): from (0, 0) at inf to (1, 1).

    >>> pro_curve([[[0.9, 0.1, 0.8]]], [[[1, 0, 1]]])[:2]
    (array([0., 0., 0., 1.]), array([0. , 0.5, 1. , 1. ]))
    """
    maps, masks = check_maps(maps, masks)
    t = ranking.require(ranking.tally(maps, masks), "pixels")
    area = regions(masks)
    weight = area.area[area.pixel]
    order = np.lexsort((weight, t.group))  # by size within ties: the sum is then the same for any order of the images
    overlap = np.cumsum(1.0 / weight[order])[t.found - 1] / area.area.size
    overlap[-1] = 1.0
    thresholds, alarms, rows = ranking.corners(t)
    lifted = np.concatenate([[0.0], np.minimum(overlap, 1.0)])[rows]
    return ranking.thin(points, alarms / t.n_normal, lifted, thresholds)
