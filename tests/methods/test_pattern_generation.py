"""Pattern generation on small periodic images."""

import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxad import config as configs
from jaxad import train
from jaxad.errors import UserError
from jaxad.methods import pattern_generation, pattern_reader
from jaxad.scoring import triples
from jaxad.types import Batch, DataSpec

SIZE, ROWS = 32, 4
SPEC = DataSpec("demo", "stripes", SIZE, 20, 3, 4, 4, True)
pytestmark = pytest.mark.usefixtures("quick_compile")


def config_of(**options):
    config = configs.default("pattern_generation")
    config.data.image_size, config.data.batch_size, config.eval.batch_size = SIZE, ROWS, ROWS
    config.score.sigma = 0.0
    own = config.pattern_generation
    own.train_n = (4,)
    own.swin.window, own.swin.embed_dim, own.swin.heads = 4, 8, (1, 2, 2, 2)
    own.swin.enc_depths = own.swin.dec_depths = (1, 1, 1, 1)
    own.cnn.width, own.compare.widths, own.compare.batch_size = 4, (4, 8, 8), ROWS
    for stage in config.train.steps:
        config.train.steps[stage] = 3
    for name, value in options.items():
        *places, key = name.split("__")
        section = config if places and places[0] in ("data", "start", "train", "optim") else own
        for place in places:
            section = section[place]
        section[key] = value
    return config


def stripes(period, rows=ROWS, side=SIZE, seed=0, noise=0.0):
    """f32[rows, side, side, 3]: bars of any phase, the same in every row of an image."""
    rng = np.random.default_rng(seed)
    phase = rng.integers(0, 1000, (rows, 1)) % max(int(period), 1)
    wave = 0.5 + 0.3 * np.sign(np.sin(2 * np.pi * (np.arange(side)[None] + phase + 0.5) / period))
    image = np.broadcast_to(wave[:, None, :, None], (rows, side, side, 3)) * np.array([1.0, 0.8, 0.6])
    return (image + noise * rng.normal(size=image.shape)).clip(0, 1).astype(np.float32)


def batch_of(image, valid=None, **views):
    rows, side = image.shape[:2]
    none = np.zeros((rows, side, side), bool)
    valid = np.ones(rows, bool) if valid is None else valid
    made = Batch(image, none, none[:, 0, 0], np.arange(rows, dtype=np.int32), valid, views)
    return jax.tree.map(jnp.asarray, made)


def triples_of(image, n=4, seed=0):
    """The view 'triple' of a row of each image, at random."""
    rng = np.random.default_rng(seed)
    patches, found = triples.partition(jnp.asarray(image), n), triples.triples(n)
    parts = [np.asarray(triples.take(patches, number, found)) for number in found[:3]]
    chosen = rng.integers(0, len(found.far), len(image))
    rows = np.arange(len(image))
    return {f"triple_{name}": part[rows, chosen] for name, part in zip(("far", "near", "target"), parts, strict=True)}


def pairs_of(image, seed=0):
    """The view 'pair': every second target has a bright square."""
    made = {name.replace("triple", "pair"): part for name, part in triples_of(image, seed=seed).items()}
    observed, mask = made["pair_target"].copy(), np.zeros(made["pair_target"].shape[:3], bool)
    mask[::2, 2:6, 2:6] = True
    observed[mask] = 1.0
    match = ~mask.any(axis=(1, 2))
    return made | {
        "pair_observed": observed,
        "pair_mask": mask,
        "pair_match": match,
        "pair_masked": np.ones_like(match),
    }


def built(config, spec=SPEC):
    return {stage.name: stage for stage in pattern_generation.stages(config, spec)}


def measured(config, batches, spec=SPEC, carry=None):
    stage = built(config, spec)["measure"]
    state = train.build(stage, spec, carry, 0)
    for batch in batches:
        state, _ = jax.jit(stage.update.apply)(state, batch, jax.random.key(0))
    return stage, stage.finish(state)


@pytest.mark.parametrize(
    "options, names",
    [
        ({}, ["generate", "measure", "compare"]),
        ({"pretrain": True}, ["pretrain", "measure"]),
        ({"start__run": "RUN", "start__stage": "pretrain"}, ["pretrain", "generate", "measure", "compare"]),
        ({"generator": "copy_near"}, ["measure", "compare"]),
        ({"compare__enabled": False}, ["generate", "measure"]),
    ],
)
def test_stages_are_those_of_the_paper_and_its_ablations(options, names):
    made = built(config_of(**options))
    assert list(made) == names
    last = made[names[-1]]
    assert (last.predict is None) == ("pretrain" in options)
    assert last.work == {"triples": 32}


