"""Folders of images to pre-train on: classes from folders, official splits, and classes from a materialised file."""

import json
import os
import types
import zipfile

import fake_layouts as layouts
import numpy as np
import pytest
from fake_data import FakeSource, assert_same, config, take

from jaxad import methods
from jaxad.data import builders, catalog, images, materialize, pipeline
from jaxad.data.pipeline import Pipeline
from jaxad.types import Feed, Record, Stage, UserError, View

CLASSED = Feed(4, views=(View("kind", "class"),))


def listing(root, category):
    return builders.Images.listing(root, category).check()


def kinds(listing, split="train"):
    return {sample.path: sample.kind for sample in listing.splits[split]}


def zoo(root):
    """cat/ (2 sizes, one grey), dog/big/, dog/, and one image in the folder itself; other things among them."""
    layouts.save(root / "zoo" / "cat" / "b.JPEG", layouts.pixels(1, (30, 20)))
    layouts.save(root / "zoo" / "cat" / "a.png", layouts.pixels(2, (17, 23), grey=True))
    layouts.save(root / "zoo" / "dog" / "big" / "x.bmp", layouts.pixels(3))
    layouts.save(root / "zoo" / "dog" / "y.png", layouts.pixels(4))
    layouts.save(root / "zoo" / "z.png", layouts.pixels(5))
    (root / "zoo" / "cat" / "labels.txt").write_text("cat")
    layouts.save(root / "zoo" / "dog" / "._y.png", layouts.pixels(6))
    layouts.save(root / "zoo" / ".thumbnails" / "y.png", layouts.pixels(6))
    return root


def imagenet(root):
    """Two classes, officially split, and an unlabelled test set beside."""
    for split, number in (("train", 3), ("val", 2)):
        for kind in ("n01", "n02"):
            for i in range(number):
                layouts.save(root / split / kind / f"{i}.png", layouts.pixels((len(split), int(kind[1:]), i)))
    layouts.save(root / "test" / "0.png", layouts.pixels(9))
    return root


def test_the_class_is_the_folder_below_the_category_at_any_depth(tmp_path):
    found = listing(zoo(tmp_path), "zoo")
    assert kinds(found) == {
        "zoo/cat/a.png": "cat",
        "zoo/cat/b.JPEG": "cat",
        "zoo/dog/big/x.bmp": "dog/big",
        "zoo/dog/y.png": "dog",
        "zoo/z.png": "",
    }
    assert list(kinds(found)) == sorted(kinds(found)) and list(found.splits) == ["train"]
    assert not any(sample.label or sample.mask for sample in found.splits["train"])


def test_folders_together_keep_equal_class_names_apart(tmp_path):
    zoo(tmp_path)
    layouts.save(tmp_path / "farm" / "cat" / "a.png", layouts.pixels(7))
    layouts.save(tmp_path / "farm" / "b.png", layouts.pixels(8))
    layouts.save(tmp_path / "sea" / "b.png", layouts.pixels(8))
    both = kinds(listing(tmp_path, "zoo+farm"))
    assert both["zoo/cat/a.png"] == "zoo/cat" and both["farm/cat/a.png"] == "farm/cat"
    assert both["zoo/z.png"] == "zoo" and both["farm/b.png"] == "farm" and len(both) == 7
    everything = kinds(listing(tmp_path, ""))  # the root is all of them
    assert everything == both | {"sea/b.png": "sea"}


def test_an_official_split_is_honoured_and_what_lies_beside_it_left_out(tmp_path):
    imagenet(tmp_path / "small")
    alone, root = listing(tmp_path, "small"), listing(tmp_path / "small", "")
    assert kinds(alone)["small/train/n01/2.png"] == kinds(root)["train/n01/2.png"] == "n01"
    assert kinds(alone, "test") == {f"small/val/{kind}/{i}.png": kind for kind in ("n01", "n02") for i in range(2)}
    assert len(alone.splits["train"]) == len(root.splits["train"]) == 6 and "official split" in alone.notes[0]
    zoo(tmp_path)
    together = listing(tmp_path, "")
    assert kinds(together)["small/train/n01/2.png"] == kinds(together, "test")["small/val/n01/1.png"] == "small/n01"
    assert (len(together.splits["train"]), len(together.splits["test"])) == (11, 4)


