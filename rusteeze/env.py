"""Every environment variable that Rusteeze reads: typed, with its default, strict.

A bad value is an error, never a silent default; only ``LOG_LEVEL``, which is not ours, may hold anything. ``docs/env.md`` is the same list for people.
Example: ``env.CACHE.get()`` gives the folder as a Path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rusteeze.errors import UserError

T = TypeVar("T")

LOG_LEVELS = ("debug", "info", "warning", "error")
MAX_DEBUG = 5
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True)
class Variable(Generic[T]):
    """One variable: ``get`` reads it afresh, so that a test or a caller may change it."""

    name: str
    default: T
    parse: Callable[[str], T]
    meaning: str

    def get(self) -> T:
        """The value, or the default when unset or empty. UserError when it cannot be read."""
        text = os.environ.get(self.name, "")
        if not text:
            return self.default
        try:
            return self.parse(text)
        except ValueError as error:
            raise UserError(f"{self.name}={text!r}: {error}") from error


def parse_bytes(text: str) -> int:
    """``"20GiB"``, ``"512M"`` or ``"1024"`` as a number of bytes; units are powers of 1024.

    ValueError when the text is not a size.
    """
    digits = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = digits[-1:] if digits[-1:].isalpha() else ""
    number = digits.removesuffix(unit).strip()
    if unit not in _UNITS or not number.isascii() or not number.isdigit():
        raise ValueError("expected a size such as 20GiB")
    return int(number) * _UNITS[unit]


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError("expected a positive whole number")
    return int(text)


def _debug_level(text: str) -> int:
    if text not in map(str, range(MAX_DEBUG + 1)):
        raise ValueError(f"expected a level from 0 to {MAX_DEBUG}")
    return int(text)


def _log_level(text: str) -> str:
    if text.lower() not in LOG_LEVELS:
        raise ValueError(f"expected one of {', '.join(LOG_LEVELS)}")
    return text.lower()


def _foreign_log_level(text: str) -> str | None:
    """Other software reads this variable too: a level that is none of ours is not meant for us."""
    return text.lower() if text.lower() in LOG_LEVELS else None


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ValueError("expected a port from 0 to 65535")
    return int(text)


CACHE = Variable(
    "RUSTEEZE_CACHE", Path("~/.cache/rusteeze").expanduser(), _path,
    "folder of compiled artifacts and fetched models",
)  # fmt: skip
CACHE_LIMIT: Variable[int | None] = Variable(
    "RUSTEEZE_CACHE_LIMIT", None, parse_bytes,
    "size, such as 20GiB, above which the artifacts used longest ago are removed after a compile",
)  # fmt: skip
THREADS: Variable[int | None] = Variable(
    "RUSTEEZE_THREADS", None, _positive, "number of CPU threads of the runtime"
)
ISA: Variable[str | None] = Variable(
    "RUSTEEZE_ISA", None, str, "instruction set to use instead of the best one, for measuring"
)
PLAIN_LOG_LEVEL: Variable[str | None] = Variable(
    "LOG_LEVEL", None, _foreign_log_level,
    "the same as RUSTEEZE_LOG_LEVEL, which beats it; values of other software are ignored",
)
LOG_LEVEL: Variable[str | None] = Variable(
    "RUSTEEZE_LOG_LEVEL", None, _log_level, "debug, info, warning or error, on stderr"
)
MODEL: Variable[str | None] = Variable("RUSTEEZE_MODEL", None, str, "what `serve` serves")
HOST: Variable[str | None] = Variable("RUSTEEZE_HOST", None, str, "address that `serve` listens on")
PORT: Variable[int | None] = Variable("RUSTEEZE_PORT", None, _port, "port that `serve` listens on")
API_KEY: Variable[str | None] = Variable(
    "RUSTEEZE_API_KEY", None, str, "the key that clients of `serve` must send"
)
DEBUG = Variable(
    "RUSTEEZE_DEBUG", 0, _debug_level,
    "1 pass table; 2 each kernel launch; 3 IR after each pass; 4 generated source; 5 each rule",
)  # fmt: skip
DUMP: Variable[Path | None] = Variable(
    "RUSTEEZE_DUMP", None, _path, "folder that receives IR, generated source and the plan"
)
HF_HOME = Variable(
    "HF_HOME", Path("~/.cache/huggingface").expanduser(), _path, "folder of Hugging Face"
)
HF_HUB_CACHE: Variable[Path | None] = Variable(
    "HF_HUB_CACHE", None, _path, "folder of downloaded repositories, if not `hub` in HF_HOME"
)

VARIABLES: tuple[Variable, ...] = (
    CACHE, CACHE_LIMIT, THREADS, ISA, LOG_LEVEL, PLAIN_LOG_LEVEL, DEBUG, DUMP, HF_HOME, HF_HUB_CACHE,
    MODEL, HOST, PORT, API_KEY,
)  # fmt: skip


def log_level() -> str:
    """The level that the environment asks for, or the default."""
    return LOG_LEVEL.get() or PLAIN_LOG_LEVEL.get() or "warning"


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """What a child process inherits, with ``extra`` variables in it."""
    return {**os.environ, **extra}
