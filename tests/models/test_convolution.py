"""Convolutions with gradients of their own, against XLA's and PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from networks import jit

from jaxad.models import convolution, layers
from jaxad.models.convolution import NHWC, convolve
from jaxad.models.layers import ConvTranspose4x4, _by_phases, _dilated

CASES = [  # kernel, strides, padding, (height, width, channels, features)
    ((3, 3), (1, 1), ((1, 1), (1, 1)), (6, 9, 5, 3)),
    ((4, 4), (2, 2), ((1, 1), (1, 1)), (8, 12, 3, 7)),
    ((5, 5), (2, 2), ((2, 1), (2, 2)), (10, 13, 5, 4)),  # the last row of the padded image is not seen
    ((3, 2), (1, 3), ((0, 2), (1, 0)), (5, 11, 4, 6)),
    ((2, 2), (1, 1), ((1, 0), (0, 1)), (4, 5, 3, 2)),  # a phase of a transposed convolution
    ((1, 1), (3, 2), ((0, 0), (0, 0)), (7, 6, 2, 5)),
]


@pytest.fixture
def products(monkeypatch):
    """Every kernel's gradient by products, all of the images at once; a number given to it: that many positions."""
    monkeypatch.setattr(convolution, "MANY", 0)
    monkeypatch.setattr(convolution, "FEWEST", 1)
    return lambda positions: monkeypatch.setattr(convolution, "AT_ONCE", positions)


def draw(case, batch=6, seed=0, dtype=jnp.float32):
    """x, kernel, and a weight for every output."""
    kernel, strides, padding, (height, width, channels, features) = case
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, height, width, channels)) + 0.3
    kernel = rng.normal(size=(*kernel, channels, features))
    like = jax.eval_shape(lambda x, kernel: plain(x, kernel, strides, padding), x, kernel)
    return tuple(jnp.asarray(value, dtype) for value in (x, kernel, rng.normal(size=like.shape)))


def plain(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC)


