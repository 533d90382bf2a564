"""Where the object is, by MVTec 3D-AD's point images: what stands out of the plane it lies on.

The recipe is that of BTF (Horwitz and Hoshen 2023) and 3D-ADS, on which the published preprocessing of the data set
rests.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

STRIP = 10  # pixels along the border, where the plane is seen
INLIER, ABOVE = 0.004, 0.005  # metres: how near a point of the plane is, how far one of the object
TRIALS = 64  # planes through three points of the strip


def standing_out(xyz: np.ndarray) -> np.ndarray:
    """bool[h, w]: the largest 8-connected region of points of f32[h, w, 3] farther than 5 mm from the border's plane.

    Points are in metres, as MVTec publishes them (the camera is about half a metre away); all zero is no point. The
    plane is the RANSAC plane of the valid points in the border strip, refitted to its inliers; the draws are always
    the same. Where the strip shows no plane (no three points that span one), every valid point counts as far.
    Departure: neighbours are neighbouring pixels; BTF clusters the points in space by DBSCAN.

    >>> across = np.linspace(-0.1, 0.1, 50)
    >>> xyz = np.stack([*np.meshgrid(across, across), np.full((50, 50), 0.5)], axis=2)
    >>> xyz[20:30, 15:40, 2] -= 0.03
    >>> int(standing_out(xyz).sum())
    250
    """
    xyz = np.asarray(xyz, np.float64)
    far = (xyz != 0).any(axis=2)
    strip = far.copy()
    strip[STRIP:-STRIP, STRIP:-STRIP] = False
    plane = ransac(xyz[strip])
    if plane is not None:
        normal, offset = plane
        far &= np.abs(xyz @ normal - offset) > ABOVE
    regions, n = ndimage.label(far, np.ones((3, 3)))
    if not n:
        return far
    return regions == 1 + np.argmax(np.bincount(regions.ravel())[1:])


def ransac(points: np.ndarray) -> tuple[np.ndarray, float] | None:
    """(unit normal f64[3], offset) of the plane, normal . x = offset, within 4 mm of the most of f64[N, 3].

    None where the points drawn span no plane.
    """
    if len(points) < 3:
        return None
    words = np.random.Philox(key=0).random_raw(3 * TRIALS).reshape(TRIALS, 3)  # a stream that NumPy guarantees
    first, second, third = (points[(words[:, k] % np.uint64(len(points))).astype(np.int64)] for k in range(3))
    normals = np.cross(second - first, third - first)
    lengths = np.linalg.norm(normals, axis=1)
    some = lengths > 1e-12  # square metres, twice the triangle's area; a thinner one has no direction
    if not some.any():
        return None
    normals, first = normals[some] / lengths[some, None], first[some]
    offsets = (normals * first).sum(axis=1)
    planes = zip(normals, offsets, strict=True)
    best = int(np.argmax([np.sum(np.abs(points @ normal - offset) < INLIER) for normal, offset in planes]))
    near = points[np.abs(points @ normals[best] - offsets[best]) < INLIER]
    centre = near.mean(axis=0)
    normal = np.linalg.eigh((near - centre).T @ (near - centre))[1][:, 0]
    return normal, float(normal @ centre)
