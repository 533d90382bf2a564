"""VGG16 against PyTorch's functions, driven by a state dict under torchvision's names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.models import backbones, vgg
from jaxad.types import UserError

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # their places in torchvision's `features`


def variables_of(module, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    fan_in = lambda shape: np.prod(shape[:3]) if len(shape) == 4 else 50  # noqa: E731
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, np.float32) * np.float32(np.sqrt(2 / fan_in(leaf.shape))), shapes
    )


def test_every_stage_equals_pytorch():
    torch = pytest.importorskip("torch")
    import torch.nn.functional as F

    module = vgg.vgg16(vgg.STAGES)
    variables = variables_of(module)
    images = np.random.default_rng(1).standard_normal((2, 64, 48, 3), np.float32)
    got = jax.jit(module.apply)(variables, images)
    x = torch.tensor(images).permute(0, 3, 1, 2)
    stages = iter(vgg.STAGES)
    for index in range(30):
        if index in CONVOLUTIONS:
            layer = variables["params"][f"features_{index}"]
            weight = torch.tensor(layer["kernel"].transpose(3, 2, 0, 1).copy())
            x = F.conv2d(x, weight, torch.tensor(layer["bias"]), padding=1)
        elif index in (4, 9, 16, 23):
            x = F.max_pool2d(x, 2, 2)
        else:
            x = F.relu(x)
            stage = next(stages)
            want = x.permute(0, 2, 3, 1).double().numpy()
            assert got[stage].shape == want.shape
            assert np.linalg.norm(got[stage] - want) < 1e-4 * np.linalg.norm(want), stage
            assert got[stage].shape[-1] == backbones.channels("vgg16", stage)
            assert got[stage].shape[1] == 64 // backbones.stride("vgg16", stage)
    assert next(stages, None) is None


def test_parameter_counts_are_the_published_ones():
    def count(stage):
        module = vgg.vgg16((stage,))
        shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        assert set(shapes) == {"params"}
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))

    classifier = 512 * 7 * 7 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
    assert count("relu5_3") + classifier == 138_357_544
    assert (count("relu5_3"), count("relu3_3"), count("relu2_2")) == (14_714_688, 1_735_488, 260_160)


def test_nothing_is_built_beyond_the_last_stage_asked_for():
    params = jax.eval_shape(vgg.vgg16(("relu2_1",)).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    assert set(params) == {"features_0", "features_2", "features_5"}


def test_unknown_stages_say_what_exists():
    with pytest.raises(UserError, match="vgg16 has no stage 'layer2'.*relu3_3"):
        vgg.vgg16(("layer2",))
    with pytest.raises(UserError, match="at least one stage"):
        vgg.vgg16(())
