"""BTAD, beanTech Anomaly Detection (Mishra et al., ISIE 2021): 3 products, 2,540 images, 290 of them defective."""

from __future__ import annotations

from pathlib import Path

from jaxad.data.builders.base import AnomalyBuilder, configs
from jaxad.data.listing import Listing, mvtec_layout

CATEGORIES = ("01", "02", "03")


class Btad(AnomalyBuilder):
    """`0{1,2,3}/{train/ok, test/{ok,ko}, ground_truth/ko/<stem>.*}`; .bmp and .png mixed, also image and mask."""

    name = "btad"
    CATEGORIES = CATEGORIES
    BUILDER_CONFIGS = configs(CATEGORIES, "BTAD")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Download and unpack https://avires.dimi.uniud.it/papers/btad/btad.zip and pass the folder that holds 01, 02 "
        "and 03 (BTech_Dataset_transformed) as manual_dir."
    )
    DESCRIPTION = "Three industrial products with body and surface defects."
    HOMEPAGE = "https://github.com/pankajmishra000/VT-ADL"
    CITATION = (
        "@inproceedings{mishra2021vtadl, author={Mishra, Pankaj and Verk, Riccardo and Fornasier, Daniele and "
        "Piciarelli, Claudio and Foresti, Gian Luca}, title={VT-ADL: A Vision Transformer Network for Image Anomaly "
        "Detection and Localization}, booktitle={IEEE International Symposium on Industrial Electronics}, year={2021}}"
    )
    MASK_ABOVE = 127  # the masks hold grey values along their edges

    @classmethod
    def listing(cls, root: Path, category: str) -> Listing:
        return mvtec_layout(root, category, normal="ok")
