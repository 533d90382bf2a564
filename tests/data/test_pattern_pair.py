import jax.numpy as jnp
import numpy as np
import pytest
import speed
import tensorflow as tf
from fake_data import FakeSource, config, take
from PIL import Image
from scipy import ndimage

from jaxad.data import images, views
from jaxad.data.pipeline import Pipeline
from jaxad.data.synthesis import defects
from jaxad.data.synthesis import pattern_pair as pp
from jaxad.data.synthesis.triple import PARTS, Partitions
from jaxad.scoring import triples
from jaxad.types import Feed, UserError, View

SIDE = 64
ONLY = {kind: {**dict.fromkeys(pp.KINDS, 0.0), kind: 1.0} for kind in pp.KINDS}
OUTPUTS = {
    **dict.fromkeys((*PARTS, "observed"), tf.uint8),
    **{"mask": tf.bool, "match": tf.bool, "masked": tf.bool, "kind": tf.int32},
}


def cloudy(seed=0, side=SIDE, contrast=30):
    """u8[side, side, 3], smooth, of medium contrast, no two patches alike."""
    clouds = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side, 3)), (4, 4, 0))
    return np.clip(np.rint(128 + contrast * clouds / clouds.std()), 0, 255).astype(np.uint8)


STACK = np.stack([cloudy(seed) for seed in range(4)])


def context(stack=STACK, index=0, anomalies=()):
    """A Context of u8[n, S, S, 3] normals and (u8[S, S, 3], bool[S, S]) anomalies."""
    n, side = stack.shape[:2]
    pictures = np.concatenate([stack, *(picture[None] for picture, _ in anomalies)])
    masks = np.concatenate([np.zeros(stack.shape[:3], bool), *(mask[None] for _, mask in anomalies)])

    def load(i):
        return tf.gather(tf.constant(pictures), i), tf.gather(tf.constant(masks), i)

    nothing = tf.zeros((side, side), bool)
    return views.Context(tf.constant(index), tf.constant(False), nothing, n, len(anomalies), load)


def graph_of(here=None, stack=STACK, **options):
    """count -> {entry: tensor[count, ...]}, the op on the first image for seeds 0 .. count - 1, as in the pipeline."""
    here = here or context(stack)

    @tf.function(autograph=False)
    def every(count):
        def one(k):
            return pp.pattern_pair(views.to_float(tf.constant(stack[0])), here, tf.stack([k, 7]), **options)

        return tf.map_fn(one, tf.range(count), fn_output_signature=OUTPUTS, parallel_iterations=1)

    return every


def draws(count, here=None, stack=STACK, **options):
    """{entry: array[count, ...]}"""
    made = graph_of(here, stack, **options)(tf.constant(count))
    return {entry: tensor.numpy() for entry, tensor in made.items()}


def rows(made):
    """One dict of entries per pair."""
    return [{entry: array[k] for entry, array in made.items()} for k in range(len(made["kind"]))]


def patches_of(image, n=4):
    """u8[n * n, p, p, C] of a whole number of pixels."""
    return np.asarray(triples.partition(jnp.asarray(image)[None], n))[0]


def number_of(part, patches):
    """The patch that `part` is, however turned; -1 where it is none."""
    found = [k for k, patch in enumerate(patches) if any(np.array_equal(part, np.rot90(patch, q)) for q in range(4))]
    return found[0] if found else -1


def in_line(far, near, target, n=4):
    """Whether three patches are neighbours in a line."""
    places = [divmod(number, n) for number in (far, near, target)]
    steps = {(b[0] - a[0], b[1] - a[1]) for a, b in zip(places[:-1], places[1:], strict=True)}
    return len(steps) == 1 and sum(map(abs, steps.pop())) == 1


ALL = dict(n=(4,), **dict.fromkeys(pp.KINDS, 1.0))


@pytest.fixture(scope="module")
def every():
    """All kinds of pairs of one partition, in which nothing is resized."""
    return rows(draws(420, **ALL))


