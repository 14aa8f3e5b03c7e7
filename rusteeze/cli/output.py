"""Results on stdout: as JSON for programs, as text and tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Columns aligned to the right.
_NUMERIC = {
    "size", "calls", "share %", "µs", "waiting %", "MB", "GB/s", "MFLOP", "GFLOP/s", "of limit %"
}  # fmt: skip
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def print_json(data: Any) -> None:
    click.echo(json.dumps(data, ensure_ascii=False, indent=1))


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], width: int | None = None
) -> None:
    """One table; every cell is plain text, whatever markup it seems to hold. ``width``: characters that it
    takes even where the terminal has fewer."""
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in _NUMERIC else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, width or 0)
    if title:
        console.print(title, style="bold", soft_wrap=True)
    console.print(table)


def bytes_text(num_bytes: int) -> str:
    """``1536`` as ``1.5 KiB``."""
    power = min(max(num_bytes.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    digits = 1 if power else 0
    return f"{num_bytes / 1024**power:.{digits}f} {_UNITS[power]}"


def write_text(text: str) -> None:
    """Text of a model, at once and unchanged; on a terminal, without control over the terminal."""
    if sys.stdout.isatty():
        text = text.translate(_CONTROLS)
    sys.stdout.write(text)
    sys.stdout.flush()
