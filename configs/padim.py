"""PaDiM (Defard et al., ICPR 2020): a Gaussian of patch features at every position, scored by Mahalanobis distance.

python -m jaxad.main --config=configs/padim.py --config.data.root=FOLDER_OF_MVTEC_AD --workdir=runs/padim

Constants as in the article and its PyTorch port (WideResNet-50-2, 550 random channels of layers 1 to 3, covariance +
0.01 I, sigma 4, the maximum of the map). It keeps a 550 x 550 matrix for each of 64 x 64 positions, 5 GB, and needs as
much again to invert them. `:visa` is VisA's one-class protocol, by which the SPD poster measures pre-training: with
--config.backbone.name=resnet50 --config.backbone.weights=RUN. `:small` is the same method with ResNet-18 and 100
dimensions, for two cores and no network; give it real weights with --config.backbone.weights=FILE.
"""

from jaxad.config import default
from jaxad.errors import UserError


def get_config(variant: str = ""):
    config = default("padim")
    config.data.dataset = "mvtec_ad"
    config.data.category = "all"
    # Departure: the authors resize the short side to 256 and crop 224, which can cut defects off; here the whole image
    # is squeezed to a square. Theirs: --config.data.resize=short_crop --config.data.crop_size=224
    config.data.image_size = 256
    config.data.batch_size = 16
    config.backbone.name = "wide_resnet50_2"
    config.score.sigma = 4.0
    config.score.reduction = "max"
    config.padim.embedding = "channels"  # section III.A
    config.padim.dim = 550
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
        config.padim.embedding = "semi_orthogonal"  # jaxad's own default, see the README
        config.padim.dim = 100
    elif variant:
        raise UserError(f"configs/padim.py has no variant {variant!r}: it has visa, small")
    return config
