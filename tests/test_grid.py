"""Many runs as one command: what is skipped, what is told, and the numbers of the table."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import time

import pytest
from fake_grid import ROOT, cell, place_in

from jaxad import grid
from jaxad.errors import UserError
from jaxad.grid import Cell, table
from jaxad.grid.__main__ import main


@pytest.fixture
def place(tmp_path, monkeypatch):
    return place_in(tmp_path, monkeypatch)


def test_cells_run_in_order_and_finished_ones_not_again(place, capsys):
    place.cells(cell("b/0", 0), cell("a/1", 1), cell("b/2", 2))
    assert place() == 0
    assert place.calls() == ["b/0", "a/1", "b/2"]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "[1/3] b/0: starts"
    assert said[1].startswith("[1/3] b/0: ")
    assert said[1].endswith(" s, image AUROC 0.5000, pixel AUROC n/a, AUPRO 0.3 0.1250")
    assert (place.workdir / "a/1.log").read_text() == "it begins\n"
    first = place.csv()
    (place.workdir / "a/1/results.json").unlink()  # as if it had been stopped
    assert place() == 0
    assert place.calls()[3:] == ["a/1"] and place.csv() == first
    assert "[1/3] b/0: was done, image AUROC 0.5000" in capsys.readouterr().out


def test_a_result_of_other_settings_is_not_this_cells(place):
    place.cells(cell("a", 1))
    place()
    place.cells(cell("a", 2))
    assert place("--list") == 0 and place.calls() == ["a"]
    place()
    assert place.calls() == ["a", "a"]


def test_a_failed_cell_is_told_with_its_last_line_and_does_not_stop_the_rest(place, capsys):
    place.cells(cell("x/0", 13), cell("y/1", 1))
    assert place() == 1
    assert place.calls() == ["x/0", "y/1"]
    said = capsys.readouterr().out
    assert "[1/2] x/0: failed after" in said and "jaxad: loss is nan at step 7 (all of it: " in said
    assert "1 of 2 cells done, 1 failed, 0 not started" in said
    assert "- `x/0` failed: jaxad: loss is nan at step 7\n" in place.markdown()
    assert place() == 1 and place.calls() == ["x/0", "y/1", "x/0"]  # it is tried again, the other is not
    assert (place.workdir / "x/0.log").read_text().count("it begins") == 2


def test_no_cell_starts_after_the_minutes_and_the_table_names_it(place):
    place.cells(cell("a/0", 0), cell("a/1", 1), cell("b/2", 2))
    assert place("--only=a/0") == 0
    assert place("--minutes=0") == 0
    assert place.calls() == ["a/0"]
    assert place.markdown().endswith("Cells not run: 2\n\n- `a/1`\n- `b/2`\n")
    assert "| a | 1 (1 of 2 cells) | 0.5000 |" in place.markdown() and "| b |" not in place.markdown()


def test_the_csv_has_a_row_per_cell_and_category_with_the_stages(place):
    place.cells(cell("s/0", 0, "weave,washer", note="two of them"), cell("s/1", 3))
    place()
    rows = place.csv()
    assert [(row["name"], row["group"], row["seed"], row["category"]) for row in rows] == [
        ("s/0", "s", "0", "weave"),
        ("s/0", "s", "0", "washer"),
        ("s/1", "s", "3", "weave"),
    ]
    assert [float(row["image_auroc"]) for row in rows] == pytest.approx([0.5, 0.6, 0.59])
    assert [float(row["contrast/image_auroc"]) for row in rows] == pytest.approx([0.25, 0.35, 0.34])
    assert [float(row["deviate/image_auroc"]) for row in rows] == pytest.approx([0.5, 0.6, 0.59])
    assert rows[2]["pixel_auroc"] == "" and rows[2]["aupro_0.3"] == "0.125"
    assert (rows[2]["fit_seconds"], rows[2]["predict_ms_per_image"], rows[0]["note"]) == ("13.0", "2.0", "two of them")
    assert list(rows[0])[:4] == ["name", "group", "seed", "category"]


def lines(text, group):
    found = [line for line in text.splitlines() if line.startswith(f"| {group} |")]
    return [[part.strip() for part in line.strip("|").split("|")] for line in found]


def test_a_group_is_the_mean_over_seeds_with_its_spread(place):
    place.cells(
        *(cell(f"three/{seed}", seed) for seed in (0, 1, 3)),
        *(cell(f"two/{seed}", seed) for seed in (1, 3)),
        *(cell(f"{name}/{seed}", seed, name, group="both") for name in ("weave", "washer") for seed in (0, 3)),
        cell("one", 2, note="alone"),
    )
    place()
    text = place.markdown()
    three = [0.5, 0.51, 0.59]
    final, staged = lines(text, "three")
    assert final[:3] == ["three", "3", f"{sum(three) / 3:.4f} ± {statistics.stdev(three):.4f}"]
    assert staged[2] == f"{sum(three) / 3 - 0.25:.4f} ± {statistics.stdev(three):.4f}"
    assert lines(text, "two")[0][1:3] == ["2", "0.5500 (range 0.0800)"]
    # over categories first: the spread is that between seeds, not between categories
    assert lines(text, "both")[0][1:3] == ["2", "0.5450 (range 0.0900)"]
    assert lines(text, "one")[0] == ["one", "1", "0.5400", "0.2500", "0.1250", "12.0", "2.0", "alone"]
    assert "pixel AUROC" not in text  # no cell has it
    assert "Commit: abc." in text and "Machine: Linux, 2 cores, 2 x cpu:cpu." in text
    assert text.endswith("Cells not run: none\n")


def test_without_drawn_gets_columns_of_its_own(place):
    place.cells(cell("a/0", 0))
    place()
    path = place.workdir / "a/0/results.json"
    results = json.loads(path.read_text())
    results["categories"]["weave"]["without_drawn"] = {"image_auroc": 0.75, "note": "words are not a number"}
    path.write_text(json.dumps(results))
    place()
    assert place.csv()[0]["without_drawn/image_auroc"] == "0.75" and "without_drawn/note" not in place.csv()[0]
    assert [line[2] for line in lines(place.markdown(), "a")] == ["0.5000", "0.2500", "0.7500"]


def test_compiled_programs_are_kept_beside_the_cells_unless_the_user_says_where(place, monkeypatch):
    place.cells(cell("a/0", 0), cell("a/1", 1))
    place("--only=a/0")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    place("--only=a/1")
    found = [json.loads((place.workdir / name / "cache").read_text()) for name in ("a/0", "a/1")]
    assert found == [[str(place.workdir / ".jax_cache"), "1"], ["mine", "1"]]


def test_the_list_tells_what_is_done_and_runs_nothing(place, capsys):
    place.cells(cell("a/0", 0), cell("a/1", 1))
    place("--only=a/1")
    capsys.readouterr()
    assert place("--list") == 0
    assert capsys.readouterr().out.splitlines() == [
        "a/0: not done",
        "a/1: done, image AUROC 0.5100, pixel AUROC n/a, AUPRO 0.3 0.1250",
    ]
    assert place.calls() == ["a/1"]


def test_the_flags_data_and_weights_reach_the_cells(place):
    place.file.write_text(
        "def cells(data, weights):\n"
        "    return [('a/0', 'configs/patchcore.py:small', {'backbone.weights': weights, 'data.category': data})]\n"
    )
    weights = place.folder / "w.npz"
    weights.touch()
    assert place("--data=x,y", f"--weights={weights}") == 0
    assert [row["category"] for row in place.csv()] == ["x", "y"]
    assert json.loads((place.workdir / "a/0/config.json").read_text())["backbone"]["weights"] == str(weights)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_the_child_and_the_same_command_goes_on(place, number):
    place.cells(cell("a/0", 0), cell("a/99", 99), cell("a/1", 1))
    # A shell that runs pytest in the background has SIGINT ignored, and every child inherits that.
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"from jaxad.grid.__main__ import main; sys.exit(main(sys.argv, {place.command!r}))"
    )
    argv = [sys.executable, "-c", script, f"--grid={place.file}", f"--workdir={place.workdir}"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    log, deadline = place.workdir / "a/99.log", time.monotonic() + 60
    while not (log.exists() and "it begins" in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "jaxad: stopped in cell a/99; the same command resumes\n"
    assert (place.workdir / "a/99/saved").exists()  # it was asked, not killed
    assert place.calls() == ["a/0", "a/99"] and place.markdown().count("- `") == 2
    assert place("--only=a/[01]") == 0 and place.calls()[2:] == ["a/1"]
    assert "- `a/99` not finished\n" in place.markdown()


@pytest.mark.parametrize(
    "cells, argv, said",
    [
        ([cell("a/0")], ["--only=b*"], "no cell fits --only=b*; the nearest is 'a/0'"),
        ([cell("a/0"), cell("a/0")], [], "two cells are called 'a/0'"),
        ([cell("../a")], [], "the cell name '../a' is not a folder inside the workdir"),
        ([cell("a/../../b")], [], "is not a folder inside the workdir"),
        ([cell("/tmp/a")], [], "is not a folder inside the workdir"),
        ([cell("")], [], "is not a folder inside the workdir"),
        ([cell("a"), cell("a/0")], [], "the folder of cell 'a/0' lies inside that of cell 'a'"),
        ([], [], "cells() returned no cell"),
        ([("a", "b")], [], "cells()[0] is not a Cell(name, config, settings)"),
        ([Cell("a", "configs/none.py", {})], [], "cell 'a': no config file 'configs/none.py'"),
        (
            [Cell("a", "configs/patchcore.py", {"data.categry": 1})],
            [],
            "cell 'a': unknown key config.data.categry; the",
        ),
        ([cell("a/0")], ["--minuts=3"], "minuts"),
        ([cell("a/0")], ["extra"], "unexpected argument 'extra'"),
    ],
)
def test_a_mistake_is_one_clear_line_and_nothing_runs(place, capsys, cells, argv, said):
    place.cells(*cells)
    text = place.file.read_text()
    if cells and len(cells[0]) == 2:
        place.file.write_text(text.replace("Cell(*", "tuple("))
    assert place(*argv) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
    assert place.calls() == [] and not place.workdir.exists()


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "has no function cells(data, weights)"),
        ("\nimport absent_module\n", "grid.py:2: No module named 'absent_module'"),
        ("def cells(data, weights):\n    return 1 / 0\n", "grid.py:2: division by zero"),
        ("def cells(", "was never closed"),
    ],
)
def test_a_grid_file_that_does_not_work_says_where(tmp_path, text, said):
    path = tmp_path / "grid.py"
    path.write_text(text)
    with pytest.raises(UserError, match=r"grid\.py") as told:
        grid.load(str(path))
    assert said in str(told.value)


def test_no_grid_and_no_such_grid_answer_in_one_line(capsys):
    assert main(["grid"]) == 2
    assert main(["grid", "--grid=configs/grids/none.py"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "no grid given: --grid=FILE" in first and "no grid file 'configs/grids/none.py'" in second


def test_help_prints_the_flags_and_nothing_heavy_is_imported():
    heavy = ("jax", "flax", "numpy", "tensorflow")
    script = (
        "import sys; from jaxad.grid.__main__ import main; main(['grid', '--help']); "
        f"print([n for n in {heavy} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]" and "--minutes: start no cell after" in done.stdout, done.stderr


def test_run_as_a_command_a_grid_of_cells_is_understood(place):
    place.cells(cell("a/0"))
    argv = [sys.executable, "-m", "jaxad.grid", f"--grid={place.file}", "--list", f"--workdir={place.workdir}"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "a/0: not done\n"), done.stderr


def test_a_cell_may_name_what_another_will_leave_and_backbones_have_columns_of_their_own(place):
    place.file.write_text(
        "def cells(data, weights):\n"
        "    return [\n"
        "        ('pre/0', 'configs/patchcore.py:small', {'seed': 1}),\n"
        "        ('on/0', 'configs/patchcore.py:small', {'backbone.weights': '{workdir}/pre/0'}),\n"
        "    ]\n"
    )
    assert place("--only=on/*") == 0  # its setting was no path before
    assert not list((place.workdir / "pre/0").iterdir()) and "- `pre/0`\n" in place.markdown()
    results = {"method": "spd", "seed": 1, "categories": {"a": {"knn_top1": 0.5, "linear_top1": None, "spread": 0.25}}}
    assert table.numbers(results) == "k-NN top 1 0.5000, linear top 1 n/a, spread 0.2500"
