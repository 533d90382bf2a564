"""The triples of an image against walks over its rows and columns, and the numbers of figure 4."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxad.errors import UserError
from jaxad.scoring.triples import (
    COMBINES,
    COVERAGES,
    DIRECTIONS,
    LEAST,
    assemble,
    combine,
    partition,
    take,
    triples,
    turn_back,
)

STEPS = {"lr": (0, 1), "tb": (1, 0), "rl": (0, -1), "bt": (-1, 0)}  # from a patch to the next, (row, column)
SIDE = 3  # of a patch, pixels
RNG = np.random.default_rng(0)


def numbered(n, batch=2):
    """Images of n x n patches, another number in every pixel."""
    shape = (batch, SIDE * n, SIDE * n, 2)
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def walked(n, directions=DIRECTIONS):
    """[(far, near, target, direction)], each found by walking three steps from its first patch."""
    found = []
    for direction, row, column in itertools.product(directions, range(n), range(n)):
        places = [(row + k * STEPS[direction][0], column + k * STEPS[direction][1]) for k in range(3)]
        if all(0 <= place < n for pair in places for place in pair):
            found.append((*(r * n + c for r, c in places), DIRECTIONS.index(direction)))
    return found


def listed(found):
    return list(zip(*(part.tolist() for part in found), strict=True))


def disagreeing(found, defects):
    """f32[1, T]: fig. 4's model. A triple that holds a defective patch anywhere predicts what is not there."""
    return np.any([np.isin(part, list(defects)) for part in found[:3]], axis=0)[None].astype(np.float32)


def flagged(n, defects, coverage="rows_cols", how="min"):
    """The patches that are still called defective when directions were combined."""
    found = triples(n, coverage)
    return set(np.flatnonzero(np.asarray(combine(disagreeing(found, defects), found, n, how))[0]))


def in_row(columns, n=6, row=2):
    """Patches of a row by the column's number from 1, as figure 4 counts."""
    return {row * n + column - 1 for column in columns}


def combined(found, values, n, how, across):
    """`combine` of one image, patch by patch: look up what each direction says, bring them together two by two."""
    both = {"min": min, "max": max, "mean": lambda one, other: (one + other) / 2}
    said = {(direction, target): values[i] for i, (_, _, target, direction) in enumerate(listed(found))}

    def joined(one, other, how):
        return (
            [value for value in (one, other) if value is not None] if None in (one, other) else [both[how](one, other)]
        )

    result = []
    for patch in range(n * n):
        lr, tb, rl, bt = (said.get((direction, patch)) for direction in range(4))
        if how.startswith("single"):
            order = (lr, rl) if how == "single_lr" else (rl, lr)
            known = [value for value in order if value is not None]
        else:
            lines = [joined(one, other, how) for one, other in ((lr, rl), (tb, bt))]
            known = joined(*(line[0] if line else None for line in lines), across)
        result.append(known[0] if known else 0.0)
    return np.array(result)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_partition_numbers_patches_row_by_row_and_assemble_undoes_it(n):
    images = numbered(n)
    patches = np.asarray(partition(images, n))
    assert patches.shape == (2, n * n, SIDE, SIDE, 2)
    for row, column in np.ndindex(n, n):
        cut = images[:, SIDE * row : SIDE * (row + 1), SIDE * column : SIDE * (column + 1)]
        np.testing.assert_array_equal(patches[:, row * n + column], cut)
    np.testing.assert_array_equal(assemble(patches, n), images)


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7])
def test_triples_are_all_that_a_walk_finds_sorted_by_direction(n):
    for coverage, directions in (("rows_cols", DIRECTIONS), ("rows", ("lr", "rl"))):
        found = triples(n, coverage)
        assert sorted(listed(found)) == sorted(walked(n, directions))
        assert np.all(np.diff(found.direction) >= 0) and all(part.dtype == np.int32 for part in found)


@pytest.mark.parametrize(
    ("n", "rows", "rows_cols", "met"), [(4, 16, 32, 0), (5, 30, 60, 1), (6, 48, 96, 2), (7, 70, 140, 3)]
)
def test_triples_of_an_image_and_patches_that_both_directions_of_a_row_reach(n, rows, rows_cols, met):
    assert len(triples(n, "rows").target) == rows and len(triples(n).target) == rows_cols
    found = triples(n)
    lr, tb, rl, bt = (set(found.target[found.direction == k].tolist()) for k in range(4))
    for line in range(n):
        assert len({line * n + k for k in range(n)} & lr & rl) == met
        assert len({k * n + line for k in range(n)} & tb & bt) == met
    assert lr | rl == tb | bt == set(range(n * n))  # every patch is predicted along its row and along its column


