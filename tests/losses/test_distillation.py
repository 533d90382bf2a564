import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.losses.distillation import cosine, distance_map, distillation, layer_distance


def features(seed, shapes=((2, 5, 3, 4), (2, 3, 2, 7)), scale=1.0):
    rng = np.random.default_rng(seed)
    return {f"layer{i}": np.float32(scale * rng.normal(size=shape) + 0.3) for i, shape in enumerate(shapes, 1)}


def slow_cosine(a, b):
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_distance_map_is_one_minus_the_channel_cosine_at_each_position():
    teacher, student = features(0)["layer1"], features(1)["layer1"]
    found = distance_map(teacher, student)
    for b, i, j in np.ndindex(2, 5, 3):
        assert found[b, i, j] == pytest.approx(1 - slow_cosine(teacher[b, i, j], student[b, i, j]), abs=1e-6)


def test_flat_takes_the_cosine_of_the_whole_map_and_position_the_mean_of_the_cosines():
    teacher, student = features(0)["layer1"], features(1)["layer1"]
    teacher[:, 0] *= 30  # strong positions weigh more in one, not in the other
    flat, position = (layer_distance(teacher, student, reduce) for reduce in ("flat", "position"))
    for b in range(2):
        assert flat[b] == pytest.approx(1 - slow_cosine(teacher[b], student[b]), abs=1e-6)
        each = [1 - slow_cosine(teacher[b, i, j], student[b, i, j]) for i, j in np.ndindex(5, 3)]
        assert position[b] == pytest.approx(np.mean(each), abs=1e-6)
    assert np.abs(flat - position).min() > 0.01


def test_layers_are_summed_or_averaged_per_image():
    teacher, student = features(0), features(1)
    each = [layer_distance(teacher[name], student[name]) for name in teacher]
    np.testing.assert_allclose(distillation(teacher, student), each[0] + each[1], rtol=1e-6)
    np.testing.assert_allclose(distillation(teacher, student, layers="mean"), (each[0] + each[1]) / 2, rtol=1e-6)


@pytest.mark.parametrize("reduce", ["flat", "position"])
def test_loss_is_zero_when_the_student_equals_the_teacher_whatever_its_scale(reduce):
    teacher = features(0)
    student = {name: 17 * value for name, value in teacher.items()}
    np.testing.assert_allclose(distillation(teacher, student, reduce), np.zeros(2), atol=1e-6)
    assert distillation(teacher, features(1), reduce).min() > 0.1


def test_cosine_with_a_zero_vector_is_zero_and_its_gradient_finite():
    a = jnp.array([[0.0, 0.0], [1e-30, 0.0], [3.0, 4.0]])
    b = jnp.array([[0.0, 0.0], [1.0, 2.0], [0.0, 2.0]])
    np.testing.assert_allclose(cosine(a, b), [0.0, 0.0, 0.8], atol=1e-6)
    for gradient in jax.grad(lambda a, b: cosine(a, b).sum(), argnums=(0, 1))(a, b):
        assert np.isfinite(gradient).all()


def test_cosine_equals_torch_and_so_does_its_gradient():
    torch = pytest.importorskip("torch")
    a, b = features(0)["layer1"], features(1)["layer1"]
    a[0, 0, 0] = 0
    ta, tb = (torch.tensor(value, requires_grad=True) for value in (a, b))
    value = torch.nn.functional.cosine_similarity(ta, tb, dim=-1)
    value.square().sum().backward()
    np.testing.assert_allclose(cosine(a, b), value.detach(), atol=1e-6)
    gradients = jax.grad(lambda a, b: jnp.square(cosine(a, b)).sum(), argnums=(0, 1))(a, b)
    for found, expected in zip(gradients, (ta.grad, tb.grad), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_half_precision_features_are_compared_in_float32():
    teacher = {name: jnp.asarray(value, jnp.bfloat16) for name, value in features(0).items()}
    student = {name: jnp.asarray(value, jnp.bfloat16) for name, value in features(1).items()}
    found = distillation(teacher, student)
    wide = [{k: v.astype(jnp.float32) for k, v in tree.items()} for tree in (teacher, student)]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, distillation(*wide), rtol=1e-6)


def test_long_vectors_keep_their_precision():
    rng = np.random.default_rng(0)
    teacher = rng.random((1, 64, 64, 256), np.float32)
    student = teacher + np.float32(0.01) * rng.random(teacher.shape, np.float32)
    expected = 1 - slow_cosine(teacher, student)
    assert expected < 1e-4
    assert layer_distance(teacher, student)[0] == pytest.approx(expected, abs=2e-6)


def test_mistakes_are_named():
    teacher = features(0)
    with pytest.raises(ValueError, match="layer2"):
        distillation(teacher, {"layer1": teacher["layer1"]})
    with pytest.raises(ValueError, match="differ in shape"):
        layer_distance(teacher["layer1"], teacher["layer2"])
    with pytest.raises(ValueError, match="flat, position"):
        distillation(teacher, teacher, "pixel")
    with pytest.raises(ValueError, match="'sum' or 'mean'"):
        distillation(teacher, teacher, layers="max")
