"""Upsampling against PyTorch, blurring against scipy, and the chain of both against doing one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxad.errors import UserError
from jaxad.scoring import maps

RNG = np.random.default_rng(0)
PATCHES = RNG.gamma(1.0, size=(3, 7, 11)).astype(np.float32)


@pytest.mark.parametrize("size", [(28, 44), (29, 50), (7, 11), (5, 8)])
@pytest.mark.parametrize(
    "interpolation, torch_mode",
    [
        ("bilinear", dict(mode="bilinear", align_corners=False)),
        ("bilinear_corners", dict(mode="bilinear", align_corners=True)),
        ("nearest", dict(mode="nearest")),
    ],
)
def test_upsample_is_pytorchs_interpolate(interpolation, torch_mode, size):
    torch = pytest.importorskip("torch")
    expected = torch.nn.functional.interpolate(torch.from_numpy(PATCHES)[:, None], size, **torch_mode)[:, 0].numpy()
    np.testing.assert_allclose(maps.upsample(PATCHES, size, interpolation), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0, 12.5])  # the last kernel (radius 50) is longer than the map
def test_gaussian_blur_is_scipys_with_mirrored_borders(sigma):
    image = RNG.normal(size=(2, 23, 41)).astype(np.float32)
    expected = np.stack([scipy.ndimage.gaussian_filter(one.astype(np.float64), sigma) for one in image])
    np.testing.assert_allclose(maps.gaussian_blur(image, sigma), expected, rtol=1e-5, atol=1e-6)


def test_gaussian_blur_of_an_impulse_in_a_corner_is_scipys():
    image = np.zeros((1, 40, 30), np.float32)
    image[0, 0, 29] = 1.0
    np.testing.assert_allclose(
        maps.gaussian_blur(image, 4.0)[0], scipy.ndimage.gaussian_filter(image[0], 4.0), atol=1e-7
    )


def test_zero_sigma_changes_nothing():
    np.testing.assert_array_equal(maps.gaussian_blur(PATCHES, 0.0), PATCHES)


@pytest.mark.parametrize("interpolation", maps.INTERPOLATIONS)
def test_anomaly_map_is_upsampling_then_blurring(interpolation):
    size = (56, 61)
    both = maps.anomaly_map(PATCHES, size, interpolation=interpolation, sigma=3.0)
    apart = maps.gaussian_blur(maps.upsample(PATCHES, size, interpolation), 3.0)
    assert both.dtype == jnp.float32
    np.testing.assert_allclose(both, apart, rtol=1e-5, atol=1e-6)


def test_anomaly_map_runs_inside_jit_and_takes_half_precision():
    half = jnp.asarray(PATCHES, jnp.bfloat16)
    found = jax.jit(lambda x: maps.anomaly_map(x, (56, 61)))(half)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, maps.anomaly_map(half.astype(jnp.float32), (56, 61)), rtol=1e-5)


def test_image_score_reduces_each_image_alone():
    flat = PATCHES.reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(maps.image_score(PATCHES, "max"), flat.max(1), rtol=1e-6)
    np.testing.assert_allclose(maps.image_score(PATCHES, "mean"), flat.mean(1), rtol=1e-6)
    large = RNG.normal(size=(2, 20, 50)).astype(np.float32)
    top = np.sort(large.reshape(2, -1).astype(np.float64), axis=1)[:, -10:].mean(1)  # 1000 pixels: the highest 10
    np.testing.assert_allclose(maps.image_score(large, "top1%"), top, rtol=1e-6)


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: maps.upsample(PATCHES, (8, 8), "bicubic"), "interpolation"),
        (lambda: maps.gaussian_blur(PATCHES, -1.0), "sigma"),
        (lambda: maps.image_score(PATCHES, "median"), "reduction"),
    ],
)
def test_an_unknown_setting_is_named(call, named):
    with pytest.raises(UserError, match=named):
        call()
