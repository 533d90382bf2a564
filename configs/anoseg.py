"""AnoSeg (Song et al.): a segmentation network trained on pasted anomalies, adversarially, and a detector on its map.

python -m jaxad.main --config=configs/anoseg.py --config.data.root=FOLDER_OF_MVTEC_AD --workdir=runs/anoseg

Variants, joined by '+':
  segment     the first stage alone
  as_printed  the adversarial loss counts as much as the others, as eqs 2 to 4 stand beside each other
  small       a quarter of the channels at 64 pixels on generated images, for two cores

From scratch, as the paper claims; --config.backbone.weights=FILE starts from a pretrained encoder. The paper gives
image size (256), batch (16), probabilities, alpha and beta. Optimiser and length it does not give; they are DCGAN's and
CycleGAN's Adam, and a guess. Rows of Tables 3 and 5: configs/ablations.py:anoseg/ROW.
"""

from jaxad.config import default
from jaxad.errors import UserError

VARIANTS = ("segment", "as_printed", "small")


def get_config(variant: str = ""):
    config = default("anoseg")
    config.data.dataset = "mvtec_ad"
    config.data.category = "all"
    config.data.image_size = 256  # section 4.1
    config.data.batch_size = 16  # section 4.1, normal and synthetic images together
    config.backbone.name = "resnet18"  # section 4.2
    config.backbone.weights = "random"  # section 1: "without using a pretrained model"
    config.optim.name = "adam"
    config.optim.lr = 2e-4
    config.optim.b1 = 0.5
    config.optim.b2 = 0.999
    config.optim.schedule = "constant_linear"
    config.train.steps.segment = 20_000
    config.train.steps.detect = 10_000
    config.anoseg.detector.alpha = 1.0  # eq. 5
    config.anoseg.detector.beta = 0.1
    config.score.sigma = 0.0  # the map is what the network draws
    config.score.reduction = "top1%"  # of the map, where there is no detector
    names = [name for name in variant.split("+") if name]
    for name in names:
        if name not in VARIANTS:
            raise UserError(f"configs/anoseg.py has no variant {name!r}: it has {', '.join(VARIANTS)}")
    if "segment" in names:
        config.anoseg.detector.enabled = False
    if "as_printed" in names:
        config.anoseg.w_adv = 1.0
        config.anoseg.detector.w_adv = 1.0
    if "small" in names:
        config.data.dataset = "demo"
        config.data.image_size = 64
        config.anoseg.width_mult = 0.25
        # Departure: eq. 2 as it is draws a map of ones for the first hundreds of steps, which are all there are here.
        config.anoseg.seg_loss = "balanced_l1"
        config.train.steps.segment = 700
        config.train.steps.detect = 200
    return config
