"""Times the stages of a method, without data, weights on disk or TensorFlow: images and backbone are random.

  python -m jaxad.benchmark --config=configs/reverse_distillation.py:small --precision=bfloat16,float32

For each stage and precision: how long a step takes, what it computes, how much memory it needs; for the last stage the
same of predicting, one image per device at a time and eval.batch_size images at a time, and the rate of whatever else a
method counts, as triples of patches. The programs are those of jaxad.main, over the devices of config.mesh.
config.data.root, data.source, backbone.weights and start are ignored; config.data.n_shot is the number of normal
images, which a memory bank holds (200 where it is 0).
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from jaxad.errors import UserError, exit_code
from jaxad.flags import debug_asked, nearest, parse

if TYPE_CHECKING:
    from ml_collections import ConfigDict

PRECISIONS = ("auto", "float32", "bfloat16")
HEAD = (
    "program,precision,batch,timed,compile s,median ms,p10,p90,p95,images/s,GFLOP,TFLOP/s,peak MiB,device MiB"
).split(",")
LEGEND = (
    "on random images that lie on the devices; GFLOP: of all devices, the body of a loop counted once; peak: of one "
    "device, as XLA plans it; device: the most that one has held since the start"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: this process's) and returns its exit code."""
    argv = sys.argv if argv is None else argv

    def body() -> None:
        own = flags.FlagValues()
        flags.DEFINE_list(
            "precision", None, "auto, float32 or bfloat16, or several; none: config.train.precision", flag_values=own
        )
        flags.DEFINE_integer("steps", 10, "calls to time of each program", lower_bound=1, flag_values=own)
        flags.DEFINE_float(
            "minutes",
            None,
            "time fewer calls where a program takes longer, compiling included; none: no bound",
            0,
            flag_values=own,
        )
        flags.DEFINE_string("stage", "", "the stage to time; none: all", flag_values=own)
        flags.DEFINE_string("json", None, "a file to write everything to", flag_values=own)
        parsed = parse(argv, own, __doc__, adapt=_without_data)
        if parsed is None:
            return
        config, own = parsed
        _check(own.precision or (), own.json)
        try:
            found = run(config, own.precision or (), stage=own.stage, steps=own.steps, minutes=own.minutes)
        except KeyboardInterrupt as stopped:
            raise KeyboardInterrupt("stopped; a benchmark keeps nothing") from stopped
        _tell(found, own.json)

    return exit_code(body, debug_asked(argv))


def _without_data(config: ConfigDict) -> None:
    """Nothing on disk is read, so nothing needs to be there."""
    config.data.root, config.data.source, config.backbone.weights = os.curdir, "", "random"
    config.start.run = config.start.stage = config.start.category = ""


def _check(precisions: Sequence[str], path: str | None) -> None:
    """Raises UserError for what can be seen not to work, before minutes of timing."""
    for name in precisions:
        if name not in PRECISIONS:
            raise UserError(f"--precision={','.join(precisions)}: there is no {name!r}{nearest(name, PRECISIONS)}")
    folder = os.path.dirname(path or "") or os.curdir
    if path is not None and (not os.access(folder, os.W_OK) or os.path.isdir(path or folder)):
        raise UserError(f"cannot write --json={path}: {folder!r} is no folder that can be written to; choose another")


def run(
    config: ConfigDict,
    precisions: Sequence[str] = (),
    *,
    stage: str = "",
    steps: int = 10,
    minutes: float | None = None,
) -> dict[str, Any]:
    """What `timing.measure` finds in each precision (none: the config's own), and where: JSON-able.

    config: changed where a precision is given · minutes: a bound, see there; None: none.
    """
    import jax

    from jaxad import sharding, timing, workdirs
    from jaxad.methods import features

    mesh = sharding.start(config.mesh)

    def say(line: str) -> None:
        if sharding.is_main():
            print(line, file=sys.stderr, flush=True)

    stages, done = [], set()
    with jax.set_mesh(mesh):
        for name in precisions or (config.train.precision,):
            config.train.precision = name
            resolved = features.compute_dtype(config).name
            if resolved not in done:  # 'auto' may be one of the others
                done.add(resolved)
                limit = math.inf if minutes is None else minutes
                stages += timing.measure(config, mesh, stage=stage, steps=steps, minutes=limit, say=say)
    device = mesh.devices.flat[0]
    return {
        "method": config.method,
        "image_size": timing.spec_of(config).image_size,
        "device": f"{mesh.size} x {device.platform}:{device.device_kind}",
        **workdirs.environment(),
        "config": config.to_dict(),
        "stages": stages,
    }


def _tell(found: Mapping[str, Any], path: str | None) -> None:
    from jaxad import sharding
    from jaxad.report import files

    if sharding.is_main():
        print(text(found), flush=True)
        if path:
            files.write_json(path, found)


def text(found: Mapping[str, Any]) -> str:
    """What was timed and where, and an aligned Markdown table of it.

    found: what `run` returned.
    """
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("jax", "jaxlib", "flax", "optax"))
    lines = [
        f"{found['method']}, {found['image_size']} px, on {found['device']} ({found['machine']})",
        f"{versions}, Python {found['python']}, commit {found['commit']}",
        "",
    ]
    table: list[Sequence[str]] = [HEAD]
    work = []
    for row in found["stages"]:
        table.append(_cells(row["stage"], row["precision"], row))
        for part in row.get("predict", ()):
            table.append(_cells(f"{row['stage']}: predict", row["precision"], part))
            if part["work_per_second"]:
                rates = ", ".join(f"{_number(rate)} {name}/s" for name, rate in part["work_per_second"].items())
                work.append(f"{row['stage']}: predict, {row['precision']}, batch {part['batch_size']}: {rates}")
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    table.insert(1, ["-" * width if place < 2 else "-" * (width - 1) + ":" for place, width in enumerate(widths)])
    for row in table:
        places = enumerate(zip(row, widths, strict=True))
        cells = [cell.ljust(width) if place < 2 else cell.rjust(width) for place, (cell, width) in places]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *work, LEGEND])


def _cells(program: str, precision: str, row: Mapping[str, Any]) -> list[str]:
    times = [row[f"p{n}_ms"] for n in (50, 10, 90, 95)]
    rates = [row["images_per_second"], _over(row["flops"], 1e9), _over(row["flops_per_second"], 1e12)]
    sizes = [_over((row["memory_bytes"] or {}).get("peak"), 2**20), _over(row["device_peak_bytes"], 2**20)]
    numbers = [row["compile_seconds"], *times, *rates, *sizes]
    return [program, precision, str(row["batch_size"]), str(row["timed"]), *map(_number, numbers)]


def _over(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _number(value: float | None) -> str:
    """Three digits, or all that stand before the point.

    >>> [_number(value) for value in (0.01234, 12.34, 12345.6, None)]
    ['0.0123', '12.3', '12346', 'n/a']
    """
    if value is None:
        return "n/a"
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
