import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from networks import jit

from jaxad.losses import selfsup


def vectors(seed, rows=5, dim=4):
    return np.float32(np.random.default_rng(seed).normal(size=(rows, dim)) + 0.3)


def pairs(count, **shape):
    return [(vectors(2 * i, **shape), vectors(2 * i + 1, **shape)) for i in range(count)]


def slow_cosine(a, b):
    a, b = np.float64(a), np.float64(b)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def slow_entropy(right, wrong):
    """-log of the share that `right` has among the exponentials."""
    return -np.log(np.exp(right) / (np.exp(right) + sum(np.exp(logit) for logit in wrong)))


def slow_nt_xent(first, second, temperature):
    views = list(first) + list(second)
    count, total = len(first), np.zeros(len(first))
    for row, view in enumerate(views):
        partner = (row + count) % (2 * count)
        others = [other for other in range(2 * count) if other not in (row, partner)]
        logits = {other: slow_cosine(view, views[other]) / temperature for other in (partner, *others)}
        total[row % count] += slow_entropy(logits[partner], [logits[other] for other in others])
    return total


def slow_info_nce(first, second, temperature):
    found = []
    for i, view in enumerate(first):
        wrong = [slow_cosine(view, other) / temperature for j, other in enumerate(second) if j != i]
        found.append(slow_entropy(slow_cosine(view, second[i]) / temperature, wrong))
    return found


def slow_moco(query, key, queue, temperature):
    found = []
    for q, k in zip(query, key, strict=True):
        wrong = [slow_cosine(q, row) / temperature for row in queue]
        found.append(slow_entropy(slow_cosine(q, k) / temperature, wrong))
    return found


def rows_of_one(seed, rows, dim=4):
    return np.asarray(selfsup.unit(vectors(seed, rows, dim)))


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_nt_xent_equals_slow_loops(temperature):
    first, second = vectors(0), vectors(1)
    found = selfsup.nt_xent(first, second, temperature)
    np.testing.assert_allclose(found, slow_nt_xent(first, second, temperature), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_info_nce_equals_slow_loops(temperature):
    first, second = vectors(0), vectors(1)
    found = selfsup.info_nce(first, second, temperature)
    np.testing.assert_allclose(found, slow_info_nce(first, second, temperature), rtol=1e-5)


def test_info_nce_has_one_direction_and_nt_xent_has_both():
    first, second = vectors(0), vectors(1)
    assert np.abs(selfsup.info_nce(first, second, 0.5) - selfsup.info_nce(second, first, 0.5)).max() > 1e-2
    both = selfsup.nt_xent(first, second, 0.5), selfsup.nt_xent(second, first, 0.5)
    np.testing.assert_allclose(*both, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_moco_equals_slow_loops(temperature):
    query, key, queue = vectors(0), vectors(1), rows_of_one(2, rows=7)
    found = selfsup.moco(query, key, queue, temperature)
    np.testing.assert_allclose(found, slow_moco(query, key, queue, temperature), rtol=1e-5)


def test_an_image_alone_has_no_negatives_and_no_loss():
    first, second = vectors(0, rows=1), vectors(1, rows=1)
    assert selfsup.info_nce(first, second, 0.1) == 0 and selfsup.nt_xent(first, second, 0.1) == 0
    assert selfsup.moco(first, second, np.zeros((0, 4), np.float32), 0.1) == 0


def test_the_negatives_of_moco_are_the_queue_and_not_the_batch():
    query, key, queue = vectors(0), vectors(1), rows_of_one(2, rows=7)
    alone = [selfsup.moco(query[i : i + 1], key[i : i + 1], queue, 0.2)[0] for i in range(5)]
    np.testing.assert_allclose(selfsup.moco(query, key, queue, 0.2), alone, rtol=1e-6)
    changed = selfsup.moco(query, key, np.concatenate([queue, queue[:1]]), 0.2)
    assert np.all(changed > selfsup.moco(query, key, queue, 0.2))


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: selfsup.nt_xent(a, b, 0.3),
        lambda a, b: selfsup.info_nce(a, b, 0.3),
        lambda a, b: selfsup.moco(a, b, rows_of_one(2, 7), 0.3),
        lambda a, b: selfsup.spot_the_difference(a, b, vectors(3)),
        lambda a, b: selfsup.simsiam((a, b), (vectors(3), vectors(4))),
    ],
    ids=["nt_xent", "info_nce", "moco", "spot_the_difference", "simsiam"],
)
def test_lengths_do_not_count(loss):
    a, b = vectors(0), vectors(1)
    lengths = np.float32([[0.1], [2], [7], [1], [30]])
    np.testing.assert_allclose(loss(a * lengths, b * lengths[::-1]), loss(a, b), rtol=1e-5, atol=1e-6)


