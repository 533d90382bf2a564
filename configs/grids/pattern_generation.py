"""Pattern generation on real textures, within two cores' reach: `python -m jaxad.grid --help`.

python -m jaxad.grid --grid=configs/grids/pattern_generation.py --workdir=runs/pattern --data=DATA --weights=none

DATA holds `dtd/`, `piped/` and `magnetic_tile/`, the last two with category folders in MVTec AD's layout. A cell trains
on 128 pixels, four patches per side, from scratch; --weights is not used. Cells after "swin" judge its networks in
other ways, or replace one of them: those of six patches per side say what one direction, two and four are worth (fig.
4), for of four patches in a row none is predicted from both sides. "cnn" has the convolutional generator, as many steps
and about as many parameters. Both categories of the demo have one model. "from_dtd": the generator has seen textures of
DTD only.
"""

from jaxad.grid import Cell

SETS = {"pa_bdp01_tl": "piped", "magnetic_tile": "magnetic_tile"}
FOLDERS = SETS | {"pa_gla01_tl": "piped"}
SIX = {"pattern_generation.n": 6, "pattern_generation.patch": 32}
WAYS = ("lr_only", "rl_only", "both_rows", "rows_cols")
CNN = {"pattern_generation.generator": "cyclegan_resnet6", "pattern_generation.cnn.width": 40}
SMALL = "configs/pattern_generation.py:small"


def cells(data: str, weights: str) -> list[Cell]:
    def of(category: str, row: str, config: str = SMALL, **more) -> Cell:
        chosen = {"data.category": "weave,washer"}
        if category != "demo":
            chosen = {"data.category": category, "data.dataset": "folder", "data.root": f"{data}/{FOLDERS[category]}"}
        return Cell(f"{category}/{row}/0", config, {"seed": 0} | chosen | more)

    def after(category: str, row: str, stage: str = "compare", name: str = "", **more) -> Cell:
        """The networks of "swin" up to `stage`, the rest as the ablation `row` has it."""
        taken = {"start.run": f"{{workdir}}/{category}/swin/0", "start.stage": stage}
        taken |= {} if category in SETS else {"start.category": "joint"}
        return of(category, name or row, f"configs/ablations.py:pattern_generation/{row}+small", **taken, **more)

    made = []
    for category in SETS:
        made += [of(category, "swin"), after(category, "both_rows"), after(category, "combine_max")]
        made += [after(category, row, name=f"{row}_6", **SIX) for row in WAYS]
        made += [after(category, "no_comparison", "generate"), of(category, "cnn", **CNN)]
    # A generator of other textures altogether, and a comparison network of one paper judged on another.
    own = "pa_bdp01_tl"
    dtd = {"seed": 0, "data.dataset": "images", "data.root": f"{data}/dtd"}
    carried = {"start.run": "{workdir}/dtd/pretrain/0", "start.stage": "pretrain", "start.category": "dtd"}
    there = {"start.run": f"{{workdir}}/{own}/from_dtd/0", "start.stage": "compare", "start.category": own}
    pretrained = [
        Cell("dtd/pretrain/0", f"{SMALL}+pretrain", dtd),
        of(own, "from_dtd", **carried, **{"train.steps.generate": 0}),
        of("pa_gla01_tl", "from_dtd_of_pa_bdp01_tl", **there),
    ]
    no_generator = "configs/ablations.py:pattern_generation/no_generator+small"
    return [
        *made,
        of("demo", "swin", f"{SMALL}+joint"),
        *(after("demo", row, name=f"{row}_6", **SIX) for row in WAYS),
        *pretrained,
        of("pa_bdp01_tl", "no_generator", no_generator),
        after("pa_bdp01_tl", "as_printed", "generate"),
    ]
