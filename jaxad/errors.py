"""How a command ends: one clear line and an exit code; a traceback only with --debug. And lines for wrong settings.

0 done · 1 our fault, and non-finite losses · 2 the user's mistake · 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import errno
import functools
import math
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any


class UserError(Exception):
    """The user's mistake: one line that names the thing and the fix; exit code 2."""


class NonFiniteLoss(Exception):
    """A loss became NaN or infinite; the message names the step and the terms; exit code 1."""


class Checks:
    """Complaints about the keys of a config section, one line each, with the key, its value and what it must be.

    options: the section, a tree of mappings · where: its name, 'config.my_method'. Keys may be dotted.

    >>> check = Checks({"loss": {"kind": "l3", "weight": 1.0}}, "config.mine")
    >>> check.not_negative("loss.weight")
    >>> try: check.one_of("loss.kind", ("l1", "l2"))
    ... except UserError as error: print(error)
    config.mine.loss.kind='l3': it must be one of l1, l2
    """

    def __init__(self, options: Any, where: str):
        self.options, self.where = options, where

    def _value(self, name: str) -> Any:
        return functools.reduce(lambda tree, part: tree[part], name.split("."), self.options)

    def demand(self, ok: bool, name: str, what: str) -> None:
        """Raises UserError, that key `name` must be `what`, unless `ok`."""
        if not ok:
            raise UserError(f"{self.where}.{name}={self._value(name)!r}: it must be {what}")

    def one_of(self, name: str, allowed: Sequence) -> None:
        """Raises UserError where the value is not one of `allowed`."""
        self.demand(self._value(name) in allowed, name, f"one of {', '.join(map(str, allowed))}")

    def not_negative(self, *names: str) -> None:
        """Raises UserError for a number that is negative, infinite or none at all."""
        for name in names:
            self.demand(0 <= self._value(name) < math.inf, name, "0 or more")


def _chain(error: BaseException | None):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def disk_full(error: BaseException) -> bool:
    """Also where a library has wrapped the operating system's error in its own (tensorstore does)."""
    return any(
        getattr(link, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(link)
        for link in _chain(error)
    )


def one_line(error: BaseException) -> str:
    """The error's message on one line, with its type where the message alone would not say what happened."""
    message = " ".join(str(error).split())
    return message if isinstance(error, (UserError, NonFiniteLoss)) else f"{type(error).__name__}: {message}"


def exit_code(body: Callable[[], None], debug: bool = False) -> int:
    """Runs `body()` and returns the exit code; what went wrong is one line on standard error.

    >>> exit_code(lambda: None)
    0
    """
    try:
        body()
        return 0
    except KeyboardInterrupt as error:
        code, line = 130, str(error) or "stopped; the same command resumes"
    except UserError as error:
        code, line = 2, one_line(error)
        if debug:
            traceback.print_exc()
    except NonFiniteLoss as error:
        code, line = 1, one_line(error)
        if debug:
            traceback.print_exc()
    except Exception as error:
        if disk_full(error):
            code, line = 2, f"the disk is full: free some space or choose another folder ({one_line(error)[:100]} ...)"
        else:
            code, line = 1, f"{one_line(error)[:2000]} (this is a fault of jaxad; --debug shows where)"
        if debug:
            traceback.print_exc()
    if code == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not turn the message into a traceback
    print(f"jaxad: {line}", file=sys.stderr, flush=True)
    return code
