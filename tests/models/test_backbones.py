import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.models import backbones
from jaxad.types import UserError


@pytest.mark.parametrize("name", backbones.NAMES)
def test_channels_and_stride_are_those_of_the_features(name):
    stages = backbones.stages(name)
    module = backbones.build(name, stages)
    features, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((2, 64, 96, 3)))
    for stage in stages:
        stride = backbones.stride(name, stage)
        assert features[stage].shape == (2, 64 // stride, 96 // stride, backbones.channels(name, stage))


def test_normalise_is_torchvisions_and_keeps_the_dtype():
    image = np.random.default_rng(0).random((2, 3, 4, 3), np.float32)
    want = np.empty_like(image)
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        want[..., channel] = (image[..., channel] - mean) / std
    np.testing.assert_allclose(backbones.normalise(jnp.asarray(image)), want, rtol=1e-5, atol=1e-6)
    assert backbones.normalise(jnp.zeros((1, 2, 2, 3), jnp.bfloat16)).dtype == jnp.bfloat16


def test_the_same_call_serves_every_backbone():
    images = jnp.zeros((1, 32, 32, 3))
    for name, stage, tiny in (
        ("resnet50", "layer1", dict(base=4)),
        ("vgg16", "relu2_2", dict(widths=(2, 3, 4, 5, 6))),
    ):
        module = backbones.build(name, (stage,), **tiny)
        features = module.apply(module.init(jax.random.key(0), images), images, train=False)
        assert set(features) == {stage}


def test_unknown_backbones_and_stages_say_what_exists():
    with pytest.raises(UserError, match="resnet101.*config.backbone.name.*resnet18"):
        backbones.build("resnet101", ("layer1",))
    with pytest.raises(UserError, match="resnet18 has no stage 'layer9'.*layer4"):
        backbones.channels("resnet18", "layer9")
    with pytest.raises(UserError, match="vgg16 has no stage 'layer2'"):
        backbones.stride("vgg16", "layer2")
