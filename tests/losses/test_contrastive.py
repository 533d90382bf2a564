import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.losses.contrastive import contrastive, hinge, similarities, similarity, stage_one


def features(seed, shapes=((3, 5, 2, 4), (3, 3, 2, 7))):
    rng = np.random.default_rng(seed)
    return {f"layer{i}": np.float32(rng.normal(size=shape) + 0.4) for i, shape in enumerate(shapes, 1)}


def slow_cosine(a, b):
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def slow_similarity(a, b, reduce):
    if reduce == "flat":
        return slow_cosine(a, b)
    if reduce == "gap":
        return slow_cosine(a.mean((0, 1)), b.mean((0, 1)))
    return np.mean([slow_cosine(a[i, j], b[i, j]) for i, j in np.ndindex(*a.shape[:2])])


@pytest.mark.parametrize("reduce", ["flat", "gap", "position"])
def test_eq_6_equals_slow_loops(reduce):
    normal, rotated, anomaly = (features(seed) for seed in (0, 1, 2))
    found = contrastive(normal, rotated, anomaly, margin=0.13, reduce=reduce)
    for b in range(3):
        terms = []
        for layer in normal:
            negative = slow_similarity(normal[layer][b], anomaly[layer][b], reduce)
            positive = slow_similarity(normal[layer][b], rotated[layer][b], reduce)
            terms.append(max(negative - positive + 0.13, 0))
        assert found[b] == pytest.approx(np.mean(terms), abs=1e-6)


def test_the_hinge_is_zero_once_the_margin_is_kept_and_the_margin_where_the_anomaly_is_the_normal_image():
    normal, rotated = features(0), features(0)
    far = {layer: -value for layer, value in normal.items()}
    np.testing.assert_array_equal(contrastive(normal, rotated, far, margin=1.9), 0)
    np.testing.assert_allclose(contrastive(normal, rotated, normal, margin=0.3), 0.3, atol=1e-6)
    assert np.all(contrastive(normal, rotated, far, margin=2.1) > 0.09)


def test_an_easy_triplet_does_not_pay_for_a_hard_one():
    positive = {"layer1": jnp.array([0.9, 0.2])}
    negative = {"layer1": jnp.array([-0.9, 0.4])}
    np.testing.assert_allclose(hinge(positive, negative, 0.1), [0.0, 0.3], atol=1e-6)  # a batch mean would give 0


def test_gap_does_not_see_where_a_feature_is_and_flat_does():
    one = np.zeros((1, 4, 4, 3), np.float32)
    one[0, 0, 1, 2] = 5
    other = one[:, ::-1]
    assert similarity(one, other, "gap")[0] == pytest.approx(1) and similarity(one, other)[0] == 0


@pytest.mark.parametrize("stop, moved", [("none", True), ("anchor", False)])
def test_stop_anchor_keeps_the_gradient_from_the_normal_image_alone(stop, moved):
    parts = [features(seed) for seed in (0, 1, 2)]

    def loss(parts):
        return jnp.sum(contrastive(*parts, margin=1.0, stop=stop))

    gradients = jax.grad(loss)(parts)
    for number, expected in ((0, moved), (1, True), (2, True)):
        assert all(np.any(leaf != 0) == expected for leaf in gradients[number].values())


def test_a_step_against_the_gradient_draws_the_copy_near_and_drives_the_anomaly_away():
    parts = [features(seed) for seed in (0, 1, 2)]
    gradients = jax.grad(lambda parts: jnp.sum(contrastive(*parts, margin=1.0)))(parts)
    after = jax.tree.map(lambda value, slope: value - 0.5 * slope, parts, gradients)
    for layer in parts[0]:
        nearer = similarities(after[0], after[1])[layer] - similarities(parts[0], parts[1])[layer]
        farther = similarities(parts[0], parts[2])[layer] - similarities(after[0], after[2])[layer]
        assert np.all(nearer + farther > 0)


def test_eq_7_weighs_its_two_terms():
    np.testing.assert_allclose(
        stage_one(jnp.array([2.0, 0.0]), jnp.array([0.5, 1.0]), 0.25, 3.0), [2.0, 3.0], rtol=1e-6
    )


def test_mistakes_name_what_is_allowed():
    with pytest.raises(ValueError, match="flat, gap, position"):
        similarity(jnp.ones((1, 2, 2, 3)), jnp.ones((1, 2, 2, 3)), "pixel")
    with pytest.raises(ValueError, match="differ in shape"):
        similarity(jnp.ones((1, 2, 2, 3)), jnp.ones((1, 2, 1, 3)))
    with pytest.raises(ValueError, match="layer1"):
        similarities(features(0), {"layer1": features(1)["layer1"]})
    with pytest.raises(ValueError, match="none, anchor"):
        similarities(features(0), features(1), stop="all")