@pytest.fixture(scope="module")
def mixed(every):
    """{kind: pairs}"""
    return {kind: [pair for pair in every if pair["kind"] == k] for k, kind in enumerate(pp.KINDS)}


def test_a_clean_pair_is_a_triple_and_its_own_target(mixed):
    patches, seen = patches_of(STACK[0]), set()
    for pair in mixed["clean"]:
        far, near, target = (number_of(pair[name], patches) for name in PARTS)
        assert in_line(far, near, target)
        assert np.array_equal(pair["observed"], pair["target"]) and not pair["mask"].any()
        assert pair["match"] and pair["masked"] and pair["kind"] == pp.CLEAN
        seen.add(target)
    assert len(seen) == 16


def test_a_hard_match_is_the_target_but_for_what_another_photograph_changes(mixed):
    patches, changes = patches_of(STACK[0]), []
    for pair in mixed["hard"]:
        assert in_line(*(number_of(pair[name], patches) for name in PARTS))
        assert pair["match"] and pair["masked"] and not pair["mask"].any() and pair["kind"] == pp.HARD
        changes.append(np.abs(pair["observed"].astype(int) - pair["target"]).mean())
    assert min(changes) > 1.0 and max(changes) < 16.0


def test_another_photograph_is_up_to_five_percent_brighter_and_in_contrast_and_has_noise_of_a_hundredth():
    flat, halves = np.full((1, 32, 32, 3), 100, np.float32), np.full((1, 32, 32, 3), 100, np.float32)
    halves[:, :16], halves[..., 0] = 50, halves[..., 0] + 1
    brighter, contrast = [], []
    photographed = tf.function(pp._photographed, autograph=False)
    for k in range(100):
        shot = photographed(tf.constant(flat), tf.constant([k, 1])).numpy()
        assert (shot[..., :1] == shot).all()  # a grey image stays grey
        brighter.append(shot.mean() / 100)
        noise = shot - shot.mean()
        assert noise.std() == pytest.approx(2.55, rel=0.1) and 1.5 < np.abs(np.diff(shot[..., 0])).mean() < 4.5
        shot = photographed(tf.constant(halves), tf.constant([k, 1])).numpy()
        assert (shot[..., :1] != shot[..., 1:]).any()
        contrast.append((shot[:, 16:, :, 1].mean() - shot[:, :16, :, 1].mean()) / 50 / brighter[-1])
    for factors in (brighter, contrast):
        assert 0.94 < min(factors) < 0.96 and 1.04 < max(factors) < 1.06


def test_another_photograph_is_moved_by_up_to_a_pixel_but_not_out_of_the_image():
    partition = Partitions.of("pattern_pair", tf.zeros((SIDE, SIDE, 3)), (4,), 0, "rows").draw(tf.constant(0.5))
    for corner, low, high in ((16.0, -1, 1), (0.0, 0, 1), (48.0, -1, 0)):
        at = tf.fill((1, 2), corner)
        moved = np.stack([pp._moved(at, partition, tf.constant([k, 2])).numpy()[0] for k in range(80)]) - corner
        assert moved.min() >= low and moved.max() <= high
        assert moved.min() < low + 0.1 and moved.max() > high - 0.1
        assert abs(np.corrcoef(moved.T)[0, 1]) < 0.35


def check_defect(pair, apart, least):
    """apart: bool[p, p], where nothing may have changed · least: grey levels that the rest has changed by."""
    assert not pair["match"] and pair["masked"] and pair["mask"].sum() >= pp.LEAST
    change = np.abs(pair["observed"].astype(int) - pair["target"]).mean(axis=-1)
    assert (change[apart] == 0).all() and change[pair["mask"]].mean() > least


def test_a_defect_is_where_the_mask_is_and_its_context_is_clean(mixed):
    patches = patches_of(STACK[0])
    assert len(mixed["defect"]) > 60
    for pair in mixed["defect"]:
        assert in_line(*(number_of(pair[name], patches) for name in PARTS))
        check_defect(pair, ~pair["mask"], defects.VISIBLE)


