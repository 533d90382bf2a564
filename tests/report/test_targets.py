"""The paper's numbers: they are what the tables print, and they stand beside the runs that they belong to only."""

from __future__ import annotations

import json
import pathlib
import re
import runpy
import subprocess
import sys
import tomllib
from collections import defaultdict

import pytest

from jaxad import evaluate, report
from jaxad.flags import load
from jaxad.report import __main__ as command
from jaxad.report import tables, targets
from jaxad.report.targets import Column

ROOT = pathlib.Path(__file__).parents[2]
ALL = targets.read("siamese_unet")
ANOSEG = targets.read("anoseg")
VISA = "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum".split()
SWAPPED = "the poster prints AU-ROC and AU-PR of MVTec the other way round"
UNNAMED = "the poster does not say that the method of this table is PaDiM"
SEGMENTER = ("hard_aug", "adversarial", "reconstruction", "coords")
DETECTOR = ("feature_matching", "input_map", "anomaly_cls")


def values(table, method, metric, source=ALL):
    """{category: value} of one column."""
    return {t.category: t.value for t in source if (t.table, t.method, t.metric) == (table, method, metric)}


def config(method="siamese_unet", dataset="mvtec_ad", **own):
    data = {"dataset": dataset, "n_shot": own.pop("n_shot", 0), "source": own.pop("source", "")}
    data["n_anomalies"] = own.pop("n_anomalies", 10)
    return {"method": method, "seed": 0, "data": data, method: {"anomalies": "real", **own}}


def anoseg(segmenter="TTTT", detector="TTT", **data):
    """The switches as letters: segmenter in the order of SEGMENTER, detector in that of DETECTOR, '' for none."""
    own = {name: letter == "T" for name, letter in zip(SEGMENTER, segmenter, strict=True)}
    parts = {name: letter == "T" for name, letter in zip(DETECTOR, detector or "TTT", strict=True)}
    own["detector"] = {"enabled": bool(detector), **parts}
    return {**config("anoseg"), "data": {"dataset": "mvtec_ad", "n_shot": 0, "source": "", **data}, "anoseg": own}


def test_every_table_has_its_classes_methods_and_cells_once():
    assert len(set((t.table, t.setting, t.category, t.method, t.metric) for t in ALL)) == len(ALL)
    classes = {table: {t.category for t in ALL if t.table == table} - {"average"} for table in (1, 2, 3, 4)}
    assert [len(classes[table]) for table in (1, 2, 3, 4)] == [15, 0, 10, 0]
    assert {t.dataset for t in ALL if t.table < 3} == {"mvtec_ad"}
    assert {t.dataset for t in ALL if t.table > 2} == {"mvtec_3d_ad"}
    for table, n in ((1, 15), (3, 10)):
        for method in ("ours_r", "ours_s", "rd"):
            for metric in ("image_auroc", "pixel_auroc"):
                assert len(values(table, method, metric)) == n + 1
    ablations = {(t.setting, t.method) for t in ALL if t.table == 4}
    assert {method for setting, method in ablations if setting == "ablation_right"} == {"cbam", "cpam"}
    left = {"wo_cpam", "wo_finetune", "wo_contrastive", "ours"}
    assert {method for setting, method in ablations if setting == "ablation_left"} == left
    assert {t.metric for t in ALL} == {"image_auroc", "pixel_auroc", "aupro_0.3"} and all(
        40 < t.value <= 100 for t in ALL
    )


def test_every_table_of_anoseg_has_its_classes_methods_and_cells_once():
    assert len(set((t.table, t.setting, t.category, t.method, t.metric) for t in ANOSEG)) == len(ANOSEG) == 242
    assert {t.dataset for t in ANOSEG} == {"mvtec_ad"}
    classes = {t.category for t in ALL if t.table == 1}
    methods = ["ae_l2", "cavga", "us", "fcdd", "patch_svdd", "spade", "cutpaste", "anoseg"]
    for method in methods:
        assert set(values(1, method, "pixel_auroc", ANOSEG)) == classes
    for method in set(methods) - {"fcdd", "spade"}:
        assert set(values(4, method, "image_auroc", ANOSEG)) == classes
    assert values(4, "spade", "image_auroc", ANOSEG) == {"average": 86.0}
    per_table = [[t for t in ANOSEG if t.table == table] for table in (1, 2, 3, 4, 5)]
    assert [len(some) for some in per_table] == [8 * 16, 5, 8, 6 * 16 + 1, 4]
    assert {t.category for table in (2, 3, 5) for t in per_table[table - 1]} == {"average"}
    assert {(t.table, t.setting) for t in ANOSEG} == {
        (1, "full"),
        (2, "full"),
        (3, "table3"),
        (4, "full"),
        (5, "table5"),
    }
    assert {t.metric for t in ANOSEG} == {"image_auroc", "pixel_auroc", "iou_max"}


