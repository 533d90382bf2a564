"""MVTec 3D-AD (Bergmann et al., VISAPP 2022): 10 categories, 2,656 training, 294 validation and 1,197 test scans."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxad.data import images
from jaxad.data.builders.base import AnomalyBuilder, check_size, configs, read
from jaxad.data.listing import NORMAL, Listing, Sample, finish, folders_in, images_in, pair_masks
from jaxad.data.synthesis.xyz import standing_out
from jaxad.errors import UserError

CATEGORIES = ("bagel", "cable_gland", "carrot", "cookie", "dowel", "foam", "peach", "potato", "rope", "tire")


class Mvtec3dAd(AnomalyBuilder):
    """`CATEGORY/{train,validation,test}/{good,<defect>}/{rgb/*.png, xyz/*.tiff, gt/*.png}`, the same stem in the three.

    Has two more features: valid u8[h, w, 1], 255 where the sensor measured a point (xyz is not all zero there), and
    foreground u8[h, w, 1], 255 on the object by `jaxad.data.synthesis.xyz.standing_out`; xyz is taken to be in metres.
    The split 'validation' holds normal images only.
    """

    name = "mvtec_3d_ad"
    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version.", "1.1.0": "The feature foreground."}
    CATEGORIES = CATEGORIES
    BUILDER_CONFIGS = configs(CATEGORIES, "MVTec 3D-AD")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Register at https://www.mvtec.com/company/research/datasets/mvtec-3d-ad, download and unpack the archive, and "
        "pass the folder that holds the category folders (bagel, cable_gland, ...) as manual_dir."
    )
    DESCRIPTION = "RGB images and aligned point images of ten objects, with pixel-accurate ground truth."
    HOMEPAGE = "https://www.mvtec.com/company/research/datasets/mvtec-3d-ad"
    CITATION = (
        "@inproceedings{bergmann2022mvtec3d, author={Bergmann, Paul and Jin, Xin and Sattlegger, David and Steger, "
        "Carsten}, title={The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly Detection and Localization}, "
        "booktitle={VISAPP}, year={2022}}"
    )

    @classmethod
    def listing(cls, root: Path, category: str) -> Listing:
        base = root / category
        splits: dict[str, list[Sample]] = {"train": [], "validation": [], "test": []}
        problems: list[str] = []
        for split, samples in splits.items():
            for folder in folders_in(base / split):
                rgb = images_in(folder / "rgb")
                required = split == "test" and folder.name != NORMAL
                masks, wrong = pair_masks(rgb, images_in(folder / "gt"), required)
                points = {path.stem: path for path in images_in(folder / "xyz")}
                problems += wrong
                problems += [f"{path} has no xyz image; restore it" for path in rgb if path.stem not in points]
                for path in rgb:
                    files = (path, masks.get(path), points.get(path.stem))
                    image, mask, xyz = (file and file.relative_to(root).as_posix() for file in files)
                    samples.append(Sample(image, folder.name, mask, xyz))
        return finish(root, category, splits, problems)

    def _features(self):
        mask = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
        return super()._features() | {"valid": mask, "foreground": mask}

    def _more(self, root: Path, sample: Sample, size: tuple[int, int]):
        points = _points(root, sample, size)
        return {
            "valid": images.encode_png((points != 0).any(axis=2)),
            "foreground": images.encode_png(standing_out(points)),
        }

    @classmethod
    def check_more(cls, root: Path, sample: Sample, size: tuple[int, int]) -> None:
        if sample.xyz is not None:  # a missing one is in the listing's problems
            _points(root, sample, size)


def _points(root: Path, sample: Sample, size: tuple[int, int]) -> np.ndarray:
    path = root / str(sample.xyz)
    xyz = read_xyz(read(path), str(path))
    check_size(path, xyz.shape[:2], root / sample.path, size)
    return xyz


def read_xyz(data: bytes, name: str = "an xyz image") -> np.ndarray:
    """TIFF bytes to f32[h, w, 3].

    PIL reads no three-channel floating-point TIFF, so this is the part of TIFF 6.0 that is needed: one chunky 32-bit
    floating-point image in strips, uncompressed or deflated. Raises UserError for anything else.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    try:
        if order is None or struct.unpack_from(order + "H", data, 2)[0] != 42:
            raise ValueError("not a TIFF file")
        tags = _tags(data, order)
        height, width = tags[257][0], tags[256][0]
        layout = (
            tags[258][0],
            tags.get(277, [1])[0],
            tags.get(339, [1])[0],
            tags.get(284, [1])[0],
            tags.get(317, [1])[0],
        )
        if layout != (32, 3, 3, 1, 1):
            raise ValueError("not three 32-bit floating-point channels")
        compression = tags.get(259, [1])[0]
        if compression not in (1, 8, 32946):
            raise ValueError(f"TIFF compression {compression} is not supported, save it uncompressed")
        strips = [data[start : start + count] for start, count in zip(tags[273], tags[279], strict=True)]
        raw = b"".join(strips if compression == 1 else map(zlib.decompress, strips))
        if len(raw) != height * width * 12:
            raise ValueError("pixels are missing")
    except (struct.error, KeyError, ValueError, zlib.error) as error:
        raise UserError(f"{name} is truncated or not a readable xyz image ({error}); restore it") from error
    return np.frombuffer(raw, order + "f4").reshape(height, width, 3).astype(np.float32)


def _tags(data: bytes, order: str) -> dict[int, tuple[int, ...]]:
    """{tag: values} of the first image, integer types only."""
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    tags = {}
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", data, entry)
        letter = {1: "B", 3: "H", 4: "I"}.get(kind)
        if letter:
            inline = struct.calcsize(letter) * number <= 4
            where = entry + 8 if inline else struct.unpack_from(order + "I", data, entry + 8)[0]
            tags[tag] = struct.unpack_from(f"{order}{number}{letter}", data, where)
    return tags
