import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import drawn

from jaxad.errors import UserError
from jaxad.models.resnet import ARCHITECTURES, resnet
from jaxad.models.reverse_distillation import LAYERS, OCBE, Decoder, student

# RD4AD's own modules, counted after instantiating them; of the bottleneck only what is called.
COUNTS = {
    "resnet18": (2_782_784, 11_680_000, 3_703_168),
    "resnet34": (8_170_304, 16_400_640, 5_770_624),
    "resnet50": (8_543_296, 30_829_568, 15_821_824),
    "wide_resnet50_2": (24_862_528, 58_885_120, 24_917_504),
}
TINY = dict(base=4, blocks=(1, 2, 3, 2))  # uneven: a swapped number of blocks shows


def tiny(backbone, seed=0):
    """(module, variables, features of the teacher) with random weights, BatchNorm statistics among them; not square."""
    rng = np.random.default_rng(seed)
    module, arch = student(backbone, **TINY), ARCHITECTURES[backbone]._replace(**TINY)
    sizes = {"layer1": (16, 24), "layer2": (8, 12), "layer3": (4, 6)}
    features = {
        layer: np.float32(rng.random((3, *size, arch.features(i)))) for i, (layer, size) in enumerate(sizes.items(), 1)
    }
    return module, drawn(module, features, seed), features


class TorchStudent:
    """RD4AD's forward pass written out in torch.nn.functional, on the same numbers."""

    def __init__(self, torch, variables, backbone, train):
        self.f, self.train = torch.nn.functional, train
        self.arch = ARCHITECTURES[backbone]._replace(**TINY)
        self.tensors = {}
        for (_, *path, leaf), value in flax.traverse_util.flatten_dict(variables).items():
            value = np.asarray(value)
            if leaf == "kernel":
                transposed = "upsample" in path[-1] or (path[-2:-1] and self.up(path))
                value = value.transpose((2, 3, 0, 1) if transposed else (3, 2, 0, 1))
            tensor = torch.tensor(value.copy(), requires_grad=leaf in ("kernel", "scale", "bias"))
            self.tensors["/".join([*path, leaf])] = tensor

    def up(self, path):
        opener = "conv2" if self.arch.bottleneck else "conv1"
        return path[0] == "decoder" and path[-2].endswith("_0") and path[-1] == opener

    def conv(self, x, name, stride=1):
        weight = self.tensors[f"{name}/kernel"]
        return self.f.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def conv_transpose(self, x, name):
        return self.f.conv_transpose2d(x, self.tensors[f"{name}/kernel"], stride=2)

    def norm(self, x, name):
        mean, var, scale, bias = (self.tensors[f"{name}/{leaf}"] for leaf in ("mean", "var", "scale", "bias"))
        return self.f.batch_norm(x, mean, var, scale, bias, training=self.train, momentum=0.1, eps=1e-5)

    def block(self, x, name, stride=1, up=False):
        def inner(x, i, stride=1, up=False, relu=True):
            y = self.conv_transpose(x, f"{name}/conv{i}") if up else self.conv(x, f"{name}/conv{i}", stride)
            y = self.norm(y, f"{name}/bn{i}")
            return y.relu() if relu else y

        if self.arch.bottleneck:
            y = inner(inner(inner(x, 1), 2, stride, up), 3, relu=False)
        else:
            y = inner(inner(x, 1, stride, up), 2, relu=False)
        if up:
            x = self.norm(self.conv_transpose(x, f"{name}/upsample_0"), f"{name}/upsample_1")
        elif f"{name}/downsample_0/kernel" in self.tensors:
            x = self.norm(self.conv(x, f"{name}/downsample_0", stride), f"{name}/downsample_1")
        return (y + x).relu()

    def __call__(self, torch, features):
        first, second, third = (torch.tensor(features[layer]).permute(0, 3, 1, 2) for layer in LAYERS)
        first = self.norm(self.conv(first, "ocbe/conv1", 2), "ocbe/bn1").relu()
        first = self.norm(self.conv(first, "ocbe/conv2", 2), "ocbe/bn2").relu()
        second = self.norm(self.conv(second, "ocbe/conv3", 2), "ocbe/bn3").relu()
        x = torch.cat([first, second, third], 1)
        for i in range(self.arch.blocks[3]):
            x = self.block(x, f"ocbe/bn_layer_{i}", stride=2 if i == 0 else 1)
        found = []
        for layer in (1, 2, 3):
            for i in range(self.arch.blocks[layer - 1]):
                x = self.block(x, f"decoder/layer{layer}_{i}", up=i == 0)
            found.append(x.permute(0, 2, 3, 1))
        return dict(zip(LAYERS, reversed(found), strict=True))