def poster(method, **own):
    """A run of the poster: its method, and how its backbone was pre-trained."""
    data = {"dataset": "visa", "n_shot": 0, "n_anomalies": 0, "source": "", "protocol": "one_class"}
    data |= {key: own.pop(key) for key in ("dataset", "protocol", "k_shot", "n_shot", "n_anomalies") if key in own}
    name = own.pop("name", {"patchcore": "wide_resnet50_2"}.get(method, "resnet50"))
    return {"method": method, "seed": 0, "data": data, "backbone": {"name": name, "weights": own.pop("weights")}, **own}


def pretrained(folder, name="resnet50", base="simsiam", data=("tfds", "imagenet2012"), started="random", **own):
    """The folder that a pre-training run leaves, as far as targets look at it."""
    spd = {"base": base, "eta": 0.1, "term": "auto", "local": "smooth_blend", **own}
    made = {"method": "spd", "data": dict(zip(("dataset", "category"), data, strict=True)), "spd": spd}
    made["backbone"] = {"name": name, "weights": started}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(made))
    return str(folder)


def test_the_tables_of_the_poster_have_their_columns_and_cells_once():
    metrics = {"image_auroc", "image_aupr", "pixel_auroc", "pixel_aupr"}
    for source, table, columns in (
        ("patchcore", 1, {(dataset, "full", m) for dataset in ("visa", "mvtec_ad") for m in ("sup", "sup+spd")}),
        (
            "two_class",
            2,
            {
                ("visa", f"{k}_shot", f"{base}{spd}")
                for k in (5, 10)
                for base in ("sup", "simsiam", "moco", "simclr")
                for spd in ("", "+spd")
            },
        ),
        (
            "padim",
            3,
            {
                (dataset, f"ablation_{name}", f"simsiam{spd}")
                for dataset in ("visa", "mvtec_ad")
                for name, more in (
                    ("resnet50", ["+spd_eta0.5", "+spd_eta1.0", "+spd_cutpaste", "+spd_xent"]),
                    ("wide_resnet50_2", []),
                )
                for spd in ("", "+spd", *more)
            },
        ),
    ):
        rows = targets.read(source)
        assert {(t.dataset, t.setting, t.method) for t in rows} == columns
        assert len(rows) == 4 * len(columns) and {t.metric for t in rows} == metrics
        assert {(t.table, t.category) for t in rows} == {(table, "average")}
        cells = {(t.dataset, t.setting, t.method, t.metric) for t in rows}
        assert len(cells) == len(rows)


def test_the_swapped_columns_of_the_poster_stand_under_their_own_metric_with_a_note():
    rows = targets.read("patchcore")
    noted = {(t.method, t.metric): t.value for t in rows if t.note == SWAPPED}
    assert noted == {
        ("sup", "image_auroc"): 99.2,
        ("sup", "image_aupr"): 99.8,
        ("sup+spd", "image_auroc"): 99.0,
        ("sup+spd", "image_aupr"): 99.7,
    }
    assert {t.dataset for t in rows if t.note} == {"mvtec_ad"}
    # most test images of MVTec AD are anomalous, so AU-PR is above AU-ROC wherever the poster's columns are in order
    columns = {}
    for t in targets.read("padim") + rows:
        if t.dataset == "mvtec_ad":
            columns.setdefault((t.setting, t.method), {})[t.metric] = t.value
    assert len(columns) == 10 and all(cells["image_aupr"] > cells["image_auroc"] for cells in columns.values())
    assert {t.note for t in targets.read("padim")} == {UNNAMED}


