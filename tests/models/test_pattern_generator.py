"""The generator: the sizes of the paper's figure, its equations, its options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import drawn, jit

from jaxad import defaults
from jaxad.errors import UserError
from jaxad.models import pattern_generator, swin
from jaxad.models.pattern_generator import Encoder, PatternGenerator, Stage, check

DEFAULTS = defaults.METHODS["pattern_generation"]()[1]["swin"]
LITTLE = dict(window=2, embed_dim=4, enc_depths=(1, 1, 1, 1), dec_depths=(1, 1, 1, 1), heads=(1, 1, 2, 2))


def pair(side, rows=2):
    rng = np.random.default_rng(0)
    return [np.float32(rng.uniform(size=(rows, side, side, 3))) for _ in range(2)]


def described(side, **options):
    """(output, parameters, {part: what it gives}) as shapes."""
    generator = PatternGenerator(**options)
    patch = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    init = functools.partial(generator.init_with_output, capture_intermediates=True, mutable=True)
    found, variables = jax.eval_shape(init, jax.random.key(0), patch, patch)
    return found, variables["params"], variables["intermediates"]


def sizes(parts, names):
    shapes = [parts[name]["__call__"][0].shape for name in names]
    assert all(shape[0] == 2 and shape[1] == shape[2] for shape in shapes)
    return [shape[2:] for shape in shapes]


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("side", [56, 64])
def test_sizes_are_those_of_the_paper_with_a_token_per_pixel(side):
    found, params, parts = described(side, **DEFAULTS)
    pyramid = [(side, 24), (side // 2, 48), (side // 4, 96), (side // 8, 192)]
    for encoder in ("encoder1", "encoder2"):
        assert sizes(parts[encoder], [f"stage{i}" for i in (1, 2, 3, 4)]) == pyramid
    decoder = [(side // 4, 96), (side // 2, 48), (side, 24), (side, 24)]
    assert sizes(parts, [f"decode{i}" for i in (1, 2, 3, 4)]) == decoder
    assert sizes(parts, ["join", "fuse"]) == [(side, 24), (side, 96)]
    assert sizes(parts, [f"lateral{i}" for i in (1, 2, 3, 4)]) == [(grid, 24) for grid, _ in decoder]
    assert found.shape == (2, side, side, 3) and found.dtype == jnp.float32
    assert count(params) == 3_967_995


@pytest.mark.parametrize("side", [24, 48])  # 3 x 3 tokens at last, or 6 x 6: fewer than a window has
def test_parameters_do_not_depend_on_the_patch(side):
    found, params, _ = described(side)
    assert count(params) == 3_967_995 and found.shape[1] == side
    assert count(params["encoder1"]) == count(params["encoder2"]) == 1_753_338


def test_with_swins_own_stride_a_token_predicts_all_its_pixels():
    found, params, parts = described(224, embed_stride=4)
    assert found.shape == (2, 224, 224, 3) and count(params) == 3_974_520
    assert sizes(parts["encoder1"], ["embed", "stage4"]) == [(56, 24), (7, 192)]


@pytest.mark.parametrize(("side", "stride"), [(30, 2), (36, 4), (27, 3), (7, 1), (12, 12)])
def test_grids_that_cannot_be_halved_give_whole_patches_too(side, stride):
    assert described(side, **LITTLE, embed_stride=stride)[0].shape == (2, side, side, 3)


def test_one_encoder_for_both_patches_has_half_of_the_encoders_parameters():
    params = described(8, share_encoders=True)[1]
    assert "encoder2" not in params and count(params) == 3_967_995 - 1_753_338


def test_defaults_of_the_config_are_the_modules():
    assert described(8)[1] == described(8, **DEFAULTS)[1]
    assert set(DEFAULTS) == set(PatternGenerator.__dataclass_fields__) - {"dtype", "remat", "parent", "name"}


@pytest.fixture(scope="module")
def little():
    """(generator, random variables, its compiled apply) for patches of 10 pixels: a side is halved to 5, 3 and 2."""
    module = PatternGenerator(**LITTLE)
    return module, drawn_pair(module), jit(module.apply)


def drawn_pair(module, side=10):
    """As networks.drawn, which knows one input."""

    class Both(type(module)):
        def init(self, key, inputs):
            return super().init(key, *inputs)

    fields = {name: getattr(module, name) for name in module.__dataclass_fields__ if name not in ("parent", "name")}
    return drawn(Both(**fields), pair(side))


def test_the_generator_equals_its_equations(little):
    module, variables, apply = little
    params, (far, near) = variables["params"], pair(10)

    def part(made, name, x):
        return made.apply({"params": params[name]}, x)

    def bilinear(x, grid):
        for axis in (1, 2):  # half-pixel centres
            side = x.shape[axis]
            at = np.clip((np.arange(grid) + 0.5) * side / grid - 0.5, 0, side - 1)
            low = np.floor(at).astype(int)
            share = np.float32(at - low).reshape([-1 if i == axis else 1 for i in range(4)])
            x = x.take(low, axis) * (1 - share) + x.take(np.minimum(low + 1, side - 1), axis) * share
        return x

    @jit
    def expected(far, near):
        encoder = Encoder(1, 2, 4, (1,) * 4, (1, 1, 2, 2), 0.0, None, False)
        one, two = part(encoder, "encoder1", far), part(encoder, "encoder2", near)
        stages, x = [], one[3] + two[3]  # eq. 1
        for i, (skip, heads) in enumerate(((2, 2), (1, 1), (0, 1)), 1):
            x = part(swin.PatchExpanding(one[skip].shape[1:3]), f"expand{i}", x)
            x = part(Stage(heads, 2, (0.0,)), f"decode{i}", x)
            stages.append(x)
            x = one[skip] + two[skip] + x  # eq. 2
        x = part(swin.linear(4), "join", jnp.concatenate([one[0], two[0], stages[-1]], -1))  # eq. 3
        stages.append(part(Stage(1, 2, (0.0,)), "decode4", x))
        return [part(swin.linear(4), f"lateral{i}", x) for i, x in enumerate(stages, 1)]

    fused = np.concatenate([bilinear(np.asarray(x), 10) for x in expected(far, near)], axis=-1)
    hidden = jax.nn.gelu(part(swin.linear(16), "fuse", fused), approximate=False)
    wanted = np.asarray(part(swin.linear(3), "pixels", hidden))
    np.testing.assert_allclose(apply(variables, far, near), wanted, atol=1e-4 * np.abs(wanted).max())


def test_far_and_near_are_told_apart_and_both_seen_everywhere(little):
    _, variables, apply = little
    far, near = pair(10)
    found = np.asarray(apply(variables, far, near))
    assert np.abs(found - apply(variables, near, far)).max() > 0.01
    for other in ((1 - far, near), (far, 1 - near)):
        assert (np.abs(found - apply(variables, *other)).max(-1) > 1e-4).mean() > 0.99
    assert found.min() < 0 or found.max() > 1  # not clipped


def test_rows_do_not_see_each_other(little):
    _, variables, apply = little
    far, near = pair(10)
    alone = [apply(variables, *(np.repeat(x[i : i + 1], 2, 0) for x in (far, near)))[0] for i in (0, 1)]
    np.testing.assert_allclose(apply(variables, far, near), np.stack(alone), atol=1e-5)


def test_activations_computed_again_change_no_gradient():
    x = np.float32(np.random.default_rng(0).normal(size=(1, 5, 4, 4)))
    variables = drawn(Stage(2, 2, (0.0, 0.0)), x)

    def gradient(remat):
        stage = Stage(2, 2, (0.0, 0.0), remat=remat)
        return jit(jax.grad(lambda v: jnp.mean(jnp.square(stage.apply(v, x, True)))))(variables)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient(True), gradient(False))
    for remat in (True, False):
        generator, patch = PatternGenerator(**LITTLE, remat=remat), jnp.zeros((1, 8, 8, 3))
        run = functools.partial(generator.init_with_output, jax.random.key(0))
        assert str(jax.make_jaxpr(run)(patch, patch)).count("= remat") == 12 * remat  # one for each block


def test_a_network_of_half_precision_ends_in_float32(little):
    _, variables, apply = little
    half = PatternGenerator(**LITTLE, dtype=jnp.bfloat16)
    found = jit(half.apply)(variables, *pair(10))
    expected = np.asarray(apply(variables, *pair(10)))
    assert found.dtype == jnp.float32
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


def test_drop_path_rises_with_depth_and_falls_on_the_way_up():
    rates = pattern_generator._rates(0.3, (2, 1, 3, 1))
    np.testing.assert_allclose(np.concatenate(rates), np.linspace(0, 0.3, 7))
    assert [len(part) for part in rates] == [2, 1, 3, 1]
    falling = pattern_generator._rates(0.3, (1, 3), falling=True)
    np.testing.assert_allclose(np.concatenate(falling), [0.3, 0.2, 0.1, 0.0])
    parts = PatternGenerator(**LITTLE, drop_path=0.5)
    patch = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(parts.init, jax.random.key(0), patch, patch)
    jax.eval_shape(parts.apply, variables, patch, patch)  # no rng where nothing is dropped
    with pytest.raises(Exception, match="drop_path"):
        jax.eval_shape(lambda *a: parts.apply(*a, True), variables, patch, patch)


def test_a_norm_before_the_head_is_one_for_each_stage():
    plain, normed = described(8)[1], described(8, head_norm=True)[1]
    assert set(normed) - set(plain) == {f"head_norm{i}" for i in (1, 2, 3, 4)}
    assert count(normed) - count(plain) == 2 * (96 + 48 + 24 + 24)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"embed_stride": 0}, "embed_stride=0: it must be 1 or more"),
        ({"embed_dim": 0}, "embed_dim=0"),
        ({"window": 1}, "window=1: it must be 2 or more"),
        ({"enc_depths": (2, 2, 6)}, r"enc_depths=\(2, 2, 6\): it must be 4 numbers of 1 or more"),
        ({"dec_depths": (2, 0, 6, 2)}, "dec_depths"),
        ({"heads": (3, 6, 12)}, "heads"),
        ({"heads": (3, 6, 12, 36)}, "heads.*divisors of the stages' channels 24, 48, 96, 192"),
        ({"embed_dim": 32}, "heads.*32, 64, 128, 256"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
    ],
    ids=str,
)
def test_options_at_odds_are_refused_with_their_key(wrong, said):
    check(DEFAULTS)
    with pytest.raises(UserError, match="config.pattern_generation.swin.*" + said):
        check(DEFAULTS | wrong)
