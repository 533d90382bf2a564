"""CycleGAN's generator, against loops and, where it is installed, PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import drawn, jit

from jaxad.errors import UserError
from jaxad.models import cyclegan
from jaxad.models.cyclegan import BLOCKS, ConvTranspose3x3, ResnetGenerator, check_patch, instance_norm


def noise(*shape, seed=0):
    return np.float32(np.random.default_rng(seed).normal(size=shape))


class Joined(ResnetGenerator):
    """Both patches side by side in one array, for `networks.drawn`."""

    def init(self, key, patches):
        return super().init(key, patches[..., :3], patches[..., 3:])


@pytest.mark.parametrize(("name", "count"), [("cyclegan_resnet9", 11_387_587), ("cyclegan_resnet6", 7_847_107)])
def test_parameter_counts_are_the_published_ones(name, count):
    patch = jax.ShapeDtypeStruct((2, 56, 56, 3), jnp.float32)
    generator = ResnetGenerator(BLOCKS[name])
    found, variables = jax.eval_shape(generator.init_with_output, jax.random.key(0), patch, patch)
    assert found.shape == (2, 56, 56, 3) and found.dtype == jnp.float32 and set(variables) == {"params"}
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count


@pytest.mark.parametrize("form", [cyclegan._by_phases, cyclegan._dilated])
def test_the_transposed_convolution_scatters_its_kernel(form):
    x, kernel = noise(2, 3, 4, 5), noise(3, 3, 5, 6, seed=1)
    canvas = np.zeros((2, 2 * 3 + 2, 2 * 4 + 2, 6))
    for row, column, i, j in np.ndindex(3, 4, 3, 3):
        canvas[:, 2 * row + i, 2 * column + j] += x[:, row, column] @ kernel[i, j]
    np.testing.assert_allclose(form(jnp.asarray(x), jnp.asarray(kernel)), canvas[:, 1:-1, 1:-1], atol=1e-4)


def test_the_transposed_convolution_and_its_gradients_equal_pytorchs():
    torch = pytest.importorskip("torch")
    module, x, weights = ConvTranspose3x3(6), noise(2, 3, 4, 5), noise(2, 6, 8, 6, seed=1)
    variables = drawn(module, x)
    layer = torch.nn.ConvTranspose2d(5, 6, 3, stride=2, padding=1, output_padding=1)
    kernel, bias = (np.array(variables["params"][name]) for name in ("kernel", "bias"))
    layer.weight.data, layer.bias.data = torch.from_numpy(kernel.transpose(2, 3, 0, 1).copy()), torch.from_numpy(bias)
    expected = layer(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    (expected * torch.from_numpy(weights.transpose(0, 3, 1, 2))).sum().backward()
    np.testing.assert_allclose(module.apply(variables, x), expected.detach().permute(0, 2, 3, 1), atol=1e-5)
    of = jit(jax.grad(lambda v: jnp.sum(weights * module.apply(v, x))))(variables)["params"]
    np.testing.assert_allclose(of["kernel"], layer.weight.grad.permute(2, 3, 0, 1), atol=1e-4)
    np.testing.assert_allclose(of["bias"], layer.bias.grad, atol=1e-4)


def test_instance_norm_is_of_each_sample_and_channel_in_float32():
    x = 3 + noise(2, 4, 5, 3) * np.float32([1, 10, 0])
    found = np.asarray(instance_norm(jnp.asarray(x)))
    for b, c in np.ndindex(2, 3):
        part = np.float64(x[b, :, :, c])
        np.testing.assert_allclose(found[b, :, :, c], (part - part.mean()) / np.sqrt(part.var() + 1e-5), atol=1e-5)
    half = instance_norm(jnp.asarray(x + 100, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16 and np.abs(np.float32(half).mean((1, 2))).max() < 0.02


def test_the_generator_equals_pytorchs():
    torch = pytest.importorskip("torch")
    nn = torch.nn
    generator, patches = Joined(blocks=2, width=4), noise(2, 12, 12, 6)
    params = drawn(generator, patches)["params"]

    def loaded(layer, own, transposed=False):
        kernel = np.array(own["kernel"]).transpose((2, 3, 0, 1) if transposed else (3, 2, 0, 1)).copy()
        layer.weight.data, layer.bias.data = torch.from_numpy(kernel), torch.from_numpy(np.array(own["bias"]))
        return layer

    class Residual(nn.Module):
        def __init__(self, own):
            super().__init__()
            self.layers = nn.Sequential(
                *(nn.ReflectionPad2d(1), loaded(nn.Conv2d(16, 16, 3), own["conv1"]), nn.InstanceNorm2d(16), nn.ReLU()),
                *(nn.ReflectionPad2d(1), loaded(nn.Conv2d(16, 16, 3), own["conv2"]), nn.InstanceNorm2d(16)),
            )

        def forward(self, x):
            return x + self.layers(x)

    layers = [nn.ReflectionPad2d(3), loaded(nn.Conv2d(6, 4, 7), params["conv1"]), nn.InstanceNorm2d(4), nn.ReLU()]
    for i, width in ((2, 4), (3, 8)):
        down = loaded(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), params[f"conv{i}"])
        layers += [down, nn.InstanceNorm2d(2 * width), nn.ReLU()]
    layers += [Residual(params[f"block{i}"]) for i in (1, 2)]
    for i, width in ((1, 16), (2, 8)):
        up = nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1)
        layers += [loaded(up, params[f"up{i}"], transposed=True), nn.InstanceNorm2d(width // 2), nn.ReLU()]
    layers += [nn.ReflectionPad2d(3), loaded(nn.Conv2d(4, 3, 7), params["pixels"])]
    with torch.no_grad():
        expected = nn.Sequential(*layers)(torch.from_numpy(patches.transpose(0, 3, 1, 2))).permute(0, 2, 3, 1).numpy()

    def run(**options):
        made = ResnetGenerator(2, 4, **options)
        return jit(made.apply)({"params": params}, patches[..., :3], patches[..., 3:])

    np.testing.assert_allclose(run(), expected, atol=1e-4 * np.abs(expected).max())
    squeezed = np.asarray(run(tanh=True))
    np.testing.assert_allclose(squeezed, (np.tanh(expected) + 1) / 2, atol=1e-3)
    assert np.abs(expected).max() > 1 and squeezed.min() >= 0 and squeezed.max() <= 1
    half = run(dtype=jnp.bfloat16)
    assert half.dtype == jnp.float32 and np.linalg.norm(half - expected) < 0.1 * np.linalg.norm(expected)


def test_residual_blocks_are_computed_again_on_request():
    patch = jnp.zeros((1, 8, 8, 3))
    for remat in (True, False):
        made = ResnetGenerator(3, 2, remat=remat)
        traced = jax.make_jaxpr(lambda made=made: made.init_with_output(jax.random.key(0), patch, patch, train=True))()
        assert str(traced).count("= remat") == 3 * remat


@pytest.mark.parametrize(("side", "near"), [(30, 28), (4, 8), (57, 56)])
def test_patches_that_cannot_be_halved_twice_are_refused(side, near):
    check_patch(56)
    check_patch(8)
    with pytest.raises(UserError, match=f"not {side}; set config.pattern_generation.patch={near}"):
        check_patch(side)
