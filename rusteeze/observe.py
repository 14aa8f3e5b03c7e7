"""What a person may watch: the RUSTEEZE_DEBUG ladder and the RUSTEEZE_DUMP folder.

Levels are cumulative and mean the same everywhere: 1 pass table; 2 each kernel launch; 3 IR after each
pass; 4 generated source; 5 each rule. Knows no graph and no kernel: it is handed text.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from rusteeze import env

PASSES, LAUNCHES, GRAPHS, SOURCES, RULES = 1, 2, 3, 4, 5


@dataclass
class Observer:
    """Prints what the level asks for and writes numbered files, if there is a folder for them.

    ``also``: levels that are shown on their own, without those below."""

    level: int = 0
    folder: Path | None = None
    also: set[int] = field(default_factory=set)
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    written: int = 0

    @classmethod
    def from_environment(cls) -> Observer:
        """As RUSTEEZE_DEBUG and RUSTEEZE_DUMP say. UserError when either cannot be read."""
        return cls(env.DEBUG.get(), env.DUMP.get())

    def shows(self, level: int) -> bool:
        return self.level >= level or level in self.also

    def say(self, level: int, text: str) -> None:
        if self.shows(level):
            print(text, file=self.stream)

    def dump(self, name: str, text: str) -> None:
        """Write ``NN-NAME``, numbered in the order of the calls."""
        if self.folder is not None:
            self.dump_as(f"{self.written:02d}-{name}", text)
            self.written += 1

    def dump_as(self, name: str, text: str) -> None:
        """Write a file of that name, which may contain folders."""
        if self.folder is not None:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
