"""The command line of a grid: its flags, and what they ask for."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

import jaxad.grid
from jaxad.errors import UserError, exit_code
from jaxad.flags import debug_asked
from jaxad.grid import choose, load, runner, study
from jaxad.grid.folder import Grid


def main(argv: Sequence[str] | None = None, command: Sequence[str] = runner.COMMAND) -> int:
    """Runs the command line `argv` (default: this process's) and returns its exit code.

    command: what runs a cell; it is given jaxad.main's flags.
    """
    argv = sys.argv if argv is None else argv
    failed = []

    def body() -> None:
        own = _flags(argv)
        if own is None:
            return
        cells = load(own.grid, own.data, own.weights, own.workdir)
        chosen = choose(cells, own.only)
        grid = Grid(cells, own.workdir, study.load(own.grid, cells))
        if own.study:
            if grid.study is None:
                raise UserError(f"{own.grid} has no study; --study needs study = Study(...) in the file")
            print(study.write(grid, grid.study))
            return
        if own.list:
            runner.show(grid, chosen)
            return
        failed.extend(runner.run(grid, chosen, command, minutes=own.minutes))

    return exit_code(body, debug_asked(argv)) or int(bool(failed))


def _flags(argv: Sequence[str]) -> flags.FlagValues | None:
    """The command's flags; None after printing them for --help."""
    own = flags.FlagValues()
    flags.DEFINE_string("grid", None, "the grid, a Python file with cells(data, weights)", flag_values=own)
    flags.DEFINE_string("workdir", "runs/grid", "folder for the workdirs of the cells and the table", flag_values=own)
    flags.DEFINE_string("data", "", "handed to cells(): where the data sets are", flag_values=own)
    flags.DEFINE_string("weights", "", "handed to cells(): the file of pretrained weights", flag_values=own)
    flags.DEFINE_string("only", "", "run only cells whose name fits, e.g. 'screw/*'", flag_values=own)
    flags.DEFINE_float("minutes", None, "start no cell after that many minutes", lower_bound=0, flag_values=own)
    flags.DEFINE_bool("list", False, "print the cells, done or not, and run nothing", flag_values=own)
    flags.DEFINE_bool("study", False, "write study.csv and study.png of what is finished, run nothing", flag_values=own)
    flags.DEFINE_bool("debug", False, "show a traceback when something fails", flag_values=own)
    if any(argument in ("--help", "-help", "-h", "--helpshort", "--helpfull") for argument in argv[1:]):
        print(jaxad.grid.__doc__.strip(), "\n\nflags:")
        for flag in (own[name] for name in own):
            print(
                f"  --{flag.name}: {flag.help}" + (f" (default: {flag.value})" if flag.value not in (None, "") else "")
            )
        return None
    try:
        rest = own(list(argv))
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: say --grid=FILE")
    if not own.grid:
        raise UserError("no grid given: --grid=FILE, e.g. --grid=configs/grids/siamese_unet.py")
    return own


if __name__ == "__main__":
    sys.exit(main())
