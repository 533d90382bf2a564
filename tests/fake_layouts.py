"""Tiny copies of the real data sets' folders: layouts, extensions, image modes and traps of each, 24 pixels wide."""

from __future__ import annotations

import csv
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 20)  # width, height


def pixels(seed, size=SIZE, grey=False):
    """Random but smooth u8[h, w, 3] or u8[h, w]: no two seeds alike."""
    width, height = size
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6) if grey else (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height)))


def save(path, array, **options):
    """Writes an image file, folders included."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def blob(value=255, size=SIZE, at=(5, 4, 11, 9)):
    """u8[h, w] mask: `value` in the box (left, top, right, bottom), 0 around it."""
    mask = np.zeros(size[::-1], np.uint8)
    left, top, right, bottom = at
    mask[top:bottom, left:right] = value
    return mask


def mvtec(root, category="screw", train=4, good=2, defects=(("crack", 3), ("scratch", 2)), grey=True):
    """MVTec AD: grey PNG, NNN_mask.png, numbering that starts at 000 in every folder."""
    base = Path(root) / category
    for i in range(train):
        save(base / "train" / "good" / f"{i:03d}.png", pixels((1, i), grey=grey))
    for i in range(good):
        save(base / "test" / "good" / f"{i:03d}.png", pixels((2, i), grey=grey))
    for kind, (defect, number) in enumerate(defects):
        for i in range(number):
            save(base / "test" / defect / f"{i:03d}.png", pixels((3, kind, i), grey=grey))
            mask = blob(at=(2 + i, 3, 9 + 2 * i, 8 + kind))
            save(base / "ground_truth" / defect / f"{i:03d}_mask.png", mask)
    return base


def btad(root):
    """BTAD: 01 .bmp images with .png masks, 02 .png with .png, 03 .bmp with .bmp and another size; 'ok' and 'ko'."""
    for category, images, masks, size in (
        ("01", "bmp", "png", SIZE),
        ("02", "png", "png", SIZE),
        ("03", "bmp", "bmp", (32, 24)),
    ):
        base = Path(root) / category
        for i in range(3):
            save(base / "train" / "ok" / f"{i:04d}.{images}", pixels((10, i), size))
        for i in range(2):
            save(base / "test" / "ok" / f"{i:04d}.{images}", pixels((11, i), size))
            save(base / "test" / "ko" / f"{i:04d}.{images}", pixels((12, i), size))
            mask = blob(255, size)
            mask[4, 3:12] = 90  # grey values along an edge
            save(base / "ground_truth" / "ko" / f"{i:04d}.{masks}", mask)
    return Path(root)


def visa(root, objects=("candle", "cashew")):
    """VisA: .JPG, the same names under Normal and Anomaly, masks of class ids, three split files."""
    root = Path(root)
    tables = {name: [] for name in ("1cls", "2cls_highshot", "2cls_fewshot")}
    for which, name in enumerate(objects):
        images = root / name / "Data" / "Images"
        for i in range(6):
            path = save(images / "Normal" / f"{i:03d}.JPG", pixels((20, which, i)), quality=90)
            row = [name, "", "normal", path.relative_to(root).as_posix(), ""]
            tables["1cls"].append([*row[:1], "test" if i == 5 else "train", *row[2:]])
            tables["2cls_highshot"].append([*row[:1], "test" if i > 3 else "train", *row[2:]])
            tables["2cls_fewshot"].append([*row[:1], "test" if i > 1 else "train", *row[2:]])
        for i in range(4):
            path = save(images / "Anomaly" / f"{i:03d}.JPG", pixels((21, which, i)), quality=90)
            mask = save(root / name / "Data" / "Masks" / "Anomaly" / f"{i:03d}.png", blob(1 + i, at=(1, 2, 4 + i, 9)))
            row = [name, "", "anomaly", path.relative_to(root).as_posix(), mask.relative_to(root).as_posix()]
            tables["1cls"].append([*row[:1], "test", *row[2:]])
            tables["2cls_highshot"].append([*row[:1], "test" if i > 1 else "train", *row[2:]])
            tables["2cls_fewshot"].append([*row[:1], "test" if i > 0 else "train", *row[2:]])
    (root / "split_csv").mkdir()
    for protocol, rows in tables.items():
        with (root / "split_csv" / f"{protocol}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["object", "split", "label", "image", "mask"], *rows])
    return root


def mvtec_3d(root, category="bagel", compression=1):
    """MVTec 3D-AD: rgb, xyz and gt per image; an empty gt beside each normal test image; border without points."""
    counts = {"train": (("good", 3),), "validation": (("good", 2),), "test": (("good", 2), ("hole", 2))}
    for split, groups in counts.items():
        for defect, number in groups:
            for i in range(number):
                base = Path(root) / category / split / defect
                save(base / "rgb" / f"{i:03d}.png", pixels((30, len(split), len(defect), i)))
                xyz = np.random.default_rng(i).uniform(-1, 1, (SIZE[1], SIZE[0], 3)).astype(np.float32)
                xyz[:, : 2 + i] = 0
                (base / "xyz").mkdir(exist_ok=True)
                (base / "xyz" / f"{i:03d}.tiff").write_bytes(tiff(xyz, compression))
                if split == "test":
                    save(base / "gt" / f"{i:03d}.png", blob(0 if defect == "good" else 255))
    return Path(root)


def tiff(array, compression=1, order="<", strips=3):
    """f32[h, w, 3] as TIFF bytes in several strips. compression: 1 none, 8 deflate, 5 a number that means LZW."""
    height, width, channels = array.shape
    rows = -(-height // strips)
    parts = [array[start : start + rows].astype(order + "f4").tobytes() for start in range(0, height, rows)]
    parts = [zlib.compress(part) for part in parts] if compression == 8 else parts
    offsets = [8 + sum(map(len, parts[:i])) for i in range(len(parts))]
    tags = [(256, "I", [width]), (257, "I", [height]), (258, "H", [32] * channels), (259, "H", [compression])]
    tags += [(262, "H", [2]), (273, "I", offsets), (277, "H", [channels]), (278, "I", [rows])]
    tags += [(279, "I", list(map(len, parts))), (284, "H", [1]), (339, "H", [3] * channels)]
    body = b"".join(parts)
    body += b"\0" * (len(body) % 2)
    extra, entries = b"", b""
    for tag, letter, values in tags:
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(packed) > 4:
            where = 8 + len(body) + len(extra)
            extra += packed
            packed = struct.pack(order + "I", where)
        entries += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[letter], len(values)) + packed.ljust(4, b"\0")
    start = 8 + len(body) + len(extra)
    header = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    return header + body + extra + struct.pack(order + "H", len(tags)) + entries + b"\0" * 4
