"""Pre-training by spot-the-difference: what its terms are made of, what a step changes, and what it refuses."""

import functools
import json

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from flax import linen as nn

from jaxad import config as configs
from jaxad import pretrained, run, sharding, train
from jaxad.errors import UserError
from jaxad.losses import selfsup
from jaxad.methods import spd, spd_recipe
from jaxad.models.layers import batch_norm, conv
from jaxad.types import Batch, DataSpec

SIDE, B = 32, 16
KINDS = ("cat", "dog", "owl")
VIEWS = ("first", "second", "weak", "local", "anchor")
CHANNELS = 10
pytestmark = pytest.mark.usefixtures("quick_compile")


class Backbone(nn.Module):
    """Two convolutions and two BatchNorms in a ResNet's place: what is tested here does not depend on its depth."""

    groups: int = 1

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(batch_norm(groups=self.groups, name="bn1")(conv(6, 3, 4, name="conv1")(images), train))
        x = nn.relu(batch_norm(groups=self.groups, name="bn2")(conv(CHANNELS, 3, 2, name="conv2")(x), train))
        return {"layer4": x}


@pytest.fixture(autouse=True)
def small_backbone(request, monkeypatch):
    """In the place of every backbone, but for tests that ask for `shallow`."""
    if "shallow" in request.fixturenames:
        return
    inputs = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    monkeypatch.setattr(spd.backbones, "build", lambda name, stages, dtype=None, groups=1: Backbone(groups))
    monkeypatch.setattr(spd.backbones, "channels", lambda name, stage: CHANNELS)
    monkeypatch.setattr(
        spd.pretrained, "load", lambda name, weights, stages, seed=0: networks.drawn(Backbone(), inputs, seed)
    )


def tiny(base="simsiam", **changes):
    made = configs.default("spd")
    made.data.image_size, made.data.batch_size = SIDE, B
    made.backbone.weights = "random"
    made.optim.name, made.optim.lr, made.spd.lr_batch = "sgd", 0.05, 0
    made.train.steps.pretrain = 4
    made.spd.base = base
    made.spd.simsiam.dim, made.spd.simsiam.predictor_dim = 24, 8
    made.spd.moco.queue, made.spd.moco.dim, made.spd.moco.bn_group = 2 * B, 12, 2
    made.spd.simsiam.zero_init = False
    made.spd.simclr.dim = 12
    for key, value in changes.items():
        made.update_from_flattened_dict({key.replace("__", "."): value})
    return made


def spec(n=40, kinds=KINDS):
    return DataSpec("toy", "toy", SIDE, n, 0, 0, 0, False, kinds=kinds)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    smooth = rng.uniform(0.2, 0.8, (B, 1, 1, 3)).astype(np.float32)
    views = {f"spd_{name}": smooth + 0.2 * rng.uniform(-1, 1, (B, SIDE, SIDE, 3)).astype(np.float32) for name in VIEWS}
    image = views["spd_first"]
    flat = np.zeros(B, bool)
    views["class"] = rng.integers(0, len(KINDS), B).astype(np.int32)
    return Batch(image, np.zeros((B, SIDE, SIDE), bool), flat, np.arange(B, dtype=np.int32), ~flat, views)


def steps(made, n=1, devices=1, data=batch):
    """The state after `n` steps, and the metrics of each."""
    (stage,) = spd.stages(made, spec())
    made.mesh.devices = devices
    mesh = sharding.start(made.mesh)
    with jax.set_mesh(mesh):
        state = sharding.place_state(train.build(stage, spec(), None, 0), mesh)
        step, told = jax.jit(train.one_step(stage)), []
        for number in range(n):
            state, metrics = step(state, sharding.place_batch(data(number), mesh), jax.random.key(3))
            told.append({name: float(value) for name, value in metrics.items()})
    return jax.tree.map(np.asarray, state), told


@functools.cache
def stepped(base, devices=1, **changes):
    return steps(tiny(base, **changes), n=2, devices=devices)


def close(left, right, **tolerance):
    for (path, one), (_, other) in zip(
        jax.tree_util.tree_leaves_with_path(left), jax.tree_util.tree_leaves_with_path(right), strict=True
    ):
        np.testing.assert_allclose(one, other, err_msg=jax.tree_util.keystr(path), **tolerance)


