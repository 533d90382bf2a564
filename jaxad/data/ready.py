"""Image-classification sets that TFDS has prepared already, to pre-train on: read where they lie, by index.

`config.data.root` is TFDS's data_dir, and a category is a builder's name, or 'name/config'. Nothing is downloaded and
nothing copied: images stay encoded until they are asked for. Labels lie inside the examples, so the first opening reads
all of these once, with all cores, and keeps the labels in the cache; for ImageNet that is a matter of minutes.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from jaxad.data import images, prepared
from jaxad.data.store import pool
from jaxad.errors import UserError
from jaxad.flags import nearest
from jaxad.types import Record

FORMAT = "array_record"  # the one that is read by index
_AT_ONCE = 512  # examples a thread reads before it takes the next ones


class ReadySource:
    """A `jaxad.data.catalog.Source` over the files of one TFDS builder. Path of record i: 'train/0000012'.

    Splits: train is TFDS's; test is its 'validation' where there is one, else its 'test'. A record's kind is its
    label's name, '' where the example has no label. UserError where there is no split 'train' or no one image feature.
    """

    has_masks = has_all_masks = False
    protocol = ""

    def __init__(self, name: str, root: Path, builder: tfds.core.DatasetBuilder, cache: Path):
        self.name, self.root = name, str(root)
        splits, features = builder.info.splits, builder.info.features
        if "train" not in splits:
            raise UserError(f"{builder.data_dir} has no split 'train' but {', '.join(splits)}; it cannot be trained on")
        test = next((split for split in ("validation", "test") if split in splits), None)
        self._image, self._label = _keys(str(builder.data_dir), features)
        self._names = {"train": "train"} | ({"test": test} if test else {})
        self.notes = (f"{name}: TFDS's split {test!r} is for testing",) if test else ()
        decoders = {
            key: tfds.decode.SkipDecoding()
            for key, feature in features.items()
            if isinstance(feature, (tfds.features.Image, tfds.features.Video, tfds.features.Audio))
        }
        self._readers = {
            split: builder.as_data_source(split=theirs, decoders=decoders) for split, theirs in self._names.items()
        }
        kinds = features[self._label].names if self._label else []
        self._records = {
            split: tuple(
                Record(_path(theirs, i), False, "good", kinds[label] if label >= 0 else "")
                for i, label in enumerate(self._labels(split, builder, cache).tolist())
            )
            for split, theirs in self._names.items()
        }

    def _labels(self, split: str, builder: tfds.core.DatasetBuilder, cache: Path) -> np.ndarray:
        """i64[n], -1 where there is no label."""
        reader = self._readers[split]
        if self._label is None:
            return np.full(len(reader), -1)
        files = [Path(os.fspath(path)) for path in builder.info.splits[self._names[split]].filepaths]
        digest = hashlib.sha256()
        for path in files:
            stat = path.stat()
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
        place = cache / "labels" / f"{self.name}-{split}-{digest.hexdigest()[:20]}.npy"
        if place.is_file():
            return np.load(place)
        logging.info("Reading the labels of %d images of %s, once", len(reader), self.name)
        starts = range(0, len(reader), _AT_ONCE)
        some = pool().map(lambda start: _labels_of(reader, self._label, start), starts)
        labels = np.concatenate([np.zeros(0, np.int64), *some])
        partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.save(file, labels)
            partial.replace(place)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise prepared.cache_error(error, cache) from error
        return labels

    def records(self, split: str) -> tuple[Record, ...]:
        return self._records.get(split, ())

    def load(self, split: str, i: int) -> tuple[np.ndarray, np.ndarray]:
        image = images.decode(self._readers[split][i][self._image], f"{self.name}/{_path(self._names[split], i)}")
        return image, np.zeros(image.shape[:2], bool)

    def foreground(self, split: str, i: int) -> None:
        return None


def categories(root: Path, asked: Sequence[str]) -> tuple[str, ...]:
    """The prepared builders of these names, those below root where asked is ['all'], as they are called in a run.

    'name/config' is called 'name-config' there, for it becomes a folder's name. UserError for one that is not there.
    """
    here = found(root)
    if list(asked) == ["all"] and here:
        return tuple(here)
    if not asked or list(asked) == ["all"]:
        known = f"one of {', '.join(here.values())}" if here else "the name of a TFDS builder, such as imagenet2012"
        raise UserError(f"config.data.category={','.join(asked)!r}: set it to {known}")
    names = [name.replace("/", "-") for name in asked]
    for name, called in zip(asked, names, strict=True):
        if called not in here:
            raise UserError(_not_prepared(root, name, list(here.values())))
    return tuple(dict.fromkeys(names))


def open_category(root: Path, category: str, cache: Path) -> ReadySource:
    """Opens one of `categories`, its newest version. UserError where it is prepared as TFRecord."""
    name = found(root)[category]
    with prepared.quiet():
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=str(root))
        formats = {each.value for each in builder.info.available_file_formats()}
        if FORMAT not in formats:
            elsewhere = root / FORMAT
            raise UserError(
                f"{builder.data_dir} is prepared as {', '.join(sorted(formats))}, which is not read by index; set "
                f"config.data.root={elsewhere} after: {command(name, elsewhere)}"
            )
        return ReadySource(category, root, builder, cache)


def found(root: Path) -> dict[str, str]:
    """{name in a run: 'name' or 'name/config'} of what TFDS has prepared below root."""
    infos = [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]
    names = sorted({info.parent.parent.relative_to(root).as_posix() for info in infos})
    return {name.replace("/", "-"): name for name in names}


def command(name: str, root: Path) -> str:
    """The command line that prepares a builder. Python, since TFDS's own needs Apache Beam even where the data do not.

    >>> command("cifar10", Path("/data")).endswith("file_format='array_record').download_and_prepare()" + '"')
    True
    """
    manual = ""
    if getattr(_builders_class(name), "MANUAL_DOWNLOAD_INSTRUCTIONS", None):
        manual = "download_config=t.download.DownloadConfig(manual_dir='FOLDER_OF_YOUR_DOWNLOADS')"
    return (
        f'python -c "import tensorflow_datasets as t; t.builder({name!r}, data_dir={str(root)!r}, '
        f'file_format={FORMAT!r}).download_and_prepare({manual})"'
    )


@functools.cache
def _builders_class(name: str) -> Any:
    try:
        return tfds.builder_cls(name.partition("/")[0])
    except (tfds.core.registered.DatasetNotFoundError, ImportError):
        return None


def _not_prepared(root: Path, name: str, here: list[str]) -> str:
    said = f"config.data.category={name!r} is not prepared under {root}"
    if _builders_class(name) is None:
        known = {*here, *tfds.list_builders(with_community_datasets=False)}
        return f"{said}, nor a builder that TFDS knows{nearest(name, sorted(known))}"
    if configs := [other for other in here if other.partition("/")[0] == name.partition("/")[0]]:
        said += f", but {', '.join(configs)} is"
    return f"{said}; to prepare it: {command(name, root)}"


def _keys(where: str, features: Any) -> tuple[str, str | None]:
    """The keys of the image and of the label (None: there is none) in an example."""
    of_kind = {
        kind: [key for key in features if isinstance(features[key], kind)]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    }
    pictures, labels = of_kind.values()
    if "image" not in pictures and len(pictures) != 1:
        raise UserError(f"{where} has {len(pictures)} image features; choose a builder of image classification")
    label = "label" if "label" in labels else labels[0] if len(labels) == 1 else None
    return "image" if "image" in pictures else pictures[0], label


def _labels_of(reader: Sequence[Any], key: str, start: int) -> np.ndarray:
    return np.array([reader[i][key] for i in range(start, min(start + _AT_ONCE, len(reader)))], np.int64)


def _path(split: str, i: int) -> str:
    return f"{split}/{i:07d}"
