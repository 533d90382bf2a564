"""Trains, evaluates and reports one method on one data set.

  python -m jaxad.main --config=configs/quickstart.py --workdir=runs/quickstart

The same command resumes an interrupted run, and writes the same results again for a finished one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from jaxad.errors import exit_code
from jaxad.flags import debug_asked, parse


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: this process's) and returns its exit code."""
    argv = sys.argv if argv is None else argv

    def body() -> None:
        own = flags.FlagValues()
        flags.DEFINE_string("workdir", "runs/latest", "folder for checkpoints, results and pictures", flag_values=own)
        parsed = parse(argv, own, __doc__)
        if parsed is None:
            return
        from jaxad import run  # heavy: only once the command line is known to be good

        config, own = parsed
        run.run(config, own.workdir)

    return exit_code(body, debug_asked(argv))


if __name__ == "__main__":
    sys.exit(main())
