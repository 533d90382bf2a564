"""A whole run, from a folder of images to results.json, on a data set small enough to take seconds."""

import csv
import json
import os
import pathlib

import numpy as np
import pytest
from absl import flags
from PIL import Image

from jaxad import config as configs
from jaxad import flags as command_line
from jaxad import run
from jaxad.errors import UserError

KEYS = (
    "image_auroc image_ap image_aupr image_f1max "
    "pixel_auroc pixel_ap pixel_aupr pixel_f1max aupro_0.3 aupro_0.05 iou_max "
    "n_train n_test_normal n_test_anomalous fit_seconds predict_ms_per_image"
).split()


def write_category(folder, rng, masks=True, anomalies=4):
    """Grey noise; the anomalies have a white square."""

    def picture(path, square):
        pixels = rng.integers(100, 140, size=(40, 40, 3)).astype(np.uint8)
        if square:
            pixels[8:20, 16:32] = 255
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    for i in range(10):
        picture(folder / "train" / "good" / f"{i:03}.png", False)
    for i in range(4):
        picture(folder / "test" / "good" / f"{i:03}.png", False)
    for i in range(anomalies):
        picture(folder / "test" / "square" / f"{i:03}.png", True)
        if masks:
            mask = np.zeros((40, 40), np.uint8)
            mask[8:20, 16:32] = 255
            path = folder / "ground_truth" / "square" / f"{i:03}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(5)
    write_category(tmp_path / "data" / "tile", rng)
    write_category(tmp_path / "data" / "bare", rng, masks=False)
    return tmp_path / "data"


def config(root, category="tile", **changes):
    made = configs.default("patchcore")
    made.data.dataset, made.data.root, made.data.category = "folder", str(root), category
    made.data.cache_dir = str(root.parent / "cache")
    made.data.image_size, made.data.batch_size, made.eval.batch_size = 32, 4, 4
    made.data.holdout = 0.2
    made.backbone.weights = "random"
    made.mesh.devices = 1
    made.report.overlays = 3
    made.patchcore.layers = ("layer1", "layer2")
    for key, value in changes.items():
        made[key.split("__")[0]][key.split("__")[1]] = value
    configs.check(made)
    return made


def test_a_run_leaves_what_the_contract_names(root, tmp_path):
    work = tmp_path / "w"
    returned = run.run(config(root, "all"), str(work))
    results = json.loads((work / "results.json").read_text())
    assert results == json.loads(json.dumps(returned))
    assert results["method"] == "patchcore" and results["seed"] == 0 and results["commit"]
    assert set(results["categories"]) == {"tile", "bare"}
    tile, bare = results["categories"]["tile"], results["categories"]["bare"]
    assert set(KEYS) <= set(tile)
    assert (tile["n_train"], tile["n_test_normal"], tile["n_test_anomalous"]) == (8, 4, 4)
    assert tile["image_auroc"] == 1.0 and tile["pixel_auroc"] > 0.9
    assert bare["image_auroc"] == 1.0 and bare["pixel_auroc"] is None and "mask" in bare["notes"]["pixel_auroc"]
    assert results["mean"]["pixel_auroc"] == tile["pixel_auroc"]
    assert results["mean"]["iou"]["oracle_max"] == tile["iou"]["oracle_max"] > 0.5 and bare["iou"] is None

    rows = list(csv.DictReader((work / "predictions.csv").open()))
    assert len(rows) == 16
    assert {row["path"] for row in rows if row["category"] == "tile"} >= {"tile/test/good/000.png"}
    for row in rows:
        assert (row["decision"] == "anomalous") == (float(row["score"]) > float(row["threshold"]))
    assert len(list((work / "overlays").glob("tile_*.png"))) == 3
    assert {"tile_roc.png", "tile_pr.png", "tile_pro.png", "iou.png", "iou.csv"} <= set(os.listdir(work / "curves"))
    saved = json.loads((work / "config.json").read_text())
    assert saved["data"]["category"] == "all" and saved["patchcore"]["coreset"] == 0.1
    environment = json.loads((work / "environment.json").read_text())
    assert environment["versions"]["jax"] and environment["devices"]
    manifest = json.loads((work / "tile" / "splits.json").read_text())
    assert len(manifest["holdout"]) == 2 and not set(manifest["holdout"]) & set(manifest["train"])