def test_a_defect_is_where_the_mask_is_in_the_resized_image():
    for pair in rows(draws(60, n=(5,), patch=16, **ONLY["defect"])):
        if pair["kind"] == pp.DEFECT:
            apart = ~ndimage.binary_dilation(pair["mask"], np.ones((5, 5)))  # resizing smears what is beside it
            apart[:2] = apart[-2:] = apart[:, :2] = apart[:, -2:] = False  # and what is beside the patch
            check_defect(pair, apart, 0.5 * defects.VISIBLE)


def test_defects_reach_over_the_borders_of_patches(mixed):
    masks = np.stack([pair["mask"] for pair in mixed["defect"]])
    edges = np.concatenate([masks[:, :1], masks[:, -1:], masks[..., :1].mT, masks[..., -1:].mT], axis=1)
    assert np.mean(edges.any(axis=(1, 2))) > 0.4


def test_a_defective_context_is_beside_a_clean_target_and_its_mask_does_not_count(mixed):
    patches, where = patches_of(STACK[0]), np.zeros(2, int)
    assert len(mixed["context"]) > 60
    for pair in mixed["context"]:
        numbers = [number_of(pair[name], patches) for name in PARTS]
        assert numbers[2] >= 0 and np.array_equal(pair["observed"], pair["target"]) and not pair["mask"].any()
        assert not pair["match"] and not pair["masked"] and -1 in numbers[:2]
        where += np.array(numbers[:2]) == -1
    assert where.min() > 15


def test_a_wrong_patch_is_of_another_place_in_this_image_or_in_another(mixed):
    everything = [patches_of(image) for image in STACK]
    origins = []
    for pair in mixed["wrong"]:
        numbers = [number_of(pair[name], everything[0]) for name in PARTS]
        assert in_line(*numbers)
        assert not pair["match"] and pair["masked"] and pair["mask"].all()
        places = [(k, number_of(pair["observed"], patches)) for k, patches in enumerate(everything)]
        ((image, number),) = [(k, number) for k, number in places if number >= 0]
        assert number != numbers[2]
        origins.append(image)
    counts = np.bincount(origins, minlength=4)
    assert counts[0] / counts.sum() == pytest.approx(0.5, abs=0.13) and counts[1:].min() > 5
    alone = rows(draws(20, context(STACK[:1]), n=(4,), **ONLY["wrong"]))
    assert all(number_of(pair["observed"], everything[0]) >= 0 for pair in alone)


def test_kinds_have_their_shares():
    assert np.diff(pp._shares(dict(clean=0.35, hard=0.15, defect=0.5)), prepend=0) == pytest.approx([0.35, 0.15, 0.5])
    flat = np.full_like(STACK, 90)
    flat[1:] = 30
    shares = dict(clean=2, hard=1, defect=0, context=0, wrong=1)
    # Half of the other patches are of this flat image, and not to be told from the target: then another is drawn.
    counts = np.bincount(draws(600, stack=flat, n=(4,), **shares)["kind"], minlength=5) / 600
    assert counts == pytest.approx([0.5, 0.25, 0, 0, 0.25], abs=0.05)


def test_what_cannot_be_seen_is_a_clean_match():
    flat = np.full_like(STACK, 90)
    made = draws(40, stack=flat, n=(4,), **ONLY["wrong"])
    assert (made["kind"] == pp.CLEAN).all() and made["match"].all() and not made["mask"].any()
    assert np.array_equal(made["observed"], made["target"])


