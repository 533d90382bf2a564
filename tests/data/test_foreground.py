import fake_layouts as layouts
import numpy as np
import pytest
import tensorflow as tf
from fake_data import FakeSource, config, take
from scipy import ndimage

from jaxad.data import catalog, images, pipeline, views
from jaxad.data.pipeline import Pipeline
from jaxad.data.synthesis import foreground, xyz
from jaxad.types import Feed, UserError, View


def mean_brightness(image):
    return image.astype(float).mean(axis=-1)


def noise(seed, height=37, width=44):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [5, 7])
@pytest.mark.parametrize("density", [0.3, 0.5, 0.7])
def test_majority_equals_scipys_median(size, density):
    mask = np.random.default_rng(size).random((29, 41)) < density
    theirs = ndimage.median_filter(mask.astype(np.uint8), size, mode="nearest") > 0
    assert np.array_equal(foreground.majority(tf.constant(mask), size).numpy(), theirs)
    assert 0 < theirs.sum() < theirs.size


def test_several_backgrounds_are_anded():
    image = noise(1)
    pairs = ((20.0, 30.0), (200.0, 60.0))
    ours = foreground.by_brightness(tf.constant(image), pairs, measured=False).numpy()
    both = np.logical_and.reduce([np.abs(mean_brightness(image) - b) > t for b, t in pairs])
    theirs = ndimage.median_filter(both.astype(np.uint8), 7, mode="nearest") > 0
    assert np.array_equal(ours, theirs) and 0 < ours.mean() < 1


def test_a_pixel_at_the_threshold_itself_is_background():
    image = np.full((20, 20, 3), 140, np.uint8)  # 60 below 200
    assert not foreground.by_brightness(tf.constant(image), ((200.0, 60.0),), measured=False).numpy().any()
    assert foreground.by_brightness(tf.constant(image - 1), ((200.0, 60.0),), measured=False).numpy().all()


