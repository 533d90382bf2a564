"""Does the size of the texture matter (section IV-E, Table 3): Swin and CNN generators on textures of six sizes.

python -m jaxad.grid --grid=configs/grids/texture_size.py --workdir=runs/texture_size --data=none --weights=none

The paper's cloths are private: generated textures stand in for them, whose motif comes back after 4 to 32 % of the
image's side, a patch being 25 %. One network per generator learns all six (data.joint), as many steps, about as many
parameters, and is judged on each.
"""

from jaxad.grid import Cell, Study

GENERATORS = {
    "swin": {},
    "cnn": {"pattern_generation.generator": "cyclegan_resnet6", "pattern_generation.cnn.width": 40},
    "copy_near": {"pattern_generation.generator": "copy_near"},
}

study = Study(
    x="category",
    series="generator",
    metrics=("image_auroc", "pixel_auroc"),
    xlabel="period, % of the image's side",
    title="Size of the texture",
)


def cells(data: str, weights: str) -> list[Cell]:
    common = {"seed": 0, "data.dataset": "periodic", "data.category": "all"}
    return [
        Cell(f"{name}/0", "configs/pattern_generation.py:small+joint", common | own, labels={"generator": name})
        for name, own in GENERATORS.items()
    ]
