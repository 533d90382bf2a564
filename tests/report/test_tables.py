"""The results as text."""

from __future__ import annotations

import io
import re

from jaxad import report
from jaxad.evaluate import METRICS
from jaxad.report import tables

SHOWN = list(tables.HEADINGS)


def category(**changes):
    result = dict.fromkeys(METRICS, 0.9999)  # of those that no table shows
    result |= {name: 0.5 + 0.01 * place for place, name in enumerate(SHOWN)}
    result |= {
        "n_train": 30,
        "n_test_normal": 12,
        "n_test_anomalous": 7,
        "fit_seconds": 2.5,
        "predict_ms_per_image": 8.25,
        "image_auroc_ci95": [0.4, 0.6],
        "threshold": {
            "value": 2.5,
            "unit": "raw score",
            "rule": "quantile",
            "quantile": 0.995,
            "source": "holdout",
            "n_images": 40,
        },
        "false_alarms": 1,
        "misses": 2,
        "defects": {"crack": {"n": 7, "misses": 2, **{name: 0.75 for name in METRICS}}},
        "notes": {},
    }
    return result | changes


def results(**categories):
    return {"method": "m", "commit": "c", "seed": 0, "categories": categories, "mean": report.mean(categories)}


def no_masks():
    absent = {name: None for name in METRICS[4:]}
    return category(**absent, notes={name: "no masks" for name in absent})


def test_the_table_has_a_line_per_category_and_defect_and_the_mean():
    lines = tables.plain(results(screw=category(), tile=category(image_auroc=1.0))).splitlines()
    assert [line.split()[0] for line in lines[2:7]] == ["screw", "crack", "tile", "crack", "mean"]
    assert lines[2].split()[1:] == ["12+7", *(f"{0.5 + 0.01 * place:.4f}" for place in range(9))]
    assert lines[3].split()[1:] == ["7", *["0.7500"] * 9]
    assert lines[6].split()[1] == "0.7500"
    assert {len(line) for line in lines[2:7]} == {len(lines[1])}


def test_the_table_shows_every_metric_but_the_areas_that_visa_alone_reports():
    assert set(METRICS) - set(SHOWN) == {"image_aupr", "pixel_aupr"} and len(SHOWN) == len(METRICS) - 2
    assert "0.9999" not in tables.plain(results(screw=category()))


def test_one_category_needs_no_mean():
    assert "mean" not in tables.plain(results(screw=category()))


def test_what_does_not_exist_is_na_with_its_reason_never_zero():
    text = tables.plain(results(screw=no_masks()))
    assert text.splitlines()[2].split()[5:] == ["n/a"] * 6
    assert f"screw: {', '.join(METRICS[4:])} n/a (no masks)" in text
    nothing = {name: None for name in METRICS}
    text = tables.plain(
        results(
            screw=category(
                **nothing,
                n_test_anomalous=0,
                image_auroc_ci95=None,
                defects={},
                notes=dict.fromkeys(METRICS, "no anomalous images"),
            )
        )
    )
    assert text.splitlines()[2].split() == ["screw", "12+0", *["n/a"] * 9]
    assert "n/a (no anomalous images)" in text and "interval" not in text and " 0.0000" not in text


def test_the_mean_leaves_out_categories_without_the_metric_and_says_so():
    mean = report.mean({"a": category(image_auroc=1.0), "b": no_masks(), "c": no_masks()})
    assert mean["image_auroc"] == (1.0 + 0.5 + 0.5) / 3 and mean["pixel_ap"] == category()["pixel_ap"]
    assert mean["notes"]["pixel_ap"] == "mean of 1 of 3 categories; without b, c"
    assert report.mean({"b": no_masks()})["pixel_ap"] is None
    assert report.mean({"b": no_masks()})["notes"]["pixel_ap"] == "in no category"


def test_the_threshold_and_its_mistakes_are_told():
    text = tables.plain(results(screw=category(notes={"threshold": "optimistic"})))
    assert "screw: threshold 2.5 (raw score, 0.995 quantile of 40 held-out normals)" in text
    assert "1 of 12 normals flagged, 2 of 7 anomalies missed" in text
    assert "screw: optimistic" in text and "95 % interval 0.4000 to 0.6000" in text
    assert "fitted on 30 images in 2.5 s, predicts in 8.2 ms per image" in text


def test_other_scores_stand_on_a_line_of_their_own():
    scores = {"feature": {"image_auroc": 0.81}, "map_max": {"image_auroc": None}}
    text = tables.plain(results(screw=category(scores=scores), tile=category()))
    assert "screw: image AUROC of feature 0.8100, map_max n/a\n" in text and "tile: image AUROC of" not in text


def test_iou_that_does_not_exist_is_told_with_the_metrics_that_do_not():
    text = tables.plain(results(screw=category(iou=None, notes={"iou_max": "no masks", "iou": "no masks"})))
    assert "screw: iou_max, iou n/a (no masks)" in text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_the_same_numbers_as_a_log(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    found, pipe, terminal = results(screw=category(), tile=no_masks()), io.StringIO(), Terminal()
    tables.show(found, pipe)
    tables.show(found, terminal)
    assert pipe.getvalue() == tables.plain(found) + "\n"
    for _, cells in tables.rows(found):
        assert any(cells[0].strip() in line and line.split()[-9:] == list(cells[-9:]) for line in _lines(terminal))


def test_a_narrow_terminal_loses_columns_never_the_names(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    terminal = Terminal()
    tables.show(results(magnetic_tile=category()), terminal)
    lines = _lines(terminal)
    row = next(line for line in lines if line.startswith("magnetic_tile"))
    assert row.split()[1:] == ["12+7", "0.5000", "0.5100", "0.5300", "0.5400", "0.5600", "0.5700"]
    assert max(map(len, lines)) <= 70 and any("more in results.json" in line for line in lines)


def _lines(stream):
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()  # without colours


def test_summary_lines_are_one_per_category_and_the_mean():
    assert report.summary_lines(results(screw=category(), tile=no_masks())) == [
        "screw: image AUROC 0.5000, pixel AUROC 0.5300, AUPRO@0.3 0.5600",
        "tile: image AUROC 0.5000, pixel AUROC n/a, AUPRO@0.3 n/a",
        "mean: image AUROC 0.5000, pixel AUROC 0.5300, AUPRO@0.3 0.5600",
    ]
