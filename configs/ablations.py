"""Ablations of the papers, each a row of a table: METHOD/ROW, or METHOD/ROW+VARIANT with its own config's variants.

python -m jaxad.main --config=configs/ablations.py:siamese_unet/wo_cpam --config.data.root=FOLDER --workdir=runs/wo_cpam

Without a row it is siamese_unet/ours; `:small` stands for siamese_unet/ours+small (give +small for two cores).
All rows of siamese_unet train on 10 real anomalies, as the paper's text says of its models, on MVTec 3D-AD, where its
Table 4 was measured. The rows of anoseg's Table 3 are cumulative and have no detector, those of its Table 5 have the
whole segmenter. The rows of spd pre-train; stand configs/padim.py:visa on what they leave.

The tables of pattern_generation are of private textures; the textures of MVTec AD stand in for them. lr_only, rl_only,
both_rows and combine_* judge the same networks in other ways and can take them from the run of another row, with
--config.start.run=WORKDIR --config.start.stage=compare. `labelled` needs --config.data.n_anomalies. Rows that name no
table or section are choices that the paper leaves open.
"""

import os

from jaxad import config as configs
from jaxad.errors import UserError
from jaxad.flags import load, nearest


def _segmenter(*, hard: bool, restored: bool, adversarial: bool, coords: bool) -> dict:
    parts = {"hard_aug": hard, "reconstruction": restored, "adversarial": adversarial, "coords": coords}
    return parts | {"detector": {"enabled": False}}


def _detector(*, matching: bool, given: bool, classified: bool) -> dict:
    return {"detector": {"feature_matching": matching, "input_map": given, "anomaly_cls": classified}}