def scene(seed, side=64, background=205, dark=70):
    """u8[side, side, 3] and the object in it: a dark square on a bright ground, both noisy."""
    generator = np.random.default_rng(seed)
    there = np.zeros((side, side), bool)
    there[side // 3 : side * 2 // 3, side // 4 : side // 2] = True
    values = np.where(there, dark, background) + generator.normal(0, 4, (side, side))
    return np.repeat(np.rint(values).astype(np.uint8)[..., None], 3, axis=2), there


def test_measure_finds_background_and_object_in_the_normals():
    normals = np.stack([scene(seed)[0] for seed in range(5)])
    brightness, threshold = foreground.measure(normals)
    assert brightness == pytest.approx(205, abs=1)
    assert 30 < threshold < 115  # the background's noise ends near 17, the object begins near 119
    image, there = scene(9)
    ours = foreground.by_brightness(tf.constant(image), ((brightness, threshold),), measured=True).numpy()
    assert (ours & there).sum() / (ours | there).sum() > 0.9  # the median rounds the corners


@pytest.mark.parametrize("gap", [1, 51])
def test_otsu_equals_the_definition_in_the_middle_of_a_gap(gap):
    histogram = np.random.default_rng(3).integers(1, 50, 256)
    histogram[:59] = histogram[220:] = histogram[100 : 99 + gap] = 0
    levels, total = np.arange(256), histogram.sum()
    variance = np.zeros(255)
    for cut in range(59, 219):  # the first and last level that occur
        low, high = histogram[: cut + 1], histogram[cut + 1 :]
        means = (low @ levels[: cut + 1]) / low.sum(), (high @ levels[cut + 1 :]) / high.sum()
        variance[cut] = low.sum() / total * high.sum() / total * (means[0] - means[1]) ** 2
    cuts = np.flatnonzero(np.isclose(variance, variance.max(), rtol=1e-9))
    assert foreground.otsu(histogram) == (cuts[0] + cuts[-1]) / 2 + 0.5
    assert len(cuts) == gap


def test_otsu_finds_nothing_above_the_only_level():
    assert foreground.otsu(np.bincount([7, 7], minlength=256)) == 7.5


@pytest.mark.parametrize("threshold, expected", [(0.5, True), (254.0, True), (60.0, None)])
def test_an_implausible_share_of_foreground_makes_everything_foreground(threshold, expected):
    image, there = scene(4)
    ours = foreground.by_brightness(tf.constant(image), ((205.0, threshold),), measured=True).numpy()
    assert ours.all() if expected else 0.05 < ours.mean() < 0.3
    if threshold == 254.0:  # and only where it was measured: NSA's own thresholds are trusted
        assert not foreground.by_brightness(tf.constant(image), ((205.0, 254.0),), measured=False).numpy().any()


def test_the_border_strip_scales_with_the_image():
    strip = foreground.border((256, 512))
    assert strip[9].all() and not strip[10, 20:-20].any() and strip[128].sum() == 40
    assert foreground.border((16, 16)).sum() == 16 * 16 - 14 * 14


def plane_with_object(side=80, tilt=0.3, height=0.02):
    """xyz in metres, with noise, holes and outliers, and where the object is: a disc above a tilted plane."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side * 0.1 - 0.05
    z = 0.5 + tilt * x - 0.2 * y + generator.normal(0, 0.0005, (side, side))
    disc = (x - 0.01) ** 2 + (y + 0.005) ** 2 < 0.02**2
    z[disc] -= height
    points = np.stack([x, y, z], axis=2)
    points[2:8, 5:30, 2] -= 0.1  # something else in the strip, smaller than the object
    points[generator.random((side, side)) < 0.02] = 0
    return points.astype(np.float32), disc


def test_standing_out_finds_the_object_on_a_tilted_plane():
    points, disc = plane_with_object()
    ours = xyz.standing_out(points)
    valid = (points != 0).any(axis=2)
    assert (ours & disc).sum() / ((ours | disc) & valid).sum() > 0.97
    assert not ours[2:8, 5:30].any() and not ours[~valid].any()
    assert np.array_equal(ours, xyz.standing_out(points.copy()))


def test_what_is_lower_than_five_millimetres_does_not_stand_out():
    points, disc = plane_with_object(height=0.003)
    assert not (xyz.standing_out(points) & disc).any()


def test_without_a_plane_every_valid_point_stands_out():
    points = np.zeros((60, 60, 3), np.float32)
    points[20:30, 25:45] = (0.0, 0.0, 0.5)
    assert np.array_equal(xyz.standing_out(points), (points != 0).any(axis=2))
    assert not xyz.standing_out(np.zeros((60, 60, 3), np.float32)).any()


class WithForeground(FakeSource):
    """Knows where the object is, half an image wide, and counts how often it is asked."""

    def __init__(self, **options):
        super().__init__(**options)
        self.reads = 0
        self.there = {key: np.zeros(mask.shape, bool) for key, mask in self.masks.items()}
        for (_, i), mask in self.there.items():
            mask[:, : 5 + i] = True

    def foreground(self, split, i):
        self.reads += 1
        return self.there[split, i]


@pytest.fixture
def shown(monkeypatch):
    """A view of the foreground of the image itself and of another one."""

    def op(image, context, seed):
        row = context.draw_row(seed)
        return {"image": context.foreground(context.index), "row": row, "other": context.foreground(row)}

    monkeypatch.setitem(views.OPS, "shown", op)
    return View("shown", "shown")


def test_foreground_reaches_the_op_resized_like_a_mask_and_is_read_once(shown):
    source = WithForeground()
    data = Pipeline(config(n_anomalies=2), source)
    take(data, Feed(4), 0, 1)
    assert source.reads == 0
    where = {record: (s, i) for s in ("train", "test") for i, record in enumerate(source.records(s))}
    for _ in range(2):
        (batch,) = take(data, Feed(13, views=(shown,), shuffle=False), 0, 1)
        for key, rows in (("shown", range(13)), ("shown_other", batch.views["shown_row"])):
            for mask, row in zip(batch.views[key], rows, strict=True):
                there = source.there[where[data.records("train")[row]]]
                assert np.array_equal(mask, images.resize_mask(there, 32))
    assert source.reads == 13


def test_padding_has_no_foreground(shown):
    (batch,) = take(Pipeline(config(), WithForeground()), Feed(16, views=(shown,), shuffle=False), 0, 1)
    assert batch.views["shown"][:11].any(axis=(1, 2)).all() and not batch.views["shown"][11:].any()


def test_foreground_is_known_of_training_images_alone(shown):
    with pytest.raises(UserError, match="training images alone"):
        Pipeline(config(holdout=0.3), WithForeground()).batches(
            Feed(2, "holdout", views=(shown,)), seed=0, stage="s", start=0, stop=1, rows=slice(None)
        )


def test_xyz_is_refused_before_the_first_batch_where_the_data_set_has_none(tmp_path):
    layouts.mvtec(tmp_path / "data")
    chosen = config(
        dataset="mvtec_ad", root=str(tmp_path / "data"), category="screw", cache_dir=str(tmp_path / "cache")
    )
    feed = Feed(2, views=(View("nsa", "nsa", {"foreground": "xyz"}),))
    with pytest.raises(UserError, match="data.dataset=mvtec_3d_ad"):
        pipeline.open(chosen, "screw").batches(feed, seed=0, stage="s", start=0, stop=1, rows=slice(None))


def test_mvtec_3d_ad_stores_the_foreground_of_its_points(tmp_path):
    points, disc = plane_with_object(side=64)
    root = layouts.mvtec_3d(tmp_path / "data")
    for base in root.glob("bagel/*/*"):
        for path in base.glob("rgb/*.png"):
            layouts.save(path, layouts.pixels(int(path.stem), (64, 64)))
            (base / "xyz" / f"{path.stem}.tiff").write_bytes(layouts.tiff(points))
            if (base / "gt").is_dir():
                layouts.save(base / "gt" / path.name, layouts.blob(255, (64, 64)))
    chosen = config(dataset="mvtec_3d_ad", root=str(root), category="bagel", cache_dir=str(tmp_path / "cache"))
    source = catalog.open_source(chosen, "bagel")
    for split, i in (("train", 2), ("test", 3)):
        assert np.array_equal(source.foreground(split, i), xyz.standing_out(points))
    (batch,) = take(pipeline.open(chosen, "bagel"), Feed(6, views=(View("nsa", "nsa", {"foreground": "xyz"}),)), 0, 1)
    # Seldom of the image's full size: the object here is a disc, and what was changed lies at it.
    near = ndimage.binary_dilation(images.resize_mask(disc, 32), iterations=8)
    assert batch.views["nsa_mask"].any() and not batch.views["nsa_mask"][:, ~near].any()
