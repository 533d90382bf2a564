import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxad.errors import UserError
from jaxad.models.attention import (
    CBAM,
    CHANNEL_SOFTMAXES,
    CPAM,
    FUSIONS,
    attention,
    channel_attention,
    fuse,
    positional_attention,
    torch_uniform,
)
from jaxad.models.layers import he_normal

PAM = {2048: 5_245_441, 1024: 1_312_001, 512: 328_321, 256: 82_241}  # SAGAN's module at reduction 8, with its gamma
CBAMS = {2048: 526_564, 1024: 132_260, 512: 33_412}  # the authors' module at reduction 16


def relu_noise(*shape, seed=0):
    return np.float32(np.maximum(np.random.default_rng(seed).normal(size=shape), 0))


def drawn(module, x, seed=0, **fixed):
    """Variables of normal numbers around 0.3, BatchNorm's variance positive: nothing is left at 0 or 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        value = 0.3 + rng.normal(size=leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
        value = fixed.get(path[-1].key, np.abs(value) if path[-1].key == "var" else value)
        return jnp.asarray(value, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(module.init, jax.random.key(0), x))


def softmax(row):
    row = np.exp(row - np.max(row))
    return row / row.sum()


def slow_channel_attention(x, kind, temperature):
    found = np.zeros(x.shape)
    for b, tokens in enumerate(np.float64(x)):
        for i in range(x.shape[2]):
            energy = np.zeros(x.shape[2])
            for j in range(x.shape[2]):
                energy[j] = sum(tokens[n, i] * tokens[n, j] for n in range(x.shape[1]))
                if kind == "cosine":
                    energy[j] *= temperature / np.linalg.norm(tokens[:, i]) / np.linalg.norm(tokens[:, j])
            weights = softmax(energy.max() - energy if kind == "danet" else energy)
            for n in range(x.shape[1]):
                found[b, n, i] = sum(weights[j] * tokens[n, j] for j in range(x.shape[2]))
    return found


def slow_positional_attention(q, k, v):
    found = np.zeros((*q.shape[:2], v.shape[2]))
    for b in range(q.shape[0]):
        for n in range(q.shape[1]):
            weights = softmax([np.dot(np.float64(q[b, n]), np.float64(key)) for key in k[b]])
            found[b, n] = sum(weight * np.float64(value) for weight, value in zip(weights, v[b], strict=True))
    return found


def slow_fuse(x, f_c, f_p, fusion):
    found = np.zeros(x.shape)
    for b in range(len(x)):
        sample, c, p = np.float64(x[b]), np.float64(f_c[b]), np.float64(f_p[b])
        if fusion == "mul_rms":
            c, p = c / np.sqrt((c**2).mean() + 1e-6), p / np.sqrt((p**2).mean() + 1e-6)
        if fusion == "gated":
            c, p = 2 / (1 + np.exp(-c)), 2 / (1 + np.exp(-p))
        found[b] = c + p if fusion == "sum" else sample * c * p
    return found


def slow_pool(x, size):
    """Windows that hang over the lower and right edge count what they cover."""
    rows = [x[:, i : i + size] for i in range(0, x.shape[1], size)]
    return np.stack(
        [np.stack([r[:, :, j : j + size].max((1, 2)) for j in range(0, x.shape[2], size)], 1) for r in rows], 1
    )


def slow_cpam(params, x, module):
    def project(array, name):
        return array @ np.float64(params[name]["kernel"]) + np.float64(params[name]["bias"])

    def tokens(array):
        return array.reshape(len(array), -1, array.shape[-1])

    x = np.float64(x)
    k, v = (slow_pool(project(x, f"{name}_conv"), module.kv_pool) for name in ("key", "value"))
    attended = slow_positional_attention(tokens(project(x, "query_conv")), tokens(k), tokens(v))
    if module.value_reduction > 1:
        attended = project(attended, "output_conv")
    temperature = float(params.get("temperature", 1))
    f_c = x + float(params["gamma_channel"]) * slow_channel_attention(
        tokens(x), module.channel_softmax, temperature
    ).reshape(x.shape)
    f_p = x + float(params["gamma_position"]) * attended.reshape(x.shape)
    return slow_fuse(x, f_c, f_p, module.fusion)


@pytest.mark.parametrize("channels", sorted(PAM))
def test_parameter_counts_of_cpam_are_the_published_ones(channels):
    def count(**options):
        x = jax.ShapeDtypeStruct((2, 5, 3, channels), jnp.float32)
        y, variables = jax.eval_shape(attention("cpam", **options)().init_with_output, jax.random.key(0), x)
        assert y.shape == x.shape and set(variables) == {"params"}
        return sum(leaf.size for leaf in jax.tree.leaves(variables))

    assert count() == PAM[channels] + 1  # and the channel branch's gamma
    assert count(channel_softmax="cosine") == PAM[channels] + 2
    assert count(kv_pool=2, fusion="sum", block=0) == PAM[channels] + 1
    eighth = channels // 8
    saved = channels * (channels + 1) - eighth * (channels + 1) - channels * (eighth + 1)
    assert count(value_reduction=8) == PAM[channels] + 1 - saved


@pytest.mark.parametrize("channels", sorted(CBAMS))
def test_parameter_counts_of_cbam_are_the_published_ones(channels):
    x = jax.ShapeDtypeStruct((2, 5, 3, channels), jnp.float32)
    y, variables = jax.eval_shape(attention("cbam")().init_with_output, jax.random.key(0), x)
    assert y.shape == x.shape
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == CBAMS[channels]


@pytest.mark.parametrize("kind", CHANNEL_SOFTMAXES)
def test_channel_attention_equals_loops(kind):
    x = np.float32(0.6 * np.random.default_rng(0).normal(size=(2, 7, 5)) + 0.2)
    found = channel_attention(x, kind, 2.5)
    np.testing.assert_allclose(found, slow_channel_attention(x, kind, 2.5), rtol=1e-4, atol=1e-5)


def test_danet_favours_dissimilar_channels_and_plain_is_the_identity():
    x = relu_noise(2, 256, 6)
    x[:, :, 1] = x[:, :, 0] + 0.1 * relu_noise(2, 256, seed=1)  # channels 0 and 1 alike
    plain, danet = channel_attention(x, "plain"), np.asarray(channel_attention(x, "danet"))
    np.testing.assert_allclose(plain[..., 2:], x[..., 2:], atol=1e-3)
    for b in range(2):
        weights = np.linalg.lstsq(x[b], danet[b, :, 0])[0]  # channel 0's row of the map, read off the result
        assert np.abs(weights[:2]).max() < 1e-3 and weights[2:].sum() == pytest.approx(1, abs=1e-3)


def test_plain_softmax_and_mul_rms_leave_the_channel_gamma_without_gradient():
    x = relu_noise(2, 16, 16, 16)

    def gradient(**options):
        module = CPAM(**options)
        variables = drawn(module, x, gamma_channel=0.2)
        weights = relu_noise(*x.shape, seed=1)
        objective = jax.jit(jax.grad(lambda v: jnp.mean(weights * module.apply(v, x))))
        return abs(float(objective(variables)["params"]["gamma_channel"]))

    assert gradient(channel_softmax="plain") < 1e-5
    assert gradient(channel_softmax="plain", fusion="mul") > 1e-2 and gradient() > 1e-2


@pytest.mark.parametrize("kind", CHANNEL_SOFTMAXES)
def test_silenced_channels_have_finite_gradients(kind):
    x = relu_noise(2, 9, 4)
    x[0, :, 1] = 0
    value, gradient = jax.jit(jax.value_and_grad(lambda x: jnp.sum(jnp.square(channel_attention(x, kind)))))(x)
    assert np.isfinite(value) and np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def qkv(count, keys, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(np.float32(rng.normal(size=shape)) for shape in ((2, count, 3), (2, keys, 3), (2, keys, 5)))


def test_positional_attention_equals_loops_and_moves_with_its_tokens():
    q, k, v = qkv(11, 7)
    found = positional_attention(q, k, v)
    np.testing.assert_allclose(found, slow_positional_attention(q, k, v), rtol=1e-5, atol=1e-6)
    queries, keys = np.random.default_rng(1).permutation(11), np.random.default_rng(2).permutation(7)
    moved = positional_attention(q[:, queries], k[:, keys], v[:, keys])
    np.testing.assert_allclose(moved, found[:, queries], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [32, 37])
def test_blocks_of_queries_change_neither_values_nor_gradients(count):
    q, k, v = qkv(count, 20)
    weights = np.float32(np.random.default_rng(1).normal(size=(2, count, 5)))

    def run(block):
        def objective(*arrays):
            found = positional_attention(*arrays, block)
            return jnp.sum(weights * found), found

        (_, found), gradients = jax.jit(jax.value_and_grad(objective, (0, 1, 2), has_aux=True))(q, k, v)
        return found, gradients

    found, gradients = run(16)
    expected, expected_gradients = run(0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, other, atol=1e-4)
    np.testing.assert_allclose(found, slow_positional_attention(q, k, v), atol=1e-5)


def test_blocks_start_at_two_blocks_of_queries():
    def loops(count, block):
        return "scan" in str(jax.make_jaxpr(lambda *arrays: positional_attention(*arrays, block))(*qkv(count, 4)))

    assert loops(32, 16) and not loops(31, 16) and not loops(32, 0)


def test_temporaries_of_the_gradient_are_bounded_by_blocks():
    def temporaries(height, width, block):
        module, x = CPAM(block=block), jax.ShapeDtypeStruct((1, height, width, 256), jnp.float32)
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        gradient = jax.grad(lambda v, x: jnp.sum(jnp.square(module.apply(v, x))), (0, 1))
        return jax.jit(gradient).lower(variables, x).compile().memory_analysis().temp_size_in_bytes

    quarter, blocked = temporaries(32, 32, 512), temporaries(64, 64, 512)
    full_quarter, full = temporaries(32, 32, 0), temporaries(64, 64, 0)
    assert blocked < full / 4, f"{blocked / 2**20:.0f} of {full / 2**20:.0f} MiB"
    assert blocked < 4.2 * quarter  # linear in positions
    assert full > 12 * full_quarter  # and quadratic without, so that the claim says something


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusions_equal_loops(fusion):
    rng = np.random.default_rng(0)
    x, f_c, f_p = (np.float32(rng.normal(size=(3, 4, 5, 6)) * [[[[1]]], [[[9]]], [[[0]]]]) for _ in range(3))
    np.testing.assert_allclose(fuse(x, f_c, f_p, fusion), slow_fuse(x, f_c, f_p, fusion), rtol=1e-4, atol=1e-6)


def test_attention_contributes_nothing_at_the_start():
    x = relu_noise(3, 4, 5, 8) * np.float32([[[[0.5]]], [[[1]]], [[[3]]]])
    initial = jax.jit(lambda x: CPAM().init(jax.random.key(0), x))
    found = {}
    for fusion in FUSIONS:
        module = CPAM(fusion)
        variables = initial(x)
        assert float(variables["params"]["gamma_channel"]) == float(variables["params"]["gamma_position"]) == 0
        found[fusion] = np.asarray(jax.jit(module.apply)(variables, x))
        np.testing.assert_allclose(found[fusion], slow_fuse(x, x, x, fusion), rtol=1e-5)
    np.testing.assert_allclose(found["mul"], x**3, rtol=1e-5)


def test_mul_rms_is_mul_up_to_one_positive_factor_per_sample():
    x = relu_noise(3, 4, 5, 8) * np.float32([[[[0.5]]], [[[1]]], [[[3]]]])
    variables = drawn(CPAM(), x)
    scaled, plain = (np.float64(jax.jit(CPAM(fusion).apply)(variables, x)) for fusion in ("mul_rms", "mul"))
    ratios = [scaled[b][plain[b] != 0] / plain[b][plain[b] != 0] for b in range(3)]
    for ratio in ratios:
        assert ratio.min() > 0
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-4)
    assert ratios[0].mean() > 2 * ratios[1].mean() > 4 * ratios[2].mean()


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(fusion="mul", channel_softmax="plain", block=6),
        dict(fusion="gated", channel_softmax="cosine", kv_pool=2),
        dict(fusion="sum", value_reduction=8, block=4),
        dict(channel_softmax="cosine", kv_pool=2, value_reduction=2, block=7),
    ],
    ids=str,
)
def test_cpam_equals_loops(options):
    module = CPAM(**options)
    x = np.float32(
        np.random.default_rng(3).normal(size=(2, 5, 3, 16))
    )  # odd both ways; 15 positions, 2 narrow channels
    variables = drawn(module, x)
    expected = slow_cpam(variables["params"], x, module)
    found = jax.jit(module.apply)(variables, x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_gradients_reach_both_gammas_first_and_then_everything_but_the_keys_bias():
    x, weights = relu_noise(2, 4, 5, 16), relu_noise(2, 4, 5, 16, seed=1)
    module = CPAM(channel_softmax="cosine", value_reduction=4)
    objective = jax.jit(jax.grad(lambda v: jnp.mean(weights * module.apply(v, x))))

    def sizes(**fixed):
        gradient = objective(drawn(module, x, **fixed))["params"]
        return {"/".join(k.key for k in path): np.abs(leaf).max() for path, leaf in jax.tree.leaves_with_path(gradient)}

    start = sizes(gamma_channel=0, gamma_position=0)
    assert {name for name, size in start.items() if size > 1e-4} == {"gamma_channel", "gamma_position"}
    later = sizes()
    assert later.pop("key_conv/bias") < 1e-6  # the same for all logits of a query
    assert min(later.values()) > 1e-5, later


def test_initial_logits_leave_the_softmax_unsaturated():
    x = relu_noise(64, 2048)  # the positions of 8x8x2048

    def greatest(init):
        q, k = (x @ np.asarray(init(jax.random.key(i), (2048, 256))) for i in (0, 1))
        return np.mean([softmax(row).max() for row in q @ k.T])

    assert greatest(torch_uniform) < 0.5 and greatest(he_normal) > 0.9
    kernel = np.asarray(torch_uniform(jax.random.key(0), (400, 50)))
    assert 0.99 / 20 < np.abs(kernel).max() <= 1 / 20 and kernel.std() == pytest.approx(1 / 20 / np.sqrt(3), rel=0.02)


def test_half_precision_keeps_logits_and_softmax_in_float32():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 40, d)) * s, jnp.bfloat16) for d, s in ((16, 20), (16, 20), (5, 1)))
    x = rng.normal(size=(2, 50, 6)) / 2
    x[:, :20] = 10  # 2000 in every entry of E, between which a few units decide
    x = jnp.asarray(x, jnp.bfloat16)

    def run(q, k, v, x):  # not jitted: XLA may leave out the roundings between the operations that it fuses
        attended = positional_attention(q, k, v, 16)
        return attended, channel_attention(x, "danet")[:, 20:], channel_attention(x, "cosine", 1e3)[:, 20:]

    arrays = (q, k, v, x)
    for found, expected in zip(run(*arrays), run(*(array.astype(jnp.float32) for array in arrays)), strict=True):
        assert found.dtype == jnp.bfloat16  # logits of thousands: rounded to bfloat16 they would be off by 4
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(np.float32(found), expected, atol=0.01 * scale)


def test_cpam_in_half_precision_is_near_float32():
    x = relu_noise(2, 6, 6, 32)
    variables = drawn(CPAM(), x)
    half = CPAM(dtype=jnp.bfloat16, block=16)
    assert all(v.dtype == jnp.float32 for v in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0), x)))

    @jax.jit
    def run(variables):
        def objective(variables):
            found = half.apply(variables, x)
            return jnp.sum(jnp.square(found).astype(jnp.float32)), found

        gradients, found = jax.grad(objective, has_aux=True)(variables)
        return found, gradients, CPAM().apply(variables, x)

    found, gradients, expected = run(variables)
    assert found.dtype == jnp.bfloat16
    assert np.linalg.norm(np.float32(found) - expected) < 0.03 * np.linalg.norm(expected)
    assert all(np.isfinite(g).all() and g.dtype == jnp.float32 for g in jax.tree.leaves(gradients))


def test_a_small_gamma_is_not_rounded_away_in_half_precision():
    x = jnp.asarray(1 + relu_noise(2, 4, 4, 16), jnp.bfloat16)
    apply = CPAM("mul").apply  # not jitted, as above
    without, small = (apply(drawn(CPAM(), x, gamma_channel=g, gamma_position=0), x) for g in (0, 1e-3))
    rise = float(jnp.mean(small.astype(jnp.float32)) / jnp.mean(without.astype(jnp.float32))) - 1
    assert rise > 5e-4  # in bfloat16 x + 1e-3 x is x


def test_a_sharded_batch_needs_no_gathering():
    mesh = jax.make_mesh((8,), ("data",))
    module, x = CPAM(block=8), relu_noise(8, 4, 5, 16)
    variables = drawn(module, x)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    compiled = jax.jit(module.apply, in_shardings=(None, sharding)).lower(variables, x).compile()
    assert "all-gather" not in compiled.as_text() and "all-to-all" not in compiled.as_text()
    np.testing.assert_allclose(
        compiled(variables, jax.device_put(x, sharding)), jax.jit(module.apply)(variables, x), rtol=1e-4, atol=1e-5
    )


def slow_cbam(variables, x, rows):
    """rows: None for the running averages, else the rows whose statistics normalise. Also the batch's (mean, var)."""
    params, x = variables["params"], np.float64(x)

    def mlp(vector):
        hidden = np.maximum(vector @ np.float64(params["mlp_1"]["kernel"]) + np.float64(params["mlp_1"]["bias"]), 0)
        return hidden @ np.float64(params["mlp_3"]["kernel"]) + np.float64(params["mlp_3"]["bias"])

    def sigmoid(value):
        return 1 / (1 + np.exp(-value))

    x = np.stack([sample * sigmoid(mlp(sample.mean((0, 1))) + mlp(sample.max((0, 1)))) for sample in x])
    kernel, gate = np.float64(params["spatial_conv"]["kernel"]), np.zeros(x.shape[:3])
    for b, i, j in np.ndindex(*gate.shape):
        for u in range(7):
            for w in range(7):
                y, z = i + u - 3, j + w - 3
                if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                    gate[b, i, j] += x[b, y, z].max() * kernel[u, w, 0, 0] + x[b, y, z].mean() * kernel[u, w, 1, 0]
    norm, averages = params["spatial_bn"], variables["batch_stats"]["spatial_bn"]
    mean, var = float(averages["mean"][0]), float(averages["var"][0])
    if rows is not None:
        mean, var = gate[rows].mean(), gate[rows].var()
    gate = (gate - mean) / np.sqrt(var + 1e-5) * float(norm["scale"][0]) + float(norm["bias"][0])
    return x * sigmoid(gate)[..., None], mean


