"""NSA's settings per class: how large patches are, where they may lie, how they are blended.

The classes of MVTec AD are NSA's table. For MVTec 3D-AD nothing is published, and nothing for any other category: those
settings are ours.
"""

from __future__ import annotations

from typing import NamedTuple

KINDS = ("object", "texture")


class Settings(NamedTuple):
    """kind: 'object' or 'texture' · background: (brightness, threshold) pairs on 0 to 255, a pixel is foreground that
    differs from every one by more than its threshold; (): everything is foreground; None: measured from the training
    normals · height, width: bounds of a patch, of half of it when cut and of all of it when blended, as shares of the
    image's sides · min_object: share of a patch that must be foreground · min_overlap: share of the patch's foreground
    that must cover foreground of the destination · patches: at most · gradients: 'normal' or 'mixed'.
    """

    kind: str
    background: tuple[tuple[float, float], ...] | None
    height: tuple[float, float]
    width: tuple[float, float]
    min_object: float
    min_overlap: float
    patches: int
    gradients: str


def _object(background, high, wide, least, patches, low=0.03) -> Settings:
    return Settings("object", background, (low, high), (low, wide), least, 0.25, patches, "normal")


_DARK, _BRIGHT = ((20.0, 20.0),), ((200.0, 60.0),)  # background brightness and threshold
TEXTURE = Settings("texture", (), (0.03, 0.40), (0.03, 0.40), 0.5, 0.25, 4, "mixed")
OBJECT = _object(None, 0.40, 0.40, 0.50, 3)
SMALL_OBJECT = _object(None, 0.25, 0.25, 0.50, 3)

# Classes without a background in NSA's table have no least shares there, either: the 0.5 is never looked at.
MVTEC_AD = {
    "bottle": _object(_BRIGHT, 0.40, 0.40, 0.70, 3),
    "cable": _object((), 0.40, 0.40, 0.50, 3, low=0.05),
    "capsule": _object(_BRIGHT, 0.15, 0.40, 0.70, 3),
    "hazelnut": _object(_DARK, 0.35, 0.35, 0.70, 3),
    "metal_nut": _object(_DARK, 0.40, 0.40, 0.50, 3),
    "pill": _object(_DARK, 0.20, 0.40, 0.70, 3),
    "screw": _object(_BRIGHT, 0.12, 0.12, 0.50, 4),
    "toothbrush": _object(_DARK, 0.40, 0.20, 0.25, 3),
    "transistor": _object((), 0.40, 0.40, 0.50, 3),
    "zipper": _object(_BRIGHT, 0.40, 0.20, 0.70, 4),
    **dict.fromkeys(("carpet", "grid", "leather", "tile", "wood"), TEXTURE),
}
MVTEC_3D_AD_SMALL = ("cable_gland", "carrot", "dowel", "rope")  # thin things: patches up to a quarter


def settings(dataset: str, category: str, kind: str = "auto") -> Settings:
    """The settings of a category. kind 'auto': as NSA's table or the data set says, 'texture' for what is unknown.

    >>> settings("folder", "screw").height, settings("mvtec_3d_ad", "rope").height, settings("folder", "bolt").kind
    ((0.03, 0.12), (0.03, 0.25), 'texture')
    """
    three_d = SMALL_OBJECT if category in MVTEC_3D_AD_SMALL else OBJECT
    known = three_d if dataset == "mvtec_3d_ad" else MVTEC_AD.get(category)
    if known and kind in ("auto", known.kind):
        return known
    return OBJECT if kind == "object" else TEXTURE
