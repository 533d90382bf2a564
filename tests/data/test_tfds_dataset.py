"""Image-classification sets that TFDS has prepared: read by index where they lie, labels from the examples."""

import io
import re
from pathlib import Path

import fake_layouts as layouts
import numpy as np
import pytest
import tensorflow_datasets as tfds
from fake_data import config, take

from jaxad.data import images, pipeline, ready, store
from jaxad.types import Feed, UserError, View

NAMES = ["dog", "cat", "ant"]


def picture(i):
    return layouts.pixels((40, i), (20 + i % 3, 17), grey=i % 4 == 3)


class Base(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    SPLITS = {"train": range(9), "test": range(9, 11), "validation": range(11, 14)}

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)), **self.label()}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def label(self):
        return {"label": tfds.features.ClassLabel(names=NAMES)}

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(numbers) for split, numbers in self.SPLITS.items()}

    def _generate_examples(self, numbers):
        for i in numbers:
            image = np.repeat(picture(i)[..., None], 3, 2) if picture(i).ndim == 2 else picture(i)
            # The last of each split has no label, as in test sets that are kept secret.
            label = {"label": -1 if i == numbers[-1] else i * 2 % 3} if self.label() else {}
            yield i, {"image": io.BytesIO(images.encode_png(image)), **label}


class JaxadPets(Base):
    """Three splits and labels."""


class JaxadHeap(Base):
    """Without labels and without a validation split, in two configs."""

    SPLITS = {"train": range(5), "test": range(5, 7)}
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="small"), tfds.core.BuilderConfig(name="large")]

    def label(self):
        return {}


class JaxadTests(Base):
    """No training split."""

    SPLITS = {"test": range(5)}


def prepare(builder, root, file_format="array_record", shards=1, **options):
    made = builder(data_dir=str(root), file_format=file_format, **options)
    made.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare(JaxadPets, folder, shards=2)
    prepare(JaxadHeap, folder, config="small")
    prepare(JaxadTests, folder)
    return folder


def settings(root, category, cache="cache", **data):
    return config(dataset="tfds", root=str(root), category=category, cache_dir=str(root.parent / cache), **data)


def opened(root, category, **options):
    asked = settings(root, category, **options)
    return pipeline.open(asked, *pipeline.categories(asked))


@pytest.mark.parametrize("memory_mb", [64, 0])
def test_images_and_classes_come_by_index(root, memory_mb):
    data = opened(root, "jaxad_pets", memory_mb=memory_mb)
    spec = data.spec
    assert (spec.n_train, spec.n_holdout, spec.n_test_normal, spec.n_test_anomalous) == (9, 0, 3, 0)
    assert spec.kinds == ("", "ant", "cat", "dog") and spec.category == "jaxad_pets" and not spec.has_masks
    assert [r.kind for r in data.records("train")] == [NAMES[i * 2 % 3] for i in range(8)] + [""]
    assert [r.kind for r in data.records("test")] == [NAMES[i * 2 % 3] for i in (11, 12)] + [""]
    assert data.records("train")[8].path == "train/0000008" and data.records("test")[1].path == "validation/0000001"
    for batch in take(data, Feed(4, views=(View("kind", "class"),)), 0, 3):
        for row, image, kind in zip(batch.index, batch.image, batch.views["kind"], strict=True):
            source = picture(int(row))
            source = np.repeat(source[..., None], 3, 2) if source.ndim == 2 else source
            np.testing.assert_array_equal(np.rint(image * 255), images.resize_image(source, 32))
            assert spec.kinds[kind] == data.records("train")[row].kind


def test_a_builder_without_labels_has_no_classes_and_its_config_is_part_of_its_name(root):
    for name in ("jaxad_heap/small", "jaxad_heap-small"):
        data = opened(root, name, holdout=0.4)
        assert data.spec.category == "jaxad_heap-small" and data.spec.kinds == ()
        assert (data.spec.n_train, data.spec.n_holdout, data.spec.n_test_normal) == (3, 2, 2)
        assert data.records("test")[0].path == "test/0000000"
    with pytest.raises(UserError, match="config.data.category=jaxad_heap-small has no classes"):
        take(data, Feed(2, views=(View("kind", "class"),)), 0, 1)


