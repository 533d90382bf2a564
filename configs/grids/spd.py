"""Does SPD help here? Eight backbones pre-trained within two cores' reach, then PaDiM and PatchCore on each.

python -m jaxad.grid --grid=configs/grids/spd.py --workdir=runs/spd --data=DATA --weights=RESNET18_FILE

DATA holds `tiny_imagenet/` and `dtd/`, a folder per class, to pre-train on, and `piped/`, `mvtec_ad/` and
`magnetic_tile/` with category folders in MVTec AD's layout. SimSiam, MoCo, SimCLR and supervised pre-training of a
ResNet-18 at 64 pixels, each with and without SPD, with the same seed, images, strong views and number of updates in
both arms; three seeds of SimSiam. Beside them the network as it was drawn, and with ImageNet's weights. Detection at
128 pixels; PatchCore keeps 1 % of the patches on the two large sets, 10 % on PIPED. The two-class models, which need
layer4, stand on three of them.
"""

from jaxad.grid import Cell

STEPS, BATCH = 300, 32
RECIPES = {"simsiam": "simsiam", "moco": "moco_v2", "simclr": "simclr", "supervised": "supervised"}
SETS = {"piped": ("piped", "all"), "screw": ("mvtec_ad", "screw"), "tile": ("magnetic_tile", "magnetic_tile")}
QUIET = {"report.overlays": 0, "report.curves": False}
SEEDS = {"simsiam": (0, 1, 2)}


def cells(data: str, weights: str) -> list[Cell]:
    def pretrain(recipe: str, spd: bool, seed: int) -> Cell:
        settings = {
            "seed": seed,
            "data.root": data,
            "data.category": "tiny_imagenet+dtd",
            "data.batch_size": BATCH,
            "train.steps.pretrain": STEPS,
            # Departure from the recipes: their rates are for a hundred passes.
            "spd.lr_batch": 0,
            "optim.lr": 0.05,
        }
        variant = f"{RECIPES[recipe]}+folder+small{'' if spd else '+base'}"
        return Cell(f"{_name(recipe, spd)}/pretrain/{seed}", f"configs/spd.py:{variant}", settings)

    def detect(name: str, seed: int, backbone: str, method: str, of: str) -> Cell:
        folder, category = SETS[of]
        settings = {
            "seed": seed,
            "data.dataset": "folder",
            "data.root": f"{data}/{folder}",
            "data.category": category,
            "data.image_size": 128,
            "data.holdout": 0.0,
            "backbone.weights": backbone,
            "eval.batch_size": 16,
            **QUIET,
        }
        if method == "patchcore":
            settings["patchcore.coreset"] = 0.1 if of == "piped" else 0.01
        return Cell(f"{name}/{method}_{of}/{seed}", f"configs/{method}.py:small", settings)

    def detectors(name: str, seed: int, backbone: str) -> list[Cell]:
        return [detect(name, seed, backbone, method, of) for method in ("padim", "patchcore") for of in SETS]

    def few_shot(name: str, backbone: str) -> Cell:
        settings = {
            "data.dataset": "folder",
            "data.root": f"{data}/magnetic_tile",
            "data.category": "magnetic_tile",
            "data.image_size": 128,
            "data.k_shot": 10,
            "train.steps.classify": 100,
            "train.steps.segment": 100,
            "backbone.weights": backbone,
            "eval.batch_size": 16,
            **QUIET,
        }
        return Cell(f"{name}/few_shot_tile/0", "configs/two_class.py:small", settings, note="10 images of each label")

    found = []
    for recipe in RECIPES:
        for seed in SEEDS.get(recipe, (0,)):
            for spd in (False, True):
                name = _name(recipe, spd)
                found.append(pretrain(recipe, spd, seed))
                found += detectors(name, seed, f"{{workdir}}/{name}/pretrain/{seed}")
    found += detectors("random", 0, "random") + detectors("imagenet", 0, weights)
    backbones = {"random": "random"} | {n: f"{{workdir}}/{n}/pretrain/0" for n in ("simsiam", "simsiam+spd")}
    return found + [few_shot(name, backbone) for name, backbone in backbones.items()]


def _name(recipe: str, spd: bool) -> str:
    return f"{recipe}+spd" if spd else recipe
