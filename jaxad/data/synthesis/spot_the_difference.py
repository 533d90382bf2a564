"""The views of SPD: two strong global ones, a weak one, and a weak one with a local change that is hard to spot.

Zou et al., SPot-the-Difference Self-supervised Pre-training for Anomaly Detection and Segmentation, ECCV 2022. Its loss
pulls the image x to its weak global view x~+ and pushes it from the locally changed view x~-, beside the loss of a base
method on two strong views x, x^.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxad.data.synthesis import smooth_blend as smooth
from jaxad.data.synthesis.cutpaste import SMALLEST_IMAGE, cutpaste
from jaxad.data.synthesis.global_views import STRENGTHS, Place, draw_place, look, resample, whole
from jaxad.data.views import Context, one_of, to_uint8
from jaxad.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

# Each draws from a seed of its own, so the views asked for beside it never change it.
SEEDS = {"first": 0, "second": 1, "weak": 2, "anchor": 3, "independent": 4, "local": 5}
VIEWS = ("first", "second", "weak", "local", "anchor")
ANCHORS = ("shared", "plain", "rrc")
BASES = ("same", "independent")
LOCALS = ("smooth_blend", "cutpaste")
LOCAL_OF = ("weak", "first")
CUTPASTE = dict(hard=False, variant="normal", area=(0.02, 0.15), aspect=0.3, jitter=0.1)  # as CutPaste's public code


def spot_the_difference(
    image: tf.Tensor,
    context: Context,
    seed: tf.Tensor,
    *,
    size: int = 0,
    strong: str = "simsiam",
    views: Sequence[str] = ("first", "second"),
    spd_anchor: str = "shared",
    neg_base: str = "same",
    local: str = "smooth_blend",
    local_of: str = "weak",
    smooth_blend: Mapping[str, Any] | None = None,
) -> dict[str, tf.Tensor]:
    """{name: u8[size, size, 3]} of the `views` asked for, each as it is whatever else is asked for.

    views: 'first', 'second', strong global views x, x^ · 'weak', x~+ · 'local', x~- · 'anchor', x_i, where it is no
    strong view.
    size: pixels of their sides; 0: the image's · strong: a name in `global_views.STRENGTHS` · spd_anchor: 'shared', x_i
    is the first strong view, and x~+ and x~- lie in its crop and are flipped as it is; 'plain', x_i is the whole image,
    and x~+ and x~- are weak views of that; 'rrc', as 'plain', but x_i a random resized crop · neg_base: x~- is a local
    change 'same', of x~+; 'independent', of another weak view · local: 'smooth_blend', 'cutpaste', which change is made
    · local_of: 'weak', x~- is of a weak view; 'first', of the first strong view, for the supervised recipe ·
    smooth_blend: its options, `smooth_blend.Options`; CutPaste takes none of them.

    UserError, when the graph is built, for other options, for the anchor where it is the first view, and for
    neg_base='independent' where x~- is of no weak view.
    Departure: the paper's anchor 'plain' is cut out of a larger image; here images are square, and it is all of one.
    """
    import tensorflow as tf

    size = size or image.shape[0]
    _check(size, strong, views, spd_anchor, neg_base, local, local_of)
    options = smooth.read_options("spot_the_difference", smooth_blend or {})
    seeds = {name: tf.random.fold_in(seed, k) for name, k in SEEDS.items()}
    everything = whole(image)
    made = {}

    def place_and_look(name: str) -> tuple[tf.Tensor, tf.Tensor]:
        place, appearance = (tf.random.fold_in(seeds[name], k) for k in (0, 1))
        return place, appearance

    def strong_view(name: str) -> tf.Tensor:
        recipe = STRENGTHS[strong]
        for_place, for_look = place_and_look(name)
        place = draw_place(for_place, everything, recipe)
        return look(resample(image, place, size, recipe["resize"]), for_look, recipe)

    def weak_view(name: str) -> tf.Tensor:
        recipe = STRENGTHS["weak"]
        for_place, for_look = place_and_look(name)
        if spd_anchor == "shared":
            outer = draw_place(place_and_look("first")[0], everything, STRENGTHS[strong])
            place = Place(draw_place(for_place, outer.box, recipe, relative=True).box, outer.flip)
        else:
            place = draw_place(for_place, everything, recipe)
        return look(resample(image, place, size), for_look, recipe)

    def view(name: str) -> tf.Tensor:
        if name not in made:
            made[name] = make(name)
        return made[name]

    def make(name: str) -> tf.Tensor:
        if name in ("first", "second"):
            return strong_view(name)
        if name in ("weak", "independent"):
            return weak_view(name)
        if name == "local":
            base = view("first" if local_of == "first" else "weak" if neg_base == "same" else "independent")
            if local == "smooth_blend":
                return smooth.blend(base, seeds[name], options)[0]
            return cutpaste(base, context, seeds[name], **CUTPASTE)["image"]
        box = everything
        if spd_anchor == "rrc":
            box = draw_place(place_and_look(name)[0], everything, STRENGTHS["supervised"]).box
        return resample(image, Place(box, tf.constant(False)), size)

    return {name: view(name) if view(name).dtype == tf.uint8 else to_uint8(view(name)) for name in views}


def _check(
    size: int, strong: str, views: Sequence[str], spd_anchor: str, neg_base: str, local: str, local_of: str
) -> None:
    op = "op 'spot_the_difference'"
    for option, value, allowed in (
        ("strong", strong, tuple(STRENGTHS)),
        ("spd_anchor", spd_anchor, ANCHORS),
        ("neg_base", neg_base, BASES),
        ("local", local, LOCALS),
        ("local_of", local_of, LOCAL_OF),
        *(("views", name, VIEWS) for name in views),
    ):
        one_of("spot_the_difference", option, value, allowed)
    if not views or len(set(views)) < len(views):
        raise UserError(f"{op}: views={tuple(views)}; name one or more of {', '.join(VIEWS)}, each once")
    if "anchor" in views and spd_anchor == "shared":
        raise UserError(f"{op}: with spd_anchor='shared' the anchor is the view 'first'; ask for that")
    if local_of == "first" and neg_base == "independent":
        raise UserError(f"{op}: neg_base='independent' is of weak views, not of local_of='first'; set neg_base='same'")
    if size != int(size) or size < SMALLEST_IMAGE:
        raise UserError(f"{op}: size={size}; views need {SMALLEST_IMAGE} pixels or more, 0 for those of the images")
