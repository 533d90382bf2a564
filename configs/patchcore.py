"""PatchCore (Roth et al., CVPR 2022): a coreset of patch features of normal images, searched by nearest neighbour.

python -m jaxad.main --config=configs/patchcore.py --config.data.root=FOLDER_OF_MVTEC_AD --workdir=runs/patchcore

Constants as in the authors' code (IM224 baseline: WideResNet-50-2, layers 2 and 3, 10 % coreset). `:visa` is VisA's
one-class protocol, as the SPD poster has it. `:small` is the same method with ResNet-18, for two cores and no network;
give it real weights with --config.backbone.weights=FILE.
"""

from jaxad.config import default
from jaxad.errors import UserError


def get_config(variant: str = ""):
    config = default("patchcore")
    config.data.dataset = "mvtec_ad"
    config.data.category = "all"
    # Departure: the authors resize the short side to 256 and crop 224, which can cut defects off; here the whole image
    # is squeezed to a square. Theirs: --config.data.resize=short_crop --config.data.crop_size=224
    config.data.image_size = 256
    config.data.batch_size = 16
    config.backbone.name = "wide_resnet50_2"
    config.score.sigma = 4.0
    config.patchcore.image_score = "max"  # eq. 6
    if variant == "visa":
        config.data.dataset = "visa"
        config.data.resize = "short_crop"  # as its authors: parts of the sides are cut off; square keeps them
        config.data.crop_size = 224
        config.data.holdout = 0.0
        config.eval.visa202 = True
    elif variant == "small":
        config.data.dataset = "demo"
        config.backbone.name = "resnet18"
        config.backbone.weights = "random"
        config.patchcore.image_score = "top1%"  # jaxad's own default, see the README
    elif variant:
        raise UserError(f"configs/patchcore.py has no variant {variant!r}: it has visa, small")
    return config