@pytest.mark.parametrize("kind", ["defect", "context"])
def test_a_defect_is_drawn_again_where_no_patch_has_enough_of_it(kind, monkeypatch):
    # One pixel in most draws, three more in the others, all of them visible.
    plain, after = views.to_uint8(STACK[0] / 255), tf.fill((SIDE, SIDE, 3), tf.constant(255, tf.uint8))

    def small(image, before, material, seed, which):
        more = tf.random.stateless_uniform((), seed) < 0.3
        mask = np.zeros((2, SIDE, SIDE), bool)
        mask[:, 24, 24], mask[1, 24, 25:28] = True, True
        mask = tf.where(more, mask[1], mask[0])
        return defects.Defect(tf.where(mask[..., None], after, plain), mask, tf.cast(mask, tf.int32))

    monkeypatch.setattr(defects, "defect", small)
    made = draws(300, n=(4,), **ONLY[kind])
    found = made["kind"] == pp.KINDS.index(kind)
    assert np.mean(found) == pytest.approx(1 - 0.7**pp.TRIES, abs=0.05)
    assert np.array_equal(made["match"], ~found) and (made["kind"][~found] == pp.CLEAN).all()
    assert (made["mask"].sum(axis=(1, 2)) == (4 * found if kind == "defect" else 0)).all()
    for name in ("observed", "far", "near"):
        touched = (made[name] == 255).all(axis=-1).any(axis=(1, 2))
        assert not touched[~found].any()
    if kind == "context":
        assert ((made["far"] == 255).any(axis=(1, 2, 3)) | (made["near"] == 255).any(axis=(1, 2, 3)))[found].all()