@pytest.fixture
def linear(monkeypatch):
    """A generator that weighs both patches: it learns, and compiles at once."""

    def made(config, patch):
        def apply(params, far, near, train=False, key=None):
            return params["far"] * far + params["near"] * near

        return pattern_reader.Generator(lambda key: {"far": jnp.float32(0), "near": jnp.float32(0)}, apply, learns=True)

    monkeypatch.setattr(pattern_generation, "generator", made)


def test_the_generator_is_pretrained_carried_on_and_then_frozen(linear):
    config = config_of(start__run="RUN", start__stage="pretrain")
    made, image = built(config), stripes(6)
    batch = batch_of(image, **triples_of(image), **pairs_of(image))
    carry = None
    kept = {}
    for name, stage in made.items():
        state = train.build(stage, SPEC, carry, 0)
        started = state
        for step in range(2):
            state, metrics = jax.jit(stage.update.apply)(state, batch, jax.random.key(step))
        assert all(np.isfinite(float(value)) for value in metrics.values()), (name, metrics)
        carry = stage.finish(state)
        kept[name] = started, carry

    def same(left, right):
        pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
        return all(bool(jnp.array_equal(*pair)) for pair in pairs)

    first, second = kept["pretrain"][1], kept["generate"]
    assert same(first.params, second[0].params) and not same(second[0].params, second[1].params)
    assert same(second[1].params["generator"], kept["compare"][1].frozen["generator"])
    assert not same(kept["compare"][0].params, kept["compare"][1].params)
    assert not kept["compare"][1].opt  # nobody needs the moments of a finished stage


def test_a_generator_that_is_not_trained_any_further_needs_no_other_warm_up():
    config = config_of(start__run="RUN", start__stage="pretrain", train__steps__generate=0, optim__warmup=2)
    stage = built(config)["generate"]
    assert stage.steps == 0
    with pytest.raises(UserError, match="warmup=2"):
        built(config_of(train__steps__generate=1, optim__warmup=2))


def test_measure_sums_what_numpy_sums_and_leaves_padding_out():
    image = stripes(5, rows=6, noise=0.05)
    valid = np.array([True, True, True, True, False, False])
    config = config_of(generator="copy_near")
    stage, state = measured(config, [batch_of(image[:4]), batch_of(image[2:], valid[2:])])
    told = {name: float(value) for name, value in stage.facts(state).items()}

    error = {"copy_near": 0.0, "mean_patch": 0.0, "variance": 0.0}
    for one in [*image[:4], *image[2:4]]:
        grid = one.reshape(4, 8, 4, 8, 3).transpose(0, 2, 1, 3, 4)
        for lines in (grid, grid.transpose(1, 0, 2, 3, 4)):
            for line in [*lines, *(line[::-1] for line in lines)]:
                for far, near, target in zip(line, line[1:], line[2:], strict=False):
                    colour = np.concatenate([far, near]).mean(axis=(0, 1))
                    error["copy_near"] += np.square(near - target).sum(-1).mean()
                    error["mean_patch"] += np.square(colour - target).sum(-1).mean()
                    error["variance"] += np.square(target.mean(axis=(0, 1)) - target).sum(-1).mean()
    for name in ("copy_near", "mean_patch"):
        np.testing.assert_allclose(told[f"nmse_{name}"], error[name] / error["variance"], rtol=1e-4)
    assert told["n"] == 4 and told["nmse_model"] == told["nmse_copy_near"]


def test_a_copy_is_exact_where_the_period_divides_the_patch():
    stage, state = measured(config_of(generator="copy_near"), [batch_of(stripes(8))])
    told = stage.facts(state)
    assert float(told["nmse_copy_near"]) == 0 and float(told["nmse_mean_patch"]) > 0.999


def test_the_number_of_patches_is_the_one_that_predicts_best():
    """A period of a fifth of the image: five patches per side continue it exactly, four, six and seven do not."""
    options = {"generator": "copy_near", "n_select": "nmse", "train_n": (4, 5, 6), "patch": 8}
    spec = dataclasses.replace(SPEC, image_size=40)
    image = stripes(8, side=40)
    batch = batch_of(image)
    config = config_of(**options, data__image_size=40, compare__enabled=False)
    stage, state = measured(config, [batch], spec)
    told = {name: float(value) for name, value in stage.facts(state).items()}
    assert told["n"] == 5 and told["nmse_copy_near"] < 1e-6 < min(told["nmse_model_4"], told["nmse_model_6"])
    fixed = built(
        config_of(**options | {"n_select": "fixed", "n": 5}, data__image_size=40, compare__enabled=False), spec
    )
    np.testing.assert_array_equal(
        jax.jit(stage.predict)(state, batch).pixel, jax.jit(fixed["measure"].predict)(state, batch).pixel
    )


