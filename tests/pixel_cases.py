"""Maps and masks for the tests of pixel metrics."""

import numpy as np


def case(n=12, side=32, levels=0, seed=0, signal=0.9):
    """Normal images, and anomalous ones with one to three rectangles that the maps tell apart in part."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, side, side), bool)
    for mask in masks[n // 3 :]:
        for _ in range(rng.integers(1, 4)):
            y, x, h, w = rng.integers(0, side * 3 // 4, 2).tolist() + rng.integers(1, side // 4, 2).tolist()
            mask[y : y + h, x : x + w] = True
    maps = (rng.standard_normal(masks.shape) + signal * masks).astype(np.float32)
    return (np.floor(maps * levels / 3).astype(np.float32) if levels else maps), masks