def test_patches_that_changed_less_than_the_image_varies_are_no_defects(monkeypatch):
    plain = views.to_uint8(STACK[0] / 255)
    left = np.zeros((SIDE, SIDE), bool)
    left[:, : SIDE // 2] = True
    excess = tf.where(left, -1, 1)  # of a defect everywhere that is seen on the right alone
    monkeypatch.setattr(defects, "defect", lambda *_: defects.Defect(plain, tf.ones((SIDE, SIDE), bool), excess))
    patches = patches_of(STACK[0])
    for pair in rows(draws(40, n=(4,), **ONLY["defect"])):
        assert number_of(pair["target"], patches) % 4 >= 2


def labelled(count, kind, mask, **options):
    """(pairs, patches of the one anomaly, patches of its mask)"""
    anomaly = STACK[3].copy()
    anomaly[mask] = 0
    here = context(STACK[:3], anomalies=[(anomaly, mask)])
    made = draws(count, here, STACK[:3], n=(4,), source="labelled", **ONLY[kind], **options)
    return rows(made), patches_of(anomaly), patches_of(mask[..., None])[..., 0]


def test_labelled_pairs_are_of_real_anomalies_with_their_own_surroundings():
    mask = np.zeros((SIDE, SIDE), bool)
    mask[20:30, 4:44] = True  # patches 4, 5 and 6
    mask[50, 50] = mask[60, 60] = True  # too little of patch 15
    pairs, patches, truth = labelled(80, "defect", mask)
    targets = []
    for pair in pairs:
        far, near, target = (number_of(pair[name], patches) for name in PARTS)
        assert in_line(far, near, target) and pair["kind"] == pp.DEFECT and not pair["match"] and pair["masked"]
        assert np.array_equal(pair["observed"], pair["target"])
        quarters = [q for q in range(4) if np.array_equal(np.rot90(patches[target], q), pair["target"])]
        assert np.array_equal(np.rot90(truth[target], quarters[0]), pair["mask"])
        assert not truth[far].any() and not truth[near].any()  # where such triples are, no others
        targets.append(target)
    assert set(targets) == {4, 5, 6}


def test_labelled_pairs_take_a_defective_context_where_there_is_no_other():
    pairs, patches, _ = labelled(20, "defect", np.ones((SIDE, SIDE), bool))
    assert all(pair["kind"] == pp.DEFECT and pair["mask"].all() for pair in pairs)


def test_the_target_of_a_labelled_context_has_no_defect():
    mask = np.zeros((SIDE, SIDE), bool)
    mask[20:30, 4:30] = mask[20, 50] = True  # patches 4 and 5, and one pixel of 7
    pairs, patches, truth = labelled(60, "context", mask)
    for pair in pairs:
        far, near, target = (number_of(pair[name], patches) for name in PARTS)
        assert in_line(far, near, target) and pair["kind"] == pp.CONTEXT and not pair["masked"] and not pair["match"]
        assert not truth[target].any() and max(truth[far].sum(), truth[near].sum()) >= pp.LEAST
        assert np.array_equal(pair["observed"], pair["target"])


def test_an_anomaly_without_a_mask_leaves_a_clean_pair_of_the_image():
    pairs, _, _ = labelled(10, "defect", np.zeros((SIDE, SIDE), bool))
    patches = patches_of(STACK[0])
    assert all(pair["kind"] == pp.CLEAN and number_of(pair["target"], patches) >= 0 for pair in pairs)


def test_labelled_pairs_need_anomalies():
    with pytest.raises(UserError, match="set data.n_anomalies"):
        draws(1, source="labelled")


def test_all_of_a_pair_is_turned_together(every):
    kinds = set()
    for one, other in zip(every, rows(draws(60, canonicalize=False, **ALL)), strict=False):
        entries = (*PARTS, "observed", "mask")
        quarters = [q for q in range(4) if all(np.array_equal(one[e], np.rot90(other[e], q)) for e in entries)]
        assert len(quarters) == 1 and one["kind"] == other["kind"]
        kinds.add((int(one["kind"]), quarters[0]))
    assert len(kinds) > 15


@pytest.mark.parametrize("n, patch", [(4, 16), (5, 16), (7, 16), (4, 10)])
def test_masks_are_resized_and_counted_as_the_data_sets_are(n, patch):
    mask, size = np.random.default_rng(0).random((SIDE, SIDE)) < 0.3, n * patch
    lines, counts = pp._nearest(Partitions.of("pattern_pair", tf.zeros((SIDE, SIDE, 3)), (n, 7), patch, "rows"), SIDE)
    whole = mask[np.ix_(lines[0, :size], lines[0, :size])]
    one = (2 * np.arange(size) + 1) * SIDE % (2 * size) != 0  # where one line is the nearest, and not two
    assert np.array_equal(whole[np.ix_(one, one)], images.resize_mask(mask, size)[np.ix_(one, one)])
    expected = whole.reshape(n, patch, n, patch).sum(axis=(1, 3))
    assert np.array_equal((counts[0] @ mask.astype(np.float32) @ counts[0].T)[:n, :n], expected)
    part = pp._marked(tf.constant(mask), tf.constant([patch, 2.0 * patch]), tf.constant(lines[0]), patch)
    assert np.array_equal(part, whole[patch : 2 * patch, 2 * patch : 3 * patch])


# Defects on whole images.


def drawn_defects(image, kind, count=120, folder="", others=STACK, first=0):
    """(u8[count, S, S, 3], bool[count, S, S])"""

    @tf.function(autograph=False)
    def every():
        picture = views.to_float(tf.constant(image))
        material = defects.materials(picture, context(others), folder)

        def one(k):
            made = defects.defect(picture, tf.constant(image), material, tf.stack([k, 5]), tf.constant(kind))
            return made.image, made.mask

        numbers = tf.range(first, first + count)
        return tf.map_fn(one, numbers, fn_output_signature=(tf.uint8, tf.bool), parallel_iterations=1)

    return [made.numpy() for made in every()]


def stark(side=128):
    """u8[side, side, 3] of black and white pixels: whatever is drawn on it is seen all over."""
    return np.repeat(np.random.default_rng(0).integers(0, 2, (side, side, 1)) * 255, 3, axis=-1).astype(np.uint8)


def test_rectangles_are_of_their_areas_and_half_of_them_shrink():
    _, masks = drawn_defects(stark(), 0.9, 300)
    shares = masks.mean(axis=(1, 2))
    filled = []
    for mask in masks:
        where = ndimage.find_objects(mask.astype(int))[0]
        filled.append(mask[where].mean())
        height, width = mask[where].shape
        assert 0.25 < height / width < 4.0
    assert np.mean(np.array(filled) > 0.98) > 0.97
    assert 0.0015 < shares.min() < 0.006 and 0.13 < shares.max() < 0.155
    assert np.mean(shares < 0.02) == pytest.approx(0.28, abs=0.08)  # half shrink, to a mean of 0.033
    assert np.median(shares) == pytest.approx(0.052, abs=0.015)


def test_scars_are_thin_turned_and_scaled_with_the_side():
    _, masks = drawn_defects(stark(), 0.5, 200)
    sizes = masks.sum(axis=(1, 2))
    assert (
        np.mean(sizes == 0) < 0.1 and sizes[sizes > 0].min() <= 12 and 70 < sizes.max() <= 115
    )  # of 128 pixels: up to 8 x 12.5
    slanted = 0
    for mask in masks[sizes > 0]:
        box = mask[ndimage.find_objects(mask.astype(int))[0]]
        assert max(box.shape) <= 16
        slanted += mask.sum() > 30 and box.mean() < 0.85
    assert slanted > 40


def test_blobs_are_of_all_sizes_and_have_the_opacity_of_their_draw():
    image = np.full((128, 128, 3), 128, np.uint8)
    pictures, masks = drawn_defects(image, 0.1, 200, others=STACK[:1])
    shares = masks.mean(axis=(1, 2))
    drawn = shares[shares > 0]
    assert len(drawn) > 130 and drawn.min() < 0.004 and 0.1 < drawn.max() < 0.6
    assert np.mean(drawn < 0.02) > 0.2 and np.mean(drawn > 0.05) > 0.15
    pieces = [ndimage.label(mask)[1] for mask in masks]
    assert min(pieces) <= 1 and max(pieces) > 40
    # A grey image shows greys alone; the blobs of one draw have one, of a flat colour over a flat image.
    for picture, mask in zip(pictures, masks, strict=True):
        assert (picture == picture[..., :1]).all() and len(np.unique(picture[mask])) <= 1
    levels = np.array([np.abs(p[m].astype(int).mean() - 128) for p, m in zip(pictures, masks, strict=True) if m.any()])
    assert levels.min() > defects.VISIBLE and levels.max() > 60


def test_a_blob_shrinks_to_the_share_of_its_area():
    noise = tf.constant(ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(128, 128)), 6) * 20, tf.float32)
    whole = defects.blob(noise, tf.constant(1.0)).numpy()
    assert np.array_equal(whole, noise.numpy() > defects.ABOVE)
    for shrink in (0.5, 0.1):
        part = defects.blob(noise, tf.constant(shrink)).numpy()
        assert part.sum() == pytest.approx(shrink * whole.sum(), rel=0.25) and not (part & ~whole).any()
    assert not defects.blob(tf.zeros((64, 64)), tf.constant(1.0)).numpy().any()


