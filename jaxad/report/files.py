"""Files that are whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jaxad.errors import UserError


def write_bytes(path: str | os.PathLike, content: bytes) -> pathlib.Path:
    """Writes `content` to `path` in one step: readers see the old file or the new one, never a part of it.

    Raises:
      UserError: the disk is full, the folder is read-only, or the like; nothing half-written is left.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name[:200]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # some file systems say only here that the disk is full
        os.replace(partial, path)
    except OSError as error:
        try:
            partial.unlink(missing_ok=True)
        except OSError:
            pass  # the folder itself cannot be written, so nothing was
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space or choose another --workdir"
        ) from error
    return path


def write_json(path: str | os.PathLike, content: Any) -> pathlib.Path:
    """JSON without NaN or infinity (a ValueError), keys in their given order."""
    return write_bytes(path, (json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


def write_csv(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> pathlib.Path:
    """UTF-8, comma-separated, one line per row, lines end in a newline on every system."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return write_bytes(path, text.getvalue().encode())


def safe_name(text: str) -> str:
    """`text` as a part of a file name on every system, at most 60 characters.

    >>> safe_name("crack (large)/01")
    'crack_large_01'
    """
    return re.sub(r"[^\w.-]+", "_", text).strip("_.")[:60] or "_"


def remove_others(folder: pathlib.Path, pattern: str, keep: Iterable[pathlib.Path]) -> None:
    """Removes files in `folder` whose whole name matches `pattern` and that are not in `keep`: an earlier run's."""
    kept = {path.name for path in keep}
    if folder.is_dir():
        for path in folder.iterdir():
            if re.fullmatch(pattern, path.name) and path.name not in kept:
                path.unlink()