@pytest.mark.parametrize(
    "method, given, own, expected",
    [
        ("patchcore", {}, {"base": "supervised", "name": "wide_resnet50_2"}, "full sup+spd"),
        ("patchcore", {}, {"base": "supervised", "name": "wide_resnet50_2", "eta": 0.0}, "full sup"),
        ("patchcore", {}, {"base": "simsiam", "name": "wide_resnet50_2"}, None),  # Table 1 is of supervised ones
        ("patchcore", {"name": "resnet50"}, {"base": "supervised"}, None),
        ("patchcore", {}, {"base": "supervised"}, None),  # the run's backbone is not what was pre-trained
        ("padim", {}, {}, "ablation_resnet50 simsiam+spd"),
        ("padim", {}, {"eta": 0}, "ablation_resnet50 simsiam"),
        ("padim", {}, {"eta": 0.5}, "ablation_resnet50 simsiam+spd_eta0.5"),
        ("padim", {}, {"eta": 1}, "ablation_resnet50 simsiam+spd_eta1.0"),
        ("padim", {}, {"eta": 0.2}, None),
        ("padim", {}, {"local": "cutpaste"}, "ablation_resnet50 simsiam+spd_cutpaste"),
        ("padim", {}, {"local": "cutpaste", "eta": 0.0}, "ablation_resnet50 simsiam"),  # nothing local is left
        ("padim", {}, {"term": "xent"}, "ablation_resnet50 simsiam+spd_xent"),
        ("padim", {}, {"term": "cosine"}, "ablation_resnet50 simsiam+spd"),
        ("padim", {}, {"term": "xent", "local": "cutpaste"}, None),
        ("padim", {}, {"base": "moco"}, None),
        ("padim", {"name": "wide_resnet50_2"}, {"name": "wide_resnet50_2"}, "ablation_wide_resnet50_2 simsiam+spd"),
        ("padim", {"name": "wide_resnet50_2"}, {"name": "wide_resnet50_2", "eta": 0.5}, None),
        ("padim", {"protocol": "high_shot"}, {}, None),
        ("padim", {"n_shot": 16}, {}, None),
        ("padim", {"n_anomalies": 3}, {}, None),
        ("padim", {}, {"data": ("tfds", "imagenet2012:5.1.0")}, "ablation_resnet50 simsiam+spd"),
        ("padim", {}, {"data": ("tfds", "imagenet2012_subset")}, None),
        ("padim", {}, {"data": ("demo", "")}, None),
        ("padim", {}, {"started": "imagenet"}, None),  # it went on from the labels' backbone
        ("two_class", {"protocol": "few_shot", "k_shot": 5}, {"base": "moco"}, "5_shot moco+spd"),
        ("two_class", {"protocol": "few_shot", "k_shot": 10}, {"base": "simclr", "eta": 0.0}, "10_shot simclr"),
        (
            "two_class",
            {"protocol": "few_shot", "k_shot": 10},
            {"base": "supervised", "term": "xent"},
            "10_shot sup+spd",
        ),
        ("two_class", {"protocol": "few_shot", "k_shot": 10}, {"base": "supervised", "term": "cosine"}, None),
        ("two_class", {"protocol": "few_shot", "k_shot": 20}, {"base": "moco"}, None),
        ("two_class", {"protocol": "high_shot", "k_shot": 10}, {"base": "moco"}, None),
        ("two_class", {"protocol": "one_class", "k_shot": 10}, {"base": "moco"}, None),
        ("two_class", {"protocol": "few_shot", "k_shot": 5, "name": "resnet18"}, {"name": "resnet18"}, None),
    ],
)
def test_a_run_on_a_pretrained_backbone_is_compared_with_its_own_column_or_with_none(
    tmp_path, method, given, own, expected
):
    weights = pretrained(tmp_path / "spd", **own)
    found = targets.column(poster(method, weights=weights, **given))
    assert (f"{found.setting} {found.method}" if found else None) == expected
    if found:
        assert found.source == method
        file = tmp_path / "spd/imagenet2012/backbone.safetensors"  # one of the run's files, named itself
        assert targets.column(poster(method, weights=str(file), **given)) == found


