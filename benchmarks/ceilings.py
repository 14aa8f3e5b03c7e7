"""What this machine can do at most, measured by ceilings.c."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("ceilings.c")


@dataclass(frozen=True)
class Kind:
    """A ceiling: the program's word for it, and the row's."""

    word: str
    what: str
    metric: str


KINDS = (
    Kind("read", "read memory", "GB/s"),
    Kind("int8", "int8 dot products", "GOP/s"),
    Kind("bf16", "bf16 dot products", "GFLOP/s"),
)


def build(folder: Path) -> Path:
    """The program. Needs a C compiler."""
    program = folder / "ceilings"
    flags = ["-O3", "-march=native", "-pthread"]
    subprocess.run(["cc", *flags, str(SOURCE), "-o", str(program)], check=True)
    return program


def kinds(program: Path) -> Iterator[Kind]:
    """What the program can measure on this processor; what it cannot is said."""
    for kind in KINDS:
        if subprocess.run([str(program), kind.word, "1"], capture_output=True).returncode:
            print(f"{kind.what}: this processor has no such instruction, left out")
        else:
            yield kind


def rate(program: Path, kind: Kind, threads: int) -> float:
    """In the metric's unit, by powers of ten."""
    command = [str(program), kind.word, str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