def test_what_shows_through_is_another_image_or_a_colour():
    image = np.full((SIDE, SIDE, 3), 128, np.uint8)
    image[..., 0] = 129  # not grey
    pictures, masks = drawn_defects(image, 0.1, 150, others=STACK)
    flat = [len(np.unique(p[m], axis=0)) == 1 for p, m in zip(pictures, masks, strict=True) if m.sum() > 40]
    assert np.mean(flat) == pytest.approx(0.5, abs=0.13)
    assert np.mean([(p[m][:, 1] != p[m][:, 2]).any() for p, m in zip(pictures, masks, strict=True) if m.any()]) > 0.9


def slow_visible(before, after, pasted):
    """Where a change is seen, pixel by pixel."""
    change = np.abs(before.astype(int) - after).sum(axis=-1) / 3
    seen = np.zeros(pasted.shape, bool)
    for i, j in np.argwhere(pasted):
        window = slice(max(i - 3, 0), i + 4), slice(max(j - 3, 0), j + 4)
        seen[i, j] = change[window][pasted[window]].mean() > defects.VISIBLE
    return seen


def test_what_is_not_seen_is_taken_back(monkeypatch):
    pasted = np.zeros((SIDE, SIDE), bool)
    pasted[10:40, 5:50] = True
    drawn = np.where(pasted[..., None], np.roll(STACK[0], 20, axis=1), STACK[0])
    drawn[10:20, 5:50] = STACK[0][10:20, 5:50] + 5
    monkeypatch.setattr(defects, "_pasted", lambda *_: (tf.constant(drawn), tf.constant(pasted)))
    made = defects.defect(views.to_float(tf.constant(STACK[0])), STACK[0], None, tf.constant([0, 1]), tf.constant(0.9))
    expected = slow_visible(STACK[0], drawn, pasted)
    assert np.array_equal(made.mask, expected) and 0 < expected.sum() < pasted.sum()
    assert np.array_equal(made.image, np.where(expected[..., None], drawn, STACK[0]))
    change = np.abs(drawn.astype(int) - STACK[0]).sum(axis=-1)
    least = 3 * defects.VISIBLE + int(defects.variation(tf.constant(STACK[0])))
    assert np.array_equal(made.excess, np.where(expected, change - least, 0))


