"""What a pre-trained backbone is judged by, and what a run leaves and says of it."""

import json

import numpy as np
import pytest

from jaxad import representation
from jaxad.report import pretraining
from jaxad.types import DataSpec, Record

PROBE = {"knn": 3, "temperature": 0.07, "linear": True, "limit": 50}
KINDS = ("cat", "dog")


class Labelled:
    """Images whose class alternates; features point into the direction of the class."""

    def __init__(self, counts, kinds=KINDS):
        self.counts = counts
        self.spec = DataSpec("images", "pets", 8, counts["train_normal"], counts["holdout"], 0, 0, False, kinds=kinds)

    def records(self, split):
        kinds = self.spec.kinds or ("",)
        return tuple(
            Record(f"{split}/{i}.png", False, "good", kinds[i % len(kinds)]) for i in range(self.counts[split])
        )

    def embed(self, split, limit):
        rows = np.random.default_rng(0).permutation(self.counts[split])
        rows = rows[:limit] if limit else rows
        noise = 0.1 * np.random.default_rng(1).normal(size=(len(rows), 4))
        return (np.eye(4)[rows % 2] + noise).astype(np.float32), rows


def test_features_that_tell_classes_are_right_and_rows_are_matched_to_their_records():
    data = Labelled({"train_normal": 60, "holdout": 21, "test": 0})
    result = representation.judge(data.embed, data, PROBE, linear=True, seed=0)
    assert (result["knn_top1"], result["linear_top1"]) == (1.0, 1.0)
    assert (result["n_probe"], result["n_judged"], result["judged"]) == (50, 21, "holdout")
    assert 0.45 < result["chance"] < 0.55 and 0 < result["spread"] < 1


def test_own_test_images_are_judged_before_held_out_ones():
    data = Labelled({"train_normal": 60, "holdout": 21, "test": 10})
    assert representation.judged_split(data) == "test"
    result = representation.judge(data.embed, data, PROBE, linear=False, seed=0)
    assert result["n_judged"] == 10 and result["linear_top1"] is None


@pytest.mark.parametrize(
    ("counts", "kinds", "why"),
    [
        ({"train_normal": 9, "holdout": 3, "test": 0}, (), "no classes"),
        ({"train_normal": 9, "holdout": 0, "test": 0}, KINDS, "config.data.holdout above 0"),
    ],
)
def test_what_cannot_be_judged_says_why(counts, kinds, why):
    data = Labelled(counts, kinds)
    result = representation.judge(data.embed, data, PROBE, linear=True, seed=0)
    assert result["knn_top1"] is result["linear_top1"] is result["chance"] is None
    assert why in result["notes"]["knn_top1"] and result["spread"] > 0


def entry(**changes):
    known = dict(n_train=5, fit_seconds=7.0, backbone="resnet18", file="w/pets/backbone.safetensors", spread=0.5)
    known |= dict(knn_top1=0.25, linear_top1=0.5, chance=0.1, n_kinds=3, n_judged=20, notes={})
    return known | changes


def test_a_run_writes_numbers_files_by_their_place_in_it_and_the_mean(tmp_path, capsys):
    entries = {
        "pets": entry(file=str(tmp_path / "pets/backbone.safetensors")),
        "tools": entry(file=str(tmp_path / "tools/backbone.safetensors"), knn_top1=0.75, linear_top1=None),
    }
    results = pretraining.write(tmp_path, {"method": "spd", "seed": 4}, entries, "abc")
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["categories"]["pets"]["file"] == "pets/backbone.safetensors"
    assert results["mean"] == {"knn_top1": 0.5, "linear_top1": 0.5, "chance": pytest.approx(0.1), "spread": 0.5}
    pretraining.show(results)
    said = capsys.readouterr().out.splitlines()
    assert "k-NN 0.2500, linear 0.5000, chance 0.1000 (20 images of 3 classes)" in said[0]
    assert "linear n/a" in said[2]


def test_a_run_without_classes_says_so():
    none = entry(knn_top1=None, linear_top1=None, chance=None, notes={"knn_top1": "no classes"})
    said = pretraining.lines({"categories": {"pets": none}})
    assert "spread of features 0.500; not judged by classes (no classes)" in said[0]


def test_the_report_of_several_runs_tells_of_backbones_below_its_table():
    from jaxad.report.__main__ import text

    runs = {"pre": {"method": "spd", "seed": 4, "commit": "abc", "categories": {"pets": entry()}, "mean": {}}}
    said = text(runs).splitlines()
    assert said[0].startswith("pets: resnet18") and said[-1] == "pre: spd, seed 4, commit abc"
