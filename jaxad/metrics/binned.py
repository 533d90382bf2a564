"""Pixel metrics in fixed memory, for sets whose maps do not fit: counts in bins, with a proven bound on the error.

The bins are laid in rank space, their edges being quantiles of the scores: bins evenly spaced in the score itself fail
on heavy-tailed maps (squared errors, Mahalanobis distances), where nearly all pixels share one bin. Two passes over the
data: `RankSketch` draws the edges, `PixelBins` counts. Everything kept is a whole number or an extreme, so the result
is the same, bit for bit, for any order of the images, any batches and any number of processes (`merge`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from jaxad.metrics import pro, ranking

UNIT = 36  # regions weigh 2**36 each, shared out to their pixels in whole units: room for 2**27 regions in 64 bits
ROUNDING = 2.0**-35  # covers that sharing out (below 2**-36) and the float64 sums over bins
SMALLEST_SAMPLE = 16  # ranks per image below which the edges say little


class RankSketch:
    """First pass: a bounded sample of the scores, from which bin edges are drawn.

    Of each image the same ranks are kept, the k-th of m at a share (k / m)^2 from the top: closest at the top, where
    small false positive rates, and defects, are decided. The sample is deterministic and moves with any increasing
    transform.

    Args:
      images: how many images will come, over all processes.
      capacity: scores kept, over all images (8 bytes each).
    """

    def __init__(self, images: int, capacity: int = 2**20):
        if images < 1 or capacity // images < SMALLEST_SAMPLE:
            raise ValueError(
                f"capacity {capacity} for {images} images: at least {SMALLEST_SAMPLE} scores per image are needed"
            )
        self.ranks, self.room = capacity // images, images
        self.kept: list[np.ndarray] = []

    def update(self, maps) -> None:
        """Adds whole images: real[B, H, W]."""
        maps = ranking.check_scores(maps, "map pixels").astype(np.float64)
        if maps.ndim != 3:
            raise ValueError(f"maps must be [B, H, W], got shape {maps.shape}")
        n = maps[0].size if len(maps) else 0
        if not n:
            return
        ranks = np.rint((n - 1) * (1 - np.linspace(0.0, 1.0, self.ranks) ** 2)).astype(np.int64)
        self._keep(np.sort(maps.reshape(len(maps), n), axis=1)[:, ranks].ravel(), len(maps))

    def merge(self, sample: np.ndarray, images: int) -> None:
        """Adds `sample()` of another process, drawn from `images` images."""
        self._keep(np.asarray(sample, np.float64), images)

    def _keep(self, scores: np.ndarray, images: int) -> None:
        self.room -= images
        if self.room < 0:
            raise ValueError(f"{-self.room} images more than RankSketch was made for")
        self.kept.append(scores)

    def sample(self) -> np.ndarray:
        """f64[<= capacity], ascending."""
        return np.sort(np.concatenate(self.kept or [np.zeros(0)]))

    def edges(self, bins: int = 10_000) -> np.ndarray:
        """f64[< bins], ascending: the edges between at most `bins` bins; a score found often gets a bin of its own."""
        sample = self.sample()
        if not sample.size or bins < 2:
            raise ValueError(f"no bin edges from {sample.size} scores for {bins} bins; at least 1 and 2 are needed")
        drawn = sample[np.unique(np.linspace(0, sample.size - 1, min(bins - 1, sample.size)).astype(np.int64))]
        common = drawn[1:][drawn[1:] == drawn[:-1]]
        return np.unique(np.concatenate([drawn, np.nextafter(common, np.inf)]))


class PixelBins:
    """Second pass: counts per bin; memory is 5 numbers a bin, whatever the number of images.

    Args:
      edges: f64[bins - 1], ascending; bin i holds edges[i - 1] <= score < edges[i].
      pro_limits: as in `jaxad.metrics.pixel_metrics`.

    >>> bins = PixelBins([0.15, 0.5])
    >>> bins.update([[[0.9, 0.1, 0.2]], [[0.1, 0.0, 0.3]]], [[[1, 0, 0]], [[0, 0, 0]]])
    >>> bins.result()["pixel_auroc"]
    1.0
    """

    def __init__(self, edges, pro_limits=(0.3, 0.05)):
        self.edges = np.asarray(edges, np.float64)
        if self.edges.ndim != 1 or not (np.diff(self.edges) > 0).all():
            raise ValueError("bin edges must be a strictly ascending vector")
        self.limits = tuple(pro.check_limit(limit) for limit in pro_limits)
        n = self.edges.size + 1
        self.counts = np.zeros((3, n), np.int64)  # normal pixels, anomalous pixels, units of region weight
        self.low, self.high = np.full(n, np.inf), np.full(n, -np.inf)  # the smallest and the largest score in each bin
        self.regions = np.zeros((), np.int64)

    def update(self, maps, masks) -> None:
        """Counts whole images: maps real[B, H, W], masks bool[B, H, W]."""
        maps, masks = pro.check_maps(maps, masks)
        if masks.size and masks[0].size >= 2**27:
            raise ValueError(f"images of {masks[0].size} pixels: fewer than 2**27 fit the fixed-memory metrics")
        for row, chosen in ((0, ~masks), (1, masks)):
            scores = np.sort(maps[chosen].astype(np.float64))
            cuts = np.concatenate([[0], np.searchsorted(scores, self.edges, "left"), [scores.size]])
            self.counts[row] += np.diff(cuts)
            held = np.flatnonzero(np.diff(cuts))
            self.low[held] = np.minimum(self.low[held], scores[cuts[held]])
            self.high[held] = np.maximum(self.high[held], scores[cuts[held + 1] - 1])
        r, n = pro.regions(masks), self.low.size
        from_top = n - 1 - np.searchsorted(self.edges, maps[masks].astype(np.float64), "right")
        cell, pixels = np.unique(r.pixel * n + from_top, return_counts=True)  # by region, from the highest bin down
        region, area = cell // n, r.area[cell // n]
        reached = np.cumsum(pixels) - (np.cumsum(r.area) - r.area)[region]  # of its region, down to this bin
        units = ((reached << UNIT) // area) - (((reached - pixels) << UNIT) // area)
        np.add.at(self.counts[2], n - 1 - cell % n, units)
        self.regions += r.area.size

    def state(self) -> dict[str, np.ndarray]:
        """All that was counted, as arrays of fixed shape, to send to another process."""
        return {"edges": self.edges, "counts": self.counts, "low": self.low, "high": self.high, "regions": self.regions}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Adds the `state()` of another process, counted with the same edges."""
        if not np.array_equal(self.edges, state["edges"]):
            raise ValueError("bins of other edges cannot be merged; draw the edges once, from all processes' sketches")
        self.counts = self.counts + state["counts"]
        self.low, self.high = np.minimum(self.low, state["low"]), np.maximum(self.high, state["high"])
        self.regions = self.regions + state["regions"]

    def result(self) -> dict:
        """The keys of `pixel_metrics`, and 'error_bounds': {key: bound}, with |value - exact value| <= bound.

        AUROC, AP, AUPR and AUPRO are the middle of the interval in which the exact value must lie whatever the order
        within the bins. F1 and IoU maxima are reached at the threshold given; a higher one may hide within a bin. A bin
        with one distinct score hides nothing and adds no error.
        """
        keys = ["pixel_auroc", "pixel_ap", "pixel_aupr", "pixel_f1max", "pixel_f1max_threshold"]
        keys += ["iou_max", "iou_max_threshold"]
        keys += [f"aupro_{limit:g}" for limit in self.limits]
        n_normal, n_anomalous = (int(total) for total in self.counts[:2].sum(axis=1))
        if not n_normal or not n_anomalous:
            kinds = [kind for kind, total in (("normal", n_normal), ("anomalous", n_anomalous)) if not total]
            reason = "no pixels" if len(kinds) == 2 else f"no {kinds[0]} pixels"
            return dict.fromkeys(keys) | {"notes": dict.fromkeys(keys, reason), "error_bounds": {}}
        order = np.flatnonzero(self.counts[1])[::-1]  # bins with anomalies, from the top; the others move no metric
        alarms = np.cumsum(self.counts[0, ::-1])[::-1][order]
        above = alarms - self.counts[0, order]
        count, tied = self.counts[1, order], self.low[order] == self.high[order]
        found = np.cumsum(count)
        low = {"pixel_auroc": _pairs(count, n_normal - alarms, n_anomalous, n_normal)}
        high = {"pixel_auroc": _pairs(count, n_normal - above, n_anomalous, n_normal)}
        half = ranking.exact_dot((alarms - above)[tied], count[tied]) / (
            2 * n_anomalous * n_normal
        )  # ties: half a pair
        low["pixel_auroc"], high["pixel_auroc"] = low["pixel_auroc"] + half, high["pixel_auroc"] - half

        # AP: at best all anomalies of a bin are tied above its normals; at worst each stands alone below them. The sum
        # of (found before + j) / (found before + j + alarms) over j = 1..count is at least its integral, as the summand
        # rises.
        exact = count * (found / (found + alarms))
        least = count - alarms * np.log1p(count / (found - count + np.maximum(alarms, 1)))
        most = count * (found / (found + above))
        low["pixel_ap"] = float(np.sum(np.where(tied, exact, least))) / n_anomalous
        high["pixel_ap"] = float(np.sum(np.where(tied, exact, most))) / n_anomalous

        # AUPR: after n anomalies and between `above` and `alarms` false alarms, precision is at most n / (n + above)
        # and at least n / (n + alarms). Both are concave in n, so a trapezoid is at most the integral of the one, and
        # at least the single chord of the other. Before the first flagged pixel precision is 1.
        before = found - count
        here, chord = _precision(before, above), count * (_precision(before, alarms) + found / (found + alarms)) / 2
        integral = count - above * np.log1p(count / np.maximum(before + above, 1))
        exact = count * (here + found / (found + alarms)) / 2
        low["pixel_aupr"] = float(np.sum(np.where(tied, exact, chord))) / n_anomalous
        high["pixel_aupr"] = float(np.sum(np.where(tied, exact, integral))) / n_anomalous

        weight = self.counts[2, order] / 2.0**UNIT / int(self.regions)
        for limit in self.limits:
            x = limit * n_normal
            worst, best = np.maximum(x - alarms, 0.0) / x, np.maximum(x - above, 0.0) / x
            ramp = _ramp(above, alarms, x)
            low[f"aupro_{limit:g}"] = float(np.sum(weight * np.where(tied, ramp, worst)))
            high[f"aupro_{limit:g}"] = float(np.sum(weight * np.where(tied, ramp, best)))

        values = {key: (low[key] + high[key]) / 2 for key in low}
        bounds = {key: (high[key] - low[key]) / 2 + ROUNDING for key in low}
        for key, factor, extra in (("pixel_f1max", 2, found), ("iou_max", 1, 0)):
            reached = factor * found / (n_anomalous + alarms + extra)
            hidden = factor * found / (n_anomalous + np.where(tied, alarms, above) + extra)
            best = int(np.argmax(reached))
            values[key], values[f"{key}_threshold"] = float(reached[best]), float(self.low[order][best]) + 0.0
            bounds[key] = float(hidden.max()) - values[key] + ROUNDING
        return {key: values[key] for key in keys} | {"notes": {}, "error_bounds": bounds}

    def summary(self) -> str:
        """The result in lines 'aupro_0.3  0.39807 +- 0.00012', or the reason where there is none."""
        result = self.result()
        lines = []
        for key, value in result.items():
            if key in ("notes", "error_bounds"):
                continue
            if value is None:
                lines.append(f"{key:22} n/a ({result['notes'][key]})")
            else:
                bound = result["error_bounds"].get(key)
                lines.append(f"{key:22} {value:.6f}" + ("" if bound is None else f" +- {bound:.6f}"))
        return "\n".join(lines)


