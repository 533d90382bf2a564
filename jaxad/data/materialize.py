"""Writes the data of a run into one file, from which it trains and evaluates by NumPy alone.

  python -m jaxad.data.materialize --config=configs/patchcore.py --config.data.dataset=mvtec_ad \
      --config.data.root=FOLDER --config.data.category=screw --out=screw.data
  python -m jaxad.main --config=configs/patchcore.py --config.data.source=screw.data --workdir=runs/screw

The file holds, for every category, the resized images of all splits with their masks, the splits, and for each stage
whose feed has views a bank of `--bank` batches of these: the stage then sees those batches again and again. Feeds
without views get the same batches as from the data set. With --config.data.joint=True there is one bank for a stage, of
all categories together. Neither TensorFlow nor the data set is needed then, so this is also the way onto an accelerator
machine that has only JAX.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from jaxad.errors import UserError, exit_code
from jaxad.flags import debug_asked, nearest, parse

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from jaxad.data.archive import Writer
    from jaxad.data.pipeline import Graph
    from jaxad.types import Stage


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: this process's) and returns its exit code."""
    argv = sys.argv if argv is None else argv

    def body() -> None:
        own = flags.FlagValues()
        flags.DEFINE_string("out", None, "the file to write", flag_values=own)
        flags.DEFINE_list("stage", [], "stages to write banks of views for; none: all that have views", flag_values=own)
        flags.DEFINE_integer("bank", 64, "batches in each bank (at most the stage's steps); 0: none", flag_values=own)
        parsed = parse(argv, own, __doc__)
        if parsed is None:
            return
        config, own = parsed
        if not own.out:
            raise UserError("no file to write: --out=FILE")
        print(write(config, own.out, stages=own.stage, n_bank=own.bank))

    return exit_code(body, debug_asked(argv))


def write(config: ConfigDict, path: str, *, stages: Sequence[str] = (), n_bank: int = 64) -> str:
    """Materialises every category of the config into `path` and returns a summary to print.

    stages: names of the stages to write banks for, all that have views where empty · n_bank: batches in each; 0: none.
    The file appears whole or not at all. Raises UserError for a stage that the method does not have.
    """
    import dataclasses

    from jaxad.data import archive, joint, pipeline

    if config.data.source:
        raise UserError("data.source is set, which is a materialised file already; give --config.data.dataset and root")
    settings = {key: config.data[key] for key in archive.SETTINGS}
    header: dict[str, Any] = {"format": archive.FORMAT, "seed": config.seed, "settings": settings, "categories": {}}
    opened = {category: pipeline.open(config, category) for category in pipeline.categories(config)}
    together = joint.join(config, opened) if config.data.joint else None
    lines = []
    with archive.Writer(path) as writer:

        def banks(data: Graph, joined: Sequence[str] = ()) -> dict[str, Any]:
            made = {}
            for stage in _with_views(config, data, stages) if n_bank > 0 else ():
                before = writer.size
                bank = made[stage.name] = _write_bank(writer, data, stage, config.seed, n_bank)
                bank["feed"] |= {"categories": list(joined)} if joined else {}
                lines.append(
                    f"{data.spec.category}: stage {stage.name}: a bank of {bank['n']} batches of "
                    f"{stage.feed.batch_size} ({_mb(writer.size - before)}); batch n is bank entry n mod {bank['n']}"
                )
            return made

        for category, data in opened.items():
            before = writer.size
            records = {split: data.records(split) for split in ("train", "holdout", "test")}
            for split in records:
                _write_images(writer, data, split)
            n_images = sum(len(part) for part in records.values())
            lines.append(f"{category}: {n_images} images of {data.spec.image_size} px ({_mb(writer.size - before)})")
            header["categories"][category] = {
                "spec": dataclasses.asdict(data.spec),
                "notes": data.notes,
                "manifest": data.manifest(),
                "records": records,
                "banks": {} if together else banks(data),
            }
        if together:
            header["joint"] = banks(together, list(opened))
        writer.finish(header)
    return "\n".join([*lines, f"{path}: {_mb(os.path.getsize(path))}; use it with --config.data.source={path}"])


def _mb(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _write_images(writer: Writer, data: Graph, split: str, at_once: int = 64) -> None:
    """The images of a split, and the masks of its anomalies."""
    from jaxad.data import archive

    records = data.records(split)
    fetch = data.fetcher(split) if records else None
    for start in range(0, len(records), at_once):
        index = np.arange(start, min(start + at_once, len(records)))
        images, masks = fetch(index)
        names = [archive.member(data.spec.category, split, i) for i in index]
        writer.add(zip(names, images, strict=True))
        labelled = [slot for slot, i in enumerate(index) if records[i].label]
        writer.add((f"{names[slot]}.mask", masks[slot]) for slot in labelled)


def _with_views(config: ConfigDict, data: Graph, names: Sequence[str]) -> list[Stage]:
    """The stages of the config's method that ask for views; those called `names`, where any are."""
    from jaxad import methods

    stages = {stage.name: stage for stage in methods.resolve(config.method).stages(config, data.spec)}
    for name in names:
        if name not in stages:
            raise UserError(f"method {config.method!r} has no stage {name!r}{nearest(name, list(stages))}")
        if not stages[name].feed.views:
            raise UserError(f"stage {name!r} of {config.method!r} has no views, so it needs no bank: leave out --stage")
    return [stage for stage in stages.values() if stage.feed.views and (not names or stage.name in names)]


def _write_bank(writer: Writer, data: Graph, stage: Stage, seed: int, n_bank: int) -> dict[str, Any]:
    """The views of the first batches of a stage; returns what the reader must know of them."""
    from jaxad.data import archive

    feed = stage.feed
    n = min(n_bank, stage.steps) if feed.shuffle else feed.one_pass(len(data.records(feed.split)))
    keys: list[str] = []
    for i, batch in enumerate(data.stored_batches(feed, seed=seed, stage=stage.name, start=0, stop=n)):
        keys = list(batch.views)
        for key, array in batch.views.items():
            name = [archive.entry(data.spec.category, stage.name, i, key, row) for row in range(len(array))]
            writer.add(zip(name, array, strict=True))
    return {"n": n, "keys": keys, "feed": {**archive.describe(feed), "seed": seed}}


if __name__ == "__main__":
    sys.exit(main())
