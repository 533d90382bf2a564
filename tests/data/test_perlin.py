import numpy as np
import pytest
import tensorflow as tf

from jaxad.data.synthesis import perlin as pn


def slow_noise(angles, per_pixel, side):
    """Perlin noise, pixel by pixel and corner by corner."""

    def fade(t):
        return 6 * t**5 - 15 * t**4 + 10 * t**3

    out = np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            y, x = i * per_pixel[0], j * per_pixel[1]
            top, left = int(y), int(x)
            said = {}
            for down in (0, 1):
                for right in (0, 1):
                    angle = angles[top + down, left + right]
                    said[down, right] = np.cos(angle) * (x - left - right) + np.sin(angle) * (y - top - down)
            above, below = (said[k, 0] + fade(x - left) * (said[k, 1] - said[k, 0]) for k in (0, 1))
            out[i, j] = above + fade(y - top) * (below - above)
    return np.sqrt(2) * out


def draws(n, side):
    @tf.function(autograph=False)
    def every():
        made = lambda k: pn.perlin(tf.stack([k, 9]), side)  # noqa: E731
        return tf.map_fn(made, tf.range(n), fn_output_signature=tf.float32, parallel_iterations=1)

    return every().numpy()


@pytest.fixture(scope="module")
def drawn():
    return draws(300, 64)


@pytest.mark.parametrize("cells, side", [((1, 1), 16), ((8, 2), 24), ((3, 5), 20)])
def test_noise_equals_the_loops_of_perlin(cells, side):
    per_pixel = np.float32(cells) / side
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, (11, 11)).astype(np.float32)
    ours = pn.noise(tf.constant(angles), tf.constant(per_pixel), side).numpy()
    np.testing.assert_allclose(ours, slow_noise(angles.astype(float), per_pixel.astype(float), side), atol=2e-6)
    points = ours[:: side // cells[0], :: side // cells[1]] if side % cells[0] == side % cells[1] == 0 else 0.0
    assert np.abs(points).max() < 1e-6  # at the points of the lattice


def test_noise_is_within_one_and_as_often_negative_as_positive(drawn):
    assert np.abs(drawn).max() <= 1.0 + 1e-6 and np.abs(drawn).max() > 0.8
    assert abs(drawn.mean()) < 0.03 and np.mean(drawn > 0) == pytest.approx(0.5, abs=0.04)
    # 0.5 is what makes defects: no image is all defect, and few have none.
    share = (drawn > 0.5).mean(axis=(1, 2))
    assert 0.02 < share.mean() < 0.2 and np.mean(share == 0) < 0.2 and share.max() < 0.8


def test_lattices_have_one_to_thirty_two_cells_along_either_axis(monkeypatch):
    seen, inner = [], pn.noise

    def noise(angles, per_pixel, side):
        seen.append(per_pixel)
        assert angles.shape[0] - 1 >= 2**pn.FINEST * (side - 1) / 64  # as many points as the finest needs
        return inner(angles, per_pixel, side)

    monkeypatch.setattr(pn, "noise", noise)
    for k in range(150):
        pn.perlin(tf.constant([k, 9]), 64)
    cells = np.round(np.stack(seen) * 64).astype(int)
    for axis in (0, 1):
        found, counts = np.unique(cells[:, axis], return_counts=True)
        assert found.tolist() == [1, 2, 4, 8, 16, 32] and counts.min() > 10 and counts.max() < 42
    assert abs(np.corrcoef(np.log2(cells.T))[0, 1]) < 0.2


def test_noise_is_turned_by_up_to_ninety_degrees_and_fills_the_square(drawn):
    directions = []
    for image in drawn:
        dy, dx = np.gradient(image)
        spread, axes = np.linalg.eigh(np.cov(np.stack([dy.ravel(), dx.ravel()])))
        if spread[1] > 4 * spread[0]:  # longer than wide
            directions.append(np.degrees(np.arctan2(axes[0, 1], axes[1, 1])) % 180)
    counts, _ = np.histogram(directions, np.arange(0, 181, 30))
    assert len(directions) > 60 and counts.min() > len(directions) / 6 / 3
    for corner in (drawn[:, :4, :4], drawn[:, :4, -4:], drawn[:, -4:, :4], drawn[:, -4:, -4:]):
        assert corner.std() > 0.7 * drawn.std()  # nothing was repeated or left empty there


def test_a_seed_gives_one_noise_and_the_graph_has_no_random_state(drawn):
    assert np.array_equal(drawn[:2], draws(2, 64)) and not np.array_equal(drawn[0], drawn[1])
    traced = tf.function(lambda seed: pn.perlin(seed, 48), autograph=False)
    graph = traced.get_concrete_function(tf.TensorSpec((2,), tf.int32)).graph
    assert graph.structured_outputs.shape == (48, 48)
    kinds = {node.op for node in graph.as_graph_def().node}
    kinds |= {node.op for f in graph.as_graph_def().library.function for node in f.node_def}
    assert not [kind for kind in kinds if "PyFunc" in kind or ("Random" in kind and "Stateless" not in kind)]