@pytest.mark.parametrize("base", ["simsiam", "moco", "supervised"])
def test_spd_eta_zero_equals_base(base):
    """Against a term so light that it cannot move a float32: whole program and views of SPD, the base's numbers."""
    none, told = stepped(base, spd__eta=0.0)
    light, told_light = stepped(base, spd__eta=1e-30, spd__term="cosine")
    assert "pretrain/spd" not in told[0] and told_light[0]["pretrain/spd"] != 0
    assert [row["pretrain/base"] for row in told] == [row["pretrain/base"] for row in told_light]
    close(none.params, light.params, atol=0, rtol=0)
    close(none.opt, light.opt, atol=1e-25, rtol=0)  # where the base has no gradient at all, the term's is seen


@pytest.mark.parametrize("base", spd_recipe.BASES)
def test_eta_zero_asks_for_the_views_of_the_base_and_builds_nothing_else(base):
    made = tiny(base, spd__eta=0.0, spd__term="xent")
    (stage,) = spd.stages(made, spec())
    views = ("first",) if base == "supervised" else ("first", "second")
    assert stage.feed.views[0].options["views"] == views
    assert set(stage.feed.views[0].options) == {"size", "strong", "views"}
    shapes = jax.eval_shape(lambda: stage.init(jax.random.key(0), spec(), None))
    assert "spot" not in shapes.params["encoder"]


@pytest.mark.parametrize(
    ("base", "changes", "views"),
    [
        ("simsiam", {}, ("first", "second", "weak", "local")),
        ("moco", {"spd__spd_anchor": "rrc"}, ("first", "second", "anchor", "weak", "local")),
        ("simclr", {"spd__term": "xent", "spd__spd_anchor": "plain"}, ("first", "second", "weak", "local")),
        ("supervised", {}, ("first", "local")),
        ("supervised", {"spd__term": "cosine"}, ("first", "weak", "local")),
    ],
)
def test_the_views_are_those_that_the_term_needs(base, changes, views):
    (stage,) = spd.stages(tiny(base, **changes), spec())
    options = stage.feed.views[0].options
    assert options["views"] == views
    assert options["local_of"] == ("first" if views == ("first", "local") else "weak")
    assert ("class" in [view.name for view in stage.feed.views]) == (base == "supervised")


def encoder_of(made):
    heads = spd._heads(made.spd, CHANNELS, len(KINDS), jnp.dtype("float32"))
    return spd.Encoder(Backbone(spd_recipe.groups(made.spd, B)), heads)


def begun(made):
    (stage,) = spd.stages(made, spec())
    with jax.set_mesh(sharding.start(made.mesh)):
        return train.build(stage, spec(), None, 0)


def test_simsiams_terms_are_those_of_the_losses():
    made = tiny("simsiam")
    state, encoder, views = begun(made), encoder_of(made), batch().views

    @jax.jit
    def see(image):
        return encoder.see(state.params["encoder"], state.stats["encoder"], image)[0]

    seen = {name: see(views[f"spd_{name}"]) for name in ("first", "second", "weak", "local")}
    pairs = {name: (view.p, view.z) for name, view in seen.items()}
    _, told = stepped("simsiam")
    base = float(jnp.mean(selfsup.simsiam(pairs["first"], pairs["second"])))
    term = float(jnp.mean(selfsup.predicted_difference(pairs["first"], pairs["local"], pairs["weak"])))
    assert told[0]["pretrain/base"] == pytest.approx(base, abs=1e-5)
    assert told[0]["pretrain/spd"] == pytest.approx(term, abs=1e-5)
    assert told[0]["encoder/loss"] == pytest.approx(base + 0.1 * term, abs=1e-5)
    _, plain = steps(tiny("simsiam", spd__spd_space="z"))
    z = [seen[name].z for name in ("first", "local", "weak")]
    assert plain[0]["pretrain/spd"] == pytest.approx(float(jnp.mean(selfsup.spot_the_difference(*z))), abs=1e-5)


