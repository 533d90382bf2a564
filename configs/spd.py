"""SPD (Zou et al., ECCV 2022): pre-trains a backbone to see small local changes, for any other method to stand on.

python -m jaxad.main --config=configs/spd.py --config.data.root=TFDS_FOLDER --workdir=runs/spd
python -m jaxad.main --config=configs/padim.py --config.backbone.name=resnet50 --config.backbone.weights=runs/spd ...

Variants, joined by '+':
  simsiam | moco_v2 | moco_v1 | simclr | supervised   the base and its recipe; SimSiam where none is named
  base                                                 the base alone: eta = 0
  cutpaste | xent                                      the poster's ablations "w/ CutPaste" and "w/ Xent"
  folder   images of --config.data.root, of the folders --config.data.category=A+B, instead of ImageNet by TFDS
  tune     goes on from --config.backbone.weights=FILE for ten passes at a tenth of the learning rate
  small    a ResNet-18 on generated images at 64 pixels, for two cores; views and all

The poster gives the losses and eta. Recipes are those of the base methods: SimSiam (100 epochs, batch 512), MoCo (200,
256), SimCLR (100, 4096) and supervised (100, 256). optim.lr is for a batch of spd.lr_batch images and grows with the
batch, so --config.data.batch_size alone may be changed.
"""

from jaxad.config import default
from jaxad.errors import UserError

RECIPES = ("simsiam", "moco_v2", "moco_v1", "simclr", "supervised")
VARIANTS = (*RECIPES, "base", "cutpaste", "xent", "folder", "tune", "small")


def get_config(variant: str = ""):
    config = default("spd")
    spd, optim = config.spd, config.optim
    names = [name for name in variant.split("+") if name]
    for name in names:
        if name not in VARIANTS:
            raise UserError(f"configs/spd.py has no variant {name!r}: it has {', '.join(VARIANTS)}")
    recipes = [name for name in names if name in RECIPES] or ["simsiam"]
    if len(recipes) > 1:
        raise UserError(f"configs/spd.py: choose one of {', '.join(recipes)}")
    recipe = recipes[0]
    config.data.dataset = "tfds"
    config.data.category = "imagenet2012"
    config.data.image_size = 256  # stored; crops of 224 are taken of it
    config.data.resize = "short_crop"
    config.data.holdout = 0.0  # ImageNet has its own validation images
    config.backbone.name = "resnet50"
    config.backbone.weights = "random"
    config.eval.batch_size = 64
    spd.crop_size = 224
    spd.base = recipe.partition("_")[0]
    optim.name = "sgd"
    optim.momentum = 0.9
    optim.schedule = "cosine"
    if recipe == "simsiam":  # its section 4 and code
        config.data.batch_size, spd.epochs = 512, 100.0
        optim.lr, optim.weight_decay = 0.05, 1e-4
    elif recipe.startswith("moco"):  # the code's README
        config.data.batch_size, spd.epochs = 256, 200.0
        optim.lr, optim.weight_decay = 0.03, 1e-4
        if recipe == "moco_v1":
            optim.schedule = "steps"
            spd.strong = "moco_v1"
            spd.moco.temperature, spd.moco.head = 0.07, "linear"
    elif recipe == "simclr":  # its appendix B, and the code's flags
        config.data.batch_size, spd.epochs = 4096, 100.0
        optim.name, optim.lr, optim.weight_decay = "lars", 0.3, 1e-6
        spd.warmup_epochs = 10.0
    else:
        config.data.batch_size, spd.epochs = 256, 100.0
        optim.lr, optim.weight_decay = 0.1, 1e-4
        spd.warmup_epochs = 5.0
    if "base" in names:
        spd.eta = 0.0
    if "cutpaste" in names:
        spd.local = "cutpaste"
    if "xent" in names:
        spd.term = "xent"
    if "folder" in names:
        config.data.dataset, config.data.category = "images", ""
        config.data.holdout = 0.1
    if "tune" in names:
        config.backbone.weights = "imagenet"
        spd.epochs, spd.warmup_epochs = 10.0, 0.0
        optim.lr = optim.lr / 10
    if "small" in names:
        _small(config)
    return config


def _small(config) -> None:
    """What two cores can do: see the README for how far that goes."""
    if config.data.dataset == "tfds":
        config.data.dataset, config.data.category = "demo", ""
    config.data.resize = "square"
    config.data.image_size = 64
    config.data.batch_size = 32
    config.data.holdout = 0.1
    config.backbone.name = "resnet18"
    config.spd.crop_size = 0
    config.spd.epochs = config.spd.warmup_epochs = 0.0
    config.train.steps.pretrain = 40
    config.spd.simsiam.dim, config.spd.simsiam.predictor_dim = 512, 128
    config.spd.moco.queue, config.spd.moco.bn_group, config.spd.moco.momentum = 1024, 8, 0.99
    if config.optim.name == "lars":
        # Departure: LARS is for batches of thousands.
        config.optim.name, config.optim.lr = "sgd", 0.1
