"""How many patches per side (section IV-E, fig. 8): one network per texture, judged with four to seven.

python -m jaxad.grid --grid=configs/grids/patch_number.py --workdir=runs/patch_number --data=DATA --weights=none

A texture's networks are trained on all four partitions, patches always 32 pixels wide, and judged with each. The paper
tunes the number on the test set: the column oracle_best of study.csv says what that gives. n_select=nmse goes by the
third metric, the error on normal images alone.
"""

from jaxad.grid import Cell, Study

TEXTURES = {"pa_bdp01_tl": "piped", "magnetic_tile": "magnetic_tile"}
NUMBERS = (4, 5, 6, 7)

study = Study(
    x="n",
    series="texture",
    metrics=("image_auroc", "pixel_auroc", "facts/measure/nmse_model"),
    xlabel="patches per side",
    title="Number of patches",
    oracle="n",
)


def cells(data: str, weights: str) -> list[Cell]:
    made = []
    for texture, folder in TEXTURES.items():
        common = {"seed": 0, "data.dataset": "folder", "data.root": f"{data}/{folder}", "data.category": texture}
        common |= {"pattern_generation.patch": 32, "pattern_generation.train_n": NUMBERS}
        for n in NUMBERS:
            settings = common | {"pattern_generation.n": n}
            if n != NUMBERS[0]:
                settings |= {"start.run": f"{{workdir}}/{texture}/{NUMBERS[0]}/0", "start.stage": "compare"}
            labels = {"texture": texture, "n": n}
            made.append(Cell(f"{texture}/{n}/0", "configs/pattern_generation.py:small", settings, labels=labels))
    return made
