"""The one default config, locked: a file in configs/ or a flag may change a value; a key that is not here is an error.

`default(method)` holds the keys that every method shares and the section of that one method. A method outside jaxad
brings its own: `default('my_package.my_method', steps={'fit': 100}, margin=0.2)` makes `config.my_method.margin`.

Nothing here imports jax: `--help` and a mistyped key answer at once.
"""

from __future__ import annotations

import importlib.util
import os

from ml_collections import ConfigDict

from jaxad.defaults import METHODS
from jaxad.errors import UserError

DATASETS = ("demo", "folder", "mvtec_ad", "mvtec_3d_ad", "visa", "btad", "images", "tfds", "periodic")
GENERATED = ("demo", "periodic")  # these need no root
BACKBONES = ("resnet18", "resnet34", "resnet50", "wide_resnet50_2", "vgg16")


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
            # category: whose stages in that run; empty: of the same category
            start=dict(run="", stage="", category=""),
            data=dict(
                # images, tfds: images with or without classes, to pre-train on
                dataset="demo",  # demo | folder | mvtec_ad | mvtec_3d_ad | visa | btad | images | tfds | periodic
                root="",  # the folder that holds the data set; demo and periodic need none
                category="",  # a name, a comma list, or 'all'; images: A+B joins two folders; tfds: the builder's name
                source="",  # a file from jaxad.data.materialize, read instead of dataset and root, without TensorFlow
                image_size=256,  # pixels
                batch_size=16,
                resize="square",  # square | short_crop | none (needs equal sizes)
                crop_size=0,  # short_crop: side of the crop, after the short side became image_size; 0: image_size
                # Departure from every paper, which train on all normals: a tenth is held out to set the threshold that
                # decisions need. 0: train on all, and take the threshold from them, which is optimistic.
                holdout=0.1,
                joint=False,  # one model, trained on all the categories together and judged on each
                n_shot=0,  # train on this many normals, a seeded draw; 0: all
                n_anomalies=0,  # real anomalies moved from test to training, a seeded draw per category
                # VisA's protocols, on any data with anomalies: one_class (training has none) | high_shot | few_shot
                protocol="one_class",
                k_shot=10,  # few_shot: training images of each label
                draw=0,  # few_shot: which of the five stored draws, 0 to 4
                cache_dir="",  # where prepared data sets are kept; empty: $JAXAD_CACHE, else ~/.cache/jaxad
                memory_mb=4096,  # decoded sets up to this size stay in memory; larger ones are read by index
            ),
            backbone=dict(
                name="resnet18",  # resnet18 | resnet34 | resnet50 | wide_resnet50_2 | vgg16
                weights="imagenet",  # imagenet | random | a file | the workdir of a pre-training run
            ),
            train=dict(
                steps=own_steps,  # {stage: steps}
                precision="auto",  # compute: auto (bfloat16 on GPU and TPU, float32 on CPU) | float32 | bfloat16
                log_every=10,  # steps
            ),
            optim=dict(
                name="adam",  # adam | adamw | sgd | lars
                lr=1e-3,
                b1=0.9,
                b2=0.999,
                momentum=0.9,  # sgd, lars
                trust=0.001,  # lars: trust coefficient
                weight_decay=0.0,
                decay="all",  # what weight_decay is on: all | kernels (not biases, norms and tables)
                clip=0.0,  # the norm that gradients are scaled down to; 0: never
                # constant_linear: the first half, then in a line to 0 · steps: x 0.1 after 60 % and 80 %
                schedule="constant",  # constant | cosine | constant_linear | steps
                warmup=0,  # steps
                end=0.0,  # cosine: the learning rate that it ends at
            ),
            score=dict(
                interpolation="bilinear",  # bilinear (half-pixel) | bilinear_corners (align_corners) | nearest
                sigma=4.0,  # Gaussian smoothing of the map, in pixels of image_size; 0: none
                reduction="max",  # max | mean | top1%, where the method has no image score of its own
            ),
            threshold=dict(quantile=0.995),  # of the scores of held-out normals
            # every: steps · metrics: exact | binned · without_drawn: report also what the metrics are without the
            # anomalies that data.n_anomalies=N would move into training, to compare with a run that moves them; 0: no
            # visa202: VisA's own pixel metrics, too
            eval=dict(every=0, batch_size=8, metrics="exact", without_drawn=0, visa202=False),
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
    _one_of(config, "data.protocol", ("one_class", "high_shot", "few_shot"))
    _one_of(config, "data.draw", (0, 1, 2, 3, 4))
    _one_of(config, "backbone.name", BACKBONES)
    _one_of(config, "train.precision", ("auto", "float32", "bfloat16"))
    _one_of(config, "optim.name", ("adam", "adamw", "sgd", "lars"))
    _one_of(config, "optim.schedule", ("constant", "cosine", "constant_linear", "steps"))
    _one_of(config, "optim.decay", ("all", "kernels"))
    _one_of(config, "score.interpolation", ("bilinear", "bilinear_corners", "nearest"))
    _one_of(config, "score.reduction", ("max", "mean", "top1%"))
    _one_of(config, "eval.metrics", ("exact", "binned"))
    _one_of(config, "mesh.platform", ("", "cpu", "gpu", "tpu"))
    if bool(config.start.run) != bool(config.start.stage):
        raise UserError("config.start needs both run=WORKDIR and stage=NAME, the last stage to take from it")
    if config.start.category and not config.start.run:
        raise UserError(f"config.start.category={config.start.category!r} needs start.run=WORKDIR, the run that has it")
    data = config.data
    if data.source:
        if not os.path.isfile(data.source):
            raise UserError(
                f"config.data.source={data.source!r} is not a file; python -m jaxad.data.materialize writes one"
            )
    elif data.dataset not in GENERATED:
        if not data.root:
            raise UserError(f"data set {data.dataset!r} needs its folder: --config.data.root=FOLDER")
        if not os.path.isdir(data.root):
            raise UserError(f"config.data.root={data.root!r} is not a folder")
    weights = config.backbone.weights
    if weights not in ("imagenet", "random") and not os.path.exists(weights):
        raise UserError(
            f"config.backbone.weights={weights!r} is not a file, nor the folder of a run; or say 'imagenet' or 'random'"
        )
    for key, value, least in (
        ("data.image_size", data.image_size, 16),
        ("data.batch_size", data.batch_size, 1),
        ("eval.batch_size", config.eval.batch_size, 1),
        ("train.log_every", config.train.log_every, 1),
        ("checkpoint.keep", config.checkpoint.keep, 1),
        ("data.n_shot", data.n_shot, 0),
        ("data.n_anomalies", data.n_anomalies, 0),
        ("data.k_shot", data.k_shot, 1),
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
    if not 0 <= config.optim.end <= max(config.optim.lr, 0):
        raise UserError(f"config.optim.end={config.optim.end} must be in [0, optim.lr={config.optim.lr}]")
    if not 0 <= data.holdout < 1:
        raise UserError(f"config.data.holdout={data.holdout} must be a fraction in [0, 1)")
    if not 0 < config.threshold.quantile <= 1:
        raise UserError(f"config.threshold.quantile={config.threshold.quantile} must be in (0, 1]")
