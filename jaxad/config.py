"""The one default config, locked: a file in configs/ or a flag may change a value; a key that is not here is an error.

`default(method)` holds the keys that every method shares and the section of that one method. A method outside jaxad
brings its own: `default('my_package.my_method', steps={'fit': 100}, margin=0.2)` makes `config.my_method.margin`.

Nothing here imports jax: `--help` and a mistyped key answer at once.
"""

from __future__ import annotations

import importlib.util
import os

from ml_collections import ConfigDict

from jaxad.errors import UserError

DATASETS = ("demo", "folder", "mvtec_ad", "mvtec_3d_ad", "visa", "btad")
BACKBONES = ("resnet18", "resnet34", "resnet50", "wide_resnet50_2", "vgg16")

# {method: ({stage: training steps}, its own keys)}. A stage that fits in one pass ignores its number of steps.
METHODS = {
    "patchcore": lambda: (
        dict(fit=0),
        dict(
            layers=("layer2", "layer3"),
            neighbourhood=3,  # side of the patch whose features are pooled
            descriptor="adaptive",  # adaptive: the authors' unfold and adaptive pooling | concat: average pooling
            layer_weights=(),  # a factor for the features of each layer; empty: 1
            layer_dim=1024,  # length per layer after pooling (adaptive)
            dim=1024,  # length of a descriptor (adaptive)
            coreset=0.1,  # fraction of the patches kept; 1 keeps all
            projection="linear",  # for choosing the coreset: linear (torch's default init) | gaussian | sparse | none
            projection_dim=128,
            start_points=10,  # first scores: mean distance to this many random patches; 0: a random first pick
            neighbours=1,
            squared=True,  # faiss returns squared distances and the authors take no root
            reweight_b=0,  # neighbours in the paper's eq. 7; 0: none, as in the authors' code
            # Departure: the article and the authors' code take the max. The mean of the highest 1 % of the patch scores
            # gave the better image AUROC on all real sets tried, README says which and by how much.
            image_score="top1%",  # max | top1% | mean
            ones_pass=True,  # move the BatchNorm averages as the authors' code does, see methods/patchcore.py
        ),
    ),
    "reverse_distillation": lambda: (
        dict(distil=3000),
        dict(
            cos_reduce="flat",  # flat: RD4AD's code | position: the article
        ),
    ),
    "anoseg": lambda: (
        dict(segment=20_000, detect=10_000),
        # The paper gives no weights, optimiser, length or mix; what is chosen and why: the README and losses/.
        dict(
            hard_aug=True,  # rotation, permutation and colour jitter of what is pasted (Table 3); False: CutPaste only
            adversarial=True,  # a critic on image and map (Table 3); needs reconstruction
            reconstruction=True,  # the image decoder with eq. 4; without adversarial it is fig. 8a's recon_no_adv
            coords=True,  # planes of coordinates beside the image (Table 3)
            map_channels=1,  # 3: as Table 6 prints it; the mask repeated, the mean over channels predicted
            input_range="01",  # 01 | pm1: how the encoder sees the image; a pretrained one sees ImageNet's mean and std
            width_mult=1.0,  # factor on the channels of all networks
            remat=False,  # compute activations again when going back, for memory; XLA on CPU undoes it
            p_anomaly=0.5,  # share of synthetic anomalies in a batch
            cutpaste=dict(  # options of the view 'cutpaste', see jaxad/data/synthesis/cutpaste.py
                variant="normal",  # normal: rectangles | scar | union
                level="image",  # image: the whole copy is augmented, then cut | patch: cut, then augmented
                perm_mode="halves",  # halves | quadrants
                mask_mode="paste",  # paste | diff: only where something changed
                min_change=0.0,  # draw again while the mean change over the paste is smaller, in [0, 1]
                source="same",  # same image | other image of the category
                allow_identity=False,  # of rotation and permutation, as CSI's code
                area=(0.02, 0.15),  # share of the image that a rectangle covers
                aspect=0.3,  # the most oblong rectangle, height to width or width to height
                jitter=0.1,  # strength of the colour jitter of every paste; 0: none
            ),
            seg_loss="l1",  # eq. 2: l1 | bce | balanced_l1, against the collapse to a map of ones
            w_seg=1.0,
            w_re=1.0,
            w_adv=0.01,  # pix2pix's ratio; as printed: 1
            adv_ramp=0,  # steps over which w_adv climbs from 0
            gan_loss="ns",  # ns | minimax: eq. 3 as printed | lsgan
            g_steps=1,  # steps of the segmenter for one of the critic; ALOCC takes 2
            d_image_masked=False,  # the critic sees each image times its map
            ema=0.0,  # 0.999: predict with a moving average of the segmenter
            detector=dict(  # the second stage: section 3.4, Appendix A
                enabled=True,
                feature_matching=True,  # L_fea (Table 5)
                input_map=True,  # False: neither network sees the map (Table 5)
                anomaly_cls=True,  # L_cls (Table 5)
                g_input="image_map",  # image_map | image: what the generator sees beside coordinates
                w_re=1.0,
                w_adv=0.01,
                w_fea=1.0,
                cls_dup_real=True,  # the real term that eq. 6 and L_cls both print counts twice
                pre_activation=False,  # f of eq. 5 before BatchNorm and LeakyReLU of Conv 7
                alpha=1.0,  # eq. 5
                beta=0.1,
            ),
        ),
    ),
    "siamese_unet": lambda: (
        dict(contrast=3000, deviate=1000),
        # The paper gives none of these numbers; what is chosen and why: methods/siamese_unet.py, losses/, the README.
        dict(
            attention="cpam",  # cpam | cbam (Table 4, right) | none (Table 4, "w/o CPAM")
            attention_at="pre",  # pre: before each decoder layer | post: after it
            cpam=dict(
                fusion="mul_rms",  # mul_rms: eq. 5 up to a factor per image | mul: as printed | gated | sum: DANet
                channel_softmax="danet",  # danet | plain | cosine
                block=512,  # queries at once where there are 1024 positions or more; 0: all
                kv_pool=1,  # 2: keys and values at half the resolution
                value_reduction=1,  # 8: values as narrow as keys, then projected back
            ),
            anomalies="synthetic",  # synthetic: "(s)" | real: "(r)", those that data.n_anomalies moves into training
            contrastive=True,  # False: stage 1 restores normal images and nothing else (Table 4, "w/o contrastive")
            deviation=True,  # False: no stage 2 (Table 4, "w/o finetune")
            cos_reduce="flat",  # eq. 1: flat | position
            cossim_on=("n", "naug"),  # the images that eq. 1 is taken of; ("n",): without the rotated copies
            con_reduce="flat",  # eq. 6: flat | gap | position
            con_stop="none",  # anchor: eq. 6 does not move the features of the normal image
            margin=0.2,
            lambda_con=0.1,
            lambda_cos=1.0,
            rotation="small",  # small: uniform in +-degrees | k90: quarter turns | any: use with con_reduce=gap
            degrees=15.0,
            bn_stats="normal",  # BatchNorm statistics of: normal (N and N_aug) | joint (all three) | separate passes
            score="topk",  # S_i of eq. 8: topk | mean | literal (as printed) | zscore (needs p of about 5)
            k=0.05,  # fraction of the positions
            p=0.5,  # what the score of an anomaly should reach
            keep=1.0,  # weight of eq. 1 on normal images in stage 2; 0: the paper's
            masked=False,  # score an anomaly inside its mask only (needs synthetic anomalies, or real ones with masks)
            deviate=dict(
                batch_size=8, lr=2e-4, b1=0.9, b2=0.999, clip=1.0
            ),  # the rest as in optim; so many N and A each
            synthesis=dict(  # options of the view 'nsa', see jaxad/data/synthesis; auto, 0, () and -1: the class's own
                kind="auto",  # auto | object | texture
                foreground="auto",
                gradients="auto",  # auto | normal | mixed
                patches=0,
                height=(),
                width=(),
                min_object=-1.0,
                min_overlap=-1.0,
                destination="other",  # other: A is another image than N, as from a pool | own: N itself is spoilt
            ),
        ),
    ),
}


