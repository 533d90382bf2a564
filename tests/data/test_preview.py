"""A sheet shows what the stage is served, pixel for pixel."""

import os
import types

import numpy as np
import pytest
from fake_data import FakeSource, config, take
from PIL import Image

from jaxad import methods
from jaxad.data import catalog, pipeline, preview
from jaxad.drawing import TRUTH
from jaxad.types import Feed, Stage, UserError, View

VIEWS = (View("rotated", "rotated"), View("mixed", "fake_data:mixed"))
FEEDS = {
    "fit": Feed(4, shuffle=False),
    "contrast": Feed(4, "train_normal", views=VIEWS),
    "last": Feed(5, "test", shuffle=False),
}
ROWS = ["image", "rotated", "mixed", "mixed_source", "mixed_mask", "mixed + mask"]
SIDE = 96  # of a tile: three times the 32 pixels of an image


@pytest.fixture
def fakes(monkeypatch):
    """Two categories without files, and a method whose stages have the FEEDS."""
    sources = {name: FakeSource(name=name, n_train=n) for name, n in (("bolt", 11), ("nut", 7))}
    stages = tuple(Stage(name, feed, 6, init=None, update=None) for name, feed in FEEDS.items())
    chosen = types.SimpleNamespace(stages=lambda config, spec: stages)
    monkeypatch.setattr(catalog, "categories", lambda config: ("bolt",) if config.data.category else tuple(sources))
    monkeypatch.setattr(catalog, "open_source", lambda config, category: sources[category])
    monkeypatch.setattr(methods, "resolve", lambda method: chosen)
    return sources


def draw(tmp_path, stage="", count=6, **data):
    """(the sheet of 'bolt', the batches that it should show)."""
    path = str(tmp_path / "sheet.png")
    preview.write(config(category="bolt", **data), path, stage=stage, count=count)
    data = pipeline.open(config(category="bolt", **data), "bolt")
    name = stage or "contrast"
    n = FEEDS[name].one_pass(min(count, len(data.records(FEEDS[name].split))))
    batches = take(data, FEEDS[name], 0, n, seed=config().seed, stage=name)
    return np.asarray(Image.open(path)), batches


def tile(picture, row, column, side=SIDE):
    left, top = preview.corner(row, column, side)
    return picture[top : top + side, left : left + side]


def shown(image):
    """f32[32, 32, 3] or bool[32, 32] -> the tile that is exactly it."""
    image = np.round(image.astype(np.float32) * 255).astype(np.uint8)
    image = np.repeat(image[..., None], 3, axis=-1) if image.ndim == 2 else image
    return image.repeat(3, axis=0).repeat(3, axis=1)