def test_raster_runs_on_over_the_ends_of_rows():
    found = triples(4, "raster")
    forth = [(k, k + 1, k + 2, 0) for k in range(14)]
    back = [(k, k - 1, k - 2, 2) for k in range(15, 1, -1)]
    assert listed(found) == forth + back
    assert (2, 3, 4, 0) in forth  # the last two patches of a row, and the first of the next


def test_wrap_joins_the_ends_of_each_row():
    n = 5
    forth = {(r * n + c, r * n + (c + 1) % n, r * n + (c + 2) % n, 0) for r, c in np.ndindex(n, n)}
    back = {(target, near, far, 2) for far, near, target, _ in forth}
    found = triples(n, "wrap")
    assert len(found.far) == 2 * n * n and set(listed(found)) == forth | back


def test_a_table_is_made_once_and_cannot_be_changed():
    found = triples(4)
    assert triples(4) is found
    with pytest.raises(ValueError, match="read-only"):
        found.target[0] = 1


@pytest.mark.parametrize("coverage", ["rows_cols", "rows"])
def test_a_turned_triple_is_the_strip_of_the_image_turned_to_be_read_from_left_to_right(coverage):
    n = 5
    images, found = numbered(n), triples(n, coverage)
    patches = partition(images, n)
    parts = [np.asarray(take(patches, number, found)) for number in found[:3]]
    for i, (*places, direction) in enumerate(listed(found)):
        rows, columns = np.divmod(np.array(places), n)
        across, along = (slice(SIDE * line.min(), SIDE * (line.max() + 1)) for line in (rows, columns))
        turned = np.rot90(images[:, across, along], direction, axes=(1, 2))
        np.testing.assert_array_equal(np.concatenate([part[:, i] for part in parts], axis=2), turned)


def test_all_four_directions_of_a_scan_look_alike_once_turned():
    n, ramp = 4, np.arange(SIDE * 4.0)  # brighter along the scan, whatever it is
    scans = {"lr": ramp[None], "rl": ramp[None, ::-1], "tb": ramp[:, None], "bt": ramp[::-1, None]}
    found = triples(n)
    for direction, scan in scans.items():
        patches = partition(np.broadcast_to(scan, (SIDE * n, SIDE * n))[None, ..., None], n)
        own = found.direction == DIRECTIONS.index(direction)
        strips = np.concatenate([np.asarray(take(patches, part, found))[0, own] for part in found[:3]], axis=2)
        assert np.all(np.diff(strips, axis=2) == 1) and np.all(np.diff(strips, axis=1) == 0), direction


@pytest.mark.parametrize("coverage", COVERAGES)
def test_turning_back_gives_every_patch_as_it_lies_in_the_image(coverage):
    n = 4
    patches, found = partition(numbered(n), n), triples(n, coverage)
    as_it_lies = np.asarray(patches)[:, found.target]
    np.testing.assert_array_equal(turn_back(take(patches, found.target, found), found), as_it_lies)
    np.testing.assert_array_equal(take(patches, found.target, found, canonical=False), as_it_lies)
    assert np.any(np.asarray(take(patches, found.target, found)) != as_it_lies)


def test_figure_4():
    found = triples(6, "rows")
    defect = in_row([4])
    said = disagreeing(found, defect)[0]
    lr, rl = (set(found.target[(said > 0) & (found.direction == DIRECTIONS.index(name))]) for name in ("lr", "rl"))
    assert lr == in_row([4, 5, 6]) and rl == in_row([2, 3, 4])
    assert lr & rl == defect
    assert flagged(6, defect, "wrap") == flagged(6, defect) == defect
    # Rows with ends: columns 1, 2 are read from the right alone, 5, 6 from the left alone, and nothing corrects that.
    assert flagged(6, defect, "rows") == in_row([2, 4, 5, 6])
    assert flagged(6, defect, "rows", "max") == in_row([2, 3, 4, 5, 6])


@pytest.mark.parametrize(("n", "rows"), [(4, 2.0), (5, 1.6), (6, 4 / 3), (7, 8 / 7)])
def test_patches_wrongly_flagged_beside_a_single_defect(n, rows):
    for coverage, expected in (("rows", rows), ("rows_cols", 0.0)):
        wrong = 0
        for defect in range(n * n):
            called = flagged(n, {defect}, coverage)
            assert defect in called
            wrong += len(called - {defect})
        assert wrong / n**2 == pytest.approx(expected)
        # The same without the module: a patch is called defective where all that predict it saw the defect.
        known = walked(n, DIRECTIONS if coverage == "rows_cols" else ("lr", "rl"))
        wrong = 0
        for defect, patch in itertools.permutations(range(n * n), 2):
            wrong += all(defect in triple[:3] for triple in known if triple[2] == patch)
        assert wrong / n**2 == pytest.approx(expected)