def default(method: str, steps: dict[str, int] | None = None, **options) -> ConfigDict:
    """The locked default config of `method`: a name in jaxad/methods, or the path of a module of your own.

    >>> default('patchcore').patchcore.coreset
    0.1
    """
    own_steps, section = METHODS[method]() if method in METHODS else (steps or {}, options)
    config = ConfigDict(
        dict(
            method=method,
            seed=0,
            # run: the workdir of another run, from which every stage up to `stage` is taken instead of trained
            start=dict(run="", stage=""),
            data=dict(
                dataset="demo",  # demo | folder | mvtec_ad | mvtec_3d_ad | visa | btad
                root="",  # the folder that holds the data set; demo needs none
                category="",  # a name, a comma list, or 'all'
                source="",  # a file from jaxad.data.materialize, read instead of dataset and root, without TensorFlow
                image_size=256,  # pixels
                batch_size=16,
                resize="square",  # square | short_crop | none (needs equal sizes)
                crop_size=0,  # short_crop: side of the crop, after the short side became image_size; 0: image_size
                # Departure from every paper, which train on all normals: a tenth is held out to set the threshold that
                # decisions need. 0: train on all, and take the threshold from them, which is optimistic.
                holdout=0.1,
                n_shot=0,  # train on this many normals, a seeded draw; 0: all
                n_anomalies=0,  # real anomalies moved from test to training, a seeded draw per category
                cache_dir="",  # where prepared data sets are kept; empty: $JAXAD_CACHE, else ~/.cache/jaxad
                memory_mb=4096,  # decoded sets up to this size stay in memory; larger ones are read by index
            ),
            backbone=dict(
                name="resnet18",  # resnet18 | resnet34 | resnet50 | wide_resnet50_2 | vgg16
                weights="imagenet",  # imagenet | random | a file
            ),
            train=dict(
                steps=own_steps,  # {stage: steps}
                precision="auto",  # compute: auto (bfloat16 on GPU and TPU, float32 on CPU) | float32 | bfloat16
                log_every=10,  # steps
            ),
            optim=dict(
                name="adam",  # adam | adamw | sgd
                lr=1e-3,
                b1=0.9,
                b2=0.999,
                momentum=0.9,  # sgd
                weight_decay=0.0,
                clip=0.0,  # the norm that gradients are scaled down to; 0: never
                schedule="constant",  # constant | cosine | constant_linear: the first half, then in a line to 0
                warmup=0,  # steps
            ),
            score=dict(
                interpolation="bilinear",  # bilinear (half-pixel) | bilinear_corners (align_corners) | nearest
                sigma=4.0,  # Gaussian smoothing of the map, in pixels of image_size; 0: none
                reduction="max",  # max | mean | top1%, where the method has no image score of its own
            ),
            threshold=dict(quantile=0.995),  # of the scores of held-out normals
            # every: steps · metrics: exact | binned · without_drawn: report also what the metrics are without the
            # anomalies that data.n_anomalies=N would move into training, to compare with a run that moves them; 0: no
            eval=dict(every=0, batch_size=8, metrics="exact", without_drawn=0),
            checkpoint=dict(every=0, keep=2),  # every: steps; 0: at the end of each stage
            mesh=dict(devices=0, platform=""),  # 0: all of them; platform: cpu | gpu | tpu, refused where absent
            report=dict(overlays=20, curves=True),  # overlays: pictures per category
        )
    )
    config[method.rpartition(".")[2]] = section
    return config.lock()