def test_torchvisions_backbone_is_the_supervised_one_and_other_files_are_unknown(tmp_path):
    few = {"protocol": "few_shot", "k_shot": 5}
    assert targets.column(poster("patchcore", weights="imagenet")) == Column("patchcore", "full", "sup")
    assert targets.column(poster("two_class", weights="imagenet", **few)).method == "sup"
    assert targets.column(poster("padim", weights="imagenet")) is None  # its table of the poster is a picture
    (tmp_path / "config.json").write_text(json.dumps({"method": "patchcore"}))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{")
    for weights in ("random", "", str(tmp_path), str(tmp_path / "broken"), str(tmp_path / "a/backbone.safetensors")):
        assert targets.column(poster("two_class", weights=weights, **few)) is None


def test_the_posters_numbers_stand_beside_the_mean_of_all_categories_only(tmp_path):
    weights = pretrained(tmp_path / "spd", data=("images", ""))
    run = poster("padim", weights=weights)
    assert targets.of_run(run, "visa", "candle") is None and targets.of_mean(run, VISA[1:]) is None
    found = targets.of_mean(run, VISA)
    folder = "pre-trained on a folder of images, the poster on ImageNet-1k"
    assert found == {
        "image_auroc": 0.812,
        "pixel_auroc": 0.927,
        "image_aupr": 0.828,
        "pixel_aupr": 0.094,
        "table": 3,
        "column": "simsiam+spd",
        "source": "padim",
        "note": f"{UNNAMED}; {folder}",
    }
    classes = sorted({t.category for t in ANOSEG} - {"average"})
    mvtec = targets.of_mean(poster("patchcore", weights="imagenet", dataset="mvtec_ad"), classes)
    assert (mvtec["image_auroc"], mvtec["image_aupr"], mvtec["pixel_aupr"]) == (0.992, 0.998, 0.488)
    assert mvtec["note"] == f"image AUROC: {SWAPPED}; image AUPR: {SWAPPED}"
    for other in ("btad", "folder", "mvtec_3d_ad"):
        assert targets.of_mean(poster("patchcore", weights="imagenet", dataset=other), classes) is None
    few = poster("two_class", weights="imagenet", protocol="few_shot", k_shot=10)
    assert targets.of_mean(few, VISA)["note"] == "a run is one draw of the images"


def pattern_generation(**changes):
    """The keys of a run that its column depends on."""
    own = {"generator": "swin", "combine": "min", "compare": {"enabled": True}, **changes}
    return {**config("pattern_generation", n_anomalies=0), "pattern_generation": own}


def test_pattern_generation_has_one_number_of_public_data_and_says_of_all_others_that_they_are_not():
    rows = targets.read("pattern_generation")
    assert len({row[:6] for row in rows}) == len(rows) == 2 + 8 + 8 + 2
    assert {t.category for t in rows} == {"average"}
    public = [t for t in rows if not t.note.startswith("private data; ")]
    assert {(t.table, t.dataset, t.setting, t.method) for t in public} == {(1, "mvtec_ad", "full", "ours")}
    pairs = {(t.dataset, t.setting, t.method) for t in rows if t.note == "private data; pair order inferred"}
    assert pairs == {
        *(("cloth2", f"trained_on_cloth{n}", method) for n in (1, 2) for method in ("patchcore", "ours")),
        *((f"cloth_texture{n}", "table3", method) for n in (1, 2) for method in ("cyclegan", "ours")),
    }
    figure = {t.dataset: t.value for t in rows if (t.table, t.setting, t.metric) == (0, "fig8", "best_n")}
    assert figure == {"cloth_texture1": 4, "cloth_texture2": 7}
    assert all(t.metric in targets.METRICS for t in rows if t.table)


def test_the_mean_of_pattern_generation_stands_beside_all_categories_and_is_told_to_be_unverified(tmp_path):
    classes = sorted({t.category for t in ANOSEG} - {"average"})
    run = pattern_generation()
    found = targets.of_mean(run, classes)
    assert (found["image_auroc"], found["pixel_auroc"], found["table"]) == (0.998, 0.987, 1)
    assert found["note"].startswith("unverified: ")
    assert targets.of_mean(run, classes[1:]) is None and targets.of_run(run, "mvtec_ad", "carpet") is None
    assert targets.of_mean({**run, "data": {"dataset": "folder"}}, classes) is None
    results = finished(tmp_path, run, classes)
    (told,) = (line for line in tables.footnotes(results) if line.startswith("mean: "))
    assert "the paper's 0.998; pixel AUROC 0.5000, the paper's 0.987 (Table 1, ours; unverified: " in told
    assert "mean: paper: unverified: " in command.text({"r": command.read(str(tmp_path))})


def test_only_the_whole_system_is_compared_with_pattern_generations_mean():
    ours = Column("pattern_generation", "full", "ours")
    assert targets.column(pattern_generation()) == targets.column(pattern_generation(combine="max")) == ours
    for changes in (
        {"generator": "cyclegan_resnet6"},
        {"generator": "copy_near"},
        {"compare": {"enabled": False}},
        {"combine": "single_lr"},
    ):
        assert targets.column(pattern_generation(**changes)) is None
    for data in ({"n_anomalies": 3}, {"n_shot": 5}):
        assert targets.column({**pattern_generation(), "data": data}) is None


def test_a_model_of_all_categories_is_pattern_generations_own_and_no_other_papers():
    for method, one in (
        ("pattern_generation", pattern_generation()),
        ("reverse_distillation", config("reverse_distillation")),
    ):
        alone = targets.column(one)
        joint = targets.column({**one, "data": {**one["data"], "joint": True}})
        taken = targets.column({**one, "start": {"run": "W", "stage": "S", "category": "joint"}})
        foreign = targets.column({**one, "start": {"run": "W", "stage": "S", "category": "screw"}})
        assert alone is not None and foreign is None
        assert joint == taken == (alone if method == "pattern_generation" else None)


def test_the_ablations_of_pattern_generation_that_lack_a_part_of_the_system_have_no_column():
    file = f"{ROOT}/configs/ablations.py"
    rows = runpy.run_path(file)["ROWS"]["pattern_generation"]
    alone = {name for name in rows if not targets.column(load(f"{file}:pattern_generation/{name}").to_dict())}
    parts = {"table3_cnn", "table3_cnn_matched", "no_generator", "no_comparison"}
    assert alone == parts | {"lr_only", "rl_only"}


def test_printed_averages_of_anoseg_are_those_of_their_rows_except_the_one_that_a_note_tells():
    slips = {}
    for table, metric in ((1, "pixel_auroc"), (4, "image_auroc")):
        for method in {t.method for t in ANOSEG if t.table == table}:
            column = values(table, method, metric, ANOSEG)
            average = column.pop("average")
            mean = sum(column.values()) / len(column) if column else average
            if abs(mean - average) > 0.5 + 1e-9:  # two digits are printed
                slips[table, method] = round(mean, 1)
    assert slips == {(4, "us"): 81.1}
    assert {(t.method, t.category): t.note for t in ANOSEG if t.note} == {
        ("us", "average"): "rows give 81.1",
        ("spade", "average"): "no rows printed",
        ("anoseg", "average"): "the introduction says 96.4",
    }


@pytest.mark.parametrize(
    "source, table, method, metric, category, value",
    [
        ("siamese_unet", 1, "ours_r", "image_auroc", "screw", 100.0),
        ("siamese_unet", 1, "ours_s", "pixel_auroc", "tile", 99.5),
        ("siamese_unet", 1, "rd", "pixel_auroc", "carpet", 97.0),
        ("siamese_unet", 1, "fastflow", "image_auroc", "toothbrush", 94.4),
        ("siamese_unet", 2, "ours_r", "pixel_auroc", "average", 97.3),
        ("siamese_unet", 3, "ours_r", "image_auroc", "peach", 81.3),
        ("siamese_unet", 3, "ours_s", "pixel_auroc", "foam", 82.9),
        ("siamese_unet", 4, "wo_contrastive", "aupro_0.3", "average", 95.2),
        ("anoseg", 1, "anoseg", "pixel_auroc", "capsule", 90.0),
        ("anoseg", 1, "ae_l2", "pixel_auroc", "tile", 51.0),
        ("anoseg", 1, "fcdd", "pixel_auroc", "pill", 81.0),
        ("anoseg", 2, "us", "iou_max", "average", 24.4),
        ("anoseg", 2, "anoseg", "iou_max", "average", 54.2),
        ("anoseg", 3, "table3_adversarial", "iou_max", "average", 52.7),
        ("anoseg", 3, "table3_hard", "pixel_auroc", "average", 94.2),
        ("anoseg", 4, "cutpaste", "image_auroc", "leather", 100.0),
        ("anoseg", 4, "anoseg", "image_auroc", "metal_nut", 95.0),
        ("anoseg", 5, "table5_input_map", "image_auroc", "average", 94.3),
        ("pattern_generation", 1, "ours", "image_auroc", "average", 99.8),
    ],
)
def test_single_cells_are_those_of_the_paper(source, table, method, metric, category, value):
    assert values(table, method, metric, targets.read(source)).get(category) == value


def test_printed_averages_are_those_of_their_rows_except_where_a_note_says_what_these_give():
    columns = defaultdict(dict)
    for target in ALL:
        if target.table in (1, 3):
            columns[target.table, target.method, target.metric][target.category] = target
    slips = {}
    for key, column in columns.items():
        average = column.pop("average", None)
        if average is None or not column:
            assert average is None or average.note == "no rows printed"
            continue
        assert len(column) == {1: 15, 3: 10}[key[0]]
        mean = sum(target.value for target in column.values()) / len(column)
        if abs(mean - average.value) > 0.05 + 1e-9:
            slips[key] = (average.value, round(mean, 1))
            assert average.note == f"rows give {mean:.1f}"
        else:
            assert average.note == ""
    assert slips == {
        (1, "rd", "pixel_auroc"): (97.9, 97.7),
        (1, "ours_s", "pixel_auroc"): (98.6, 98.0),
        (3, "rd", "pixel_auroc"): (98.8, 98.9),
        (3, "ours_s", "pixel_auroc"): (95.4, 96.3),
    }


@pytest.mark.parametrize(
    "given, expected",
    [
        (config(), Column("siamese_unet", "full", "ours_r")),
        (config(anomalies="synthetic"), Column("siamese_unet", "full", "ours_s")),
        (config(n_shot=16), Column("siamese_unet", "16_shot", "ours_r")),
        (config(n_shot=5), None),
        (config(n_anomalies=5), None),
        (config(anomalies="synthetic", n_anomalies=0), Column("siamese_unet", "full", "ours_s")),
        (config(attention="none"), Column("siamese_unet", "ablation_left", "wo_cpam")),
        (config(attention="none", anomalies="synthetic"), None),
        (config(attention="cbam"), None),  # the paper's cbam is not finetuned
        (config(attention="cbam", deviation=False), Column("siamese_unet", "ablation_right", "cbam")),
        (config(deviation=False), Column("siamese_unet", "ablation_left", "wo_finetune")),
        (config(contrastive=False), Column("siamese_unet", "ablation_left", "wo_contrastive")),
        (config("reverse_distillation"), Column("siamese_unet", "full", "rd")),
        (config("reverse_distillation", n_shot=16), Column("siamese_unet", "16_shot", "rd")),
        (config("patchcore"), None),  # nobody knows what its backbone was pre-trained with
        (config("my_package.siamese_unet"), None),
    ],
)
def test_a_run_is_compared_with_its_own_column_or_with_none(given, expected):
    assert targets.column(given) == expected


@pytest.mark.parametrize(
    "given, expected",
    [
        (anoseg(), Column("anoseg", "full", "anoseg")),
        (anoseg("FFFF", ""), Column("anoseg", "table3", "table3_base")),
        (anoseg("TFFF", ""), Column("anoseg", "table3", "table3_hard")),
        (anoseg("TTTF", ""), Column("anoseg", "table3", "table3_adversarial")),
        (anoseg("TTTT", ""), Column("anoseg", "table3", "table3_coords")),
        (anoseg("TTTT", "FFF"), Column("anoseg", "table5", "table5_base")),
        (anoseg("TTTT", "TFF"), Column("anoseg", "table5", "table5_feature_matching")),
        (anoseg("TTTT", "TTF"), Column("anoseg", "table5", "table5_input_map")),
        (anoseg("TFTF", ""), None),  # reconstructs without a critic: figure 8a
        (anoseg("FFFF"), None),  # the rows of Table 3 have no detector
        (anoseg("TTTT", "FTT"), None),  # the rows of Table 5 add up
        (anoseg(n_shot=16), None),
    ],
)
def test_a_run_of_anoseg_is_compared_with_the_row_of_its_switches_or_with_none(given, expected):
    assert targets.column(given) == expected
    if expected:
        assert [t for t in ANOSEG if (t.setting, t.method) == (expected.setting, expected.method)]


@pytest.mark.parametrize(
    "source, dataset, setting, method, metric, value",
    [
        ("patchcore", "visa", "full", "sup", "pixel_aupr", 38.4),
        ("patchcore", "visa", "full", "sup+spd", "image_auroc", 92.5),
        ("patchcore", "mvtec_ad", "full", "sup+spd", "pixel_auroc", 97.5),
        ("two_class", "visa", "5_shot", "sup", "image_aupr", 59.2),
        ("two_class", "visa", "10_shot", "simsiam+spd", "pixel_auroc", 83.2),
        ("two_class", "visa", "10_shot", "moco", "image_auroc", 90.6),
        ("two_class", "visa", "5_shot", "simclr+spd", "pixel_aupr", 18.9),
        ("padim", "visa", "ablation_resnet50", "simsiam", "image_auroc", 78.1),
        ("padim", "mvtec_ad", "ablation_resnet50", "simsiam+spd_cutpaste", "pixel_auroc", 91.3),
        ("padim", "visa", "ablation_resnet50", "simsiam+spd_xent", "pixel_aupr", 2.7),
        ("padim", "mvtec_ad", "ablation_wide_resnet50_2", "simsiam+spd", "image_aupr", 93.4),
        ("pattern_generation", "cloth2", "trained_on_cloth1", "patchcore", "image_auroc", 42.2),
        ("pattern_generation", "cloth2", "trained_on_cloth2", "patchcore", "pixel_auroc", 82.6),
        ("pattern_generation", "cloth2", "trained_on_cloth1", "ours", "pixel_auroc", 92.0),
        ("pattern_generation", "cloth_texture1", "table3", "cyclegan", "pixel_auroc", 92.9),
        ("pattern_generation", "cloth_texture2", "table3", "cyclegan", "image_auroc", 92.0),
        ("pattern_generation", "cloth_texture2", "table3", "ours", "image_auroc", 98.4),
    ],
)
def test_single_cells_of_a_setting_are_those_printed(source, dataset, setting, method, metric, value):
    rows = targets.read(source)
    cells = [t.value for t in rows if (t.dataset, t.setting, t.method, t.metric) == (dataset, setting, method, metric)]
    assert cells == [value]


@pytest.mark.parametrize(
    "variant, expected", [("r", "ours_r"), ("s", "ours_s"), ("r+16shot", "ours_r"), ("", "ours_s")]
)
def test_the_variants_of_the_papers_config_are_its_columns(variant, expected):
    of = targets.column(load(f"{ROOT}/configs/siamese_unet.py:{variant}").to_dict())
    assert of == Column("siamese_unet", "16_shot" if "16shot" in variant else "full", expected)


def test_a_run_on_other_data_shows_nothing():
    for dataset in ("folder", "demo", "visa"):
        assert targets.of_run(config(dataset=dataset), dataset, "screw") is None
        assert targets.of_mean(config(dataset=dataset), ["screw"]) is None
    assert targets.of_run(config(), "mvtec_ad", "bolt") is None
    assert targets.of_run(config(), "mvtec_3d_ad", "screw") is None  # the other table's class
    assert targets.read("my_package.patchcore") == ()


def test_the_mean_stands_beside_the_mean_of_the_same_rows_not_the_printed_average():
    found = targets.of_mean(config(anomalies="synthetic"), ["screw", "tile"])
    assert (found["image_auroc"], found["pixel_auroc"]) == (0.983, 0.9945)
    assert targets.of_mean(config(), ["screw", "bolt"]) is None
    classes = sorted(set(values(1, "rd", "image_auroc")) - {"average"})
    whole = targets.of_mean(config(anomalies="synthetic"), classes)
    assert round(whole["pixel_auroc"], 4) == 0.98  # printed: 98.6


def test_what_is_printed_as_an_average_only_needs_all_classes():
    classes = sorted(set(values(1, "rd", "image_auroc")) - {"average"})
    assert targets.of_mean(config(n_shot=16), classes)["image_auroc"] == 0.951
    assert targets.of_mean(config(n_shot=16), classes[1:]) is None
    assert targets.of_run(config(n_shot=16), "mvtec_ad", "screw") is None
    classes = sorted(set(values(3, "rd", "image_auroc")) - {"average"})
    ablated = targets.of_mean(config(dataset="mvtec_3d_ad", attention="none"), classes)
    assert (ablated["image_auroc"], ablated["aupro_0.3"], ablated["table"]) == (0.858, 0.957, 4)


def test_one_run_has_the_numbers_of_several_tables():
    classes = sorted(set(values(4, "anoseg", "image_auroc", ANOSEG)) - {"average"})
    own = {"column": "anoseg", "source": "anoseg"}
    screw = targets.of_run(anoseg(), "mvtec_ad", "screw")
    assert screw == {"image_auroc": 0.97, "pixel_auroc": 0.91, "table": [1, 4], **own}
    told = "image AUROC 0.9000, the paper's 0.970; pixel AUROC n/a, the paper's 0.910 (Tables 1 and 4, anoseg)"
    assert targets.line({"image_auroc": 0.9, "paper": screw}, "anoseg") == told
    whole = targets.of_mean(anoseg(), classes)
    # IoU is printed as an average only, so it stands beside all classes and beside no fewer
    assert whole == {"image_auroc": 0.961333, "pixel_auroc": 0.968667, "iou_max": 0.542, "table": [1, 2, 4], **own}
    assert targets.where(json.loads(json.dumps(whole)), "anoseg") == "Tables 1, 2 and 4, anoseg"
    assert targets.of_mean(anoseg(), classes[1:]).keys() == {"image_auroc", "pixel_auroc", "table", "column", "source"}


def test_the_ablations_of_anoseg_have_averages_only():
    classes = sorted(set(values(4, "anoseg", "image_auroc", ANOSEG)) - {"average"})
    base = {"column": "table3_base", "source": "anoseg"}
    found = targets.of_mean(anoseg("FFFF", ""), classes)
    assert found == {"pixel_auroc": 0.923, "iou_max": 0.492, "table": 3, **base}
    assert targets.of_mean(anoseg("FFFF", ""), classes[1:]) is None
    assert targets.of_run(anoseg("FFFF", ""), "mvtec_ad", "screw") is None
    found = targets.of_mean(anoseg("TTTT", "TFF"), classes)
    assert (found["image_auroc"], found["table"], "pixel_auroc" in found) == (0.842, 5, False)


def test_the_file_is_found_in_a_clone_and_in_a_wheel(tmp_path, monkeypatch):
    for folder in (tmp_path / "clone/configs/targets", tmp_path / "prefix/share/jaxad/targets"):
        monkeypatch.setattr(targets, "__file__", str(tmp_path / "clone/jaxad/report/targets.py"))
        monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
        targets.read.cache_clear()
        assert targets.read("siamese_unet") == ()
        folder.mkdir(parents=True)
        (folder / "siamese_unet.csv").write_bytes((ROOT / "configs/targets/siamese_unet.csv").read_bytes())
        targets.read.cache_clear()
        assert targets.read("siamese_unet") == ALL
        (folder / "siamese_unet.csv").unlink()
    targets.read.cache_clear()
    monkeypatch.undo()
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    found = {str(path.relative_to(ROOT)) for path in ROOT.glob(shipped["share/jaxad/targets"][0])}
    names = ("anoseg", "siamese_unet", "patchcore", "padim", "two_class", "pattern_generation")
    assert found >= {f"configs/targets/{name}.csv" for name in names}


def entry(**changes):
    result = {name: 0.5 for name in evaluate.METRICS} | {"image_auroc": 0.9712, "n_train": 30, "fit_seconds": 2.0}
    result |= {"n_test_normal": 1, "n_test_anomalous": 1, "predict_ms_per_image": 1.0, "image_auroc_ci95": None}
    limit = dict(value=1.0, unit="raw score", rule="quantile", quantile=0.9, source="train", n_images=3)
    return result | {"threshold": limit, "false_alarms": 0, "misses": 0, "defects": {}, "notes": {}} | changes


def finished(folder, given, categories=("screw", "tile"), dataset=None):
    """A run as `report.write` leaves it."""
    entries = {}
    for name in categories:
        paper = targets.of_run(given, dataset or given["data"]["dataset"], name)
        entries[name] = report.Entry(entry(**({"paper": paper} if paper else {})), [])
    results = report.write(folder, given, entries, "abc")
    (folder / "config.json").write_text(json.dumps(given))
    return results


def test_the_paper_stands_under_the_table_and_in_results_json(tmp_path):
    results = finished(tmp_path, config(anomalies="synthetic"))
    assert json.loads((tmp_path / "results.json").read_text())["categories"]["screw"]["paper"] == {
        "image_auroc": 0.975,
        "pixel_auroc": 0.994,
        "table": 1,
        "column": "ours_s",
        "source": "siamese_unet",
    }
    lines = tables.footnotes(results)
    told = "image AUROC 0.9712, the paper's 0.975; pixel AUROC 0.5000, the paper's 0.994 (Table 1, ours_s)"
    assert lines[0] == f"screw: {told}"
    assert any(line.startswith("tile: ") and "looks like a slip" in line for line in lines)
    assert (
        "mean: image AUROC 0.9712, the paper's 0.983; pixel AUROC 0.5000, the paper's 0.995 (Table 1, ours_s)" in lines
    )


def test_a_run_on_a_folder_has_no_paper_anywhere(tmp_path):
    results = finished(tmp_path, config(dataset="folder"))
    assert "paper" not in (tmp_path / "results.json").read_text()
    assert "paper" not in tables.plain(results)
    assert "paper" not in command.text({"r": command.read(str(tmp_path))})


def test_the_columns_metrics_are_those_of_evaluate():
    assert tables.METRICS == evaluate.METRICS


def call(*argv):
    # jax out of reach: the command must not need it
    script = "import sys, runpy; sys.modules['jax'] = None; runpy.run_module('jaxad.report', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, cwd=ROOT)


def test_the_command_prints_runs_beside_the_paper_without_jax(tmp_path):
    finished(tmp_path / "a", config(anomalies="synthetic"))
    finished(tmp_path / "b", config("reverse_distillation"), ["screw"])
    finished(tmp_path / "c", config("patchcore", "folder"), ["screw"])
    a, b, c = (str(tmp_path / name) for name in "abc")
    done = call(a, b, c)
    assert done.returncode == 0, done.stderr
    lines = [re.split(r"  +", line) for line in done.stdout.splitlines()]
    assert lines[0][1:] == ["category", "image AUROC", "paper", "pixel AUROC", "paper", "AUPRO", "IoU"]
    assert lines[1] == [a, "screw", "0.9712", "0.975", "0.5000", "0.994", "0.5000", "0.5000"]
    assert lines[3] == [a, "mean", "0.9712", "0.983", "0.5000", "0.995", "0.5000", "0.5000"]
    assert lines[4] == [b, "screw", "0.9712", "0.970", "0.5000", "0.996", "0.5000", "0.5000"]
    assert lines[5] == [c, "screw", "0.9712", "0.5000", "0.5000", "0.5000"]
    assert f"{a}: siamese_unet, seed 0, commit abc" in done.stdout
    assert f"{a}: paper: Table 1, ours_s\n" in done.stdout
    assert f"{b}: paper: siamese_unet's Table 1, rd\n" in done.stdout
    assert f"{a}: tile: paper: pixel AUROC: out of line" in done.stdout


def test_the_command_shows_areas_under_precision_and_recall_beside_the_posters_only(tmp_path, capsys):
    finished(tmp_path / "run", poster("patchcore", weights="imagenet"), VISA)
    assert command.main(["report", str(tmp_path / "run")]) == 0
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    pairs = [f"{part} {area}" for area in ("AUROC", "AUPR") for part in ("image", "pixel")]
    assert [name for name in lines[0] if name != "paper"][2:] == [*pairs[:2], "AUPRO", "IoU", *pairs[2:]]
    mean = next(line for line in lines if line[1:2] == ["mean"])
    assert mean[2:] == ["0.9712", "0.924", "0.5000", "0.984", "0.5000", "0.5000", "0.5000", "0.933", "0.5000", "0.384"]


def test_a_run_from_before_the_targets_has_them_too_unless_its_data_is_unknown(tmp_path):
    given = config()
    finished(tmp_path, given, ["screw"], dataset="folder")  # 'paper' not in it
    assert command.read(str(tmp_path))["categories"]["screw"]["paper"]["image_auroc"] == 1.0
    given["data"]["source"] = "screw.zip"
    finished(tmp_path, given, ["screw"], dataset="folder")
    assert "paper" not in command.text({"r": command.read(str(tmp_path))})


@pytest.mark.parametrize(
    "argv, said",
    [
        ([], "no run given"),
        (["{}/none"], "none' is not the workdir of a finished run: it has no results.json"),
        (["{}/begun"], "begun' is not the workdir of a finished run: it has no results.json"),
        (["{}/done", "{}/broken"], "broken/results.json is not readable"),
        (["{}/done", "--al"], "unknown flag '--al'"),
        (["{}/other"], "other/results.json is not that of a jaxad run"),
    ],
)
def test_what_is_no_finished_run_is_one_line_and_exit_code_2(tmp_path, capsys, argv, said):
    finished(tmp_path / "done", config())
    for name, content in (("begun", None), ("broken", "{"), ("other", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config()))
        if content:
            (tmp_path / name / "results.json").write_text(content)
    assert command.main(["report", *(word.format(tmp_path) for word in argv)]) == 2
    out, error = capsys.readouterr()
    assert said in error and len(error.strip().splitlines()) == 1 and not out
