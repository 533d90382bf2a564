"""The quickstart: PatchCore on generated images, no download, about a minute on two cores.

python -m jaxad.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from jaxad.config import default
from jaxad.errors import UserError


def get_config(variant: str = ""):
    if variant not in ("", "small"):  # it is small already
        raise UserError(f"configs/quickstart.py has no variant {variant!r}")
    config = default("patchcore")
    config.data.dataset = "demo"
    config.data.category = "all"
    config.data.image_size = 128
    config.patchcore.layers = ("layer1", "layer2")  # random weights: the shallower stages tell more
    config.backbone.weights = "random"  # asked for by name: enough for the demo, not for real images
    return config