def test_a_folder_named_train_without_val_is_a_class(tmp_path):
    for kind in ("train", "car"):
        layouts.save(tmp_path / "vehicles" / kind / "0.png", layouts.pixels(0))
    assert set(kinds(listing(tmp_path, "vehicles")).values()) == {"car", "train"}


def test_a_link_to_a_folder_above_is_not_followed_for_ever(tmp_path):
    root = zoo(tmp_path / "data")
    os.symlink(root / "zoo", root / "zoo" / "dog" / "again")
    layouts.save(tmp_path / "elsewhere" / "0.png", layouts.pixels(0))
    os.symlink(tmp_path / "elsewhere", root / "zoo" / "cow")
    found = kinds(listing(root, "zoo"))
    assert len(found) == 6 and found["zoo/cow/0.png"] == "cow"


@pytest.mark.parametrize(
    "made, category, said",
    [
        ({"empty/a.txt": None}, "empty", "is not in .*"),
        ({"one/a.png": 1, "two/a.png": 1}, "one", "holds one image to train on .* at least two"),
        ({"one/train/c/a.png": 1, "one/val/c/a.png": 1, "one/val/c/b.png": 1}, "one", "holds one image to train on"),
        ({"zoo/c/a.png": 1, "zoo/d/a.png": 1}, "zou", "nearest: zoo"),
        ({"zoo/c/a.png": 1, "zoo/d/a.png": 1}, "zoo+dt", "category='dt' is not in"),
        ({"a/x.txt": None}, "all", "holds no images at any depth"),
        ({"s/train/good/0.png": 1, "s/ground_truth/crack/0_mask.png": 1}, "s", "0_mask.png is a mask"),
    ],
)
def test_unusable_folders_are_refused_in_one_line(tmp_path, made, category, said):
    for name, image in (made | {"other/c/0.png": 1} if category == "empty" else made).items():
        if image:
            layouts.save(tmp_path / "data" / name, layouts.pixels(0))
        else:
            (tmp_path / "data" / name).parent.mkdir(parents=True)
            (tmp_path / "data" / name).write_text("no image")
    asked = settings(tmp_path, category)
    with pytest.raises(UserError, match=said) as caught:
        catalog.open_source(asked, catalog.categories(asked)[0])
    assert "\n" not in str(caught.value)


def settings(tmp_path, category, **data):
    return config(
        dataset="images", root=str(tmp_path / "data"), category=category, cache_dir=str(tmp_path / "cache"), **data
    )


def test_category_names_are_the_root_a_list_or_folders_together(tmp_path):
    zoo(tmp_path / "data")
    imagenet(tmp_path / "data" / "small")
    for asked, names in (
        ("", ("data",)),
        ("all", ("data",)),
        ("zoo", ("zoo",)),
        ("small, zoo", ("small", "zoo")),
        ("zoo+small", ("zoo+small",)),
    ):
        assert catalog.categories(settings(tmp_path, asked)) == names
    layouts.save(tmp_path / "data" / "data" / "0.png", layouts.pixels(0))  # a folder with the root's own name
    layouts.save(tmp_path / "data" / "data" / "1.png", layouts.pixels(1))
    assert len(catalog.list_category(settings(tmp_path, "data"), "data").splits["train"]) == 2
    assert len(catalog.list_category(settings(tmp_path, "all"), "data").splits["train"]) == 13


@pytest.mark.parametrize("memory_mb", [64, 0])
def test_images_of_all_sizes_are_served_square_with_their_class(tmp_path, memory_mb):
    root = zoo(tmp_path / "data")
    data = pipeline.open(settings(tmp_path, "zoo", memory_mb=memory_mb), "zoo")
    spec = data.spec
    assert (spec.n_train, spec.n_holdout, spec.n_test_normal, spec.n_test_anomalous) == (5, 0, 0, 0)
    assert spec.kinds == ("", "cat", "dog", "dog/big") and not spec.has_masks
    assert [record.kind for record in data.records("train")] == ["cat", "cat", "dog/big", "dog", ""]
    for batch in take(data, CLASSED, 0, 4):
        assert batch.views["kind"].dtype == np.int32 and batch.views["kind"].shape == (4,)
        assert batch.views["kind"].tolist() == [(1, 1, 3, 2, 0)[row] for row in batch.index]
    (whole,) = take(data, Feed(5, shuffle=False), 0, 1)
    for row, record in enumerate(data.records("train")):
        expected = images.resize_image(images.decode(root / record.path), 32)
        np.testing.assert_array_equal(np.rint(whole.image[row] * 255), expected)


