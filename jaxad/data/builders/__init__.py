"""TFDS builders of anomaly data sets; importing this package registers them with `tfds.builder`.

    import tensorflow_datasets as tfds
    import jaxad.data.builders

    builder = tfds.builder("mvtec_ad/screw", data_dir="prepared", file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir="/data/mvtec_ad"))
    source = builder.as_data_source(split="test")

`jaxad.data.catalog` does the same behind `config.data`, with a cache that notices changed files. Nothing here imports
TensorFlow itself: TFDS loads it only for `as_dataset`.
"""

from __future__ import annotations

from jaxad.data.builders.base import AnomalyBuilder
from jaxad.data.builders.btad import Btad
from jaxad.data.builders.demo import Demo
from jaxad.data.builders.folder import Folder, FolderConfig
from jaxad.data.builders.images import Images
from jaxad.data.builders.mvtec_3d_ad import Mvtec3dAd
from jaxad.data.builders.mvtec_ad import MvtecAd
from jaxad.data.builders.periodic import Periodic
from jaxad.data.builders.visa import Visa

BUILDERS: dict[str, type[AnomalyBuilder]] = {
    builder.name: builder for builder in (Demo, Folder, MvtecAd, Mvtec3dAd, Visa, Btad, Images, Periodic)
}

__all__ = [
    "BUILDERS",
    "AnomalyBuilder",
    "Btad",
    "Demo",
    "Folder",
    "FolderConfig",
    "Images",
    "Mvtec3dAd",
    "MvtecAd",
    "Periodic",
    "Visa",
]