def test_a_choice_is_made_among_what_another_run_has_measured():
    """Taken by a run that chooses n: the stage of one whose n was fixed, and which measured four and six only."""
    options = {"generator": "copy_near", "compare__enabled": False, "patch": 8, "data__image_size": 48}
    spec = dataclasses.replace(SPEC, image_size=48)
    batch = batch_of(stripes(8, side=48))
    _, state = measured(config_of(**options, train_n=(4, 6)), [batch], spec)
    chooses = built(config_of(**options, train_n=(4, 5, 6), n_select="nmse"), spec)["measure"]
    told = {name: float(value) for name, value in chooses.facts(state).items()}
    assert told["n"] == 6 and np.isnan(told["nmse_model_5"])
    fixed = built(config_of(**options, n=6), spec)["measure"]
    np.testing.assert_array_equal(
        jax.jit(chooses.predict)(state, batch).pixel, jax.jit(fixed.predict)(state, batch).pixel
    )


@pytest.fixture(scope="module")
def compared():
    """(config, finished state, images, what 'compare' predicts of them), a drawn comparison network on copies."""
    config = config_of(generator="copy_near")
    stage, state = measured(config, [batch_of(stripes(6))])
    compare = built(config)["compare"]
    state = compare.finish(train.build(compare, SPEC, state, 0))
    image = stripes(8, noise=0.02)
    image[1, 12:15, 17:22] = 0.0
    return config, state, image, jax.jit(compare.predict)(state, batch_of(image))


def test_a_prediction_is_a_map_in_its_range_three_scores_and_pictures(compared):
    _, _, image, found = compared
    assert found.pixel.shape == image.shape[:3] and found.pixel.dtype == jnp.float32
    assert 0 <= float(found.pixel.min()) and float(found.pixel.max()) <= 1
    scores = {name: value for name, value in found.extras.items() if value.ndim == 1}
    assert set(scores) == {"prob", "pixel", "product", "error"}
    np.testing.assert_array_equal(found.image, scores["prob"])
    np.testing.assert_allclose(scores["product"], scores["prob"] * scores["pixel"], rtol=1e-6)
    np.testing.assert_array_equal(scores["pixel"], found.pixel.max(axis=(1, 2)))
    pictures = {name: value for name, value in found.extras.items() if value.ndim == 4}
    assert set(pictures) == {f"{kind}_{way}" for kind in ("predicted", "mask") for way in triples.DIRECTIONS}
    assert all(value.shape == image.shape for value in pictures.values())
    # What is read from left to right is a copy of the patch on the left, and two columns are not reached.
    left_to_right = np.asarray(pictures["predicted_lr"])
    np.testing.assert_allclose(left_to_right[:, :, 16:], image[:, :, 8:24], atol=1e-6)
    assert np.unique(left_to_right[:, :, :16]) == np.float32(pattern_reader.UNREAD)
    np.testing.assert_allclose(pictures["predicted_bt"][:, :16], image[:, 8:24], atol=1e-6)


def test_the_intersection_is_below_every_direction(compared):
    config, state, image, found = compared
    batch = batch_of(image)

    def with_(**options):
        made = built(config_of(generator="copy_near", **options))["compare"]
        return jax.jit(made.predict)(state, batch)

    one_way = with_(combine="single_lr", coverage="rows")
    both = with_(coverage="rows")
    widest = with_(combine="max", axis_combine="max")
    assert (both.pixel <= one_way.pixel + 1e-6).all() and (found.pixel <= both.pixel + 1e-6).all()
    assert (found.pixel < widest.pixel).any() and (found.pixel <= widest.pixel + 1e-6).all()
    gated = with_(gate=True)
    assert (gated.pixel <= found.pixel + 1e-6).all() and (gated.pixel < found.pixel).any()


@pytest.mark.parametrize("canonical", [True, False])
def test_masks_lie_where_their_patches_do(canonical):
    """A mask that is the patch itself, turned with it, comes back as the image."""
    image = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    one = pattern_reader.reader(config_of(canonicalize=canonical).pattern_generation, 4, 8)
    seen = one.read(lambda far, near: near, jnp.asarray(image))
    patches = one.combine(one.upright(seen.target)[..., 0], config_of().pattern_generation)
    whole = triples.assemble(patches.reshape(2, 16, 8, 8, 1), 4)[..., 0]
    np.testing.assert_array_equal(whole, image[..., 0])


def test_without_a_comparison_the_error_of_the_prediction_is_the_map():
    config = config_of(generator="copy_near", compare__enabled=False)
    image = stripes(8)
    image[1, 9:12, 9:12] = 0.0
    stage, state = measured(config, [batch_of(stripes(8))])
    found = jax.jit(stage.predict)(state, batch_of(image))
    inside = np.zeros((32, 32), bool)
    inside[9:12, 9:12] = True
    pixel = np.asarray(found.pixel)
    assert (pixel[1][inside] > 0.05).all() and (pixel[0] == 0).all()
    assert float(found.image[1]) > 0 == float(found.image[0])
    product = built(config_of(generator="copy_near", compare__enabled=False, score="product"))["measure"]
    np.testing.assert_allclose(
        jax.jit(product.predict)(state, batch_of(image)).image, found.image * found.extras["pixel"], rtol=1e-6
    )