def test_the_last_ordered_batch_is_padded_with_some_class(tmp_path):
    zoo(tmp_path / "data")
    data = pipeline.open(settings(tmp_path, "zoo"), "zoo")
    last = take(data, Feed(4, shuffle=False, views=CLASSED.views), 0, 2)[1]
    assert last.views["kind"][0] == 0 and last.valid.tolist() == [True, False, False, False]


def test_held_out_and_official_test_images_keep_their_class(tmp_path):
    imagenet(tmp_path / "data" / "small")
    data = pipeline.open(settings(tmp_path, "small", holdout=0.34), "small")
    assert (data.spec.n_train, data.spec.n_holdout, data.spec.n_test_normal) == (4, 2, 4)
    for split in ("train", "holdout", "test"):
        assert all(record.kind == record.path.split("/")[2] for record in data.records(split))
    with pytest.raises(UserError, match="class, which is known of training images alone"):
        take(data, Feed(2, "holdout", views=CLASSED.views), 0, 1)


def test_images_in_one_folder_have_no_classes_and_the_view_says_what_to_do():
    data = Pipeline(config(), FakeSource(name="heap"))
    assert data.spec.kinds == ()
    with pytest.raises(UserError, match="config.data.category=heap has no classes: put the images of each class into"):
        data.batches(CLASSED, seed=0, stage="fit", start=0, stop=1, rows=slice(None)).__next__()


class Classed(FakeSource):
    """Kinds b, a, b, a, ... in training, c in the test set."""

    def records(self, split):
        kind = {"train": "ba", "test": "c"}[split]
        return tuple(
            Record(record.path, False, "good", kind[i % len(kind)]) for i, record in enumerate(super().records(split))
        )


def test_a_materialised_file_keeps_classes_and_serves_the_view(tmp_path, monkeypatch):
    source, path = Classed(name="bolt"), str(tmp_path / "f.data")
    stage = Stage("fit", CLASSED, 6, init=None, update=None)
    monkeypatch.setattr(catalog, "categories", lambda config: ("bolt",))
    monkeypatch.setattr(catalog, "open_source", lambda config, category: source)
    monkeypatch.setattr(methods, "resolve", lambda method: types.SimpleNamespace(stages=lambda *_: (stage,)))
    materialize.write(config(holdout=0.2), path, n_bank=5)
    ours = pipeline.open(config(holdout=0.2), "bolt")
    theirs = pipeline.open(config(holdout=0.2, source=path), "bolt")
    assert theirs.spec == ours.spec and ours.spec.kinds == ("a", "b")
    for split in ("train", "holdout", "test"):
        assert theirs.records(split) == ours.records(split)
    options = dict(seed=config().seed, stage="fit")
    assert_same(take(theirs, CLASSED, 0, 5, **options), take(ours, CLASSED, 0, 5, **options))

    old = str(tmp_path / "old.data")  # as it was written before there were classes
    with zipfile.ZipFile(path) as one, zipfile.ZipFile(old, "w") as other:
        for name in one.namelist():
            data = one.read(name)
            if name == "header.json":
                header = json.loads(data)
                del header["categories"]["bolt"]["spec"]["kinds"]
                records = header["categories"]["bolt"]["records"]
                header["categories"]["bolt"]["records"] = {key: [r[:3] for r in rows] for key, rows in records.items()}
                for key in ("protocol", "k_shot", "draw"):
                    header["settings"].pop(key, None)
                data = json.dumps(header)
            other.writestr(name, data)
    read = pipeline.open(config(holdout=0.2, source=old), "bolt")
    assert read.spec.kinds == () and read.records("train")[0].kind == ""
    assert_same(take(read, Feed(4), 0, 2), take(ours, Feed(4), 0, 2))


def test_tiny_imagenet_lists_its_5000_images_of_20_classes(real_data):
    found = listing(real_data, "tiny_imagenet")
    assert len(found.splits["train"]) == 5000 and len(set(kinds(found).values())) == 20
    assert all(path.split("/")[1] == kind for path, kind in kinds(found).items())
