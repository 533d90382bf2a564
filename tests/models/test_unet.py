"""The decoder of the U-Net: its grids, its skips, its arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import drawn, jit

from jaxad.models import backbones, unet
from jaxad.models.unet import LAYERS, SKIPS, Decoder

GRIDS = ((1, 2), (2, 3), (4, 6), (8, 12), (16, 24))  # of LAYERS: doubled, and 2 to 3


def features(seed=0, rows=2, width=4):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(rows, *grid, width)), jnp.float32) for grid in GRIDS]


@pytest.fixture(scope="module")
def little():
    """(decoder of 32 x 48 pixels, random variables, its compiled apply)"""
    module = Decoder((6, 5, 4, 3), (32, 48))
    return module, drawn(module, features()), jit(module.apply)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (224, 256), (50, 83), (33, 47)])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50", "wide_resnet50_2"])
def test_every_resnet_and_every_side_gives_one_logit_a_pixel(backbone, height, width):
    encoder = backbones.build(backbone, LAYERS)
    decoder = Decoder((256, 128, 64, 32), (height, width))

    def both(image):
        found, _ = encoder.init_with_output(jax.random.key(0), image)
        return decoder.init_with_output(jax.random.key(1), [found[layer] for layer in LAYERS])

    logits, variables = jax.eval_shape(both, jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32))
    assert logits.shape == (2, height, width) and logits.dtype == jnp.float32
    kernels = {name: tree["conv1"]["kernel"].shape for name, tree in variables["params"].items() if name != "logit"}
    below = (backbones.channels(backbone, "layer4"), 256, 128, 64)
    assert kernels == {
        f"up_{skip}": (3, 3, under + backbones.channels(backbone, skip), own)
        for skip, under, own in zip(SKIPS, below, (256, 128, 64, 32), strict=True)
    }


@pytest.mark.parametrize("place", range(5))
def test_every_stage_reaches_the_logits(little, place):
    _, variables, apply = little
    whole = features()
    changed = [feature + 1.0 if i == place else feature for i, feature in enumerate(whole)]
    assert np.abs(apply(variables, changed) - apply(variables, whole)).max() > 1e-3


def test_a_change_of_the_stem_stays_near_and_one_of_layer4_reaches_far(little):
    _, variables, apply = little
    whole = features()

    def touched(place):
        spot = whole[place].at[:, 0, 0].add(3.0)
        after = apply(variables, [spot if i == place else feature for i, feature in enumerate(whole)])
        return np.argwhere(np.abs(after - apply(variables, whole)) > 1e-6)[:, 1:].max(0)

    # Two 3x3 convolutions see 2 positions further, the last resize half of another: (0 + 2 + 1) positions of 2 pixels.
    assert touched(4).max() <= 2 * 3 and (touched(0) > (20, 20)).all()


def test_the_decoder_equals_its_definition_step_by_step(little):
    module, variables, apply = little
    found = [np.asarray(feature, np.float64) for feature in features()]
    params, stats = (jax.tree.map(np.asarray, variables[name]) for name in ("params", "batch_stats"))

    def doubled(x, grid):  # bilinear at half-pixel centres, by its definition
        for axis, m in ((1, grid[0]), (2, grid[1])):
            n = x.shape[axis]
            at = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
            low = np.floor(at).astype(int)
            share = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
            x = x.take(low, axis) * (1 - share) + x.take(np.minimum(low + 1, n - 1), axis) * share
        return x

    def convolved(x, kernel):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        h, w = x.shape[1:3]
        return sum(padded[:, i : i + h, j : j + w] @ np.asarray(kernel[i, j]) for i in range(3) for j in range(3))

    x, *skips = found
    for name, skip in zip(SKIPS, skips, strict=True):
        own, averages = params[f"up_{name}"], stats[f"up_{name}"]
        x = np.concatenate([doubled(x, skip.shape[1:3]), skip], -1)
        for i in ("1", "2"):
            bn, average = own[f"bn{i}"], averages[f"bn{i}"]
            y = (convolved(x, own[f"conv{i}"]["kernel"]) - average["mean"]) / np.sqrt(average["var"] + 1e-5)
            x = np.maximum(y * bn["scale"] + bn["bias"], 0)
    # The last convolution after the last resize: the module takes them in the other order.
    last = doubled(x, module.size) @ np.asarray(params["logit"]["kernel"][0, 0]) + params["logit"]["bias"]
    expected = last[..., 0]
    np.testing.assert_allclose(apply(variables, features()), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_training_moves_the_averages_of_every_batch_norm_and_evaluation_none(little):
    module, variables, _ = little

    def same(train):
        _, new = jit(lambda v, f: module.apply(v, f, train, mutable=["batch_stats"]))(variables, features())
        equal = jax.tree.map(lambda a, b: bool((a == b).all()), new["batch_stats"], variables["batch_stats"])
        return jax.tree.leaves(equal)

    assert same(False) == 16 * [True] and same(True) == 16 * [False]


def test_logits_are_float32_in_a_network_of_bfloat16():
    module = Decoder((6, 5, 4, 3), (32, 48), jnp.bfloat16)
    logits, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), features())
    assert logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_a_number_of_channels_that_is_not_one_for_each_skip_is_refused():
    with pytest.raises(ValueError, match="zip"):
        jax.eval_shape(unet.Decoder((8, 8, 8), (32, 48)).init, jax.random.key(0), features())
