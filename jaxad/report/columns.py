"""Which column of a paper's tables a run is compared with: what its config shares with what was measured there.

jax is not imported.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

N_REAL = 10  # real anomalies that train in "(r)"
# Table 4 of siamese_unet: (attention, contrastive, deviation) -> (setting, column).
_ABLATIONS = {
    ("none", True, True): ("ablation_left", "wo_cpam"),
    ("cpam", True, False): ("ablation_left", "wo_finetune"),
    ("cpam", False, True): ("ablation_left", "wo_contrastive"),
    ("cbam", True, False): ("ablation_right", "cbam"),
}
# anoseg's segmenter, Table 3: (hard_aug, adversarial, reconstruction, coords) -> column, without a detector.
_SEGMENTERS = {
    (False, False, False, False): "table3_base",
    (True, False, False, False): "table3_hard",
    (True, True, True, False): "table3_adversarial",
    (True, True, True, True): "table3_coords",
}
# anoseg's detector, Table 5: (feature_matching, input_map, anomaly_cls) -> (setting, column), after a whole segmenter.
_DETECTORS = {
    (False, False, False): ("table5", "table5_base"),
    (True, False, False): ("table5", "table5_feature_matching"),
    (True, True, False): ("table5", "table5_input_map"),
    (True, True, True): ("full", "anoseg"),  # its last row is the mean of Table 4
}


class Column(NamedTuple):
    """Which numbers a run is compared with.

    source: the method whose file they are in · setting, method: as there · note: what the run does not share with them.
    """

    source: str
    setting: str
    method: str
    note: str = ""


def of_config(config: Mapping[str, Any]) -> Column | None:
    """The column that a run of this config (nested dicts) belongs to, whether it is printed or not; None: to none.

    >>> of_config({'method': 'siamese_unet', 'data': {'n_shot': 0}, 'siamese_unet': {'anomalies': 'synthetic'}})
    Column(source='siamese_unet', setting='full', method='ours_s', note='')
    """
    method = config["method"]
    setting = {0: "full", 16: "16_shot"}.get(config.get("data", {}).get("n_shot", 0))
    if setting is None or "." in method:  # a module of the user's own may have a paper's name
        return None
    trained = "joint" if config.get("data", {}).get("joint") else config.get("start", {}).get("category")
    if trained and (method, trained) != ("pattern_generation", "joint"):  # that paper alone has one model for all
        return None
    if method == "reverse_distillation":
        return Column("siamese_unet", setting, "rd")  # its baseline
    if method == "siamese_unet":
        return _siamese_unet(config[method], config["data"], setting)
    if method == "anoseg" and setting == "full":
        return _anoseg(config[method])
    if method == "pattern_generation" and setting == "full":
        return _pattern_generation(config[method], config["data"])
    if method in ("patchcore", "padim", "two_class") and setting == "full":
        return _poster(config)
    return None


def _poster(config: Mapping[str, Any]) -> Column | None:
    """The tables of the poster: 1 is of PatchCore, 2 of two classes, 3 the ablations."""
    method, data, backbone = config["method"], config.get("data", {}), config.get("backbone", {}).get("name")
    trained = _pretraining(config.get("backbone", {}))
    if trained is None or data.get("n_anomalies"):
        return None
    name, note = trained
    setting = None
    if data.get("protocol", "one_class") == "one_class":
        setting = {
            ("patchcore", "wide_resnet50_2"): "full",
            ("padim", "resnet50"): "ablation_resnet50",
            ("padim", "wide_resnet50_2"): "ablation_wide_resnet50_2",
        }.get((method, backbone))
    elif (method, backbone, data["protocol"]) == ("two_class", "resnet50", "few_shot"):
        setting = f"{data['k_shot']}_shot"
        note = "; ".join(filter(None, (note, "a run is one draw of the images")))
    return Column(method, setting, name, note) if setting else None


def _pretraining(backbone: Mapping[str, Any]) -> tuple[str, str] | None:
    """(column, note) of what a backbone, config.backbone of a run, was pre-trained with; None where nobody knows.

    Of a run of spd: only one that began at random weights, and on ImageNet-1k or on a folder of images, which may be
    it. Whether a table has the column is for the caller to see.
    """
    weights = backbone.get("weights", "")
    if weights == "imagenet":
        return "sup", ""
    made = _pretraining_run(weights)
    if made is None or made["backbone"]["name"] != backbone["name"] or made["backbone"]["weights"] != "random":
        return None
    data, own = made["data"], made["spd"]
    if data["dataset"] == "images":
        note = "pre-trained on a folder of images, the poster on ImageNet-1k"
    elif data["dataset"] == "tfds" and data["category"].partition(":")[0] == "imagenet2012":
        note = ""
    else:
        return None
    base = "sup" if own["base"] == "supervised" else own["base"]
    if not own["eta"]:
        return base, note
    usual = "xent" if base == "sup" else "cosine"
    term = usual if own["term"] == "auto" else own["term"]
    changes = [f"eta{float(own['eta'])}"] * (own["eta"] != 0.1)
    changes += [own["local"]] * (own["local"] != "smooth_blend") + [term] * (term != usual)
    return "_".join([f"{base}+spd", *changes]), note


def _pretraining_run(weights: str) -> Mapping[str, Any] | None:
    """The config of the run of spd whose workdir, or whose file WORKDIR/CATEGORY/backbone.safetensors, that is."""
    path = pathlib.Path(weights).expanduser()
    folder = path.parents[1] if path.name == "backbone.safetensors" else path
    try:
        made = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, IndexError):  # a name, or a file that came from elsewhere
        return None
    return made if isinstance(made, dict) and made.get("method") == "spd" else None


def _siamese_unet(own: Mapping[str, Any], data: Mapping[str, Any], setting: str) -> Column | None:
    real = own["anomalies"] == "real"
    if real and data.get("n_anomalies") != N_REAL:
        return None
    parts = own.get("attention", "cpam"), own.get("contrastive", True), own.get("deviation", True)
    if parts == ("cpam", True, True):
        return Column("siamese_unet", setting, "ours_r" if real else "ours_s")
    if parts in _ABLATIONS and real and setting == "full":
        return Column("siamese_unet", *_ABLATIONS[parts])
    return None


def _anoseg(own: Mapping[str, Any]) -> Column | None:
    detector = own["detector"]
    segmenter = _SEGMENTERS.get(tuple(own[key] for key in ("hard_aug", "adversarial", "reconstruction", "coords")))
    if not detector["enabled"]:
        return Column("anoseg", "table3", segmenter) if segmenter else None
    switches = tuple(detector[key] for key in ("feature_matching", "input_map", "anomaly_cls"))
    if segmenter == "table3_coords" and switches in _DETECTORS:
        return Column("anoseg", *_DETECTORS[switches])
    return None


def _pattern_generation(own: Mapping[str, Any], data: Mapping[str, Any]) -> Column | None:
    """Table 1 is of the whole system; its ablations were measured on private data."""
    whole = own["generator"] == "swin" and own["compare"]["enabled"] and not own["combine"].startswith("single")
    return Column("pattern_generation", "full", "ours") if whole and not data.get("n_anomalies") else None
