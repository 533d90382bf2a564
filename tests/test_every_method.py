"""What holds for every method: it resumes bit for bit, compiles once per stage, and does not care about devices."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest
import toy

from jaxad import config as configs
from jaxad import inference, methods, sharding, train
from jaxad.log import Log
from jaxad.models import backbones

SIDE = 32
pytestmark = pytest.mark.usefixtures("shallow", "quick_compile")
METHODS = sorted(configs.METHODS)
LARGE = ("anoseg", "siamese_unet", "spd")  # a minute each on eight devices
MOVED = {"two_class": 2}  # anomalies in training, where a method learns from them


def tiny(method, devices=1):
    made = configs.default(method)
    made.data.image_size, made.data.batch_size = SIDE, 8
    made.backbone.weights = "random"
    made.mesh.devices = devices
    made.train.log_every = 1
    made.optim.name, made.optim.lr = "sgd", 0.01  # Adam would amplify the order of reductions between device counts
    if "width_mult" in configs.section(made):
        configs.section(made).width_mult = 0.0625
    if "decoder" in configs.section(made):
        configs.section(made).decoder = (16, 8, 8, 4)
    if "simsiam" in configs.section(made):
        configs.section(made).simsiam.dim, configs.section(made).simsiam.predictor_dim = 32, 8
        configs.section(made).eta = 0.0  # half of the program; its term is tests/methods/test_spd.py's
    if "swin" in configs.section(made):  # generators compile for half a minute and descend like any other network
        configs.section(made).update({"generator": "copy_near", "train_n": (4,)})
        configs.section(made).compare.update({"widths": (2, 4, 4), "batch_size": 8})
    for stage in made.train.steps:
        made.train.steps[stage] = 2
    return made


class Stopped(toy.ArrayData):
    def batches(self, feed, **options):
        for number, batch in enumerate(super().batches(feed, **options), options["start"]):
            if feed.split.startswith("train") and number == 0 and options["start"] == 0:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch


def fit(made, folder, kind=toy.ArrayData):
    """(finished state, what the last stage says of the test images, traces per stage) of all stages."""
    data = kind(n=13, size=SIDE, anomalies=3, moved=MOVED.get(made.method, 0))
    mesh = sharding.start(made.mesh)
    traces, carry = {}, None
    with jax.set_mesh(mesh):
        for stage in methods.resolve(made.method).stages(made, data.spec):

            def counted(state, batch, key, stage=stage):
                traces[stage.name] = traces.get(stage.name, 0) + 1
                return stage.update.apply(state, batch, key)

            watched = dataclasses.replace(stage, update=stage.update._replace(apply=counted))
            options = {"seed": 1, "mesh": mesh, "config": made, "log": Log(str(folder), main=False)}
            while True:
                try:
                    carry, _ = train.train(watched, data, carry, folder=str(folder / stage.name), **options)
                    break
                except KeyboardInterrupt:  # as a user would: the same again
                    continue

        def place(batch):
            return sharding.place_batch(batch, mesh)

        how = {"split": "test", "batch_size": 8, "seed": 1, "place": place}
        if stage.predict:
            found = inference.predictions(stage, carry, data, **how)
            said = {"maps": found.maps, "scores": found.scores}
        else:  # it pre-trains a backbone
            said = {"features": inference.embeddings(stage, carry, data, **how)[0]}
    return jax.tree.map(np.asarray, carry), said, traces


@pytest.mark.parametrize("method", METHODS)
def test_it_resumes_bit_for_bit_compiles_once_and_maps_every_pixel(method, tmp_path):
    whole, found, traces = fit(tiny(method), tmp_path / "whole")
    assert set(traces.values()) == {1}
    shapes = {"maps": (16, SIDE, SIDE), "scores": (16,), "features": (16, backbones.channels("resnet18", "layer4"))}
    assert {name: value.shape for name, value in found.items()} == {name: shapes[name] for name in found}
    assert all(value.dtype == np.float32 for value in found.values())
    resumed, again, _ = fit(tiny(method), tmp_path / "parts", Stopped)
    for (path, left), (_, right) in zip(
        jax.tree_util.tree_leaves_with_path(whole), jax.tree_util.tree_leaves_with_path(resumed), strict=True
    ):
        np.testing.assert_array_equal(left, right, err_msg=jax.tree_util.keystr(path))
    for name, value in found.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in METHODS]
)
def test_one_device_equals_eight(method, tmp_path):
    _, one, _ = fit(tiny(method, 1), tmp_path / "one")
    _, eight, _ = fit(tiny(method, 8), tmp_path / "eight")
    for name, value in one.items():
        np.testing.assert_allclose(value / value.max(), eight[name] / value.max(), atol=2e-3, err_msg=name)