def files_of(folder):
    kept = ("results.json", "predictions.csv", "config.json")
    paths = [path for path in pathlib.Path(folder).rglob("*") if path.name in kept or path.suffix == ".png"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_the_same_command_on_a_finished_run_rewrites_the_same_results(root, tmp_path):
    work = tmp_path / "w"
    run.run(config(root), str(work))
    first = files_of(work)
    run.run(config(root), str(work))
    assert files_of(work) == first and len(first) > 8


def test_a_workdir_of_another_config_is_refused_and_left_alone(root, tmp_path):
    work = tmp_path / "w"
    run.run(config(root), str(work))
    before = files_of(work)
    with pytest.raises(UserError, match=r"config.patchcore.neighbours=1, now it is 3.*another --workdir"):
        run.run(config(root, patchcore__neighbours=3), str(work))
    assert files_of(work) == before
    run.run(config(root, report__overlays=1), str(work))  # how a run is watched may change
    assert len(list((work / "overlays").glob("*.png"))) == 1


def test_a_folder_that_is_no_workdir_is_refused(root, tmp_path):
    with pytest.raises(UserError, match="holds files that are not a jaxad run's"):
        run.run(config(root), str(root))
    assert sorted(os.listdir(root)) == ["bare", "tile"]


def test_real_anomalies_moved_into_training_do_not_enter_the_bank_or_the_test_set(root, tmp_path):
    results = run.run(config(root, data__n_anomalies=2), str(tmp_path / "w"))
    tile = results["categories"]["tile"]
    assert tile["n_test_anomalous"] == 2 and tile["image_auroc"] == 1.0


def test_a_crop_smaller_than_the_image_size_is_what_methods_see(root, tmp_path):
    made = config(root)
    made.data.image_size, made.data.resize, made.data.crop_size = 64, "short_crop", 48
    results = run.run(made, str(tmp_path / "w"))
    assert results["categories"]["tile"]["image_auroc"] == 1.0
    overlay = Image.open(next((tmp_path / "w" / "overlays").glob("*.png")))
    assert overlay.size[0] > 3 * 48


def test_weights_of_another_architecture_are_one_line_before_a_workdir_is_made(root, tmp_path):
    from jaxad import pretrained

    path = str(tmp_path / "resnet18.safetensors")
    pretrained.save(path, pretrained.load("resnet18", "random", ("layer1", "layer2")), "resnet18")
    made = config(root)
    made.backbone.name, made.backbone.weights = "wide_resnet50_2", path
    with pytest.raises(UserError, match=r"resnet18") as error:
        run.run(made, str(tmp_path / "w"))
    assert "\n" not in str(error.value) and not os.path.exists(tmp_path / "w")


def test_a_data_set_without_anomalies_has_no_auroc_and_says_why(tmp_path):
    write_category(tmp_path / "data" / "clean", np.random.default_rng(0), anomalies=0)
    results = run.run(config(tmp_path / "data", "clean"), str(tmp_path / "w"))
    clean = results["categories"]["clean"]
    assert clean["image_auroc"] is None and "anomal" in clean["notes"]["image_auroc"]
    assert json.loads((tmp_path / "w" / "results.json").read_text())["mean"]["image_auroc"] is None


def test_a_method_outside_jaxad_runs_by_its_module_path(root, tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "from jaxad.config import default\n"
        "def get_config():\n"
        "    options = dict(scale=1.0, lr=0.1, optimiser='sgd', dtype='float32')\n"
        "    config = default('toy', steps={'learn': 3, 'bank': 0}, **options)\n"
        "    config.data.dataset, config.data.category = 'folder', 'tile'\n"
        f"    config.data.root, config.data.cache_dir = {str(root)!r}, {str(tmp_path / 'cache')!r}\n"
        "    config.data.image_size, config.data.batch_size, config.backbone.weights = 16, 8, 'random'\n"
        "    return config\n"
    )
    made, _ = command_line.parse(["main", f"--config={path}"], flags.FlagValues(), "")
    results = run.run(made, str(tmp_path / "w"))
    assert results["method"] == "toy" and results["categories"]["tile"]["n_train"] == 9  # a tenth of 10 is held out


def siamese(root, variant, **changes):
    made = command_line.load(f"configs/siamese_unet.py:{variant}+small")
    made.data.dataset, made.data.root, made.data.category = "folder", str(root), "tile"
    made.data.cache_dir = str(root.parent / "cache")
    made.data.image_size, made.data.batch_size, made.eval.batch_size = 32, 4, 4
    made.train.steps.contrast, made.train.steps.deviate, made.train.log_every = 3, 2, 1
    made.siamese_unet.deviate.batch_size = 4
    made.mesh.devices = 1
    made.report.overlays, made.report.curves = 0, False
    made.data.n_anomalies = 2 if variant == "r" else 0
    made.eval.without_drawn = 2
    for key, value in changes.items():
        made[key.split("__")[0]][key.split("__")[1]] = value
    configs.check(made)
    return made


@pytest.fixture
def here(monkeypatch, shallow):
    monkeypatch.chdir(pathlib.Path(__file__).parents[1])


def test_two_stages_are_measured_each_and_the_first_can_be_taken_from_another_run(root, tmp_path, here):
    first, second = tmp_path / "first", tmp_path / "second"
    results = run.run(siamese(root, "r"), str(first))
    tile = results["categories"]["tile"]
    assert list(tile["stages"]) == ["contrast", "deviate"]
    assert tile["stages"]["deviate"]["pixel_auroc"] == tile["pixel_auroc"] and "without_drawn" not in tile
    assert tile["n_test_anomalous"] == 2 and tile["n_train"] == 9 + 2
    rows = [json.loads(line) for line in (first / "tile" / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if row["stage"] == "contrast" and "cossim" in row]
    assert len(logged) == 3 and {"cos_positive/layer1", "cos_negative/layer3", "contrastive"} <= set(logged[0])
    assert {"contrast/image_auroc", "deviate/image_auroc"} <= {
        key for row in rows if row["stage"] == "test" for key in row
    }
    start = {"run": str(first), "stage": "contrast"}
    other = siamese(root, "r", siamese_unet__p=0.9)
    other.start.update(start)
    again = run.run(other, str(second))["categories"]["tile"]
    assert again["stages"]["contrast"] == tile["stages"]["contrast"]
    assert again["stages"]["deviate"] != tile["stages"]["deviate"]
    assert not (second / "tile" / "contrast").exists() and (second / "tile" / "deviate").exists()
    for change, says in (
        ({"run": str(tmp_path / "none"), "stage": "contrast"}, "no finished stage 'contrast' of tile"),
        ({"run": str(first), "stage": "contrst"}, "'contrst' is not a stage of siamese_unet: contrast, deviate"),
    ):
        other.start.update(change)
        with pytest.raises(UserError, match=says):
            run.run(other, str(tmp_path / "third"))
        assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    "variant, changes, says",
    [
        ("r", dict(data__n_anomalies=3), "n_anomalies=3 is more than half of its 4 anomalous test images"),
        ("r", dict(data__n_anomalies=0), "set --config.data.n_anomalies=10"),
        ("s", dict(data__n_shot=1), "two normal training images, there is 1"),
        ("s", dict(siamese_unet__synthesis={"kind": "objct"}), "kind='objct'"),
    ],
)
def test_what_the_siamese_unet_cannot_train_on_is_one_line_and_leaves_nothing(
    root, tmp_path, here, variant, changes, says
):
    made = siamese(root, variant)
    for key, value in changes.items():
        section, name = key.split("__")
        made[section][name].update(value) if isinstance(value, dict) else made[section].update({name: value})
    with pytest.raises(UserError, match=says) as error:
        run.run(made, str(tmp_path / "w"))
    assert "\n" not in str(error.value) and not os.path.exists(tmp_path / "w")


def test_anomalies_without_masks_train_and_have_no_pixel_metrics(root, tmp_path, here):
    made = siamese(root, "r", data__category="bare")
    bare = run.run(made, str(tmp_path / "w"))["categories"]["bare"]
    assert bare["pixel_auroc"] is None and bare["image_auroc"] is not None
    made.siamese_unet.masked = True
    with pytest.raises(UserError, match="masked=True, but its anomalies have no masks"):
        run.run(made, str(tmp_path / "v"))


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda root: (root / "tile/test/square/001.png").write_bytes(b"\x89PNG\r\n"), "001.png"),
        (lambda root: Image.new("L", (20, 20)).save(root / "tile/ground_truth/square/002_mask.png"), "002_mask.png"),
        (lambda root: (root / "tile/test/square/003.png").unlink(), "003"),
        (lambda root: [path.unlink() for path in (root / "tile/train/good").iterdir()], "train"),
        (
            lambda root: [path.unlink() for path in sorted((root / "tile/train/good").iterdir())[1:]],
            "one normal training",
        ),
    ],
)
def test_spoilt_data_is_one_line_and_leaves_nothing_behind(root, tmp_path, spoil, says):
    spoil(root)
    with pytest.raises(UserError) as error:
        run.run(config(root), str(tmp_path / "w"))
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not os.path.exists(tmp_path / "w")
