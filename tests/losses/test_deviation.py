import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.losses.deviation import deviation, layer_score, standardise


def pair(seed=0, shape=(3, 5, 4, 6)):
    rng = np.random.default_rng(seed)
    return tuple(np.maximum(rng.normal(size=shape), 0).astype(np.float32) + np.float32(0.01) for _ in range(2))


def slow_distances(teacher, student):
    """f64[h * w]"""
    found = []
    for i, j in np.ndindex(*teacher.shape[:2]):
        a, b = teacher[i, j].astype(np.float64), student[i, j].astype(np.float64)
        found.append(1 - a @ b / np.sqrt((a @ a) * (b @ b)))
    return np.array(found)


def test_topk_is_the_mean_of_the_largest_distances():
    teacher, student = pair()
    for k in (0.05, 0.3, 1.0):
        count = math.ceil(k * 20)
        expected = [np.sort(slow_distances(teacher[b], student[b]))[-count:].mean() for b in range(3)]
        np.testing.assert_allclose(layer_score(teacher, student, "topk", k), expected, atol=1e-6)


def test_mean_and_literal_are_what_they_say():
    teacher, student = pair()
    expected = [slow_distances(teacher[b], student[b]).mean() for b in range(3)]
    np.testing.assert_allclose(layer_score(teacher, student, "mean"), expected, atol=1e-6)
    np.testing.assert_allclose(layer_score(teacher, student, "literal"), student.mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(
        layer_score(0 * teacher, student, "literal"), layer_score(teacher, student, "literal")
    )


def test_the_paper_constants_give_205_52_and_13_positions():
    assert [math.ceil(0.05 * side * side) for side in (64, 32, 16)] == [205, 52, 13]


def test_a_mask_keeps_the_worst_positions_outside_from_counting():
    teacher, student = pair()
    mask = np.zeros((3, 5, 4), bool)
    mask[0, 1:3, :2], mask[1, 4, 3] = True, True  # four positions, one, none
    found = layer_score(teacher, student, "topk", 0.25, mask)  # five positions, were there so many
    for b in range(2):
        inside = slow_distances(teacher[b], student[b])[mask[b].ravel()]
        assert found[b] == pytest.approx(inside.mean(), abs=1e-6)
    assert found[2] == 0
    gradient = jax.grad(lambda s: jnp.sum(layer_score(teacher, s, "topk", 0.25, mask)))(student)
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[~mask])


def test_the_score_of_a_perfect_student_is_zero_and_of_an_orthogonal_one_is_one():
    teacher = np.zeros((1, 2, 2, 4), np.float32)
    teacher[..., 0], student = 2.0, np.zeros((1, 2, 2, 4), np.float32)
    student[..., 1] = 3.0
    assert layer_score(teacher, 5 * teacher)[0] == pytest.approx(0, abs=1e-6)
    assert layer_score(teacher, student)[0] == pytest.approx(1, abs=1e-6)


def test_eq_8_equals_slow_loops():
    rng = np.random.default_rng(3)
    scores = {f"layer{i}": np.float32(rng.normal(0.3, 0.4, 5)) for i in (1, 2, 3)}  # negative ones too: z-scores
    label = np.array([False, True, False, True, True])
    expected = [np.mean([max(0.0, 0.5 - s[b]) if label[b] else abs(s[b]) for s in scores.values()]) for b in range(5)]
    np.testing.assert_allclose(deviation(scores, label, 0.5), expected, atol=1e-6)


def test_eq_8_leaves_an_anomaly_above_p_alone_and_never_a_normal_image():
    def slope(score, label):
        return jax.grad(lambda s: deviation({"layer1": s}, jnp.array([label]), 0.5)[0])(jnp.array([score]))[0]

    assert slope(0.7, True) == 0 and slope(0.3, True) == -1 and slope(0.3, False) == 1


def test_standardised_scores_have_the_normals_as_their_unit():
    normal = np.float32([0.1, 0.2, 0.3, 0.6])
    moments = {"layer1": jnp.mean(normal)}, {"layer1": jnp.var(normal)}
    found = standardise({"layer1": jnp.asarray(normal)}, *moments)["layer1"]
    assert np.mean(found) == pytest.approx(0, abs=1e-5) and np.std(found) == pytest.approx(1, abs=1e-5)

    def through(mean):
        return standardise({"layer1": jnp.asarray(normal)}, {"layer1": mean}, moments[1])["layer1"].sum()

    assert jax.grad(through)(moments[0]["layer1"]) == 0


def test_mistakes_name_what_is_allowed():
    teacher, student = pair()
    with pytest.raises(ValueError, match="topk, literal, mean, zscore"):
        layer_score(teacher, student, "max")
    with pytest.raises(ValueError, match="in .0, 1."):
        layer_score(teacher, student, "topk", 0.0)