def test_the_poster_s_loss_by_hand():
    x, y = np.float32([2, 0, 0]), np.float32([0, 0.5, 0])
    negative, positive = np.stack([y, -x, x, x, x + 4 * y]), np.stack([x, x, -x, x, y])
    found = selfsup.spot_the_difference(np.stack([x] * 5), negative, positive)
    np.testing.assert_allclose(found, [-1, -2, 2, 0, np.sqrt(0.5)], atol=1e-6)


def test_a_constant_projection_gains_nothing():
    one = np.broadcast_to(vectors(0, rows=1), (5, 4))
    np.testing.assert_allclose(selfsup.spot_the_difference(one, one, one), 0, atol=1e-6)
    np.testing.assert_allclose(selfsup.predicted_difference((one, one), (one, one), (one, one)), 0, atol=1e-6)


def test_the_differences_stay_between_minus_2_and_2_and_reach_both_ends():
    anchor = vectors(0, rows=400, dim=2)
    others = vectors(1, rows=400, dim=2), vectors(2, rows=400, dim=2)
    p = [(array, array) for array in (anchor, *others)]
    for found in (selfsup.spot_the_difference(anchor, *others), selfsup.predicted_difference(*p)):
        assert np.abs(found).max() <= 2 + 1e-6 and found.min() < -1.9 and found.max() > 1.9


def test_the_predicted_difference_by_hand():
    (pb, zb), (pn, zn), (pp, zp) = pairs(3)
    found = selfsup.predicted_difference((pb, zb), (pn, zn), (pp, zp))
    for i in range(5):
        negative = slow_cosine(pb[i], zn[i]) + slow_cosine(pn[i], zb[i])
        positive = slow_cosine(pb[i], zp[i]) + slow_cosine(pp[i], zb[i])
        assert found[i] == pytest.approx((negative - positive) / 2, abs=1e-6)


def test_simsiam_by_hand():
    (p1, z1), (p2, z2) = pairs(2)
    expected = [-(slow_cosine(p1[i], z2[i]) + slow_cosine(p2[i], z1[i])) / 2 for i in range(5)]
    np.testing.assert_allclose(selfsup.simsiam((p1, z1), (p2, z2)), expected, atol=1e-6)


@pytest.mark.parametrize(("loss", "count"), [(selfsup.simsiam, 2), (selfsup.predicted_difference, 3)])
def test_gradients_reach_predictions_and_no_projection(loss, count):
    gradients = jax.grad(lambda pairs: jnp.sum(loss(*pairs)))(pairs(count))
    for p, z in gradients:
        assert np.all(np.any(p != 0, axis=1)) and np.all(z == 0)


def test_gradients_of_the_poster_s_loss_reach_all_three_views():
    gradients = jax.grad(lambda views: jnp.sum(selfsup.spot_the_difference(*views)))([vectors(i) for i in range(3)])
    assert all(np.all(np.any(gradient != 0, axis=1)) for gradient in gradients)


