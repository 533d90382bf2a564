"""Each data set through `tfds.builder`, on a tiny copy of its real layout, and what a listing finds wrong."""

import fake_layouts as layouts
import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxad.data import builders, images
from jaxad.data.builders.mvtec_3d_ad import read_xyz
from jaxad.data.listing import Sample, pair_masks
from jaxad.errors import UserError


def prepare(name, manual, tmp_path, **options):
    """A prepared builder, as anyone would get it; its splits as lists of decoded examples."""
    builder = tfds.builder(name, data_dir=str(tmp_path / "prepared"), file_format="array_record", **options)
    config = tfds.download.DownloadConfig(manual_dir=str(manual) if manual else None)
    builder.download_and_prepare(download_config=config)
    return {split: list(builder.as_data_source(split=split)) for split in builder.info.splits}


def paths(examples):
    return [example["path"].decode() for example in examples]


def test_mvtec_ad_matches_masks_by_stem_and_keeps_path_order(tmp_path):
    base = layouts.mvtec(tmp_path / "data")
    (base / "test" / "crack" / "001.png").unlink()  # sorted positions no longer agree with stems
    (base / "ground_truth" / "crack" / "001_mask.png").unlink()
    splits = prepare("mvtec_ad/screw", tmp_path / "data", tmp_path)
    assert paths(splits["train"]) == [f"screw/train/good/{i:03d}.png" for i in range(4)]
    assert paths(splits["test"]) == sorted(paths(splits["test"])) and len(splits["test"]) == 6
    last = next(example for example in splits["test"] if example["path"] == b"screw/test/crack/002.png")
    assert last["label"] == 1 and last["defect"] == b"crack" and last["has_mask"]
    np.testing.assert_array_equal(
        last["mask"][..., 0], images.decode_mask(base / "ground_truth/crack/002_mask.png") * 255
    )
    good = next(example for example in splits["test"] if example["defect"] == b"good")
    assert good["label"] == 0 and not good["mask"].any() and good["mask"].shape[:2] == good["image"].shape[:2]
    np.testing.assert_array_equal(last["image"][..., 0], images.decode(base / "test/crack/002.png")[..., 0])


def test_mvtec_ad_is_read_by_tf_data_as_rgb(tmp_path):
    layouts.mvtec(tmp_path / "data", grey=True)
    prepare("mvtec_ad/screw", tmp_path / "data", tmp_path)
    builder = tfds.builder("mvtec_ad/screw", data_dir=str(tmp_path / "prepared"), file_format="array_record")
    source = builder.as_data_source(split="test", decoders={"image": tfds.decode.SkipDecoding()})
    encoded = source[0]["image"]
    assert encoded == (tmp_path / "data/screw/test/crack/000.png").read_bytes()  # untouched
    decoded = builder.info.features["image"].decode_example(encoded).numpy()
    np.testing.assert_array_equal(decoded, images.decode(encoded))


def test_btad_mixes_extensions_and_thresholds_grey_masks(tmp_path):
    root = layouts.btad(tmp_path / "data")
    for category, extension in (("01", "bmp"), ("02", "png"), ("03", "bmp")):
        splits = prepare(f"btad/{category}", root, tmp_path)
        assert (len(splits["train"]), len(splits["test"])) == (3, 4)
        bad = [example for example in splits["test"] if example["label"] == 1]
        assert paths(bad) == [f"{category}/test/ko/{i:04d}.{extension}" for i in range(2)]
        assert [example["defect"] for example in splits["test"] if example["label"] == 0] == [b"good", b"good"]
        np.testing.assert_array_equal(
            bad[1]["mask"][..., 0] > 0, images.decode_mask(_btad_mask(root, category), above=127)
        )
        assert not (bad[1]["mask"][4, 3:12, 0] > 0).any()
        np.testing.assert_array_equal(bad[0]["image"], images.decode(root / paths(bad)[0]))


def _btad_mask(root, category):
    return next((root / category / "ground_truth" / "ko").glob("0001.*"))


def test_visa_tells_equal_names_apart_and_reads_class_ids(tmp_path):
    root = layouts.visa(tmp_path / "data")
    splits = prepare("visa/cashew", root, tmp_path)
    assert len(splits["train"]) == 5 and len(splits["test"]) == 5
    bad = {example["path"].decode(): example for example in splits["test"] if example["label"]}
    assert list(bad) == [f"cashew/Data/Images/Anomaly/{i:03d}.JPG" for i in range(4)]
    assert set(bad) & set(paths(splits["train"])) == set()
    third = bad["cashew/Data/Images/Anomaly/002.JPG"]
    np.testing.assert_array_equal(third["mask"][..., 0] > 0, layouts.blob(at=(1, 2, 6, 9)) > 0)
    np.testing.assert_array_equal(third["image"].shape, (20, 24, 3))


