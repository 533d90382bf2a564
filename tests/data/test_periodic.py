"""The periodic textures: each repeats as its category says, and nothing else tells the categories apart."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from jaxad.data import drawing, periodic
from jaxad.errors import UserError


def greys(category, numbers, split="train/good"):
    """f[n, h, w], mean 0: images in grey, their lighting removed."""
    images = [periodic.render(f"{category}/{split}/{i:03d}.png")[0].mean(-1) for i in numbers]
    return [image - ndimage.gaussian_filter(image, 40) for image in images]


def autocorrelation(grey):
    """f[h, w]: the correlation of the image with itself moved by (row, column), lag 0 in the middle of `h, w`."""
    size = len(grey)
    padded, ones = np.zeros((2, 2 * size, 2 * size))
    padded[:size, :size], ones[:size, :size] = grey, 1
    products, overlap = (np.fft.ifft2(np.abs(np.fft.fft2(of)) ** 2).real for of in (padded, ones))
    found = np.fft.fftshift(products / np.maximum(overlap, 1) / grey.var())
    return found[size // 2 : size // 2 + size + 1, size // 2 : size // 2 + size + 1]


def lattice(grey):
    """Every lag (row, column) at which the image repeats itself, nearest first; no period is assumed."""
    found, middle = autocorrelation(grey), len(grey) // 2
    peaks = (found == ndimage.maximum_filter(found, 5)) & (found > 0.6)
    lags = np.argwhere(peaks) - middle
    lags = lags[np.argsort(np.hypot(*lags.T))]
    assert tuple(lags[0]) == (0, 0)
    return lags[1:]


@pytest.mark.parametrize("category", periodic.CATEGORIES)
def test_the_autocorrelation_peaks_at_the_stated_period_in_both_directions(category):
    period = int(category.removeprefix("period_")) / 100 * periodic.SIZE
    for grey in greys(category, range(2)):
        lags = lattice(grey)
        nearest = np.abs(lags[:4])
        along, across = nearest.max(1), nearest.min(1)
        assert np.abs(along - period).max() <= 1 and across.max() <= 1 + period * np.tan(np.deg2rad(1.6))
        assert len({tuple(lag) for lag in np.sign(np.round(lags[:4] / period))}) == 4  # up, down, left, right
        found = autocorrelation(grey)  # half a period away it is another picture: no stripes, no smaller period
        half, middle = int(np.round(period / 2)), periodic.SIZE // 2
        assert (
            max(found[middle + half, middle], found[middle, middle + half], found[middle + half, middle + half]) < 0.4
        )


def test_the_ornament_is_structured_within_its_period_and_mirrors_into_nothing():
    axis = np.arange(64, dtype=np.float32) / 64
    cell = periodic.ornament(*np.meshgrid(axis, axis), 64.0).mean(-1)
    np.testing.assert_allclose(periodic.ornament(*np.meshgrid(axis + 3, axis - 2), 64.0).mean(-1), cell, atol=1e-3)
    energy = np.abs(np.fft.fft2(cell - cell.mean())) ** 2
    harmonic = np.maximum(*np.abs(np.meshgrid(*2 * [np.fft.fftfreq(64, 1 / 64)])))
    assert energy[harmonic > 2].sum() > 0.3 * energy.sum()  # most of it is not a wave or two
    assert energy[0].sum() < 0.4 * energy.sum() and energy[:, 0].sum() < 0.4 * energy.sum()  # nor are these stripes
    for other in (cell[::-1], cell[:, ::-1], cell.T, cell[::-1, ::-1], np.rot90(cell)):
        fits = np.fft.ifft2(np.fft.fft2(cell - cell.mean()) * np.conj(np.fft.fft2(other - other.mean()))).real
        assert fits.max() < 0.9 * energy.sum() / cell.size  # at any displacement


def test_periods_are_a_factor_of_one_and_a_half_apart_and_defects_the_same_at_each():
    periods = np.array(list(periodic.PERIODS.values()))
    assert ((periods[1:] / periods[:-1] > 1.45) & (periods[1:] / periods[:-1] < 1.6)).all()
    for defect in periodic.DEFECTS:
        masks = [periodic.render(f"{category}/test/{defect}/003.png")[1] for category in periodic.CATEGORIES]
        extents = [mask[np.ix_(mask.any(1), mask.any(0))] for mask in masks]  # the place of two of them is chosen
        assert all(extent.shape == extents[0].shape and (extent == extents[0]).all() for extent in extents)


def test_but_for_the_ornament_all_categories_are_one(monkeypatch):
    monkeypatch.setattr(periodic, "ornament", lambda u, v, period: np.full((*u.shape, 3), 0.5, np.float32))
    for kind in ("train/good", "test/missing", "test/scratch", "test/shifted", "test/stain"):
        first, *others = (periodic.render(f"{category}/{kind}/001.png") for category in periodic.CATEGORIES)
        for image, mask in others:
            np.testing.assert_array_equal(image, first[0])
            np.testing.assert_array_equal(mask, first[1])


def test_an_image_is_a_function_of_seed_and_path():
    path = "period_14/test/shifted/004.png"
    image, mask = periodic.render(path)
    again, same_mask = periodic.render(path)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, same_mask)
    assert image.shape == (periodic.SIZE, periodic.SIZE, 3) and image.dtype == np.uint8
    for other, seed in ((path, 1), (path.replace("004", "005"), 0), (path.replace("14", "09"), 0)):
        assert (periodic.render(other, seed)[0] != image).mean() > 0.3


def test_images_of_a_category_do_not_lie_on_each_other():
    first, *others = greys("period_32", range(4))
    assert max((first * other).mean() / first.std() / other.std() for other in others) < 0.8


@pytest.mark.parametrize("defect", periodic.DEFECTS)
@pytest.mark.parametrize("category", periodic.CATEGORIES)
def test_the_cloth_without_the_defect_differs_in_the_mask_and_nowhere_else(category, defect):
    for number in range(3):
        (whole, nothing), (broken, mask) = (
            periodic.draw(periodic.PERIODS[category], *np.random.default_rng(number).spawn(2), which)
            for which in ("good", defect)
        )
        change = np.abs(whole - broken).max(-1)
        assert not nothing.any() and 100 < mask.sum() < 2000
        assert not (change[~mask] > 0.01).any()
        # what is left of it: cloth that shows between the figures, before and after
        assert (change[mask] > 0.02).mean() > 0.35 and (change[mask] > 0.15).sum() > 100
        rows, columns = np.nonzero(mask)
        assert min(rows.min(), columns.min()) > 0 and max(rows.max(), columns.max()) < periodic.SIZE - 1


def test_no_simple_statistic_tells_a_defect():
    for category in (periodic.CATEGORIES[0], periodic.CATEGORIES[-1]):
        samples = periodic.listing(category).splits["test"][::2]
        values = np.stack([periodic.render(sample.path)[0] for sample in samples]).astype(np.float32)
        labels = np.array([sample.label for sample in samples])
        for statistic in (np.mean, np.std, np.max):
            auroc = roc_auc_score(labels, statistic(values, axis=(1, 2, 3)))
            assert max(auroc, 1 - auroc) < 0.85, (category, statistic)


def test_counts_are_those_of_the_demo():
    listing = periodic.listing("period_06")
    kinds = [sample.defect for sample in listing.splits["test"]]
    assert len(listing.splits["train"]) == drawing.N_TRAIN == 60 and kinds.count("good") == drawing.N_TEST_GOOD == 20
    assert [kinds.count(defect) for defect in periodic.DEFECTS] == [drawing.N_PER_DEFECT] * 4 == [10] * 4
    assert listing.has_masks and list(listing.splits["test"]) == sorted(listing.splits["test"])


def test_it_is_opened_without_a_root_and_equals_what_is_drawn(demo_cache):
    from jaxad import config as configs
    from jaxad.data import builders, catalog

    config = configs.default("patchcore")
    config.data.dataset, config.data.cache_dir = "periodic", demo_cache
    config.backbone.weights = "random"
    configs.check(config)
    assert catalog.categories(config) == periodic.CATEGORIES
    config.data.category = "period_09"
    source = catalog.open_source(config, "period_09")
    assert source.root == "" and source.has_masks
    record = source.records("test")[5]
    for got, drawn in zip(source.load("test", 5), periodic.render(record.path), strict=True):
        np.testing.assert_array_equal(got, drawn)
    config.data.category = "period_08"
    with pytest.raises(UserError, match="is not .nearest: period_09.; found: period_04, "):
        catalog.categories(config)
    assert set(configs.GENERATED) == {name for name, of in builders.BUILDERS.items() if not of.needs_root()}