def test_each_tile_is_the_view_of_its_example(fakes, tmp_path):
    picture, batches = draw(tmp_path)
    for column in range(6):
        batch, i = batches[column // 4], column % 4
        for row, name in enumerate(ROWS[:4]):
            served = batch.image if name == "image" else batch.views[name]
            np.testing.assert_array_equal(tile(picture, row, column), shown(served[i]), err_msg=f"{name} {column}")
    assert picture.shape[:2] == preview.corner(len(ROWS), 6, SIDE)[::-1]  # six columns, though the batches hold eight


def test_a_mask_is_white_exactly_where_it_is_true(fakes, tmp_path):
    picture, batches = draw(tmp_path)
    for column in range(6):
        mask = batches[column // 4].views["mixed_mask"][column % 4]
        assert 0.2 < mask.mean() < 0.8
        np.testing.assert_array_equal(tile(picture, ROWS.index("mixed_mask"), column), shown(mask))


def test_a_mask_is_outlined_on_the_view_that_it_belongs_to(fakes, tmp_path, monkeypatch):
    square = np.zeros((2, 32, 32), bool)
    square[:, 8:20, 10:22] = True
    images = np.random.default_rng(0).random((2, 32, 32, 3)).astype(np.float32) * 0.5
    views = {"a": images, "a_mask": square, "other_mask": square, "a_box": np.zeros((2, 4), np.int32)}
    label = np.zeros(2, bool)
    batch = types.SimpleNamespace(image=images, views=views, index=np.arange(2), valid=~label, label=label)
    columns, left_out = preview.examples(
        pipeline.open(config(), "bolt"), Stage("s", FEEDS["fit"], 1, None, None), [batch], 2
    )
    assert list(columns[0].tiles) == ["image", "a", "a_mask", "a + mask", "other_mask"]
    assert left_out == ["a_box int32[4]"]
    drawn = tile(np.asarray(preview.sheet("title", columns)), 3, 1)
    inside = shown(square[0])[..., 0] > 0
    np.testing.assert_array_equal(drawn[inside], shown(images[1])[inside])
    green = (drawn == TRUTH).all(axis=-1)
    assert green.any() and not green[inside].any() and green[8 * 3 - 1, 15 * 3] and not green[:20].any()


def test_real_anomalies_are_shown_with_their_mask_and_padding_is_not(fakes, tmp_path):
    picture, batches = draw(tmp_path, stage="last", count=99)  # the split has 12 images
    assert picture.shape[:2] == preview.corner(3, 12, SIDE)[::-1]
    assert batches[0].label[0] and batches[0].mask[0].any()
    np.testing.assert_array_equal(tile(picture, 1, 0), shown(batches[0].mask[0]))
    assert (tile(picture, 2, 0) == TRUTH).all(axis=-1).any()
    assert not (tile(picture, 2, 11) == TRUTH).all(axis=-1).any()  # a normal image


def test_the_first_stage_with_views_is_shown_unless_another_is_asked_for(fakes, tmp_path):
    path = str(tmp_path / "a.png")
    said = preview.write(config(category="bolt"), path)
    assert said.splitlines() == [
        f"{path}: 12 examples of stage contrast, bolt: {', '.join(ROWS)}",
        "bolt: mixed_seed int32[2]: not a picture, not drawn",
    ]
    assert preview.write(config(category="bolt"), path, stage="fit") == f"{path}: 11 examples of stage fit, bolt: image"


def test_several_categories_have_a_file_each(fakes, tmp_path):
    preview.write(config(), str(tmp_path / "sheet.png"), count=2)
    assert sorted(os.listdir(tmp_path)) == ["sheet_bolt.png", "sheet_nut.png"]


def test_large_images_are_reduced_and_a_thin_mask_survives(fakes, tmp_path):
    picture, _ = draw(tmp_path, stage="last", count=1, image_size=600)
    assert tile(picture, 1, 0, preview.LARGE).max() == 255
    assert picture.shape[0] == preview.corner(3, 1, preview.LARGE)[1]


def test_a_sheet_is_the_same_every_time(fakes, tmp_path):
    first, _ = draw(tmp_path)
    second, _ = draw(tmp_path)
    np.testing.assert_array_equal(first, second)


def test_a_stage_that_does_not_exist_names_the_nearest(fakes, tmp_path):
    with pytest.raises(UserError, match="has no stage 'contrst'; the nearest is 'contrast'"):
        preview.write(config(), str(tmp_path / "a.png"), stage="contrst")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "name, said",
    [("none/a.png", "cannot write .*another --out"), ("a.jpg", "ends in .png"), ("folder.png", "cannot write")],
)
def test_a_path_that_cannot_be_written_is_refused_before_anything_is_read(fakes, tmp_path, name, said):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=said):
        preview.write(config(), str(tmp_path / name))
    assert all(source.loads == 0 for source in fakes.values())


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(fakes, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preview.os, "replace", full)
    with pytest.raises(UserError, match="No space left on device; choose another --out"):
        preview.write(config(category="bolt"), str(tmp_path / "a.png"))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "arguments, said",
    [([], "--out=FILE.png"), (["--ouut=x"], "ouut"), (["--out=x.png", "--count=0"], "count")],
)
def test_a_bad_command_line_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, said):
    file = tmp_path / "c.py"
    file.write_text("from jaxad import config\ndef get_config(variant=None):\n    return config.default('patchcore')\n")
    assert preview.main(["preview", f"--config={file}", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1


def test_the_command_draws_the_demo(tmp_path, demo_cache, capsys):
    file, out = tmp_path / "c.py", str(tmp_path / "demo.png")
    file.write_text(
        "from jaxad import config\n"
        "def get_config(variant=None):\n"
        "    result = config.default('patchcore')\n"
        f"    result.data.update(image_size=32, category='weave', cache_dir={demo_cache!r})\n"
        "    result.backbone.weights = 'random'\n"
        "    return result\n"
    )
    assert preview.main(["preview", f"--config={file}", f"--out={out}", "--count=3"]) == 0
    assert capsys.readouterr().out == f"{out}: 3 examples of stage fit, weave: image\n"
    assert Image.open(out).size == (preview.LEFT + 2 * preview.LARGE, preview.corner(1, 3, SIDE)[1])