def test_mocos_keys_are_of_the_moved_encoder_and_fill_the_queue():
    made = tiny("moco")
    start = begun(made)
    queue = np.asarray(start.memory["queue"])
    np.testing.assert_allclose(np.linalg.norm(queue, axis=1), 1, atol=1e-5)
    once, _ = steps(made, 1)
    twice, _ = stepped("moco")
    assert int(once.memory["queue_pointer"]) == B and int(twice.memory["queue_pointer"]) == 0  # round the end
    np.testing.assert_array_equal(once.memory["queue"][B:], queue[B:])
    np.testing.assert_array_equal(twice.memory["queue"][:B], once.memory["queue"][:B])
    assert not np.allclose(twice.memory["queue"][B:], queue[B:])
    kernel = ("backbone", "conv1", "kernel")

    def at(tree):
        return functools.reduce(lambda inner, name: inner[name], kernel, tree)

    # The first step moves the key encoder by nothing, the second towards the encoder after the first.
    np.testing.assert_allclose(at(once.params["key"]), at(start.params["encoder"]), rtol=1e-6)
    expected = 0.999 * at(start.params["encoder"]) + 0.001 * at(once.params["encoder"])
    np.testing.assert_allclose(at(twice.params["key"]), expected, atol=1e-7)


def test_keys_see_other_groups_than_queries_unless_there_is_one_group():
    """The permutation changes a key only where BatchNorm has groups: with one, any order has the same statistics."""
    for group, same in ((2, False), (0, True)):
        made = tiny("moco", spd__moco__bn_group=group)
        encoder, state, image = encoder_of(made), begun(made), jnp.asarray(batch().views["spd_second"])

        @jax.jit
        def keys(key, encoder=encoder, state=state, image=image):
            return spd._keys(encoder, state, {"second": image}, key)[0]["second"].z

        one, other = keys(jax.random.key(0)), keys(jax.random.key(1))
        assert bool(np.allclose(one, other, atol=1e-4)) == same


def test_keys_have_no_gradient_and_views_by_the_key_encoder_none_either():
    made = tiny("moco", spd__spd_moco="key")
    encoder, state = encoder_of(made), begun(made)
    views = {name: jnp.asarray(batch().views[f"spd_{name}"]) for name in ("second", "weak")}

    def total(params):
        moved = state.replace(params={"key": params})
        found, _ = spd._keys(encoder, moved, views, jax.random.key(0))
        return sum(jnp.sum(view.z * view.z) for view in found.values())

    gradient = jax.jit(jax.grad(total))(state.params["encoder"])
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("base", spd_recipe.BASES)
def test_one_device_equals_eight(base):
    one, told = stepped(base)
    eight, told_eight = stepped(base, 8)
    for left, right in zip(told, told_eight, strict=True):
        assert left == pytest.approx(right, abs=2e-4)
    close(one.stats, eight.stats, atol=2e-3, rtol=2e-3)
    close(one.params, eight.params, atol=2e-4)
    close(one.memory, eight.memory, atol=2e-3)


def test_the_xent_ablation_moves_its_own_classifier_and_the_backbone():
    made = tiny("simsiam", spd__term="xent", spd__eta=1.0)
    state, told = steps(made, 2)
    start = begun(made)
    assert told[1]["pretrain/spd"] < told[0]["pretrain/spd"]  # the local views of all batches are brighter alike
    moved = state.params["encoder"]["spot"]["dense"]["kernel"] - start.params["encoder"]["spot"]["dense"]["kernel"]
    assert np.abs(moved).max() > 0


def test_residual_branches_begin_closed_for_simsiam_alone(shallow):
    for base, closed in (("simsiam", True), ("moco", False)):
        made = tiny(base)
        made.spd.simsiam.zero_init = True
        (stage,) = spd.stages(made, spec())
        block = stage.init(jax.random.key(0), spec(), None).params["encoder"]["backbone"]["layer2_0"]
        assert bool(np.all(np.asarray(block["bn2"]["scale"]) == 0)) == closed
        assert np.all(np.asarray(block["bn1"]["scale"]) == 1)
        assert np.all(np.asarray(block["downsample_1"]["scale"]) == 1)


def test_the_rate_grows_with_the_batch_and_the_predictor_keeps_its_own():
    made = tiny("simsiam", spd__lr_batch=8, optim__schedule="cosine", optim__momentum=0.0)
    tx = spd._optimiser(made, spec(), 4)
    params = {"backbone": jnp.zeros(1), "projector": jnp.zeros(1), "predictor": jnp.zeros(1)}
    opt, moves = tx.init(params), []
    for _ in range(4):
        change, opt = tx.update({name: jnp.ones(1) for name in params}, opt, params)
        moves.append({name: -float(value[0]) for name, value in change.items()})
    assert [move["predictor"] for move in moves] == pytest.approx([0.1] * 4)  # 0.05 * 16 / 8
    assert [move["backbone"] for move in moves] == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], abs=1e-6)
    assert all(move["backbone"] == move["projector"] for move in moves)
    loose = tiny("simsiam", spd__simsiam__fixed_predictor_lr=False, optim__schedule="cosine")
    change, _ = spd._optimiser(loose, spec(), 4).update(params, spd._optimiser(loose, spec(), 4).init(params), params)
    assert set(change) == set(params)