def test_a_piece_of_a_texture_elsewhere_in_it_is_no_defect_and_a_stain_on_it_is():
    texture = np.clip(np.random.default_rng(0).normal(120, 12, (SIDE, SIDE, 1)).repeat(3, axis=-1), 0, 255)
    texture, seed, kind = texture.astype(np.uint8), tf.constant([0, 1]), tf.constant(0.9)
    assert int(defects.variation(tf.constant(texture))) == pytest.approx(3 * 0.6745 * 12 * np.sqrt(2), rel=0.1)
    shifted, stain = np.roll(texture, 9, axis=0), np.clip(texture.astype(int) - 45, 0, 255).astype(np.uint8)
    for drawn, seen in ((shifted, False), (stain, True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(defects, "_pasted", lambda *_, drawn=drawn: (drawn, tf.ones((SIDE, SIDE), bool)))
            made = defects.defect(views.to_float(tf.constant(texture)), texture, None, seed, kind)
        assert (made.excess.numpy().sum() > 0) == seen


def test_textures_are_read_from_the_folder_and_its_folders(tmp_path):
    for k in range(70):
        (tmp_path / str(k % 2)).mkdir(exist_ok=True)
        Image.new("RGB", (10 + k, 20), (250, 3 * k, 0)).save(tmp_path / str(k % 2) / f"{k:02d}.png")
    found = defects.textures(str(tmp_path), SIDE)
    assert found.shape == (defects.TEXTURES, SIDE, SIDE, 3) and (found[..., 0] == 250).all()
    assert len(np.unique(found[:, 0, 0, 1])) == 64 and found[0, 0, 0, 1] == 0 and found[-1, 0, 0, 1] > 195
    image = STACK[0]
    pictures, masks = drawn_defects(image, 0.1, 80, folder=str(tmp_path))
    redder = [p[m].astype(int).mean(0) - image[m].mean(0) for p, m in zip(pictures, masks, strict=True) if m.any()]
    assert len(redder) > 60 and np.mean([r[0] > 0 and r[2] < 0 for r in redder]) > 0.5
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="config.pattern_generation.pairs.textures='.*none' holds no images"):
        draws(1, textures=str(tmp_path / "none"))
    with pytest.raises(UserError, match="config.pattern_generation.pairs.textures='.*nowhere' holds no images"):
        draws(1, textures=str(tmp_path / "nowhere"))


# The op in its pipeline.


def test_a_seed_gives_one_pair_and_the_graph_has_static_shapes_and_no_random_state(every):
    here = context()

    @tf.function(input_signature=[tf.TensorSpec((SIDE, SIDE, 3)), tf.TensorSpec((2,), tf.int32)], autograph=False)
    def traced(image, seed):
        return pp.pattern_pair(image, here, seed, **ALL)

    for k in range(12):
        again = traced(views.to_float(tf.constant(STACK[0])), tf.constant([k, 7]))
        assert all(np.array_equal(again[entry], every[k][entry]) for entry in OUTPUTS)
    assert len({pair["target"].tobytes() for pair in every[:12]}) > 8
    graph = traced.get_concrete_function().graph
    assert set(graph.structured_outputs) == set(OUTPUTS)
    for entry, made in graph.structured_outputs.items():
        shape = (16, 16, 3) if entry in (*PARTS, "observed") else (16, 16) if entry == "mask" else ()
        assert made.shape == shape and made.dtype == OUTPUTS[entry]
    kinds = {node.op for node in graph.as_graph_def().node}
    kinds |= {node.op for f in graph.as_graph_def().library.function for node in f.node_def}
    assert not [kind for kind in kinds if "PyFunc" in kind or ("Random" in kind and "Stateless" not in kind)]


def test_the_pipeline_serves_pairs():
    options = {"n": [4, 5], "patch": 8}
    feed = Feed(4, views=(View("pair", "pattern_pair", options),))
    (batch,) = take(Pipeline(config(), FakeSource()), feed, 0, 1)
    assert set(batch.views) == {f"pair_{entry}" for entry in OUTPUTS}
    for entry in (*PARTS, "observed"):
        assert batch.views[f"pair_{entry}"].shape == (4, 8, 8, 3)
        assert batch.views[f"pair_{entry}"].dtype == np.float32
    assert batch.views["pair_mask"].shape == (4, 8, 8) and batch.views["pair_mask"].dtype == bool
    assert batch.views["pair_match"].shape == (4,) and batch.views["pair_kind"].dtype == np.int32


def test_the_pipeline_serves_labelled_pairs_of_its_anomalies():
    options = {"n": [4], "source": "labelled", "clean": 0.0, "hard": 0.0}
    feed = Feed(8, split="train_normal", views=(View("pair", "pattern_pair", options),))
    (batch,) = take(Pipeline(config(n_anomalies=2), FakeSource()), feed, 0, 1)
    assert (batch.views["pair_kind"] == pp.DEFECT).all()
    assert np.array_equal(batch.views["pair_target"], batch.views["pair_observed"])


@pytest.mark.parametrize(
    "options, said",
    [
        ({"clean": -0.1}, "clean=-0.1; shares must be 0 or more"),
        ({"wrong": float("nan")}, "wrong=nan; shares"),
        ({"defect": float("inf")}, "defect=inf; shares"),
        ({"clean": 0, "hard": 0.0, "defect": 0}, "the shares clean, hard, defect, context, wrong are all 0"),
        ({"source": "labeled"}, "source='labeled' is unknown; the nearest is 'labelled'"),
        ({"coverage": "all"}, "coverage='all' is unknown"),
        ({"n": (2,)}, r"n=\(2,\)"),
        ({"patch": -1}, "patch=-1"),
    ],
)
def test_bad_options_are_refused_before_the_first_batch(options, said):
    feed = Feed(2, views=(View("pair", "pattern_pair", options),))
    with pytest.raises(UserError, match=f"op 'pattern_pair'.*{said}") as error:
        Pipeline(config(), FakeSource()).batches(feed, seed=0, stage="s", start=0, stop=1, rows=slice(None))
    assert "\n" not in str(error.value)


def test_images_too_small_for_a_scar_are_refused():
    with pytest.raises(UserError, match="need images of 16 pixels or more, these have 12; raise config.data"):
        draws(1, stack=STACK[:, :12, :12])
    assert draws(1, stack=STACK[:, :12, :12], defect=0.0)["kind"][0] <= pp.HARD


def timed(options):
    """For speed.milliseconds."""
    stack = np.stack([cloudy(seed, 224) for seed in range(3)])
    here = context(stack)

    def one(i):
        # Not a constant to TensorFlow, or it would convert the image once.
        changing = views.to_float(tf.constant(stack[0]) + tf.cast(i % 1, tf.uint8))
        return pp.pattern_pair(changing, here, tf.stack([tf.cast(i, tf.int32), 1]), patch=56, **options)

    return one


@pytest.mark.slow
def test_a_pair_takes_no_more_than_four_milliseconds_of_one_core():
    found = speed.milliseconds("test_pattern_pair", "t.timed({})", images=150)
    assert found < 6.0, f"{found:.2f} ms; 4 on a quiet machine"