def slow(x, kernel, strides, padding):
    """The convolution by its definition."""
    x, kernel = np.pad(np.float64(x), ((0, 0), *padding, (0, 0))), np.float64(kernel)
    high, wide = ((x.shape[1 + i] - kernel.shape[i]) // strides[i] + 1 for i in (0, 1))
    y = np.zeros((len(x), high, wide, kernel.shape[3]))
    for i, j in np.ndindex(high, wide):
        top, left = i * strides[0], j * strides[1]
        seen = x[:, top : top + kernel.shape[0], left : left + kernel.shape[1]]
        y[:, i, j] = np.einsum("bklc,klcf->bf", seen, kernel)
    return y


def gradients(function, strides, padding):
    """A fresh function (x, kernel, weight) -> gradients of the weighted sum of `function`'s outputs."""

    def weighted(x, kernel, weight):
        return jnp.sum((function(x, kernel, strides, padding) * weight).astype(jnp.float32))

    return jax.grad(weighted, (0, 1))


def both(case):
    """A fresh program (x, kernel, weight) -> gradients of `convolve`, gradients of XLA's."""
    functions = [gradients(function, *case[1:3]) for function in (convolve, plain)]
    return jit(lambda *arguments: [function(*arguments) for function in functions])


def text(case, batch, platform="cpu", dtype=jnp.float32):
    """The program of a gradient, before it is compiled; `case` needs no arrays."""
    kernel, strides, padding, (height, width, channels, features) = case
    x = jax.ShapeDtypeStruct((batch, height, width, channels), dtype)
    kernel = jax.ShapeDtypeStruct((*kernel, channels, features), dtype)
    weight = jax.eval_shape(lambda x, kernel: plain(x, kernel, strides, padding), x, kernel)
    program = jax.export.export(jax.jit(gradients(convolve, strides, padding)), platforms=[platform])
    return program(x, kernel, weight).mlir_module()


def relative_error(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_convolution_is_what_its_definition_says(case):
    x, kernel, _ = draw(case, batch=2)
    assert relative_error(convolve(x, kernel, *case[1:3]), slow(x, kernel, *case[1:3])) < 1e-6


@pytest.mark.parametrize(
    ("case", "images_at_once"), [*zip(CASES, (6, 2, 1, 3, 1, 2), strict=True), (CASES[1], 6), (CASES[3], 1)], ids=str
)
def test_gradients_by_products_equal_xlas(products, case, images_at_once):
    x, kernel, weight = draw(case)
    products(images_at_once * weight.shape[1] * weight.shape[2])
    found, expected = both(case)(x, kernel, weight)
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == want.dtype and relative_error(got, want) < 1e-5


def test_a_gradient_by_products_is_one_product_a_tap_and_a_scan_where_images_do_not_fit(products):
    case = CASES[3]
    assert text(case, 6).count("stablehlo.dot_general") == 6 and "stablehlo.while" not in text(case, 6)
    products(2 * 5 * 4)
    assert text(case, 6).count("stablehlo.dot_general") == 6 and "tensor<3x2x" in text(case, 6)
    assert "stablehlo.while" in text(case, 6)
    products(1)  # less than one image: one at a time
    assert "tensor<6x1x" in text(case, 6)


def test_a_batch_is_cut_into_equal_parts_though_more_images_would_fit(products):
    products(5 * 5 * 4)  # of 6 images 5 fit, but only 3 divide them
    assert "tensor<2x3x" in text(CASES[3], 6)


def test_small_images_few_channels_and_other_platforms_keep_xlas_gradient():
    def case(side, channels=16, features=16):
        return (3, 3), (1, 1), ((1, 1), (1, 1)), (side, side, channels, features)

    assert text(case(64), 16).count("stablehlo.dot_general") == 9  # MANY positions: the first that are worth it
    for program in (
        text(case(64), 15),
        text(case(64, channels=15), 16),
        text(case(64, features=15), 16),
        text(case(64), 16, platform="cuda"),
        text(case(64), 16, platform="tpu"),
    ):
        assert "stablehlo.dot_general" not in program and "stablehlo.while" not in program
        assert program.count("stablehlo.convolution") == 2  # of the gradients; nobody asks for the value


def test_half_precision_is_added_up_in_float32(products):
    case = (3, 3), (1, 1), ((1, 1), (1, 1)), (16, 24, 3, 5)
    x, kernel, weight = draw(case, batch=6, dtype=jnp.bfloat16)
    products(16 * 24)
    found = jit(gradients(convolve, *case[1:3]))(x, kernel, weight)
    assert {gradient.dtype for gradient in found} == {jnp.dtype(jnp.bfloat16)}
    exact = jit(gradients(plain, *case[1:3]))(*(value.astype(jnp.float32) for value in (x, kernel, weight)))
    difference = np.abs(np.asarray(found[1].astype(jnp.float32)) - exact[1])
    assert np.all(difference <= 2**-8 * np.abs(exact[1]) + 1e-3)  # rounded once, at the end


@pytest.mark.parametrize("images_at_once", [2, 1])
def test_on_8_devices_images_stay_where_they_are(products, images_at_once):
    case = CASES[0]
    x, kernel, weight = draw(case, batch=16)
    products(images_at_once * 6 * 9)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    arguments = jax.device_put((x, kernel, weight), (rows, whole, rows))
    with jax.set_mesh(mesh):
        compiled = jit(gradients(convolve, *case[1:3]), out_shardings=(rows, whole)).lower(*arguments).compile()
    program = compiled.as_text()
    assert "all-reduce" in program
    assert not any(move in program for move in ("all-gather", "all-to-all", "collective-permute"))
    assert (" while(" in program) == (images_at_once == 1)  # 2 images a device
    expected = jit(gradients(plain, *case[1:3]))(x, kernel, weight)
    for got, want in zip(compiled(*arguments), expected, strict=True):
        assert relative_error(got, want) < 1e-5


def test_a_batch_that_does_not_divide_over_the_devices_is_taken_as_one(products):
    case = CASES[0]
    arguments = draw(case, batch=6)
    products(2 * 6 * 9)
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))):
        found, expected = both(case)(*arguments)
    for got, want in zip(found, expected, strict=True):
        assert relative_error(got, want) < 1e-5


