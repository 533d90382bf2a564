"""The Siamese U-Net (Lin and Lai): Reverse Distillation with attention, a contrastive and a deviation stage.

python -m jaxad.main --config=configs/siamese_unet.py --config.data.root=FOLDER_OF_MVTEC_AD --workdir=runs/siamese

Variants, joined by '+':
  s       synthetic anomalies, "Ours(s)": the default
  r       10 real anomalies move from test to training, "Ours(r)"
  16shot  16 normal images (Table 2)
  3d      MVTec 3D-AD, RGB alone (Table 3)
  small   ResNet-18 at 128 pixels on generated images, for two cores and no network; give it real weights with
          --config.backbone.weights=FILE

The paper gives no image size, optimiser, length, batch, margin, weights, p or rotation. What it builds on is RD4AD, so
size, optimiser and batch are RD4AD's; the rest is explained where it stands in jaxad/config.py. Table 1 is `s` and `r`.
"""

from jaxad.config import default
from jaxad.errors import UserError

VARIANTS = ("s", "r", "16shot", "3d", "small")


def get_config(variant: str = ""):
    config = default("siamese_unet")
    config.data.dataset = "mvtec_ad"
    config.data.category = "all"
    config.data.image_size = 256
    config.data.batch_size = 16  # triplets
    config.backbone.name = "wide_resnet50_2"  # section 2.1
    config.optim.name = "adam"
    config.optim.lr = 0.005
    config.optim.b1 = 0.5
    config.optim.b2 = 0.999
    config.train.steps.contrast = 3000
    config.train.steps.deviate = 1000
    config.score.interpolation = "bilinear_corners"
    config.score.sigma = 4.0
    config.score.reduction = "max"  # section 4.2: the maximum of the map
    config.eval.without_drawn = 10  # so that "(s)" can be compared with "(r)", whose test set lacks ten anomalies
    names = [name for name in variant.split("+") if name]
    for name in names:
        if name not in VARIANTS:
            raise UserError(f"configs/siamese_unet.py has no variant {name!r}: it has {', '.join(VARIANTS)}")
    if "r" in names and "s" in names:
        raise UserError("configs/siamese_unet.py: 'r' and 's' exclude each other")
    if "r" in names:
        config.siamese_unet.anomalies = "real"
        config.data.n_anomalies = 10  # section 4.1
    if "16shot" in names:
        config.data.n_shot = 16
    if "3d" in names:
        config.data.dataset = "mvtec_3d_ad"
    if "small" in names:
        config.data.dataset = "demo"
        config.data.image_size = 128
        config.data.batch_size = 8
        config.backbone.name = "resnet18"
        config.backbone.weights = "random"
        config.train.steps.contrast = 200
        config.train.steps.deviate = 100
    return config
