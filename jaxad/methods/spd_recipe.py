"""What config.spd asks for: which views, which term, which BatchNorm groups; and what makes no sense."""

from __future__ import annotations

from typing import Any

from jaxad.errors import Checks
from jaxad.models import resnet
from jaxad.types import DataSpec, UserError

BASES = ("simsiam", "moco", "simclr", "supervised")
STRONG = {"simsiam": "simsiam", "moco": "simsiam", "simclr": "simclr", "supervised": "supervised"}  # MoCo: v2's


def views(options: Any) -> tuple[str, ...]:
    """The views that the loss needs, of those that the op makes."""
    shown = ["first"] if options.base == "supervised" else ["first", "second"]
    if not options.eta:
        return tuple(shown)
    if term(options) == "xent":
        return (*shown, "local") if options.base == "supervised" else (*shown, "weak", "local")
    return (*shown, *(() if options.spd_anchor == "shared" else ("anchor",)), "weak", "local")


def view_options(options: Any) -> dict[str, Any]:
    """Options of the view 'spot_the_difference'; 'first' and 'second' do not depend on what else is asked for."""
    made = {
        "size": options.crop_size,
        "strong": STRONG[options.base] if options.strong == "auto" else options.strong,
        "views": views(options),
    }
    if not options.eta:
        return made
    return made | {
        "spd_anchor": options.spd_anchor,
        "neg_base": options.neg_base,
        "local": options.local,
        "local_of": "first" if "weak" not in made["views"] else "weak",
        "smooth_blend": options.smooth_blend.to_dict(),
    }


def term(options: Any) -> str:
    return ("xent" if options.base == "supervised" else "cosine") if options.term == "auto" else options.term


def space(options: Any) -> str:
    return ("pred_sg" if options.base == "simsiam" else "z") if options.spd_space == "auto" else options.spd_space


def groups(options: Any, batch_size: int) -> int:
    """Groups of BatchNorm. On several devices their number should be a multiple of the devices': no group is then
    split over two."""
    return batch_size // options.moco.bn_group if options.base == "moco" and options.moco.bn_group else 1


def check(config: Any, spec: DataSpec) -> None:
    """Raises UserError for values that make no sense, before anything is loaded."""
    options, batch_size = config.spd, config.data.batch_size
    checks = Checks(options, "config.spd")
    checks.one_of("base", BASES)
    checks.one_of("term", ("auto", "cosine", "xent"))
    checks.one_of("spd_space", ("auto", "pred_sg", "z"))
    checks.one_of("spd_moco", ("query", "key"))
    checks.one_of("bn_concat_views", ("auto", "yes", "no"))
    checks.one_of("strong", ("auto", "simsiam", "moco_v1", "simclr", "supervised"))
    checks.one_of("moco.head", ("mlp", "linear"))
    checks.one_of("simclr.negatives", ("ntxent", "poster"))
    checks.not_negative("eta", "epochs", "warmup_epochs", "lr_batch", "crop_size")
    checks.demand(0 <= options.ema < 1, "ema", "in [0, 1)")
    for name in ("moco.temperature", "simclr.temperature", "probe.temperature"):
        section, key = name.split(".")
        checks.demand(options[section][key] > 0, name, "positive")
    if config.backbone.name not in resnet.ARCHITECTURES:
        known = ", ".join(resnet.ARCHITECTURES)
        raise UserError(f"config.backbone.name={config.backbone.name!r} cannot be pre-trained by spd; use {known}")
    if space(options) == "pred_sg" and options.base != "simsiam":
        raise UserError(f"config.spd.spd_space=pred_sg needs SimSiam's predictor; set it to z for {options.base}")
    if batch_size < 2 or batch_size > spec.n_train_normal:
        raise UserError(
            f"config.data.batch_size={batch_size}: BatchNorm and negatives need at least 2 different images, and there "
            f"are {spec.n_train_normal} to train on; set it between 2 and that"
        )
    if options.base == "supervised" and len(spec.kinds) < 2:
        raise UserError(
            f"config.spd.base=supervised needs images of two classes or more, and {spec.category!r} has "
            f"{len(spec.kinds)}: put each class into a folder of its own (config.data.dataset=images), or choose "
            f"simsiam, moco or simclr"
        )
    if options.base == "moco":
        _check_moco(options, checks, batch_size)


def _check_moco(options: Any, checks: Checks, batch_size: int) -> None:
    moco = options.moco
    checks.demand(0 <= moco.momentum < 1, "moco.momentum", "in [0, 1)")
    if moco.queue < batch_size or moco.queue % batch_size:
        near = max(moco.queue // batch_size, 1) * batch_size
        raise UserError(
            f"config.spd.moco.queue={moco.queue} is not a multiple of config.data.batch_size={batch_size}; "
            f"the nearest below is {near}"
        )
    if moco.bn_group and (moco.bn_group < 2 or batch_size % moco.bn_group):
        raise UserError(
            f"config.data.batch_size={batch_size} does not divide into BatchNorm groups of "
            f"config.spd.moco.bn_group={moco.bn_group} images, 2 or more; change one of them"
        )
    if moco.bn_group and options.bn_concat_views == "yes":
        raise UserError("config.spd.bn_concat_views=yes would put several views into one BatchNorm group of MoCo's")
    if moco.bn_group == batch_size:
        raise UserError(
            f"config.data.batch_size={batch_size} is too small for two BatchNorm groups of config.spd.moco.bn_group="
            f"{moco.bn_group}: a key would share its statistics with its query; halve the group, or double the batch"
        )
