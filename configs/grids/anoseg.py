"""AnoSeg from scratch on real data, within two cores' reach, and its ladder of Table 3: `python -m jaxad.grid --help`.

python -m jaxad.grid --grid=configs/grids/anoseg.py --workdir=runs/anoseg --data=DATA --weights=none

DATA holds `piped/` and `magnetic_tile/`, each with category folders in MVTec AD's layout. Every cell trains the
networks at a quarter of their channels on 64 pixels, as long as 20 minutes of one core allow; --weights is not used,
for nothing is pretrained. The fourth rung of the ladder is the first stage of "full".
"""

from jaxad.grid import Cell

SIZE, SEGMENT, DETECT = 64, 700, 200
SETS = {"magnetic_tile": "magnetic_tile", "pa_bdp01_tl": "piped", "pa_gla01_tl": "piped"}
LADDER = "pa_bdp01_tl"
DETECTORS = ("table5_base", "table5_feature_matching", "table5_input_map")  # the fourth line of Table 5 is "full"
RUNGS = ("table3_base", "table3_hard", "table3_adversarial", "recon_no_adv")


def cells(data: str, weights: str) -> list[Cell]:
    def settings(category: str) -> dict:
        lengths = {"train.steps.segment": SEGMENT, "train.steps.detect": DETECT}
        common = {"seed": 0, "data.image_size": SIZE, "data.category": category, **lengths}
        if category not in SETS:
            return common
        return common | {"data.dataset": "folder", "data.root": f"{data}/{SETS[category]}"}

    def full(category: str) -> Cell:
        return Cell(f"{category}/full/0", "configs/anoseg.py:small", settings(category))

    def rung(row: str, **more) -> Cell:
        return Cell(f"{LADDER}/{row}/0", f"configs/ablations.py:anoseg/{row}+small", settings(LADDER) | more)

    segmented = {"start.run": f"{{workdir}}/{LADDER}/full/0", "start.stage": "segment"}
    l1 = settings(LADDER) | {"anoseg.seg_loss": "l1"}
    scar = settings(LADDER) | {"anoseg.cutpaste.variant": "scar"}
    small = settings(LADDER) | {"anoseg.cutpaste.area": (0.003, 0.03)}
    return [
        full(LADDER),
        full("magnetic_tile"),
        *(rung(row) for row in RUNGS),
        *(rung(row, **segmented) for row in DETECTORS),
        Cell(
            f"{LADDER}/table3_hard,small/0", "configs/ablations.py:anoseg/table3_hard+small", small, note="small pastes"
        ),
        Cell(f"{LADDER}/table3_hard,scar/0", "configs/ablations.py:anoseg/table3_hard+small", scar, note="thin pastes"),
        full("pa_gla01_tl"),
        full("weave,washer"),
        Cell(f"{LADDER}/seg_loss=l1/0", "configs/anoseg.py:small+segment", l1, note="the paper's eq. 2"),
    ]