def section(config: ConfigDict) -> ConfigDict:
    """The active method's own keys."""
    return config[config.method.rpartition(".")[2]]


def _one_of(config: ConfigDict, key: str, allowed: tuple) -> None:
    value = config
    for part in key.split("."):
        value = value[part]
    if value not in allowed:
        raise UserError(f"config.{key}={value!r} is not one of: {', '.join(map(str, allowed))}")


def check(config: ConfigDict) -> None:
    """Cross-field checks, once, before anything heavy is imported. Raises `UserError` with the key and the fix."""
    name = config.method.rpartition(".")[2]
    if name not in config:
        raise UserError(
            f"this config has no section {name!r} for method {config.method!r}: use --config=configs/{name}.py"
        )
    if config.method not in METHODS:
        try:
            found = importlib.util.find_spec(config.method) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            known = ", ".join(sorted(METHODS))
            raise UserError(f"method {config.method!r} is not one of {known}, nor a module that can be imported")
    _one_of(config, "data.dataset", DATASETS)
    _one_of(config, "data.resize", ("square", "short_crop", "none"))
    _one_of(config, "backbone.name", BACKBONES)
    _one_of(config, "train.precision", ("auto", "float32", "bfloat16"))
    _one_of(config, "optim.name", ("adam", "adamw", "sgd"))
    _one_of(config, "optim.schedule", ("constant", "cosine", "constant_linear"))
    _one_of(config, "score.interpolation", ("bilinear", "bilinear_corners", "nearest"))
    _one_of(config, "score.reduction", ("max", "mean", "top1%"))
    _one_of(config, "eval.metrics", ("exact", "binned"))
    _one_of(config, "mesh.platform", ("", "cpu", "gpu", "tpu"))
    if bool(config.start.run) != bool(config.start.stage):
        raise UserError("config.start needs both run=WORKDIR and stage=NAME, the last stage to take from it")
    data = config.data
    if data.source:
        if not os.path.isfile(data.source):
            raise UserError(
                f"config.data.source={data.source!r} is not a file; python -m jaxad.data.materialize writes one"
            )
    elif data.dataset != "demo":
        if not data.root:
            raise UserError(f"data set {data.dataset!r} needs its folder: --config.data.root=FOLDER")
        if not os.path.isdir(data.root):
            raise UserError(f"config.data.root={data.root!r} is not a folder")
    weights = config.backbone.weights
    if weights not in ("imagenet", "random") and not os.path.isfile(weights):
        raise UserError(f"config.backbone.weights={weights!r} is not a file; or say 'imagenet' or 'random'")
    for key, value, least in (
        ("data.image_size", data.image_size, 16),
        ("data.batch_size", data.batch_size, 1),
        ("eval.batch_size", config.eval.batch_size, 1),
        ("train.log_every", config.train.log_every, 1),
        ("checkpoint.keep", config.checkpoint.keep, 1),
        ("data.n_shot", data.n_shot, 0),
        ("data.n_anomalies", data.n_anomalies, 0),
        ("eval.every", config.eval.every, 0),
        ("eval.without_drawn", config.eval.without_drawn, 0),
        ("optim.clip", config.optim.clip, 0),
        ("checkpoint.every", config.checkpoint.every, 0),
        ("mesh.devices", config.mesh.devices, 0),
        ("report.overlays", config.report.overlays, 0),
        ("seed", config.seed, 0),
        *((f"train.steps.{stage}", steps, 0) for stage, steps in config.train.steps.items()),
    ):
        if value < least:
            raise UserError(f"config.{key}={value} must be at least {least}")
    if data.crop_size and (data.resize != "short_crop" or data.crop_size > data.image_size):
        raise UserError(
            f"config.data.crop_size={data.crop_size} needs data.resize='short_crop' and may not exceed "
            f"data.image_size={data.image_size}"
        )
    if not 0 <= data.holdout < 1:
        raise UserError(f"config.data.holdout={data.holdout} must be a fraction in [0, 1)")
    if not 0 < config.threshold.quantile <= 1:
        raise UserError(f"config.threshold.quantile={config.threshold.quantile} must be in (0, 1]")