def test_copies_of_an_anomaly_are_what_the_intersection_removes():
    """Fig. 4: read from one side, the patch behind an anomaly looks wrong; read from both sides, it does not."""
    image = stripes(8, rows=1, side=48)
    image[0, 18:22, 18:22] = 0.0
    truth = np.zeros((48, 48), bool)
    truth[18:22, 18:22] = True

    def found(**options):
        config = config_of(generator="copy_near", compare__enabled=False, n=6, data__image_size=48)
        config.pattern_generation.update(options)
        stage, state = measured(config, [batch_of(image)], dataclasses.replace(SPEC, image_size=48))
        return np.asarray(jax.jit(stage.predict)(state, batch_of(image)).pixel[0]) > 0

    one_way, both = found(combine="single_lr", coverage="rows"), found()
    assert (both == truth).all()
    assert one_way[truth].all() and one_way[18:22, 26:30].all()  # the next patch on the right: predicted from the hole


def test_blanked_cells_are_whole_and_as_many_as_asked():
    image = jnp.ones((64, 16, 16, 3))
    kept = np.asarray(pattern_reader.blank(jax.random.key(0), image, 0.75))
    cells = kept[..., 0].reshape(64, 4, 4, 4, 4).transpose(0, 1, 3, 2, 4).reshape(64, 16, 16)
    assert set(np.unique(cells.mean(axis=-1))) == {0.0, 1.0}
    assert abs(cells.mean() - 0.25) < 0.05


@pytest.mark.parametrize(
    "options, message",
    [
        ({"data__image_size": 34}, "34 pixels are not cut into 4 x 4 .* set config.data.image_size to 32 or 48"),
        ({"n": 3}, "n=3: with fewer than 4 patches per side .* set n=4 and data.image_size=32"),
        ({"n": 2, "combine": "single_lr"}, "n=2: with fewer than 3"),
        ({"patch": 30}, "patch=30 must be a multiple of 4; set it to 28 or 32"),
        ({"swin__embed_stride": 3, "data__image_size": 40}, "set config.data.image_size to 48"),
        ({"combine": "and"}, "combine='and'"),
        ({"coverage": "columns"}, "coverage='columns'"),
        ({"generator": "unet"}, "generator='unet'"),
        ({"compare__mask_loss": "l2"}, "compare.mask_loss='l2'"),
        ({"compare__sim_pool": "max"}, "compare.sim_pool='max'"),
        ({"n_select": "nmse", "train_n": (3, 4)}, "train_n"),
        ({"context_mask_ratio": 1.0}, "context_mask_ratio"),
        ({"pretrain": True, "generator": "copy_near"}, "nothing to pre-train"),
        ({"swin__heads": (3, 6, 12, 24)}, "heads"),
    ],
)
def test_bad_options_are_one_line_that_names_the_fix(options, message):
    config = config_of(**options)
    spec = dataclasses.replace(SPEC, image_size=config.data.image_size)
    with pytest.raises(UserError, match=message) as raised:
        pattern_generation.stages(config, spec)
    assert "\n" not in str(raised.value)


def test_any_size_is_read_where_the_side_of_a_patch_is_given():
    config = config_of(generator="copy_near", patch=8, data__image_size=50, compare__enabled=False)
    spec = dataclasses.replace(SPEC, image_size=50)
    image = stripes(12.5, side=50)
    stage, state = measured(config, [batch_of(image)], spec)
    assert jax.jit(stage.predict)(state, batch_of(image)).pixel.shape == (ROWS, 50, 50)


@pytest.mark.slow
def test_a_trained_generator_beats_the_copy_where_the_period_is_one_and_a_half_patches():
    """Section 11, item 9: the next patch of such bars is another phase, which two patches tell."""
    config = config_of(train__steps__generate=300, optim__lr=3e-3)
    stage = built(config)["generate"]
    state = train.build(stage, SPEC, None, 0)
    step = networks.jit(train.one_step(stage))
    for number in range(300):
        image = stripes(12, rows=16, seed=number)
        state, _ = step(state, batch_of(image, **triples_of(image, seed=number)), jax.random.key(0))
    measure, told = measured(config, [batch_of(stripes(12, seed=999))], carry=stage.finish(state))
    told = measure.facts(told)
    assert float(told["nmse_model"]) < 0.5 * float(told["nmse_copy_near"])
