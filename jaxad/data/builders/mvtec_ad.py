"""MVTec AD (Bergmann et al., CVPR 2019 and IJCV 2021): 15 categories, 3,629 training and 1,725 test images."""

from __future__ import annotations

from pathlib import Path

from jaxad.data.builders.base import AnomalyBuilder, configs
from jaxad.data.listing import Listing, mvtec_layout

CATEGORIES = (
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut"),
    *("pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper"),
)


class MvtecAd(AnomalyBuilder):
    """`CATEGORY/{train/good, test/{good,<defect>}, ground_truth/<defect>/<stem>_mask.png}`."""

    name = "mvtec_ad"
    CATEGORIES = CATEGORIES
    BUILDER_CONFIGS = configs(CATEGORIES, "MVTec AD")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Register at https://www.mvtec.com/company/research/datasets/mvtec-ad, download and unpack the archive, and "
        "pass the folder that holds the category folders (bottle, cable, ...) as manual_dir."
    )
    DESCRIPTION = "Industrial inspection: 10 objects and 5 textures, 73 defect types, pixel-accurate ground truth."
    HOMEPAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad"
    CITATION = (
        "@article{bergmann2021mvtec, author={Bergmann, Paul and Batzner, Kilian and Fauser, Michael and Sattlegger, "
        "David and Steger, Carsten}, title={The MVTec Anomaly Detection Dataset}, "
        "journal={International Journal of Computer Vision}, volume={129}, pages={1038--1059}, year={2021}}"
    )

    @classmethod
    def listing(cls, root: Path, category: str) -> Listing:
        return mvtec_layout(root, category)
