"""The generated data: deterministic, whole, and neither trivial nor mislabelled."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from jaxad.data import demo, drawing
from jaxad.errors import UserError


@pytest.fixture(scope="module", params=demo.CATEGORIES)
def rendered(request):
    """(category, listing, {split: (images, masks)})."""
    listing = demo.listing(request.param)
    splits = {}
    for split, samples in listing.splits.items():
        pairs = [demo.render(sample.path) for sample in samples]
        splits[split] = np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])
    return request.param, listing, splits


def test_an_image_is_a_function_of_seed_and_path():
    path = "washer/test/crack/004.png"
    image, mask = demo.render(path)
    again, same_mask = demo.render(path)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, same_mask)
    assert (demo.render(path, seed=1)[0] != image).mean() > 0.3
    assert (demo.render("washer/test/crack/005.png")[0] != image).mean() > 0.3


def test_masks_are_empty_exactly_on_normal_images_and_small_on_the_others(rendered):
    _, listing, splits = rendered
    for split, (_, masks) in splits.items():
        for sample, mask in zip(listing.splits[split], masks, strict=True):
            assert mask.any() == sample.label
            assert mask.mean() < 0.15 and (not sample.label or mask.sum() >= 15), sample.path


def test_counts_and_types_are_those_of_the_listing(rendered):
    category, listing, _ = rendered
    assert len(listing.splits["train"]) == drawing.N_TRAIN
    kinds = [sample.defect for sample in listing.splits["test"]]
    assert kinds.count("good") == drawing.N_TEST_GOOD
    assert all(kinds.count(defect) == drawing.N_PER_DEFECT for defect in demo.DEFECTS[category])
    assert listing.has_masks and [s.path for s in listing.splits["test"]] == sorted(
        s.path for s in listing.splits["test"]
    )


@pytest.mark.parametrize("category, defect", [(c, d) for c in demo.CATEGORIES for d in demo.DEFECTS[c]])
def test_the_scene_without_the_defect_differs_in_the_mask_and_nowhere_else(category, defect):
    draw = {"weave": demo._weave, "washer": demo._washer}[category]
    for number in range(5):
        (whole, nothing), (broken, mask) = (
            draw(*np.random.default_rng(number).spawn(2), which) for which in ("good", defect)
        )
        change = np.abs(whole - broken).max(-1)
        assert not nothing.any() and (change[mask] > 0.02).mean() > 0.35  # half of a misweave is as before
        assert not (change[~ndimage.binary_dilation(mask, iterations=4)] > 0.05).any()


def test_no_simple_statistic_reaches_what_a_detector_must(rendered):
    _, listing, splits = rendered
    labels = np.array([sample.label for sample in listing.splits["test"]])
    values = splits["test"][0].astype(float)
    for statistic, bound in ((np.mean, 0.8), (np.std, 0.8), (np.max, 0.8), (np.min, 0.95)):
        auroc = roc_auc_score(labels, statistic(values, axis=(1, 2, 3)))
        assert max(auroc, 1 - auroc) < bound, statistic


def test_written_files_are_read_back_as_a_folder(tmp_path):
    from jaxad.data.builders import MvtecAd

    demo.write(tmp_path, "weave")
    listing = MvtecAd.listing(tmp_path, "weave").check()
    assert listing.splits == demo.listing("weave").splits
    path = "weave/test/hole/002.png"
    image, mask = demo.render(path)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / path)), image)
    truth = np.asarray(Image.open(tmp_path / "weave/ground_truth/hole/002_mask.png"))
    np.testing.assert_array_equal(truth > 0, mask)


def test_demo_is_opened_in_seconds_and_equals_what_is_drawn(demo_cache):
    from jaxad import config as configs
    from jaxad.data import catalog

    config = configs.default("patchcore")
    config.data.dataset, config.data.category, config.data.cache_dir = "demo", "washer", demo_cache
    source = catalog.open_source(config, "washer")
    assert source.root == "" and source.has_masks
    record = source.records("test")[5]
    image, mask = source.load("test", 5)
    expected, expected_mask = demo.render(record.path)
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(mask, expected_mask)
    config.data.category = "wash"
    with pytest.raises(UserError, match="nearest: washer"):
        catalog.categories(config)
