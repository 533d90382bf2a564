"""The demo data set, drawn with NumPy: a woven cloth (texture) and a steel washer (object), 128 x 128 pixels.

Every image is a function of (seed, category, split, defect, number): no file, no download. Normal images differ in
position, angle, lighting, colour cast, weave or turning marks, and sensor noise. Defects are drawn into the scene
before lighting and noise (a thread removed, a bite taken out of the rim, a crack that walks outwards, rust that eats
the gloss); they are not patches pasted or blended from other images, which is how several methods make their training
anomalies.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from jaxad.data import drawing
from jaxad.data.listing import NORMAL, Listing

SIZE = 128
DEFECTS = {
    "weave": ("broken_thread", "hole", "misweave", "stain"),
    "washer": ("chip", "crack", "rust", "scratch"),
}
CATEGORIES = tuple(DEFECTS)


def listing(category: str) -> Listing:
    """The images of `category`, in MVTec AD's layout."""
    return drawing.listing(category, DEFECTS[category])


def render(path: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Image u8[128, 128, 3] and mask bool[128, 128] of a path of `listing`.

    >>> image, mask = render("washer/test/chip/003.png")
    >>> image.shape, bool(mask.any())
    ((128, 128, 3), True)
    """
    category, split, defect, name = path.split("/")
    kinds = (NORMAL, *DEFECTS[category])
    number = int(name.partition(".")[0])
    key = [seed, CATEGORIES.index(category), split == "test", kinds.index(defect), number]
    scene, flaw, camera = np.random.default_rng(key).spawn(3)
    colour, mask = {"weave": _weave, "washer": _washer}[category](scene, flaw, defect)
    return drawing.photograph(camera, colour), mask


def write(folder: str | Path, category: str, seed: int = 0) -> None:
    """Writes `category` as PNG files below `folder`, as a data set that `data.dataset=folder` reads."""
    for samples in listing(category).splits.values():
        for sample in samples:
            image, mask = render(sample.path, seed)
            for path, array in ((sample.path, image), (sample.mask, mask)):
                if path is not None:
                    target = Path(folder) / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array if array.ndim == 3 else array.astype(np.uint8) * np.uint8(255)).save(target)


def _weave(rng: np.random.Generator, flaw: np.random.Generator, defect: str) -> tuple[np.ndarray, np.ndarray]:
    """Plain weave of beige warp and blue-grey weft, 9 pixels per thread. Colour f32[h, w, 3] in [0, 1], mask."""
    pitch = 9.0
    x, y = drawing.grid(SIZE)
    angle = np.deg2rad(rng.uniform(-1.5, 1.5))
    u = x * np.cos(angle) + y * np.sin(angle) + 0.9 * drawing.smooth(rng, 4, SIZE) + rng.uniform(0, 2 * pitch)
    v = -x * np.sin(angle) + y * np.cos(angle) + 0.9 * drawing.smooth(rng, 4, SIZE) + rng.uniform(0, 2 * pitch)
    warp, weft = np.floor(u / pitch).astype(int), np.floor(v / pitch).astype(int)
    mask = np.zeros(x.shape, bool)
    row, column = flaw.integers(24, SIZE - 24, 2)  # where a defect of the threads is
    to_warp, to_weft = warp - warp[row, column], weft - weft[row, column]
    over_warp = (warp + weft) % 2 == 0
    if defect == "misweave":  # the shuttle skipped: the weft floats over the warp
        reach = flaw.uniform(1.6, 2.9, 2)
        mask = (to_warp / reach[0]) ** 2 + (to_weft / reach[1]) ** 2 < 1
        over_warp = over_warp & ~mask
    warp_colour = np.array([0.80, 0.73, 0.60]) * (1 + 0.05 * _per_thread(rng, warp))[..., None]
    weft_colour = np.array([0.50, 0.57, 0.66]) * (1 + 0.05 * _per_thread(rng, weft))[..., None]
    across_warp, across_weft = (2 * np.mod(c / pitch, 1) - 1 for c in (u, v))  # -1 .. 1 over a thread
    fibre = 1 + 0.08 * _stripes(rng, u + v)
    warp_shade = (0.3 + 0.7 * np.sqrt(1 - 0.95 * across_warp**2)) * (1 - 0.45 * across_weft**4) * fibre
    weft_shade = (0.3 + 0.7 * np.sqrt(1 - 0.95 * across_weft**2)) * (1 - 0.45 * across_warp**4) * fibre
    warp_colour, weft_colour = warp_colour * warp_shade[..., None], weft_colour * weft_shade[..., None]
    if defect == "broken_thread":  # a stretch of one weft thread is gone: dark gaps between the warp threads
        mask = (to_weft == 0) & (np.abs(to_warp) <= flaw.integers(1, 4)) | (to_weft == 0) & (to_warp == 1)
        over_warp |= mask
        warp_colour = np.where(
            mask[..., None], warp_colour * (1 - 0.75 * across_warp**2)[..., None] * 0.75, warp_colour
        )
    colour = np.where(over_warp[..., None], warp_colour, weft_colour)
    if defect == "hole":
        distance = drawing.irregular_distance(flaw, SIZE, flaw.uniform(5.5, 9.0), 0.22)
        hole, rim = distance < 0, (distance >= 0) & (distance < 2.2)
        colour = np.where(hole[..., None], 0.14 + 0.03 * drawing.smooth(flaw, 24, SIZE)[..., None], colour)
        colour = np.where(rim[..., None], colour * 0.8 + 0.12, colour)  # frayed fibres catch the light
        mask = hole | rim
    elif defect == "stain":
        depth = np.clip(-drawing.irregular_distance(flaw, SIZE, flaw.uniform(9, 15), 0.25) / 4.0, 0, 1)
        tint = np.array([0.52, 0.42, 0.26]) if flaw.random() < 0.5 else np.array([0.42, 0.45, 0.50])
        colour = colour * (1 - 0.85 * depth[..., None] * (1 - tint))
        mask = depth > 0.2
    return colour, mask


def _washer(rng: np.random.Generator, flaw: np.random.Generator, defect: str) -> tuple[np.ndarray, np.ndarray]:
    """Turned steel ring on a dark felt mat. Colour f32[h, w, 3] in [0, 1], mask."""
    x, y = drawing.grid(SIZE)
    centre = SIZE / 2 + rng.uniform(-4, 4, 2)
    dx, dy = x - centre[0], y - centre[1]
    radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    outer, inner = 50 + rng.uniform(-0.3, 0.3), 21 + rng.uniform(-0.3, 0.3)
    mask = np.zeros(x.shape, bool)
    edge = np.minimum(outer - radius, radius - inner)  # > 0 on the steel, pixels from the nearer edge
    turned = rng.uniform(0, 2 * np.pi)
    for lug in range(3):  # the bore has three keyways, at any angle
        key = inner * np.array([np.cos(turned + lug * 2.0944), np.sin(turned + lug * 2.0944)])
        edge = np.minimum(edge, np.hypot(dx - key[0], dy - key[1]) - 4.0)
    if defect == "chip":  # a bite out of the rim
        where = flaw.uniform(0, 2 * np.pi)
        rim = outer + flaw.uniform(0.0, 1.5)
        bite = drawing.irregular_distance(
            flaw, SIZE, flaw.uniform(7.0, 10.0), 0.25, centre + rim * np.array([np.cos(where), np.sin(where)])
        )
        mask |= (bite < 0) & (edge > 0)
        edge = np.minimum(edge, bite)
    ring = np.clip(edge + 0.5, 0, 1)
    lamp = rng.uniform(-0.5, 0.5)
    gloss = 0.5 + 0.5 * np.cos(2 * (angle - lamp))  # turned steel: two bright fans that follow the lamp
    turning = _stripes(rng, radius)
    steel = 0.50 + 0.22 * gloss**2 + 0.035 * turning + 0.02 * drawing.smooth(rng, 10, SIZE)
    bevel = np.clip(1 - np.maximum(edge, 0) / 3.5, 0, 1)
    steel = steel * (1 - 0.35 * bevel) + 0.30 * bevel * (0.5 + 0.5 * np.cos(angle + 2.2))
    colour = steel[..., None] * np.array([0.97, 1.0, 1.03])
    if defect == "rust":
        distance = drawing.irregular_distance(
            flaw, SIZE, flaw.uniform(7, 11), 0.35, _on_ring(flaw, centre, inner + 8, outer - 8)
        )
        depth = np.clip(-distance / 3.0, 0, 1) * np.clip(0.85 + 0.5 * drawing.smooth(flaw, 32, SIZE), 0, 1)
        brown = np.array([0.44, 0.27, 0.16]) * (1 + 0.25 * drawing.smooth(flaw, 40, SIZE))[..., None]
        colour = colour * (1 - depth[..., None]) + brown * depth[..., None]
        mask |= (distance < 0) & (edge > 0)
    elif defect == "scratch":
        start = _on_ring(flaw, centre, inner + 9, outer - 9)
        heading, length = flaw.uniform(0, np.pi), flaw.uniform(16, 30)
        bend = flaw.uniform(-0.012, 0.012)
        steps = np.arange(0, length, 0.5) - length / 2
        heading_at = heading + bend * steps
        line = start + np.cumsum(np.stack([np.cos(heading_at), np.sin(heading_at)], 1), 0) * 0.5
        line -= line.mean(0) - start
        distance = drawing.distance_to(line, SIZE)
        bright, shadow = np.clip(1.7 - distance, 0, 1), np.clip(1.3 - drawing.distance_to(line + 1.6, SIZE), 0, 1)
        colour = colour * (1 - 0.45 * shadow[..., None])
        colour = colour + (0.98 - colour) * (0.95 * bright)[..., None]
        mask |= (distance < 2.0) & (edge > 0)
    elif defect == "crack":
        where, at = flaw.uniform(0, 2 * np.pi), inner - 0.5
        points = []
        while at < outer - flaw.uniform(-1, 8):  # a walk from the bore outwards
            points.append(centre + at * np.array([np.cos(where), np.sin(where)]))
            at, where = at + 0.7, where + flaw.normal(0, 1.1) / at
        distance = drawing.distance_to(np.array(points), SIZE)
        depth = np.clip(1.6 - distance, 0, 1)
        colour = colour * (1 - 0.85 * depth[..., None])
        mask |= (distance < 2.0) & (edge > -0.5)
    felt = 0.27 + 0.03 * drawing.smooth(rng, 48, SIZE) + 0.02 * drawing.smooth(rng, 6, SIZE)
    shadow = np.clip(1 - (np.hypot(dx - 3, dy - 4) - outer) / 6, 0, 1) * 0.5
    mat = (felt * (1 - shadow))[..., None] * np.array([0.95, 1.0, 1.1])
    return colour * ring[..., None] + mat * (1 - ring[..., None]), mask


def _per_thread(rng: np.random.Generator, thread: np.ndarray) -> np.ndarray:
    """One random value in -1 .. 1 per thread number."""
    first = int(thread.min())
    return rng.uniform(-1, 1, int(thread.max()) - first + 1)[thread - first]


def _stripes(rng: np.random.Generator, along: np.ndarray) -> np.ndarray:
    """A random one-dimensional profile, -1 .. 1, looked up with linear interpolation at `along`."""
    first = float(along.min())
    profile = rng.uniform(-1, 1, int(along.max() - first) + 3)
    return np.interp(along - first, np.arange(profile.size), profile)


def _on_ring(rng: np.random.Generator, centre: np.ndarray, smallest: float, largest: float) -> np.ndarray:
    where = rng.uniform(0, 2 * np.pi)
    return centre + rng.uniform(smallest, largest) * np.array([np.cos(where), np.sin(where)])