@pytest.mark.parametrize("rows", [None, [0, 1, 2], [0, 2]])
def test_cbam_equals_loops(rows):
    module, x = CBAM(reduction=4), np.float32(np.random.default_rng(5).normal(size=(3, 5, 9, 8)))
    variables = drawn(module, x)
    expected, mean = slow_cbam(variables, x, rows)
    if rows is None:
        found = jax.jit(module.apply)(variables, x)
    else:
        mask = None if len(rows) == 3 else np.isin(np.arange(3), rows)
        train = jax.jit(lambda variables: module.apply(variables, x, True, mask, mutable=["batch_stats"]))
        found, new = train(variables)
        old, new = (float(stats["spatial_bn"]["mean"][0]) for stats in (variables["batch_stats"], new["batch_stats"]))
        assert new == pytest.approx(0.99 * old + 0.01 * mean, abs=1e-5)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cpam", "cbam"])
def test_both_take_training_and_mask_tiny_widths_and_keep_the_dtype(name):
    key = jax.random.key(0)
    for channels in (4, 12):  # below and beside the reduction
        x = jnp.asarray(relu_noise(2, 3, 2, channels), jnp.bfloat16)
        module = attention(name, jnp.bfloat16)(name="here")
        variables = drawn(module, x)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(jax.eval_shape(module.init, key, x)))
        apply = jax.jit(lambda v, x, mask, module=module: module.apply(v, x, True, mask, mutable=["batch_stats"]))
        found, _ = apply(variables, x, jnp.array([True, False]))
        assert found.shape == x.shape and found.dtype == jnp.bfloat16 and bool(jnp.isfinite(found).all())


def test_a_wrong_choice_is_refused_with_the_key_and_what_is_allowed():
    assert attention("none", fusion="mul") is None
    with pytest.raises(UserError, match="'senet'.*config.siamese_unet.attention to cpam, cbam, none"):
        attention("senet")
    for name in ("cpam", "cbam", "none"):  # a bad value must not wait for the day that CPAM is chosen
        with pytest.raises(UserError, match="'add'.*config.siamese_unet.cpam.fusion to mul_rms, mul, gated, sum"):
            attention(name, fusion="add")
        with pytest.raises(UserError, match="config.siamese_unet.cpam.channel_softmax to danet, plain, cosine"):
            attention(name, channel_softmax="sparse")
        with pytest.raises(UserError, match="config.siamese_unet.cpam.kv_pool is 0; set it to 1 or more"):
            attention(name, kv_pool=0)
        with pytest.raises(TypeError, match="CPAM has no field heads"):
            attention(name, heads=4)
    with pytest.raises(UserError, match="fusion"):
        jax.eval_shape(CPAM("add").init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2, 2, 8), jnp.float32))