@pytest.mark.parametrize("fewest", [0, 2**30])
def test_a_transposed_convolution_equals_torch_and_so_do_its_gradients(monkeypatch, fewest):
    monkeypatch.setattr(layers, "FEW_PRODUCTS", fewest)
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 3, 5, 4)).astype(np.float32), rng.normal(size=(4, 6, 4, 4)).astype(np.float32)
    change = rng.normal(size=(2, 6, 10, 6)).astype(np.float32)
    layer = torch.nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=False)
    layer.weight.data = torch.tensor(weight)
    images = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    expected = layer(images).permute(0, 2, 3, 1)
    (expected * torch.tensor(change)).sum().backward()

    def value(x, kernel):
        y = ConvTranspose4x4(6).apply({"params": {"kernel": kernel}}, x)
        return jnp.sum(y * change), y

    kernel = weight.transpose(2, 3, 0, 1)  # as layers.py says
    (of_x, of_kernel), y = jit(jax.grad(value, (0, 1), has_aux=True))(x, kernel)
    assert relative_error(y, expected.detach()) < 1e-6
    assert relative_error(of_x, images.grad.permute(0, 2, 3, 1)) < 1e-6
    assert relative_error(of_kernel, layer.weight.grad.permute(2, 3, 0, 1)) < 1e-6


def test_four_phases_are_one_dilated_convolution_with_the_same_gradients():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(4, 4, 4, 6))
    x, kernel, change = (jnp.asarray(value, jnp.float32) for value in (x, kernel, rng.normal(size=(2, 6, 10, 6))))

    def value(function):
        def weighted(x, kernel):
            y = function(x, kernel)
            return jnp.sum(y * change), y

        return jit(jax.grad(weighted, (0, 1), has_aux=True))(x, kernel)

    for got, want in zip(*(jax.tree.leaves(value(function)) for function in (_by_phases, _dilated)), strict=True):
        assert relative_error(got, want) < 1e-6


@pytest.mark.parametrize(
    ("platform", "fewest", "convolutions"), [("cpu", 720, 4), ("cpu", 721, 1), ("cuda", 720, 1), ("tpu", 720, 1)]
)
def test_a_transposed_convolution_doubles_the_size_by_phases_where_it_is_large_and_on_cpu(
    monkeypatch, platform, fewest, convolutions
):
    monkeypatch.setattr(layers, "FEW_PRODUCTS", fewest)
    module, x = ConvTranspose4x4(6), jax.ShapeDtypeStruct((2, 3, 5, 4), jnp.float32)  # 2 x 3 x 5 x 4 x 6 = 720
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    assert variables["params"]["kernel"].shape == (4, 4, 4, 6)
    program = jax.export.export(jax.jit(module.apply), platforms=[platform])(variables, x)
    assert [leaf.shape for leaf in program.out_avals] == [(2, 6, 10, 6)]
    assert program.mlir_module().count("stablehlo.convolution") == convolutions


def test_a_transposed_convolution_computes_in_half_precision_from_float32_parameters():
    module, x = ConvTranspose4x4(6, jnp.bfloat16), jax.ShapeDtypeStruct((2, 3, 5, 4), jnp.float32)
    y, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16 and variables["params"]["kernel"].dtype == jnp.float32


TINY = [  # as CASES, outputs of 16 positions at most
    ((3, 3), (1, 1), ((1, 1), (1, 1)), (2, 3, 5, 4)),
    ((3, 3), (2, 2), ((1, 1), (1, 1)), (4, 7, 3, 6)),
    ((3, 2), (1, 3), ((0, 2), (1, 0)), (3, 11, 4, 3)),
    ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1, 3, 2)),
]


@pytest.mark.parametrize("case", TINY, ids=str)
def test_tiny_images_by_patches_give_the_same_and_so_do_their_gradients(monkeypatch, case):
    monkeypatch.setattr(convolution, "DEEP", 1)
    x, kernel, weight = draw(case)
    assert "stablehlo.convolution" not in text(case, 6)
    assert relative_error(convolve(x, kernel, *case[1:3]), slow(x, kernel, *case[1:3])) < 1e-6
    for got, want in zip(*both(case)(x, kernel, weight), strict=True):
        assert relative_error(got, want) < 1e-5


def test_patches_are_for_tiny_images_of_many_channels_on_cpu_alone():
    def case(side, channels=128, features=128):
        return (3, 3), (1, 1), ((1, 1), (1, 1)), (side, side, channels, features)

    assert "stablehlo.convolution" not in text(case(4), 2)
    for program in (
        text(case(5), 2),
        text(case(4, channels=127), 2),
        text(case(4, features=127), 2),
        text(case(4), 2, platform="cuda"),
    ):
        assert "stablehlo.dot_general" not in program
        assert program.count("stablehlo.convolution") == 2
