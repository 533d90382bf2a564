"""Ablations of the papers, each a row of a table: METHOD/ROW, or METHOD/ROW+VARIANT with its own config's variants.

python -m jaxad.main --config=configs/ablations.py:siamese_unet/wo_cpam --config.data.root=FOLDER --workdir=runs/wo_cpam

Without a row it is siamese_unet/ours; `:small` stands for siamese_unet/ours+small. All rows train on 10 real anomalies,
as the paper's text says of its models; on MVTec 3D-AD, where its Table 4 was measured (give +small for two cores).
"""

import os

from jaxad import config as configs
from jaxad.errors import UserError
from jaxad.flags import load, nearest

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
}


def get_config(variant: str = ""):
    variant = {"": "siamese_unet/ours", "small": "siamese_unet/ours+small"}.get(variant, variant)
    name, *own = variant.split("+")
    method, _, row = name.partition("/")
    if method not in ROWS:
        raise UserError(f"configs/ablations.py has no variant {variant!r}: it is METHOD/ROW with {', '.join(ROWS)}")
    if row not in ROWS[method]:
        raise UserError(f"configs/ablations.py: {method} has no row {row!r}{nearest(row, list(ROWS[method]))}")
    config = load(f"{os.path.join(os.path.dirname(__file__), method)}.py:{'+'.join(['r', '3d', *own])}")
    configs.section(config).update(ROWS[method][row][1])
    return config