def test_a_step_against_the_poster_s_gradient_parts_the_local_change_from_the_image():
    anchor, negative, positive = (vectors(i) for i in range(3))
    slopes = jax.grad(lambda views: jnp.sum(selfsup.spot_the_difference(*views)))((anchor, negative, positive))
    after = [view - 0.1 * slope for view, slope in zip((anchor, negative, positive), slopes, strict=True)]
    for i in range(5):
        assert slow_cosine(after[0][i], after[1][i]) < slow_cosine(anchor[i], negative[i])
        assert slow_cosine(after[0][i], after[2][i]) > slow_cosine(anchor[i], positive[i])


def test_gradients_of_moco_reach_the_query_alone():
    parts = vectors(0), vectors(1), rows_of_one(2, rows=7)
    query, key, queue = jax.grad(lambda parts: jnp.sum(selfsup.moco(*parts, 0.2)))(parts)
    assert np.all(np.any(query != 0, axis=1)) and np.all(key == 0) and np.all(queue == 0)


@pytest.mark.parametrize("loss", [selfsup.nt_xent, selfsup.info_nce])
def test_the_gradient_of_one_image_reaches_the_views_of_all(loss):
    views = vectors(0), vectors(1)
    first, second = jax.grad(lambda views: loss(*views, 0.5)[2])(views)
    assert np.any(first[2] != 0) and np.all(np.any(second != 0, axis=1))
    if loss is selfsup.nt_xent:  # whose negatives are of the same view, too
        assert np.all(np.any(first != 0, axis=1))


def test_gradients_are_those_of_finite_differences():
    first, second = vectors(0), vectors(1)

    def slow(point):
        return slow_nt_xent(point, second, 0.5).sum()

    found = jax.grad(lambda point: jnp.sum(selfsup.nt_xent(point, second, 0.5)))(first)
    for place in [(0, 0), (3, 2), (4, 1)]:
        moved = np.zeros_like(first, dtype=np.float64)
        moved[place] = 1e-4
        assert found[place] == pytest.approx((slow(first + moved) - slow(first - moved)) / 2e-4, rel=1e-3)


def test_zero_vectors_have_finite_losses_and_gradients():
    zero, other = np.zeros((3, 4), np.float32), vectors(1, rows=3)
    queue = rows_of_one(2, rows=6)
    losses = [
        lambda z: selfsup.spot_the_difference(z, other, z),
        lambda z: selfsup.predicted_difference((z, other), (z, z), (other, z)),
        lambda z: selfsup.simsiam((z, z), (other, z)),
        lambda z: selfsup.nt_xent(z, other, 0.1),
        lambda z: selfsup.info_nce(other, z, 0.1),
        lambda z: selfsup.moco(z, other, queue, 0.1),
        selfsup.unit,
    ]

    @jit
    def all_of_them(zero):
        return [jax.value_and_grad(lambda z, loss=loss: jnp.sum(loss(z)))(zero) for loss in losses]

    for value, gradient in all_of_them(zero):
        assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_half_precision_is_computed_in_float32():
    views = [jnp.asarray(vectors(i), jnp.bfloat16) for i in range(3)]
    wide = [view.astype(jnp.float32) for view in views]
    queue, labels = jnp.asarray(rows_of_one(3, rows=6)), jnp.array([0, 3, 1, 2, 2])
    for loss in (
        selfsup.spot_the_difference,
        lambda a, b, c: selfsup.predicted_difference((a, b), (b, c), (c, a)),
        lambda a, b, c: selfsup.simsiam((a, b), (b, c)),
        lambda a, b, c: selfsup.nt_xent(a, b, 0.1),
        lambda a, b, c: selfsup.info_nce(a, c, 0.1),
        lambda a, b, c: selfsup.moco(a, b, queue, 0.1),
        lambda a, b, c: selfsup.cross_entropy(a, labels),
    ):
        found = loss(*views)
        assert found.dtype == jnp.float32 and found.shape == (5,)
        np.testing.assert_array_equal(found, loss(*wide))


