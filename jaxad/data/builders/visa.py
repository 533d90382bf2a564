"""VisA (Zou et al., ECCV 2022): 12 objects, 10,821 images, 1,200 of them anomalous, in the layout of its tar file."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

from jaxad.data.builders.base import AnomalyBuilder, configs
from jaxad.data.listing import NORMAL, Listing, Sample, finish, images_in
from jaxad.errors import UserError

OBJECTS = (
    *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"),
    *("pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
)
# The files in split_csv/ and the values of config.data.protocol; never mix them: they share test images.
PROTOCOLS = {"1cls": "one_class", "2cls_highshot": "high_shot", "2cls_fewshot": "few_shot"}
TWO_CLASS = tuple(f"{name}_{table}" for table in list(PROTOCOLS)[1:] for name in OBJECTS)


class Visa(AnomalyBuilder):
    """`OBJECT/Data/{Images/{Normal,Anomaly}/*.JPG, Masks/Anomaly/*.png}`, split by `split_csv/{1cls,2cls_...}.csv`.

    Config `candle` is the one-class split; `candle_2cls_highshot` and `candle_2cls_fewshot` have anomalies in train, of
    few_shot the whole pool. Under `config.data.protocol` candle is read by that protocol's file. The long names are for
    their own protocol, where they mean the same, and for one_class, which leaves their training anomalies out.
    Masks hold class ids 1..9. 500 file names occur under both Normal and Anomaly: images are known by path.
    """

    name = "visa"
    CATEGORIES = OBJECTS
    BUILDER_CONFIGS = configs(OBJECTS + TWO_CLASS, "VisA")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Download and unpack https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar and pass the "
        "folder that holds candle, capsules, ... and split_csv as manual_dir."
    )
    DESCRIPTION = "Twelve objects: complex structures, several instances per image, and roughly aligned parts."
    HOMEPAGE = "https://github.com/amazon-science/spot-diff"
    CITATION = (
        "@inproceedings{zou2022spot, author={Zou, Yang and Jeong, Jongheon and Pemula, Latha and Zhang, Dongqing and "
        "Dabeer, Onkar}, title={SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection and "
        "Segmentation}, booktitle={European Conference on Computer Vision}, year={2022}}"
    )

    @classmethod
    def listing(cls, root: Path, category: str) -> Listing:
        name, which = _parse(category)
        table = root / "split_csv" / f"{which}.csv"
        if not table.is_file():
            problem = f"{table} is missing; VisA's tar file holds it, and root must be the folder with split_csv"
            return Listing(root, category, {}, (problem,))
        splits: dict[str, list[Sample]] = {"train": [], "test": []}
        problems = []
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["object"] != name:
                    continue
                anomalous = row["label"] != "normal"
                if anomalous and not row["mask"]:
                    problems.append(f"{row['image']} is anomalous in {table} but has no mask there; restore the file")
                sample = Sample(row["image"], "anomaly" if anomalous else NORMAL, row["mask"] or None)
                for path in filter(None, (sample.path, sample.mask)):
                    if not (root / path).is_file():
                        problems.append(f"{root / path} is missing but listed in {table}; unpack the tar file again")
                splits[row["split"]].append(sample)
        known = {sample.mask for samples in splits.values() for sample in samples}
        for mask in images_in(root / name / "Data" / "Masks" / "Anomaly"):
            if which == "1cls" and mask.relative_to(root).as_posix() not in known:
                problems.append(f"{mask} is a mask without an image in {table}; remove it")
        protocol = PROTOCOLS[which] if which != "1cls" else ""
        return dataclasses.replace(finish(root, name, splits, problems), category=category, protocol=protocol)

    @classmethod
    def listed_as(cls, category: str, protocol: str) -> str:
        name, which = _parse(category)
        if protocol in ("one_class", PROTOCOLS[which]):
            return category
        if which != "1cls":
            raise UserError(
                f"config.data.category={category!r} is the division of protocol {PROTOCOLS[which]}, not of {protocol}; "
                f"set --config.data.category={name} or --config.data.protocol={PROTOCOLS[which]}"
            )
        return f"{name}_{next(table for table, value in PROTOCOLS.items() if value == protocol)}"

    @classmethod
    def found(cls, root: Path) -> tuple[str, ...]:
        present = super().found(root)
        return present + tuple(name for name in TWO_CLASS if _parse(name)[0] in present)


def _parse(category: str) -> tuple[str, str]:
    """(object, file in split_csv/)."""
    for table in list(PROTOCOLS)[1:]:
        if category.endswith("_" + table):
            return category.removesuffix("_" + table), table
    return category, "1cls"
