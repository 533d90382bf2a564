"""Reverse Distillation (Deng and Li, CVPR 2022): a student restores a frozen teacher's features from a bottleneck.

python -m jaxad.main --config=configs/reverse_distillation.py --config.data.root=FOLDER_OF_MVTEC_AD --workdir=runs/rd

Constants as in the authors' code RD4AD. `:small` is the same method with ResNet-18 at 128 pixels, for two cores and no
network; give it real weights with --config.backbone.weights=FILE.
"""

from jaxad.config import default
from jaxad.errors import UserError


def get_config(variant: str = ""):
    config = default("reverse_distillation")
    config.data.dataset = "mvtec_ad"
    config.data.category = "all"
    config.data.image_size = 256
    config.data.batch_size = 16
    config.backbone.name = "wide_resnet50_2"
    config.optim.name = "adam"
    config.optim.lr = 0.005
    config.optim.b1 = 0.5
    config.optim.b2 = 0.999
    # Departure: RD4AD trains 200 epochs, which is 200 * n / 16 steps (3000 for 240 images); here the number of steps is
    # the same for every category.
    config.train.steps.distil = 3000
    config.score.interpolation = "bilinear_corners"  # F.interpolate(..., align_corners=True)
    config.score.sigma = 4.0
    config.score.reduction = "max"
    if variant == "small":
        config.data.dataset = "demo"
        config.data.image_size = 128
        config.backbone.name = "resnet18"
        config.backbone.weights = "random"
        config.train.steps.distil = 400
    elif variant:
        raise UserError(f"configs/reverse_distillation.py has no variant {variant!r}: it has 'small'")
    return config
