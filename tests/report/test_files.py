"""Files are whole or not there."""

from __future__ import annotations

import errno
import os

import pytest

from jaxad.report import files
from jaxad.types import UserError


def test_a_full_disk_is_one_line_and_leaves_the_old_file_and_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    files.write_bytes(path, b"old")

    def full(descriptor):
        assert os.fstat(descriptor).st_size > 0  # the bytes are already there: really half-way
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(
        UserError, match=r"cannot write .*results.json: No space left on device; free some space"
    ) as told:
        files.write_bytes(path, b"new and longer")
    assert "\n" not in str(told.value)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["results.json"]


def test_a_failing_move_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(UserError, match="Disk quota exceeded"):
        files.write_bytes(tmp_path / "a.png", b"picture")
    assert os.listdir(tmp_path) == []


def test_a_file_where_a_folder_should_be_is_the_users_mistake(tmp_path):
    (tmp_path / "overlays").write_text("in the way")
    with pytest.raises(UserError, match="cannot write .*a.png"):
        files.write_bytes(tmp_path / "overlays" / "a.png", b"")


def test_json_holds_no_nan(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert os.listdir(tmp_path) == []


def test_names_are_safe_on_every_system():
    assert files.safe_name('a/b\\c:d*?"<>| é.x') == "a_b_c_d_é.x"
    assert files.safe_name("..") == "_" and len(files.safe_name("x" * 300)) == 60


def test_only_the_files_of_an_earlier_run_are_removed(tmp_path):
    for name in ("a_1.png", "a_2.png", "b_1.png"):
        (tmp_path / name).touch()
    files.remove_others(tmp_path, r"a_\d\.png", [tmp_path / "a_2.png"])
    assert sorted(os.listdir(tmp_path)) == ["a_2.png", "b_1.png"]
    files.remove_others(tmp_path / "missing", ".*", [])