def test_two_defects_of_a_row_flag_what_lies_between_them_unless_columns_are_read_too():
    defects = in_row([2, 5])
    assert len(flagged(6, defects, "rows") - defects) == 4
    assert flagged(6, defects) == defects


@pytest.mark.parametrize("coverage", COVERAGES)
def test_the_minimum_exceeds_a_threshold_exactly_where_all_directions_do(coverage):
    n = 5
    found = triples(n, coverage)
    values = RNG.random((1, len(found.target)), np.float32)
    soft = np.asarray(combine(values, found, n))[0]
    thresholds = np.linspace(0.005, 0.995, 100)
    for threshold in thresholds:
        agreed = [np.all(values[0, found.target == patch] > threshold) for patch in range(n * n)]
        np.testing.assert_array_equal(soft > threshold, agreed)


@pytest.mark.parametrize("across", ["min", "max"])
@pytest.mark.parametrize("how", COMBINES)
@pytest.mark.parametrize("coverage", COVERAGES)
def test_combining_equals_a_loop_over_patches(coverage, how, across):
    n = 5
    found = triples(n, coverage)
    values = RNG.random((2, len(found.target), 2, 3), np.float32)
    got = np.asarray(combine(values, found, n, how, across))
    assert got.shape == (2, n * n, 2, 3)
    for b, i, j in np.ndindex(2, 2, 3):
        expected = combined(found, values[b, :, i, j], n, how, across)
        np.testing.assert_allclose(got[b, :, i, j], expected, rtol=1e-6)
    assert np.all(np.asarray(combine(values[:, :, 0, 0], found, n, how, across)) == got[:, :, 0, 0])


def test_a_single_direction_stands_back_only_where_it_does_not_reach():
    n, found = 4, triples(4)
    values = found.direction[None].astype(np.float32)  # 0: lr, 2: rl
    columns = np.array([[2, 2, 0, 0]] * n, np.float32)
    np.testing.assert_array_equal(combine(values, found, n, "single_lr")[0].reshape(n, n), columns)
    np.testing.assert_array_equal(combine(values, found, n, "single_rl")[0].reshape(n, n), columns)
    n, found = 5, triples(5)  # the middle column is reached by both
    for how, middle in (("single_lr", 0), ("single_rl", 2)):
        got = combine(found.direction[None].astype(np.float32), found, n, how)[0].reshape(n, n)
        np.testing.assert_array_equal(got, [[2, 2, middle, 0, 0]] * n)


def test_with_fewer_patches_some_are_never_predicted_and_have_zero():
    n = LEAST - 1
    got = np.asarray(combine(np.ones((1, len(triples(n).target)), np.float32), triples(n), n))[0].reshape(n, n)
    np.testing.assert_array_equal(got, [[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    assert combine(np.ones((1, 32), np.float32), triples(LEAST), LEAST).min() == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda found, values: triples(4, "all"), r"coverage='all' is not one of rows_cols, rows, raster, wrap"),
        (lambda found, values: combine(values, found, 4, "and"), r"combine='and' is not one of min, mean, max, "),
        (lambda found, values: combine(values, found, 4, "min", "mean"), r"axis_combine='mean' is neither min nor max"),
    ],
)
def test_an_unknown_name_is_refused_with_its_key(call, says):
    with pytest.raises(UserError, match=rf"^config\.pattern_generation\.{says}"):
        call(triples(4), np.ones((1, 32), np.float32))


def test_images_on_several_devices_stay_where_they_are():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split, found = NamedSharding(mesh, P("data")), triples(4)

    def error(images):
        patches = partition(images, 4)
        far, target = (take(patches, number, found) for number in (found.far, found.target))
        values = jnp.mean(jnp.abs(turn_back(far - target, found)), axis=-1)
        return assemble(combine(values, found, 4)[..., None], 4)

    images = numbered(4, batch=8)
    program = jax.jit(error, in_shardings=split, out_shardings=split).lower(images).compile()
    assert not re.search("all-gather|all-to-all|collective-permute|all-reduce", program.as_text())
    np.testing.assert_allclose(program(jax.device_put(images, split)), error(images), rtol=1e-6)