def test_labels_are_read_once_and_again_when_the_files_change(root, tmp_path, monkeypatch):
    prepare(JaxadPets, tmp_path / "data")
    reads = []
    monkeypatch.setattr(ready, "_labels_of", lambda *a, real=ready._labels_of: (reads.append(a), real(*a))[1])
    monkeypatch.setattr(ready, "_AT_ONCE", 4)
    first = opened(tmp_path / "data", "jaxad_pets")
    assert sorted(start for _, _, start in reads) == [0, 0, 4, 8]  # 9 training and 3 validation images
    again = opened(tmp_path / "data", "jaxad_pets")
    assert len(reads) == 4 and again.records("train") == first.records("train")
    for file in (tmp_path / "data").rglob("*train*array_record*"):
        file.touch()
    opened(tmp_path / "data", "jaxad_pets")
    assert len(reads) == 7


def test_opening_and_training_by_index_decodes_no_more_than_the_batches(root, monkeypatch):
    decoded = []
    monkeypatch.setattr(images, "decode", lambda *a, real=images.decode: (decoded.append(a[1]), real(*a))[1])
    data = opened(root, "jaxad_pets", memory_mb=0)
    assert not decoded
    take(data, Feed(2), 0, 1)
    assert 2 <= len(decoded) <= 8  # one batch and those prefetched
    assert all(each.kept is None for each in data._stores.values())


def test_imagenet_by_index_needs_the_memory_of_its_batches():
    stores = store.stores_of({"train": 1_281_167, "test": 50_000}, 256, lambda split: None, 4096)
    assert stores["train"].limit == stores["test"].limit == 0  # nothing stays decoded


def test_what_is_not_prepared_is_refused_with_the_command_that_prepares_it(root, tmp_path):
    def refusal(category, root=root):
        with pytest.raises(UserError) as error:
            opened(root, category)
        assert "\n" not in str(error.value)
        return str(error.value)

    said = refusal("imagenet2012")
    assert f"not prepared under {root}" in said and "manual_dir='FOLDER_OF_YOUR_DOWNLOADS'" in said
    assert f"t.builder('imagenet2012', data_dir='{root}', file_format='array_record')" in said
    assert "manual_dir" not in refusal("cifar10")
    said = refusal("imagenete")
    assert "nor a builder that TFDS knows" in said and "'imagenette'" in said and "python" not in said
    assert "is not prepared under" in refusal("jaxad_heap/large") and "but jaxad_heap/small is" in refusal("jaxad_heap")
    assert "set it to one of jaxad_heap/small, jaxad_pets" in refusal("")
    assert "has no split 'train'" in refusal("jaxad_tests")
    (tmp_path / "void").mkdir()
    (tmp_path / "void" / "file").write_text("")
    assert "such as imagenet2012" in refusal("all", tmp_path / "void")


def test_tfrecord_is_refused_and_the_command_for_another_folder_works(tmp_path, monkeypatch):
    root = tmp_path / "data"
    prepare(JaxadPets, root, "tfrecord")
    monkeypatch.setattr(ready, "_builders_class", lambda name: JaxadPets)
    monkeypatch.setattr(tfds, "builder", lambda name, **options: {"jaxad_pets": JaxadPets}[name](**options))
    with pytest.raises(UserError, match="prepared as tfrecord, which is not read by index") as error:
        opened(root, "jaxad_pets")
    elsewhere, code = re.search(r'root=(\S+) after: python -c "(.*)"$', str(error.value)).groups()
    exec(code, {})
    assert opened(Path(elsewhere), "jaxad_pets").spec.n_train == 9


def test_all_are_those_that_are_prepared(root):
    assert pipeline.categories(settings(root, "all")) == ("jaxad_heap-small", "jaxad_pets", "jaxad_tests")


def test_the_check_command_says_that_there_is_no_folder(root, capsys):
    from jaxad.data import check

    assert check.main(["check", "--dataset=tfds", f"--root={root}", "--category=jaxad_pets"]) == 2
    assert "no folder of images to look at" in capsys.readouterr().err
