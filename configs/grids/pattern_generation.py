"""Pattern generation on real textures, within two cores' reach: `python -m jaxad.grid --help`.

python -m jaxad.grid --grid=configs/grids/pattern_generation.py --workdir=runs/pattern --data=DATA --weights=none

DATA holds `piped/` and `magnetic_tile/`, each with category folders in MVTec AD's layout. A cell trains
on 128 pixels, four patches per side, from scratch; --weights is not used. Cells after "swin" judge its networks
in other ways, or replace one of them; "cnn" has the convolutional generator, as many steps and about as many
parameters.
"""

from jaxad.grid import Cell

SETS = {"pa_bdp01_tl": "piped", "magnetic_tile": "magnetic_tile"}
WAYS = ("lr_only", "rl_only", "both_rows", "combine_mean", "combine_max")  # fig. 4 and eq. 5
CNN = {"pattern_generation.generator": "cyclegan_resnet6", "pattern_generation.cnn.width": 40}
SMALL = "configs/pattern_generation.py:small"


def cells(data: str, weights: str) -> list[Cell]:
    def settings(category: str) -> dict:
        common = {"seed": 0, "data.category": category}
        if category not in SETS:
            return common
        return common | {"data.dataset": "folder", "data.root": f"{data}/{SETS[category]}"}

    def of(category: str, row: str, config: str = SMALL, **more) -> Cell:
        return Cell(f"{category}/{row}/0", config, settings(category) | more)

    def judged(category: str, row: str) -> Cell:
        taken = {"start.run": f"{{workdir}}/{category}/swin/0", "start.stage": "compare"}
        return of(category, row, f"configs/ablations.py:pattern_generation/{row}+small", **taken)

    def replaced(category: str, row: str) -> Cell:
        taken = {"start.run": f"{{workdir}}/{category}/swin/0", "start.stage": "generate"}
        return of(category, row, f"configs/ablations.py:pattern_generation/{row}+small", **taken)

    made = []
    for category in (*SETS, "weave,washer"):
        made += [of(category, "swin"), *(judged(category, way) for way in WAYS if category in SETS)]
        made += [replaced(category, "no_comparison"), of(category, "cnn", **CNN)] if category in SETS else []
    ablation = "configs/ablations.py:pattern_generation/no_generator+small"
    return [*made, of("pa_bdp01_tl", "no_generator", ablation), replaced("pa_bdp01_tl", "as_printed")]
