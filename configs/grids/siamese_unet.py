"""The Siamese U-Net beside Reverse Distillation on real data, within two cores' reach: `python -m jaxad.grid --help`.

python -m jaxad.grid --grid=configs/grids/siamese_unet.py --workdir=runs/siamese --data=DATA --weights=RESNET18_FILE

DATA holds `piped/` and `magnetic_tile/`, each with category folders in MVTec AD's layout, and `mvtec_ad/screw`. Every
cell trains ResNet-18 with the same number of steps, and of normal images per step; what matters most comes first.
"""

from jaxad.grid import Cell

STEPS, DEVIATE = 80, 40
SETS = {  # {category: (folder, data set, pixels, images per step)}
    "magnetic_tile": ("magnetic_tile", "folder", 128, 8),
    "pa_bdp01_tl": ("piped", "folder", 128, 8),
    "pa_gla01_tl": ("piped", "folder", 128, 8),
    "screw": ("mvtec_ad", "mvtec_ad", 256, 4),
}
ABLATED = "magnetic_tile"
# Stage 2 alone, from the stage 1 of the cell "ours_r/0": what was tried where it does not help.
SWEEP = {
    "keep=0": {"keep": 0.0},
    "p=1e-6": {"p": 1e-6},  # the control: anomalies have no gradient, normal images are restored on
    "p=0.3": {"p": 0.3},
    "p=1": {"p": 1.0},
    "score=mean": {"score": "mean"},
    "score=zscore,p=5": {"score": "zscore", "p": 5.0},
    "masked": {"masked": True},
    "literal,keep=0": {"score": "literal", "keep": 0.0},
    "200_steps": {"train.steps.deviate": 200},
    "200_steps,p=1e-6": {"train.steps.deviate": 200, "p": 1e-6},
}
# Stage 1 as well.
BOTH = {
    "margin=0.5": {"margin": 0.5},
    "lambda_con=0.5": {"lambda_con": 0.5},
}


def cells(data: str, weights: str) -> list[Cell]:
    def settings(category: str, seed: int, method: str) -> dict:
        folder, dataset, size, batch = SETS[category]
        common = {
            "seed": seed,
            "backbone.weights": weights,
            "data.dataset": dataset,
            "data.root": f"{data}/{folder}",
            "data.category": category,
            "data.image_size": size,
            "data.batch_size": batch,
        }
        if method == "reverse_distillation":
            return common | {"train.steps.distil": STEPS, "eval.without_drawn": 10}
        steps = {"train.steps.contrast": STEPS, "train.steps.deviate": DEVIATE}
        return common | steps | {"siamese_unet.deviate.batch_size": batch}

    def three(category: str, seed: int) -> list[Cell]:
        siamese = settings(category, seed, "siamese_unet")
        return [
            Cell(f"{category}/ours_r/{seed}", "configs/siamese_unet.py:r+small", siamese),
            Cell(
                f"{category}/rd/{seed}",
                "configs/reverse_distillation.py:small",
                settings(category, seed, "reverse_distillation"),
            ),
            Cell(f"{category}/ours_s/{seed}", "configs/siamese_unet.py:s+small", siamese),
        ]

    few = ("magnetic_tile", "pa_bdp01_tl", "pa_gla01_tl")
    ablated = settings(ABLATED, 0, "siamese_unet")
    rows = [cell for category in few for cell in three(category, 0)]
    rows += [
        Cell(f"{ABLATED}/ablation/{row}", f"configs/ablations.py:siamese_unet/{row}+small", ablated, note=place)
        for row, place in (
            ("wo_contrastive", "Table 4 left, line 3"),
            ("wo_cpam", "Table 4 left, line 1"),
            ("cbam", "Table 4 right, line 1"),
        )
    ]
    rows = [cell._replace(group=cell.name) if "/ablation/" in cell.name else cell for cell in rows]
    start = {"start.run": f"{{workdir}}/{ABLATED}/ours_r/0", "start.stage": "contrast"}
    for name, options in {**SWEEP, **BOTH}.items():
        changed = {key if "." in key else f"siamese_unet.{key}": value for key, value in options.items()}
        more = start if name in SWEEP else {}
        path = f"{ABLATED}/sweep/{name}"
        rows.append(Cell(path, "configs/siamese_unet.py:r+small", ablated | changed | more, group=path))
    rows += three("screw", 0)
    return rows + [cell for seed in (1, 2) for category in few for cell in three(category, seed)]