def test_epochs_are_passes_over_the_training_images():
    assert spd.stages(tiny(spd__epochs=3.0), spec(n=40))[0].steps == 8  # 3 * 40 / 16, rounded
    assert spd.stages(tiny(), spec())[0].steps == 4


def test_what_is_judged_is_the_moving_average_where_there_is_one():
    made = tiny("simsiam", spd__ema=0.5)
    state, _ = steps(made, 2)
    (stage,) = spd.stages(made, spec())
    name, variables = stage.backbone(state)
    assert name == "resnet18"
    close(variables["params"], state.params["average"]["backbone"], atol=0)
    with pytest.raises(AssertionError):
        close(variables["params"], state.params["encoder"]["backbone"], atol=0)
    found = jax.jit(stage.embed)(state, batch())
    assert found.shape == (B, CHANNELS) and found.dtype == jnp.float32
    assert not stage.finish(state).opt


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spd__base": "byol"}, "spd.base='byol'.*simsiam"),
        ({"spd__eta": -0.1}, "spd.eta=-0.1"),
        ({"spd__base": "moco", "spd__moco__queue": 40}, r"queue=40 is not a multiple of .*batch_size=16.*32"),
        ({"spd__base": "moco", "spd__moco__bn_group": 3}, "batch_size=16 does not divide.*bn_group=3"),
        ({"spd__base": "moco", "spd__moco__bn_group": 32}, "batch_size=16 does not divide.*bn_group=32"),
        ({"spd__base": "moco", "spd__moco__bn_group": 16}, "too small for two BatchNorm groups"),
        ({"spd__base": "moco", "spd__bn_concat_views": "yes"}, "bn_concat_views=yes"),
        ({"spd__base": "simclr", "spd__spd_space": "pred_sg"}, "spd_space=pred_sg needs SimSiam's predictor"),
        ({"backbone__name": "vgg16"}, "backbone.name='vgg16' cannot be pre-trained.*resnet18"),
        ({"data__batch_size": 41}, "batch_size=41.*40 to train on"),
        ({"data__batch_size": 1}, "batch_size=1:"),
        ({"spd__simclr__temperature": 0.0}, "simclr.temperature=0.0: it must be positive"),
        ({"spd__ema": 1.0}, r"spd.ema=1.0: it must be in \[0, 1\)"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(changes, words):
    with pytest.raises(UserError, match=words) as caught:
        spd.stages(tiny(**changes), spec())
    assert "\n" not in str(caught.value)


def test_the_supervised_recipe_needs_classes():
    with pytest.raises(UserError, match="needs images of two classes or more.*each class into a folder"):
        spd.stages(tiny("supervised"), spec(kinds=()))


def test_a_run_leaves_a_backbone_that_another_method_stands_on(shallow, tmp_path, demo_cache):
    made = tiny("simsiam")
    made.data.category, made.data.cache_dir = "washer", demo_cache
    made.spd.eta, made.train.steps.pretrain = 0.0, 1
    results = run.run(made, str(tmp_path / "pre"))
    result = results["categories"]["washer"]
    assert result["knn_top1"] is None and result["notes"]["knn_top1"] == "no classes"
    assert 0 <= result["spread"] <= 1.2
    assert json.loads((tmp_path / "pre/results.json").read_text()) == results
    found = pretrained.load("resnet18", str(tmp_path / "pre"), ["layer1"])
    random = pretrained.load("resnet18", "random", ["layer1"], seed=made.seed)
    kernel = found["params"]["conv1"]["kernel"]
    assert kernel.shape == random["params"]["conv1"]["kernel"].shape
    assert not np.array_equal(found["batch_stats"]["bn1"]["mean"], random["batch_stats"]["bn1"]["mean"])
    # The same again finds it done, and tells the same.
    assert run.run(made, str(tmp_path / "pre"))["categories"]["washer"]["spread"] == pytest.approx(result["spread"])