def _pairs(count, below, n_anomalous: int, n_normal: int) -> float:
    return ranking.exact_dot(below, count) / (n_anomalous * n_normal)


def _precision(found: np.ndarray, alarms: np.ndarray) -> np.ndarray:
    """f64[K]; 1 where nothing is flagged."""
    flagged = found + alarms
    return np.where(flagged > 0, found / np.maximum(flagged, 1), 1.0)


def _ramp(above: np.ndarray, alarms: np.ndarray, x: float) -> np.ndarray:
    """f64[K]: what ties between `above` and `alarms` false alarms add to the area up to x, as a share of x."""
    width = np.maximum(alarms - above, 1)
    partial = np.maximum(x - above, 0.0) ** 2 / (2 * width * x)
    return np.where(alarms <= x, 1.0 - (above + alarms) / (2 * x), partial)


def binned_pixel_metrics(
    batches: Callable[[], Iterable], images: int, *, bins: int = 10_000, capacity: int = 2**20, pro_limits=(0.3, 0.05)
) -> dict:
    """Both passes, in one process.

    Args:
      batches: called twice; each time yields (maps real[B, H, W], masks bool[B, H, W]) of all images.
      images: how many images that is.
      bins: at most so many bins; the error bounds shrink like 1 / bins.
      capacity: scores kept in the first pass.
      pro_limits: as in `jaxad.metrics.pixel_metrics`.

    Returns:
      as `PixelBins.result`.

    >>> maps, masks = np.linspace(0, 1, 64).reshape(4, 4, 4), np.zeros((4, 4, 4), bool)
    >>> masks[3, 2:] = True
    >>> binned_pixel_metrics(lambda: zip(maps[:, None], masks[:, None]), 4)["aupro_0.3"]
    1.0
    """
    sketch = RankSketch(images, capacity)
    for maps, _ in batches():
        sketch.update(maps)
    counts = PixelBins(sketch.edges(bins), pro_limits)
    for maps, masks in batches():
        counts.update(maps, masks)
    return counts.result()