# {method: {row: (where it stands, what it changes)}}
ROWS = {
    "siamese_unet": {
        "ours": ("Table 4 left, line 4", {}),
        "wo_cpam": ("Table 4 left, line 1", {"attention": "none"}),
        "wo_finetune": ("Table 4 left, line 2", {"deviation": False}),
        # Stage 1 on normal images alone, "with a single basic U-Net block"; stage 2 stays, for pixel AUROC falls below
        # Reverse Distillation's, which only stage 2 can do.
        "wo_contrastive": ("Table 4 left, line 3", {"contrastive": False}),
        # The right half is stage 1 only: its CPAM line is the left half's "w/o finetune" to the digit.
        "cbam": ("Table 4 right, line 1", {"attention": "cbam", "deviation": False}),
        "cpam": ("Table 4 right, line 2", {"deviation": False}),
        "rd": ("Table 3, Reverse Distillation", {"attention": "none", "contrastive": False, "deviation": False}),
    },
    "anoseg": {
        # The base model draws nothing but the map: no image decoder, no critic.
        "table3_base": (
            "Table 3, CutPaste only",
            _segmenter(hard=False, restored=False, adversarial=False, coords=False),
        ),
        "table3_hard": ("Table 3, line 2", _segmenter(hard=True, restored=False, adversarial=False, coords=False)),
        # In none of the paper's tables; fig. 8 (a) discusses what it restores.
        "recon_no_adv": ("fig. 8 (a)", _segmenter(hard=True, restored=True, adversarial=False, coords=False)),
        "table3_adversarial": ("Table 3, line 3", _segmenter(hard=True, restored=True, adversarial=True, coords=False)),
        "table3_coords": ("Table 3, line 4", _segmenter(hard=True, restored=True, adversarial=True, coords=True)),
        "table5_base": ("Table 5, base", _detector(matching=False, given=False, classified=False)),
        "table5_feature_matching": ("Table 5, line 2", _detector(matching=True, given=False, classified=False)),
        "table5_input_map": ("Table 5, line 3", _detector(matching=True, given=True, classified=False)),
        "table5_cls": ("Table 5, line 4", _detector(matching=True, given=True, classified=True)),
    },
    # Pre-training; the numbers of the table are of PaDiM on what it leaves. WideResNet-50-2: --config.backbone.name.
    "spd": {
        "simsiam": ("Ablation study, SimSiam w/ Res50", {"eta": 0.0}),
        "eta_0.1": ("Ablation study, +SPD (eta = 0.1)", {"eta": 0.1}),
        "eta_0.5": ("Ablation study, +SPD (eta = 0.5)", {"eta": 0.5}),
        "eta_1.0": ("Ablation study, +SPD (eta = 1.0)", {"eta": 1.0}),
        "cutpaste": ("Ablation study, +SPD w/ CutPaste", {"local": "cutpaste"}),
        "xent": ("Ablation study, +SPD w/ Xent", {"term": "xent"}),
    },
    "pattern_generation": {
        "table3_swin": ("Table 3, Ours", {"generator": "swin"}),
        "table3_cnn": ("Table 3, CNN", {"generator": "cyclegan_resnet6"}),
        # As many parameters as the transformer has, to about 2 %.
        "table3_cnn_matched": ("Table 3, CNN", {"generator": "cyclegan_resnet6", "cnn": {"width": 45}}),
        "lr_only": ("section III-C, inference from left to right", {"coverage": "rows", "combine": "single_lr"}),
        "rl_only": ("section III-C, inference from right to left", {"coverage": "rows", "combine": "single_rl"}),
        "both_rows": ("section III-C, eq. 5", {"coverage": "rows", "combine": "min"}),
        "rows_cols": ("eq. 5 over rows and columns", {"coverage": "rows_cols", "combine": "min"}),
        "raster": ("section III-A, patches as numbered", {"coverage": "raster"}),
        "wrap": ("for textures whose period divides the image", {"coverage": "wrap"}),
        "combine_mean": ("the mean instead of eq. 5", {"combine": "mean"}),
        "combine_max": ("the union instead of eq. 5", {"combine": "max", "axis_combine": "max"}),
        "not_canonical": ("no triple is turned", {"canonicalize": False}),
        "no_generator": ("the near patch is the prediction", {"generator": "copy_near"}),
        "no_comparison": ("the squared error of the prediction is the map", {"compare": {"enabled": False}}),
        # Swin's own embedding; the sizes of section III-A, read as parts of a patch, need 224 pixels for 56 tokens.
        "reading_b": ("section III-A, a token per 4 x 4 pixels", {"patch": 224, "swin": {"embed_stride": 4}}),
        "share_encoders": ("one encoder for both patches", {"swin": {"share_encoders": True}}),
        "mirrored_depths": ("the decoder's six blocks where it is narrowest", {"swin": {"dec_depths": (6, 2, 2, 2)}}),
        "heads_2_4_8_16": ("12 channels per head", {"swin": {"heads": (2, 4, 8, 16)}}),
        "heads_1_2_4_8": ("24 channels per head", {"swin": {"heads": (1, 2, 4, 8)}}),
        "hinge_prob": ("eq. 4, hinge of the probability", {"compare": {"hinge_on": "prob"}}),
        "mask_l1": ("eq. 4 without its exponential", {"compare": {"mask_loss": "l1"}}),
        "mask_bce_dice": (
            "cross-entropy and Dice instead of eq. 4's first term",
            {"compare": {"mask_loss": "bce_dice"}},
        ),
        # A tenth of the pairs, at the cost of those with a defect, so that half still do not match.
        "corrupted_context": ("fig. 4 in training", {"pairs": {"defect": 0.4, "context": 0.1}}),
        "wrong_patch": ("pairs of different patches", {"pairs": {"defect": 0.4, "wrong": 0.1}}),
        "labelled": ("section IV-A, real anomalies with masks", {"pairs": {"source": "labelled"}}),
        "as_printed": (
            "sections III-A and III-C, eq. 4",
            {
                "coverage": "raster",
                "canonicalize": False,
                "compare": {"mask_loss": "as_printed", "hinge_on": "prob", "sim_pool": "flatten"},
            },
        ),
    },
}
# What a method's tables were measured under, as variants of its own config.
VARIANTS = {"siamese_unet": ("r", "3d")}


def get_config(variant: str = ""):
    variant = {"": "siamese_unet/ours", "small": "siamese_unet/ours+small"}.get(variant, variant)
    name, *own = variant.split("+")
    method, _, row = name.partition("/")
    if method not in ROWS:
        raise UserError(f"configs/ablations.py has no variant {variant!r}: it is METHOD/ROW with {', '.join(ROWS)}")
    if row not in ROWS[method]:
        raise UserError(f"configs/ablations.py: {method} has no row {row!r}{nearest(row, list(ROWS[method]))}")
    config = load(f"{os.path.join(os.path.dirname(__file__), method)}.py:{'+'.join([*VARIANTS.get(method, ()), *own])}")
    configs.section(config).update(ROWS[method][row][1])
    return config
