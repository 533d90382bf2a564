"""Patch descriptors against the PyTorch functions that the published code chains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad import config as configs
from jaxad.methods import features
from jaxad.types import UserError

RNG = np.random.default_rng(4)


def layers(*channels, side=8):
    """One f32[2, side / 2^i, side / 2^i + 1, C] per layer: not square, so that rows and columns cannot be swapped."""
    sizes = [(2, side >> i, (side >> i) + 2 // (i + 1), c) for i, c in enumerate(channels)]
    return [RNG.gamma(1.0, size=size).astype(np.float32) for size in sizes]


def torch_adaptive(tensors, n, layer_dim, dim):
    """Unfold, resize the unfolded grid, pool adaptively per layer, put end to end, pool adaptively."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    grid = tensors[0].shape[1:3]
    pooled = []
    for tensor in tensors:
        x = torch.from_numpy(tensor).permute(0, 3, 1, 2)
        b, c, h, w = x.shape
        patches = functional.unfold(x, n, padding=n // 2).reshape(b, c * n * n, h, w)
        patches = functional.interpolate(patches, grid, mode="bilinear", align_corners=False)
        patches = patches.permute(0, 2, 3, 1).reshape(-1, 1, c * n * n)
        pooled.append(functional.adaptive_avg_pool1d(patches, layer_dim)[:, 0])
    stacked = torch.cat(pooled, dim=1)[:, None]
    return functional.adaptive_avg_pool1d(stacked, dim)[:, 0].reshape(2, *grid, dim).numpy()


@pytest.mark.parametrize(
    "channels, n, layer_dim, dim",
    [
        ((128, 256), 3, 1024, 1024),  # ResNet-18: pooling 1152 and 2304 values
        ((512, 1024), 3, 1024, 1024),  # ResNet-50 and WideResNet-50-2
        ((64, 128, 256), 3, 1024, 1024),  # three layers: bins straddle the layers
        ((96, 160), 3, 256, 200),
        ((16, 24), 5, 48, 96),
        ((8,), 1, 32, 16),
    ],
)
def test_adaptive_descriptors_are_those_of_the_authors_chain(channels, n, layer_dim, dim):
    tensors = layers(*channels)
    found = features.adaptive(tensors, n, layer_dim, dim)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, torch_adaptive(tensors, n, layer_dim, dim), rtol=2e-5, atol=2e-6)


def test_adaptive_descriptors_of_wide_networks_have_the_known_closed_form():
    """512 channels: weights 0.1, 0.2 at the centre. 1024 channels: 3x3 means, resized, then means of channel pairs."""
    one, two = layers(512, 1024, side=6)

    def window(x):
        p = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return sum(p[:, i : i + x.shape[1], j : j + x.shape[2]] for i in range(3) for j in range(3))

    found = np.asarray(features.adaptive([one, two]))
    np.testing.assert_allclose(found[..., :512], 0.1 * window(one) + 0.1 * one, rtol=2e-5, atol=2e-6)
    pairs = (window(two) / 9).reshape(*two.shape[:3], 512, 2).mean(-1)
    np.testing.assert_allclose(found[..., 512:], features.resize(pairs, one.shape[1:3]), rtol=2e-5, atol=2e-6)


def test_concatenated_descriptors_are_average_pooling_and_bilinear_resizing():
    torch = pytest.importorskip("torch")
    tensors = layers(5, 9)
    pooled = [torch.nn.functional.avg_pool2d(torch.from_numpy(x).permute(0, 3, 1, 2), 3, 1, 1) for x in tensors]
    small = torch.nn.functional.interpolate(pooled[1], tensors[0].shape[1:3], mode="bilinear", align_corners=False)
    expected = torch.cat([pooled[0], small], 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(features.concat(tensors), expected, rtol=1e-5, atol=1e-6)


def test_the_extractor_knows_its_shapes_and_normalises():
    config = configs.default("patchcore")
    config.backbone.weights, config.data.image_size = "random", 32
    found = features.extractor(config, ("layer2", "layer3"), config.data.image_size)
    assert found.shapes == ((4, 4, 128), (2, 2, 256))
    image = RNG.random((2, 32, 32, 3)).astype(np.float32)
    one, two = jax.jit(found.apply)(found.load(), image)
    assert one.shape == (2, 4, 4, 128) and two.shape == (2, 2, 2, 256) and one.dtype == jnp.float32
    shifted = found.apply(found.load(), jnp.full((1, 32, 32, 3), jnp.array([0.485, 0.456, 0.406])))
    np.testing.assert_allclose(shifted[0], 0.0, atol=1e-6)  # the mean image is zero, and random weights have no bias


@pytest.mark.parametrize("precision, dtype", [("auto", "float32"), ("bfloat16", "bfloat16"), ("float32", "float32")])
def test_compute_dtype_follows_the_config(precision, dtype):
    config = configs.default("patchcore")
    config.train.precision = precision
    assert features.compute_dtype(config) == dtype


def test_a_layer_that_does_not_exist_is_named():
    config = configs.default("patchcore")
    with pytest.raises(UserError, match="layer9"):
        features.extractor(config, ("layer9",), 64)
    with pytest.raises(UserError, match="layers"):
        features.extractor(config, (), 64)
