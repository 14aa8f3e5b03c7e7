"""Modules that need the packages of the `compile` extra, loaded when a command turns out to need one."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from rusteeze.errors import UserError

INSTALL = "pip install 'rusteeze[compile]'"


def load_extra(name: str, purpose: str) -> ModuleType:
    """Import module ``name``. UserError with the command to run when a package is missing."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        package = (error.name or name).partition(".")[0]
        if package == "rusteeze":
            raise
        raise UserError(f"{purpose} needs the package {package}; run: {INSTALL}") from error
