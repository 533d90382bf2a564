"""What the generated data sets draw with: their layout, smooth noise, irregular shapes and a camera. NumPy only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from jaxad.data.listing import NORMAL, Listing, Sample

N_TRAIN, N_TEST_GOOD, N_PER_DEFECT = 60, 20, 10


def listing(category: str, defects: tuple[str, ...]) -> Listing:
    """The images of `category`, in MVTec AD's layout."""
    train = [Sample(f"{category}/train/{NORMAL}/{i:03d}.png") for i in range(N_TRAIN)]
    test = [Sample(f"{category}/test/{NORMAL}/{i:03d}.png") for i in range(N_TEST_GOOD)]
    for defect in defects:
        for i in range(N_PER_DEFECT):
            mask = f"{category}/ground_truth/{defect}/{i:03d}_mask.png"
            test.append(Sample(f"{category}/test/{defect}/{i:03d}.png", defect, mask))
    return Listing(Path(), category, {"train": tuple(train), "test": tuple(sorted(test))})


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel, f32[size, size] each."""
    axis = np.arange(size, dtype=np.float32)
    return np.meshgrid(axis, axis)


def smooth(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """f32[size, size] smooth noise, about -1 .. 1, with `cells` random values per side."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells + 2, cells + 2)).astype(np.float32))
    margin = 1.0 + rng.uniform(-0.5, 0.5)
    box = (margin - 0.5, margin - 0.5, margin + cells - 1.0 + 0.5, margin + cells - 0.5)
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC, box))


def irregular_distance(
    rng: np.random.Generator, size: int, radius: float, wobble: float, centre: np.ndarray | None = None
) -> np.ndarray:
    """f[size, size]: about the pixels to a wobbly closed curve, negative inside; `centre` (x, y): random by default."""
    x, y = grid(size)
    if centre is None:
        centre = rng.uniform(radius + 8, size - radius - 8, 2)
    dx, dy = x - centre[0], y - centre[1]
    angle = np.arctan2(dy, dx)
    edge = np.ones_like(angle)
    for order in (2, 3, 5):
        edge = edge + wobble / order * rng.uniform(0.4, 1.6) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return np.hypot(dx, dy) - radius * edge


def distance_to(line: np.ndarray, size: int) -> np.ndarray:
    """f[size, size]: pixels to the nearest of the points (x, y) f[n, 2], computed near them only (far away: 99)."""
    x, y = grid(size)
    distance = np.full(x.shape, 99.0)
    low = np.clip(np.floor(line.min(0)) - 4, 0, size).astype(int)
    high = np.clip(np.ceil(line.max(0)) + 5, 0, size).astype(int)
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    near = np.hypot(x[window][..., None] - line[:, 0], y[window][..., None] - line[:, 1])
    distance[window] = near.min(-1)
    return distance


def photograph(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """Uneven lighting, exposure, colour cast, slight blur and sensor noise; f[size, size, 3] to u8."""
    size = len(colour)
    x, y = grid(size)
    slope = rng.uniform(-0.06, 0.06, 2)
    light = 1 + slope[0] * (x / size - 0.5) + slope[1] * (y / size - 0.5) + 0.01 * smooth(rng, 3, size)
    exposure = rng.uniform(0.95, 1.05) * (1 + rng.uniform(-0.01, 0.01, 3))
    values = colour * light[..., None] * exposure
    soft = (values[:-2] + values[2:]) * 0.12 + values[1:-1] * 0.76
    values[1:-1] = soft
    soft = (values[:, :-2] + values[:, 2:]) * 0.12 + values[:, 1:-1] * 0.76
    values[:, 1:-1] = soft
    noise = rng.standard_normal(values.shape, np.float32) * (0.008 + 0.012 * np.sqrt(np.clip(values, 0, 1)))
    return np.round(255 * np.clip(values + noise, 0, 1)).astype(np.uint8)
