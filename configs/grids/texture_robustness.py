"""Trained on one texture, tested on another (section IV-E, Table 2): pattern generation beside PatchCore's bank.

python -m jaxad.grid --grid=configs/grids/texture_robustness.py --workdir=runs/robust --data=DATA --weights=RESNET18

The paper's two cloths are private; two papers of PIPED (DATA/piped) stand in for them. What a column calls "train" is
what the generator, the comparison network and the bank have seen; every network is judged on both. Written:
study.csv and study.png, the metrics on every texture by the texture that was trained on.
"""

from jaxad.grid import Cell, Study

TEXTURES = ("pa_bdp01_tl", "pa_gla01_tl")
METHODS = {
    "pattern_generation": ("configs/pattern_generation.py:small", "compare"),
    "patchcore": ("configs/patchcore.py:small", "fit"),
}

study = Study(x="test", series="method_train", title="Trained on one texture, tested on another", xlabel="tested on")


def cells(data: str, weights: str) -> list[Cell]:
    made = []
    for method, (config, stage) in METHODS.items():
        common = {"seed": 0, "data.dataset": "folder", "data.root": f"{data}/piped", "data.image_size": 128}
        common |= {"backbone.weights": weights} if method == "patchcore" else {}
        for train in TEXTURES:
            own = f"{method}/{train}"
            for test in sorted(TEXTURES, key=lambda name: name != train):  # its own first, which trains
                settings = common | {"data.category": test}
                if test != train:
                    settings |= {"start.run": f"{{workdir}}/{own}/{train}/0", "start.stage": stage}
                    settings |= {"start.category": train}
                labels = {"method": method, "train": train, "test": test, "method_train": f"{method}, {train}"}
                made.append(Cell(f"{own}/{test}/0", config, settings, labels=labels))
    return made
