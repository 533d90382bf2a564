"""Windows, masks and blocks, against loops over tokens in the grid's own coordinates: nothing is padded or rolled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from networks import drawn, jit
from scipy import special

from jaxad.models import layers, swin
from jaxad.models.swin import PatchExpanding, PatchMerging, SwinBlock, WindowAttention

# (height, width, window, shift): whole windows · padded, not square · a side of one window · a last row and column
# alone, so that after the shift some queries have padding as their only keys · wider windows · padded and not shifted
GRIDS = [(8, 4, 4, 2), (6, 11, 4, 2), (3, 9, 4, 2), (9, 5, 4, 2), (7, 10, 5, 2), (6, 7, 4, 0)]


def noise(*shape, seed=0):
    return np.float32(np.random.default_rng(seed).normal(size=shape))


def cell(place, side, m, shift):
    """The number of the window of a place on an axis; only a side that needs several windows is shifted."""
    return (place + m - shift) // m if side > m else place // m


def together(height, width, m, shift):
    """bool[h w, h w]: which tokens share a window."""
    cells = [(cell(r, height, m, shift), cell(c, width, m, shift)) for r in range(height) for c in range(width)]
    return np.array([[one == other for other in cells] for one in cells])


def test_windows_are_taken_row_by_row_and_put_back():
    x = noise(2, 6, 9, 5)
    found = np.asarray(swin.windows(x, 3))
    assert found.shape == (2, 6, 9, 5)
    for number, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        part = x[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        np.testing.assert_array_equal(found[:, number], part.reshape(2, 9, 5))
    np.testing.assert_array_equal(swin.unwindows(found, 3, (6, 9)), x)


@pytest.mark.parametrize("m", [2, 3, 7])
def test_the_relative_index_tells_each_offset_apart(m):
    index = swin.relative_index(m)
    span = 2 * m - 1
    for i, j in np.ndindex(index.shape):
        rows, columns = i // m - j // m, i % m - j % m
        assert index[i, j] == (rows + m - 1) * span + columns + m - 1
    assert set(index.ravel()) == set(range(span**2))
    np.testing.assert_array_equal(index + index.T, np.full(index.shape, span**2 - 1))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_mask_allows_a_real_key_of_the_same_window_and_no_other(grid):
    height, width, m, shift = grid
    padded = [-(-side // m) * m for side in (height, width)]
    by = [shift if side > m else 0 for side in (height, width)]
    mask = swin.window_mask(*grid)
    mask = np.zeros((padded[0] * padded[1] // m**2, m * m, m * m)) if mask is None else mask
    for number, i, j in np.ndindex(mask.shape):
        corner = np.unravel_index(number, [side // m for side in padded])
        (qr, qc), (kr, kc) = (
            [(m * corner[a] + np.unravel_index(t, (m, m))[a] + by[a]) % padded[a] for a in (0, 1)] for t in (i, j)
        )
        allowed = kr < height and kc < width
        allowed &= cell(qr, height, m, shift) == cell(kr, height, m, shift)
        allowed &= cell(qc, width, m, shift) == cell(kc, width, m, shift)
        assert mask[number, i, j] == (0 if allowed else swin.FORBIDDEN), (number, i, j)


def test_there_is_no_mask_where_nothing_is_forbidden():
    assert swin.window_mask(8, 12, 4, 0) is None and swin.window_mask(4, 4, 4, 2) is None
    assert not swin.window_mask(8, 8, 4, 2).flags.writeable


def slow_norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * params["scale"] + params["bias"]


def slow_linear(x, params):
    return x @ params["kernel"] + params["bias"]


def slow_block(params, x, heads, m, shift):
    height, width, channels = x.shape
    depth, span, near = channels // heads, 2 * m - 1, together(height, width, m, shift)
    normed, attention = slow_norm(x, params["norm1"]).reshape(-1, channels), params["attention"]
    q, k, v = (slow_linear(normed, attention[name]) for name in ("query", "key", "value"))
    attended = np.zeros_like(normed)
    for i in range(height * width):
        keys = np.flatnonzero(near[i])
        offsets = (i // width - keys // width + m - 1) * span + i % width - keys % width + m - 1
        for h in range(heads):
            own = slice(h * depth, (h + 1) * depth)
            logits = k[keys, own] @ q[i, own] / np.sqrt(depth) + attention["relative_bias"][offsets, h]
            weights = np.exp(logits - logits.max())
            attended[i, own] = weights @ v[keys, own] / weights.sum()
    x = x + slow_linear(attended, attention["out"]).reshape(x.shape)
    y = slow_linear(slow_norm(x, params["norm2"]), params["mlp1"])
    return x + slow_linear(y * special.ndtr(y), params["mlp2"])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_block_equals_loops_over_tokens(grid):
    height, width, m, shift = grid
    module, x = SwinBlock(2, m, shift), noise(2, height, width, 6)
    variables = drawn(module, x)
    params = jax.tree.map(np.float64, variables["params"])
    found = jit(module.apply)(variables, x)
    for sample, expected in zip(found, (slow_block(params, np.float64(one), 2, m, shift) for one in x), strict=True):
        np.testing.assert_allclose(sample, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("grid", [(6, 11, 4, 2), (9, 5, 4, 2)], ids=str)
def test_a_token_reaches_its_own_window_and_not_farther(grid):
    # A mask that is built for a grid which is rolled first and padded then joins the two ends of an axis.
    height, width, m, shift = grid
    count = height * width
    x = np.repeat(noise(1, height, width, 6), count + 1, axis=0)
    x.reshape(count + 1, count, 6)[np.arange(count), np.arange(count)] += noise(count, 6, seed=1)
    module = SwinBlock(2, m, shift)
    found = np.asarray(jit(module.apply)(drawn(module, x), x)).reshape(count + 1, count, 6)
    touched = np.abs(found[:-1] - found[-1]).max(-1) > 1e-5
    np.testing.assert_array_equal(touched, together(*grid))
    rows, columns = (np.abs(np.subtract.outer(p, p)) for p in np.divmod(np.arange(count), width))
    assert max(rows[touched].max(), columns[touched].max()) == m - 1


def test_what_padding_holds_is_of_no_consequence():
    height, width, m, shift = grid = (6, 11, 4, 2)
    module = WindowAttention(2, m)
    x = np.pad(noise(1, height, width, 6), ((0, 0), (0, 2), (0, 1), (0, 0)))
    real = np.pad(np.ones((1, height, width, 1), bool), ((0, 0), (0, 2), (0, 1), (0, 0)))
    x, real = (np.asarray(swin.windows(jnp.roll(a, (-shift, -shift), (1, 2)), m)) for a in (x, real))
    other = np.where(real, x, 50 * noise(*x.shape, seed=1))
    variables, apply = drawn(module, x), jit(lambda v, x: module.apply(v, x, swin.window_mask(*grid)))
    np.testing.assert_allclose(apply(variables, x)[real[..., 0]], apply(variables, other)[real[..., 0]], atol=1e-6)
    free = jit(module.apply)
    assert np.abs(free(variables, x) - free(variables, other))[real[..., 0]].max() > 0.1


@pytest.mark.parametrize("size", [1, 30])
def test_gradients_are_finite_where_queries_have_only_padding(size):
    grid = (9, 5, 4, 2)
    assert (swin.window_mask(*grid) < 0).all(-1).any()
    module, x = SwinBlock(1, *grid[2:]), noise(1, *grid[:2], 4)
    variables = jax.tree.map(lambda leaf: size * leaf, drawn(module, x))
    gradients = jit(jax.grad(lambda v, x: jnp.sum(jnp.square(module.apply(v, x))), (0, 1)))(variables, x)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients[1]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients[0]))


@pytest.mark.parametrize("count", [1, 3])
def test_attention_and_its_gradients_equal_the_plain_formula(count):
    q, k, v = (noise(2, 3, 2, 5, 4, seed=i) for i in range(3))
    bias, weights = noise(count, 2, 5, 5, seed=3), noise(2, 3, 2, 5, 4, seed=4)

    def plain(q, k, v, bias):
        logits = jnp.einsum("bnhid,bnhjd->bnhij", q, k) / 2 + bias[None]
        return jnp.einsum("bnhij,bnhjd->bnhid", jax.nn.softmax(logits), v)

    def run(attend):
        return jit(jax.value_and_grad(lambda *a: jnp.sum(weights * attend(*a)), (0, 1, 2, 3)))(q, k, v, bias)

    np.testing.assert_allclose(swin.attend(q, k, v, bias), plain(q, k, v, bias), atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), run(swin.attend), run(plain))


def test_large_logits_do_not_overflow():
    q = 100 * noise(1, 1, 1, 5, 4)
    found, gradient = jax.value_and_grad(lambda q: jnp.sum(swin.attend(q, q, q, jnp.zeros((1, 1, 5, 5)))))(q)
    assert np.isfinite(found) and np.isfinite(gradient).all()


def test_gelu_is_the_exact_one():
    x = np.linspace(-9, 9, 1001, dtype=np.float32)
    np.testing.assert_allclose(layers.gelu(x), x * special.ndtr(np.float64(x)), atol=1e-6)
    assert np.abs(jax.nn.gelu(x) - layers.gelu(x)).max() > 1e-4  # the approximation by tanh


def test_in_half_precision_a_block_is_near_float32():
    x = noise(2, 6, 7, 16)
    module, half = SwinBlock(2, 4, 2), SwinBlock(2, 4, 2, dtype=jnp.bfloat16)
    variables = drawn(module, x)
    shapes = jax.eval_shape(half.init, jax.random.key(0), x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))

    @jit
    def run(variables, x):
        found, back = jax.vjp(lambda v: half.apply(v, x.astype(jnp.bfloat16)), variables)
        return found, back(found), module.apply(variables, x)

    found, gradients, expected = run(variables, x)
    assert found.dtype == jnp.bfloat16
    assert np.linalg.norm(np.float32(found) - expected) < 0.02 * np.linalg.norm(expected)
    assert all(np.isfinite(g).all() and g.dtype == jnp.float32 for g in jax.tree.leaves(gradients))


def test_parameters_do_not_depend_on_the_grid_and_start_as_written():
    module = SwinBlock(3, 7, 3)

    def shapes(side):
        grid = jax.ShapeDtypeStruct((1, side, side, 24), jnp.float32)
        return jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(module.init, jax.random.key(0), grid)["params"])

    assert shapes(4) == shapes(7) == shapes(20)
    assert shapes(4)["attention"]["relative_bias"] == (169, 3)
    params = jit(module.init)(jax.random.key(0), noise(1, 2, 2, 24))["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key in ("kernel", "relative_bias"):
            assert leaf.std() == pytest.approx(0.02, rel=0.1)
        else:
            np.testing.assert_array_equal(leaf, 1.0 if path[-1].key == "scale" else 0.0)


def test_drop_path_leaves_out_whole_branches_of_whole_samples():
    rate, rows = 0.4, 400
    kept = np.asarray(swin.drop_path(jnp.ones((rows, 2, 3)), rate, jax.random.key(0)))
    assert all(len(np.unique(sample)) == 1 for sample in kept)
    assert set(np.unique(kept)) == {0.0, np.float32(1) / np.float32(1 - rate)}
    assert (kept[:, 0, 0] == 0).mean() == pytest.approx(rate, abs=0.1)


def test_a_block_draws_only_in_training_and_only_at_a_rate():
    x = np.repeat(noise(1, 4, 4, 4), 64, axis=0)
    dropping, plain = SwinBlock(1, 4, 0, 0.5), SwinBlock(1, 4)
    variables = drawn(plain, x)
    expected = jit(lambda v: plain.apply(v, x, True))(variables)  # needs no rng
    np.testing.assert_array_equal(jit(lambda v: dropping.apply(v, x))(variables), expected)
    found = jit(lambda v, key: dropping.apply(v, x, True, rngs={"drop_path": key}))(variables, jax.random.key(1))
    outcomes = {tuple(sample) for sample in np.asarray(found)[:, 0, 0].round(4)}
    assert len(outcomes) == 4 and tuple(x[0, 0, 0].round(4)) in outcomes  # two branches, each there or not


def test_merging_gathers_two_by_two_cells_in_swins_order():
    x = noise(2, 4, 6, 3)
    module = PatchMerging()
    variables = drawn(module, x)
    found, params = module.apply(variables, x), jax.tree.map(np.asarray, variables["params"])
    assert found.shape == (2, 2, 3, 6)
    for row, column in np.ndindex(2, 3):
        cells = [x[:, 2 * row + dr, 2 * column + dc] for dr, dc in ((0, 0), (1, 0), (0, 1), (1, 1))]
        normed = slow_norm(np.concatenate(cells, axis=-1), params["norm"])
        np.testing.assert_allclose(found[:, row, column], normed @ params["reduction"]["kernel"], atol=1e-5)


def test_an_impulse_is_expanded_into_its_own_two_by_two_cell():
    x = np.zeros((1, 2, 3, 8), np.float32)
    x[0, 1, 2] = noise(8)
    module = PatchExpanding((4, 6))
    params = drawn(module, x)["params"]
    params = {**params, "norm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}
    found = np.asarray(module.apply({"params": params}, x))
    assert set(zip(*np.nonzero(found[0].any(-1)), strict=True)) == {(2, 4), (2, 5), (3, 4), (3, 5)}
    spread = (x[0, 1, 2] @ np.asarray(params["expansion"]["kernel"])).reshape(2, 2, 4)
    expected = slow_norm(spread, {"scale": 1, "bias": 0})
    np.testing.assert_allclose(found[0, 2:, 4:], expected, atol=1e-5)


def test_odd_grids_are_padded_for_merging_and_cropped_after_expanding():
    x = noise(1, 5, 7, 4)
    merged, expanding = PatchMerging(), PatchExpanding((5, 7))
    variables, padded = drawn(merged, x), np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    grid = merged.apply(variables, x)
    assert grid.shape == (1, 3, 4, 8)
    np.testing.assert_allclose(merged.apply(variables, padded), grid, atol=1e-6)
    assert jax.eval_shape(expanding.init_with_output, jax.random.key(0), grid)[0].shape == x.shape


def test_depth_to_space_undoes_space_to_depth():
    x = noise(2, 6, 9, 2)
    deep = layers.space_to_depth(x, 3)
    np.testing.assert_array_equal(deep[0, 1, 2], x[0, 3:6, 6:9].ravel())
    np.testing.assert_array_equal(layers.depth_to_space(deep, 3), x)


def test_a_sharded_batch_needs_no_gathering():
    mesh = jax.make_mesh((8,), ("data",))
    module, x = SwinBlock(2, 4, 2), noise(8, 6, 5, 8)
    variables, sharding = drawn(module, x), NamedSharding(mesh, PartitionSpec("data"))
    compiled = jit(module.apply, in_shardings=(None, sharding)).lower(variables, x).compile()
    assert "all-gather" not in compiled.as_text() and "all-to-all" not in compiled.as_text()
    found = compiled(variables, jax.device_put(x, sharding))
    np.testing.assert_allclose(found, jit(module.apply)(variables, x), rtol=1e-4, atol=1e-5)