def test_visa_two_class_splits_put_anomalies_into_train(tmp_path):
    root = layouts.visa(tmp_path / "data")
    counts = {}
    for protocol in ("2cls_highshot", "2cls_fewshot"):
        splits = prepare(f"visa/candle_{protocol}", root, tmp_path)
        counts[protocol] = [
            sum(example["label"] == y for example in splits[s]) for s in ("train", "test") for y in (0, 1)
        ]
    assert counts == {"2cls_highshot": [4, 2, 2, 2], "2cls_fewshot": [2, 1, 4, 3]}


def test_visa_without_split_files_says_so(tmp_path):
    root = layouts.visa(tmp_path / "data")
    (root / "split_csv" / "1cls.csv").unlink()
    with pytest.raises(UserError, match="1cls.csv is missing"):
        prepare("visa/candle", root, tmp_path)


@pytest.mark.parametrize("compression", [1, 8])
def test_mvtec_3d_ad_has_validation_and_point_validity(tmp_path, compression):
    layouts.mvtec_3d(tmp_path / "data", compression=compression)
    splits = prepare("mvtec_3d_ad/bagel", tmp_path / "data", tmp_path)
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 3, "validation": 2, "test": 4}
    assert paths(splits["test"])[2:] == [f"bagel/test/hole/rgb/{i:03d}.png" for i in range(2)]
    expected = np.full((20, 24), 255)
    expected[:, :3] = 0
    np.testing.assert_array_equal(splits["test"][3]["valid"][..., 0], expected)
    assert [int(example["mask"].any()) for example in splits["test"]] == [0, 0, 1, 1]
    assert all(example["label"] == 0 for example in splits["validation"])


def test_xyz_reader_handles_both_byte_orders_and_refuses_the_rest():
    xyz = np.random.default_rng(0).normal(size=(7, 5, 3)).astype(np.float32)
    for order in "<>":
        for compression in (1, 8):
            np.testing.assert_array_equal(read_xyz(layouts.tiff(xyz, compression, order)), xyz)
    for data in (layouts.tiff(xyz)[:60], layouts.tiff(xyz, 5), b"\x89PNG....", layouts.tiff(xyz)[:-5]):
        with pytest.raises(UserError, match="a.tiff is truncated or not a readable xyz image"):
            read_xyz(data, "a.tiff")


