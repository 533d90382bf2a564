"""Pattern generation and comparison (Huang et al.): a Swin network continues a texture patch by patch, and another
compares.

python -m jaxad.main --config=configs/pattern_generation.py --config.data.root=FOLDER_OF_MVTEC_AD --workdir=runs/pattern

Variants, joined by '+':
  joint       one generator and one comparison network for all categories together
  pretrain    the generator alone, on any folder of images; --config.start.run=ITS_WORKDIR
              --config.start.category=ITS_CATEGORY --config.start.stage=pretrain goes on from it
  as_printed  eq. 4 and the numbering of the patches as the paper prints them
  small       128 pixels, a token per 2 x 2 of them, a narrower comparison network; generated images, for two cores

Departure: every image of a category is its own, while the paper sorts textures by their size first; n_select=nmse finds
the number of patches for a category, on normal images. Optimisers and lengths are not in the paper: they are those of
Swin, MAE and the comparison network that the paper builds on. Rows of Table 3 and others: configs/ablations.py.
"""

from jaxad.config import default
from jaxad.errors import UserError

VARIANTS = ("joint", "pretrain", "as_printed", "small")


def get_config(variant: str = ""):
    config = default("pattern_generation")
    own = config.pattern_generation
    config.data.dataset = "mvtec_ad"
    config.data.category = "all"
    config.data.image_size = 224  # patches of 56 pixels, as the paper's sizes suggest
    config.data.batch_size = 64
    config.backbone.weights = "random"  # there is no backbone
    config.optim.name = "adamw"
    config.optim.lr = 5e-4
    config.optim.b1 = 0.9
    config.optim.b2 = 0.95
    config.optim.weight_decay = 0.05
    config.optim.decay = "kernels"
    config.optim.clip = 5.0
    config.optim.schedule = "cosine"
    config.optim.end = 1e-6
    config.optim.warmup = 2500
    config.score.sigma = 0.0  # the map is what the network draws
    names = [name for name in variant.split("+") if name]
    for name in names:
        if name not in VARIANTS:
            raise UserError(f"configs/pattern_generation.py has no variant {name!r}: it has {', '.join(VARIANTS)}")
    if "joint" in names:
        config.data.joint = True
    if "pretrain" in names:
        config.data.dataset = "images"
        own.pretrain = True
    if "as_printed" in names:
        own.compare.mask_loss = "as_printed"
        own.compare.hinge_on = "prob"
        own.compare.sim_pool = "flatten"
        own.coverage = "raster"
        own.canonicalize = False
    if "small" in names:
        config.data.dataset = "demo"
        config.data.image_size = 128  # patches of 32 pixels
        config.data.batch_size = 16
        own.train_n = (4,)
        own.swin.embed_stride = 2
        own.swin.window = 8
        own.compare.widths = (32, 64, 128)
        own.compare.batch_size = 32
        config.optim.lr = 1e-3
        config.optim.warmup = 20
        config.train.steps.pretrain = 600
        config.train.steps.generate = 600
        config.train.steps.compare = 300
    return config
