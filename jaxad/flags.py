"""The command line: `--config=FILE[:VARIANT]`, `--config.KEY=VALUE`, and a command's own flags, in well under a second.

ml_collections parses and types the values; what is added here is that a mistake is one line that names the nearest
thing that exists, and `--config.train.steps=N` for a method with one stage.
"""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxad import config as configs
from jaxad.errors import UserError


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint that names the known word nearest to `word`.

    >>> nearest('sede', ['seed', 'method'])
    "; the nearest is 'seed'"
    """
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    return f"; the nearest is {found[0]!r}" if found else ""


def keys(config: ConfigDict, prefix: str = "") -> list[str]:
    """Every key of the config as a dotted path, sections included."""
    found = []
    for key, value in config.items():
        found.append(prefix + key)
        if isinstance(value, ConfigDict):
            found += keys(value, f"{prefix}{key}.")
    return found


def load(spec: str) -> ConfigDict:
    """The config of 'FILE' or 'FILE:VARIANT': a Python file with `get_config(variant=None)`."""
    path, _, variant = spec.partition(":")
    if not os.path.isfile(path):
        raise UserError(f"no config file {path!r} (looked in {os.getcwd()})")
    scope: dict = {"__name__": "config_file", "__file__": os.path.abspath(path)}
    try:
        with open(path, encoding="utf-8") as file:
            exec(compile(file.read(), path, "exec"), scope)
        if "get_config" not in scope:
            raise UserError(f"{path} has no function get_config()")
        config = scope["get_config"](variant) if variant else scope["get_config"]()
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f"{path}:{lines[-1]}" if lines else path
        message = " ".join(str(error).split())
        if "locked" in message:
            key = message.split('"')[1]
            fields = keys(configs.default(next(iter(configs.METHODS))))
            near = nearest(key, [field.rpartition(".")[2] for field in fields])
            raise UserError(f"{where}: unknown key {key!r}{near}") from error
        raise UserError(f"{where}: {message}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() returned {type(config).__name__}, not a ConfigDict")
    return config


def _overrides(argv: Sequence[str], config: ConfigDict) -> list[str]:
    """argv with `--config.train.steps=N` made whole; raises on a key that does not exist."""
    known = keys(config)
    result = []
    for argument in argv:
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name.removeprefix("no").startswith("config."):
            key = name.removeprefix("no").removeprefix("config.")
            if key not in known:
                raise UserError(f"unknown key config.{key}{nearest(key, known)}")
            if key == "train.steps":
                stages = list(config.train.steps)
                if len(stages) != 1:
                    options = ", ".join(f"--config.train.steps.{stage}=N" for stage in stages)
                    raise UserError(f"method {config.method!r} has {len(stages)} stages: say {options}")
                argument = f"--config.train.steps.{stages[0]}{equals}{value}"
        result.append(argument)
    return result


def parse(
    argv: Sequence[str], own: flags.FlagValues, usage: str, adapt: Callable[[ConfigDict], None] | None = None
) -> tuple[ConfigDict, flags.FlagValues] | None:
    """(config, own flags) of a command line; None after printing `usage` and the flags for --help.

    adapt(config): sets what the command decides itself, before the config is checked.

    Raises `UserError` for anything else that cannot be understood.
    """
    own = own or flags.FlagValues()
    flags.DEFINE_bool("debug", False, "show a traceback when something fails", flag_values=own)
    if any(argument in ("--help", "-help", "-h", "--helpshort", "--helpfull") for argument in argv[1:]):
        print(usage.strip(), "\n\nflags:")
        print("  --config: the method and its settings, FILE or FILE:VARIANT, e.g. configs/quickstart.py")
        print("  --config.KEY=VALUE: changes one setting, e.g. --config.data.image_size=128")
        for flag in (own[name] for name in own):
            print(
                f"  --{flag.name}: {flag.help}" + (f" (default: {flag.value})" if flag.value not in (None, "") else "")
            )
        return None
    argv = list(argv)
    for position, argument in enumerate(argv[:-1]):
        if argument == "--config":  # '--config FILE' is '--config=FILE'
            argv[position : position + 2] = [f"--config={argv[position + 1]}", ""]
    argv = [argument for argument in argv if argument]
    specs = [argument.partition("=")[2] for argument in argv if argument.startswith(("--config=", "-config="))]
    if not specs:
        raise UserError("no config given: --config=FILE, e.g. --config=configs/quickstart.py")
    argv = _overrides(argv, load(specs[-1]))
    try:
        config_flags.DEFINE_config_file("config", None, "", flag_values=own, lock_config=True, sys_argv=argv)
        rest = own(argv)
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"a --config value could not be understood: {' '.join(str(error).split())}") from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: settings are given as --config.KEY=VALUE")
    if adapt:
        adapt(own.config)
    configs.check(own.config)
    return own.config, own


def debug_asked(argv: Sequence[str] | None = None) -> bool:
    """Whether --debug is on the command line, also when the rest of it could not be parsed."""
    return "--debug" in (sys.argv if argv is None else argv)