def test_logits_of_hundreds_do_not_overflow():
    one, far = np.float32([[1, 0]]), np.float32([[-1, 0]])
    assert selfsup.moco(one, far, one, 0.001)[0] == pytest.approx(2000)
    two = np.concatenate([one, far])
    np.testing.assert_allclose(selfsup.info_nce(two, far * np.float32([[1], [-1]]), 0.001), 2000, rtol=1e-6)


def test_cross_entropy_equals_slow_loops():
    logits, labels = vectors(0, rows=3, dim=5) * 3, np.array([4, 0, 2])
    expected = [slow_entropy(row[label], np.delete(row, label)) for row, label in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(selfsup.cross_entropy(logits, jnp.asarray(labels, jnp.int32)), expected, rtol=1e-5)


def test_the_queue_wraps_around_at_its_end_and_holds_the_newest_keys():
    queue, pointer = jnp.asarray(vectors(9, rows=6)), jnp.int32(0)
    expected = np.array(queue)
    step = jax.jit(selfsup.enqueue)
    for number, places in enumerate([(0, 1), (2, 3), (4, 5), (0, 1)]):
        keys = rows_of_one(number, rows=2)
        queue, pointer = step(queue, pointer, keys)
        for place, key in zip(places, keys, strict=True):
            expected[place] = key
        np.testing.assert_allclose(queue, expected, rtol=1e-6)
        assert pointer == [2, 4, 0, 2][number] and pointer.dtype == jnp.int32


def test_the_queue_takes_the_direction_of_a_key_and_a_whole_queue_of_them():
    keys = jnp.asarray(vectors(0, rows=6) * 20, jnp.bfloat16)
    queue, pointer = selfsup.enqueue(jnp.zeros((6, 4)), jnp.int32(0), keys)
    assert pointer == 0 and queue.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(queue, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(queue, selfsup.unit(keys.astype(jnp.float32)), rtol=1e-6)


def test_no_gradient_enters_the_queue():
    def loss(keys):
        return jnp.sum(selfsup.enqueue(jnp.zeros((6, 4)), jnp.int32(2), keys)[0][:, 0])

    keys = vectors(0, rows=2)
    assert loss(keys) != 0 and np.all(jax.grad(loss)(keys) == 0)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="4 keys a batch do not divide a queue of 6"):
        jax.eval_shape(selfsup.enqueue, jnp.zeros((6, 4)), jnp.int32(0), jnp.zeros((4, 4)))
    a, b = vectors(0), vectors(1, rows=1)
    calls = {
        "spot_the_difference": lambda: selfsup.spot_the_difference(a, a, b),
        "predicted_difference": lambda: selfsup.predicted_difference((a, a), (a, b), (a, a)),
        "simsiam": lambda: selfsup.simsiam((a, a), (a, b)),
        "nt_xent": lambda: selfsup.nt_xent(a, b, 0.1),
        "info_nce": lambda: selfsup.info_nce(a, b, 0.1),
        "moco": lambda: selfsup.moco(a, b, a, 0.1),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name}: shapes differ: .*1, 4"):
            call()


@pytest.mark.parametrize("loss", ["nt_xent", "info_nce", "moco"])
def test_one_device_and_eight_agree_on_loss_and_gradient(loss):
    queue = rows_of_one(2, rows=32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    @jax.jit
    def step(first, second, queue):
        def mean(first, second):
            if loss == "moco":
                return jnp.mean(selfsup.moco(first, second, queue, 0.2))
            return jnp.mean(getattr(selfsup, loss)(first, second, 0.2))

        found = jax.value_and_grad(mean, argnums=(0, 1))(first, second)
        return found, selfsup.enqueue(queue, jnp.int32(16), second)[0]

    views = vectors(0, rows=16), vectors(1, rows=16)
    want = step(*views, queue)
    got = step(*jax.device_put(views, rows), jax.device_put(queue, whole))
    for one, eight in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-7)
    if loss == "nt_xent":
        assert want[0][0] == pytest.approx(np.mean(slow_nt_xent(*views, 0.2)), rel=1e-5)
