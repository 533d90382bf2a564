"""Methods: one file each, holding what is different about it. A method is a module with `stages(config, spec)`."""

from __future__ import annotations

import importlib
from types import ModuleType

from jaxad import config as configs
from jaxad.errors import UserError


def resolve(method: str) -> ModuleType:
    """The module of a method: one of jaxad's by name, or one of your own by its path; it has `stages(config, spec)`."""
    module = importlib.import_module(f"jaxad.methods.{method}" if method in configs.METHODS else method)
    if not hasattr(module, "stages"):
        raise UserError(f"method {method!r} has no function stages(config, spec)")
    return module