def relative_error(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("backbone", ["resnet18", "wide_resnet50_2"])
@pytest.mark.parametrize("train", [False, True])
def test_ocbe_and_decoder_equal_torch(backbone, train):
    torch = pytest.importorskip("torch")
    module, variables, features = tiny(backbone)
    oracle = TorchStudent(torch, variables, backbone, train)
    expected = oracle(torch, features)
    found, new = module.apply(variables, features, train, mutable=["batch_stats"])
    for layer in LAYERS:
        assert found[layer].shape == features[layer].shape
        assert relative_error(found[layer], expected[layer].detach()) < 1e-4
    for path, value in flax.traverse_util.flatten_dict(new["batch_stats"], sep="/").items():
        np.testing.assert_allclose(value, oracle.tensors[path], rtol=1e-4, atol=1e-5)  # torch has updated its own


@pytest.mark.parametrize("backbone", ["resnet18", "wide_resnet50_2"])
def test_gradients_equal_torch(backbone):
    torch = pytest.importorskip("torch")
    module, variables, features = tiny(backbone, seed=1)
    oracle = TorchStudent(torch, variables, backbone, train=False)
    sum(feature.square().mean() for feature in oracle(torch, features).values()).backward()

    def objective(params):
        answer = module.apply({**variables, "params": params}, features)
        return sum(jnp.mean(jnp.square(feature)) for feature in answer.values())

    gradients = flax.traverse_util.flatten_dict(jax.jit(jax.grad(objective))(variables["params"]), sep="/")
    for path, gradient in gradients.items():
        expected = oracle.tensors[path].grad.numpy()
        if path.endswith("kernel"):
            transposed = "upsample" in path or oracle.up(path.split("/")[:-1])
            expected = expected.transpose((2, 3, 0, 1) if transposed else (2, 3, 1, 0))
        assert relative_error(gradient, expected) < 1e-3, path


@pytest.mark.parametrize("backbone", sorted(COUNTS))
def test_parameter_counts_are_those_of_the_authors_code(backbone):
    def count(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    key, images = jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    features, teacher = jax.eval_shape(resnet(backbone, LAYERS).init_with_output, key, images)
    variables = jax.eval_shape(student(backbone).init, key, features)
    networks = teacher["params"], variables["params"]["ocbe"], variables["params"]["decoder"]
    assert tuple(map(count, networks)) == COUNTS[backbone]


def test_shapes_at_256_pixels_are_the_published_ones():
    shapes = {"layer1": (1, 64, 64, 256), "layer2": (1, 32, 32, 512), "layer3": (1, 16, 16, 1024)}
    features = {layer: jax.ShapeDtypeStruct(shape, jnp.float32) for layer, shape in shapes.items()}
    arch, key = ARCHITECTURES["wide_resnet50_2"], jax.random.key(0)
    embedding, _ = jax.eval_shape(OCBE(arch).init_with_output, key, features)
    assert embedding.shape == (1, 8, 8, 2048)
    answer, _ = jax.eval_shape(Decoder(arch).init_with_output, key, embedding)
    assert {layer: feature.shape for layer, feature in answer.items()} == shapes


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_initial_values_follow_the_authors_rules(backbone):
    module = student(backbone, base=8, blocks=(1, 1, 1, 1))
    channels = (8, 16, 32) if backbone == "resnet18" else (32, 64, 128)
    features = {
        layer: jnp.zeros((1, 8 >> i, 8 >> i, c)) for i, (layer, c) in enumerate(zip(LAYERS, channels, strict=True))
    }
    variables = jax.jit(module.init)(jax.random.key(3, impl="rbg"), features)
    normal, uniform = [], []
    for path, value in flax.traverse_util.flatten_dict(variables, sep="/").items():
        value = np.asarray(value)
        if path.endswith("kernel"):
            opener = f"_0/{'conv2' if backbone == 'resnet50' else 'conv1'}/"
            if "/decoder/" in path and ("upsample" in path or opener in path):
                bound = 1 / np.sqrt(4 * value.shape[-1])
                assert np.abs(value).max() <= bound
                uniform.append(value.ravel() / bound)
            else:
                normal.append(value.ravel() / np.sqrt(2 / (value.shape[-1] * value.shape[0] ** 2)))
        else:
            assert (value == (1 if path.endswith(("scale", "var")) else 0)).all()
    normal, uniform = np.concatenate(normal), np.concatenate(uniform)
    assert normal.std() == pytest.approx(1, abs=0.03) and np.abs(normal).max() > 3
    assert uniform.std() == pytest.approx(1 / np.sqrt(3), abs=0.03) and len(uniform) > 1000


def test_half_precision_keeps_parameters_and_statistics_in_float32():
    _, variables, features = tiny("resnet18")
    module = student("resnet18", jnp.bfloat16, **TINY)
    answer, new = module.apply(variables, features, True, mutable=["batch_stats"])
    assert all(feature.dtype == jnp.bfloat16 for feature in answer.values())
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(new))
    assert all(
        leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), features))
    )


def test_a_teacher_without_stages_to_mirror_is_refused():
    with pytest.raises(UserError, match="vgg16.*config.backbone.name"):
        student("vgg16")