def test_xyz_reader_agrees_with_opencv():
    cv2 = pytest.importorskip("cv2")
    xyz = np.random.default_rng(0).normal(size=(6, 8, 3)).astype(np.float32)
    theirs = cv2.imdecode(np.frombuffer(layouts.tiff(xyz), np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]
    np.testing.assert_array_equal(read_xyz(layouts.tiff(xyz)), theirs)
    written = cv2.imencode(".tiff", xyz[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1].tobytes()
    np.testing.assert_array_equal(read_xyz(written), xyz)


def test_folder_builder_takes_a_category_or_the_folder_itself(tmp_path):
    layouts.mvtec(tmp_path / "data", "my parts", grey=False)
    config = builders.FolderConfig(category="my parts")
    under = prepare("folder", tmp_path / "data", tmp_path / "a", config=config)
    itself = prepare("folder", tmp_path / "data" / "my parts", tmp_path / "b")
    assert paths(under["train"])[0] == "my parts/train/good/000.png"
    assert paths(itself["train"])[0] == "train/good/000.png"
    np.testing.assert_array_equal(under["test"][4]["mask"], itself["test"][4]["mask"])


def test_demo_builder_needs_no_folder(tmp_path):
    splits = prepare("demo/washer", None, tmp_path)
    assert {example["defect"].decode() for example in splits["test"]} == {"good", "chip", "crack", "rust", "scratch"}
    assert all(example["mask"].any() == (example["label"] == 1) for example in splits["test"])


def folder_listing(root, category=""):
    return builders.Folder.listing(root, category)


def test_folder_with_good_and_others_says_how_it_was_read(tmp_path):
    for folder, count in (("good", 3), ("dent", 2), ("notes", 0)):
        for i in range(count):
            layouts.save(tmp_path / folder / f"{i}.jpg", layouts.pixels((i, len(folder))))
    layouts.save(tmp_path / "ground_truth" / "dent" / "1.png", layouts.blob())
    listing = folder_listing(tmp_path).check()
    assert listing.splits["train"] == tuple(Sample(f"good/{i}.jpg") for i in range(3))
    assert listing.splits["test"] == (
        Sample("dent/0.jpg", "dent"),
        Sample("dent/1.jpg", "dent", "ground_truth/dent/1.png"),
    )
    assert any("no train folder" in note and "dent" in note for note in listing.notes)
    assert any("1 of 2 anomalous test images have no mask" in note for note in listing.notes)
    assert not listing.has_masks


def test_bare_folder_of_images_is_all_training(tmp_path):
    for i in range(3):
        layouts.save(tmp_path / f"{i}.png", layouts.pixels(i))
    (tmp_path / "._0.png").write_bytes(b"mac")
    (tmp_path / "Thumbs.db").write_bytes(b"win")
    listing = folder_listing(tmp_path).check()
    assert [sample.path for sample in listing.splits["train"]] == ["0.png", "1.png", "2.png"]
    assert "its 3 images are the normal training images" in listing.notes[0]


def test_images_directly_in_train_count_as_good(tmp_path):
    for i in range(2):
        layouts.save(tmp_path / "train" / f"{i}.png", layouts.pixels(i))
    layouts.save(tmp_path / "test" / "bad" / "0.png", layouts.pixels(9))
    listing = folder_listing(tmp_path).check()
    assert [len(listing.splits[split]) for split in ("train", "test")] == [2, 1]
    assert "lie in train/ itself" in listing.notes[0]


def problem_of(listing):
    assert listing.problems, "no problem found"
    return listing.problems[0]


def test_no_and_one_training_image_are_refused(tmp_path):
    layouts.mvtec(tmp_path, "none", train=0)
    layouts.mvtec(tmp_path, "one", train=1)
    assert "no normal training images" in problem_of(folder_listing(tmp_path, "none"))
    assert "one normal training image" in problem_of(folder_listing(tmp_path, "one"))
    with pytest.raises(UserError, match="at least two"):
        folder_listing(tmp_path, "one").check()


def test_masks_that_fit_nothing_or_too_much_are_named(tmp_path):
    base = layouts.mvtec(tmp_path)
    layouts.save(base / "ground_truth" / "crack" / "077_mask.png", layouts.blob())
    assert "077_mask.png is a mask without an image" in problem_of(folder_listing(tmp_path, "screw"))
    (base / "ground_truth" / "crack" / "077_mask.png").rename(base / "ground_truth" / "crack" / "001.png")
    assert "001.png has two masks" in problem_of(folder_listing(tmp_path, "screw"))
    (base / "ground_truth" / "crack" / "001.png").unlink()
    layouts.save(base / "test" / "crack" / "002.jpg", layouts.pixels(4))
    assert "002_mask.png fits both" in problem_of(folder_listing(tmp_path, "screw"))
    (base / "test" / "crack" / "002.jpg").unlink()
    layouts.save(base / "ground_truth" / "dent" / "000_mask.png", layouts.blob())
    assert "no such folder under test" in problem_of(folder_listing(tmp_path, "screw"))
    with pytest.raises(UserError, match=r"no such folder under test.*"):
        folder_listing(tmp_path, "screw").check()


def test_a_missing_mask_is_wrong_in_mvtec_ad_and_noted_in_a_folder(tmp_path):
    base = layouts.mvtec(tmp_path)
    (base / "ground_truth" / "crack" / "001_mask.png").unlink()
    assert "001.png has no mask" in problem_of(builders.MvtecAd.listing(tmp_path, "screw"))
    listing = folder_listing(tmp_path, "screw").check()
    assert listing.notes == ("1 of 5 anomalous test images have no mask: no pixel metrics",)


def test_normal_images_under_another_name_are_not_taken_for_a_defect(tmp_path):
    base = layouts.mvtec(tmp_path)
    (base / "test" / "good").rename(base / "test" / "ok")
    assert "read from 'good'; rename it" in problem_of(folder_listing(tmp_path, "screw"))


def test_a_stem_that_ends_in_mask_is_still_matched(tmp_path):
    names = ["a.png", "a_mask.png"]
    taken = [tmp_path / name for name in names]
    pairs, problems = pair_masks(taken, [tmp_path / "t" / "a_mask_mask.png", tmp_path / "t" / "a.bmp"], True)
    assert not problems
    assert {image.name: mask.name for image, mask in pairs.items()} == {
        "a_mask.png": "a_mask_mask.png",
        "a.png": "a.bmp",
    }


def test_mask_of_another_size_names_both_files(tmp_path):
    base = layouts.mvtec(tmp_path / "data")
    layouts.save(base / "ground_truth" / "scratch" / "001_mask.png", layouts.blob(size=(25, 20)))
    with pytest.raises(UserError, match=r"scratch/001_mask.png is 25x20 but its image .*scratch/001.png is 24x20"):
        prepare("mvtec_ad/screw", tmp_path / "data", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["screw"])
def test_real_screw_has_the_published_counts(real_data, name):
    listing = builders.MvtecAd.listing(real_data / "mvtec_ad", name).check()
    labels = [sample.label for sample in listing.splits["test"]]
    assert (len(listing.splits["train"]), len(labels) - sum(labels), sum(labels)) == (320, 41, 119)
