"""The tuning table: measured schedules as plain JSON, strictly checked when it is read.

An entry belongs to a kernel, an instruction set and a processor, and carries the measurements behind it.
There is a table for the user, one for each documented model in ``tuned/``, and one in every artifact.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec

from rusteeze.artifact.files import write_atomic
from rusteeze.codegen.cpu.lowering import Kernel, LoweringOptions
from rusteeze.codegen.cpu.schedule import MatmulKey, Schedule
from rusteeze.errors import UserError

SCHEMA = 1
PACKAGED = Path(__file__).parent / "tuned"

Positive = Annotated[float, msgspec.Meta(gt=0)]
Place = tuple[MatmulKey, str, str]


class TableError(UserError):
    """A table that cannot be read; names the file."""


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One call with ``rows`` rows in µs: median with the fallback, median with the schedule, and the median
    of the ratios of pairs that ran in turns (below 1: the schedule is faster)."""

    rows: Annotated[int, msgspec.Meta(ge=1)]
    fallback_us: Positive
    us: Positive
    ratio: Positive


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a search found: ``schedule`` is the fallback where nothing was better. ``finished``: nothing was
    left to try when its time was up. ``threads``: those that measured."""

    key: MatmulKey
    isa: str
    processor: str
    threads: Annotated[int, msgspec.Meta(ge=1)]
    finished: bool
    schedule: Schedule
    measured: tuple[Measured, ...]

    @property
    def place(self) -> Place:
        return self.key, self.isa, self.processor


class TuningTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Entries, at most one for each kernel, instruction set and processor."""

    schema: int = SCHEMA
    entries: tuple[Entry, ...] = ()

    def __post_init__(self) -> None:
        if len({e.place for e in self.entries}) < len(self.entries):
            raise ValueError("two entries for the same kernel")

    def updated(self, entry: Entry) -> TuningTable:
        """With an entry in place of what was known about its kernel."""
        kept = [e for e in self.entries if e.place != entry.place]
        return TuningTable(self.schema, (*kept, entry))

    def on(self, processor: str) -> ProcessorTable:
        """What it says about one processor."""
        return ProcessorTable({(e.key, e.isa): e for e in self.entries if e.processor == processor})


class ProcessorTable:
    """The entries of one processor; see schedule.Table."""

    def __init__(self, entries: dict[tuple[MatmulKey, str], Entry]) -> None:
        self.entries = entries

    def find(self, key: MatmulKey, isa: str) -> Schedule | None:
        entry = self.entries.get((key, isa))
        return entry.schedule if entry else None


def read_table(path: Path) -> TuningTable:
    """The table in a file; an empty one when there is no file. TableError names the file and the fault."""
    try:
        table = msgspec.json.decode(path.read_bytes(), type=TuningTable)
    except FileNotFoundError:
        return TuningTable()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TableError(f"{path}: {error}; mend or remove the file") from error
    if table.schema != SCHEMA:
        raise TableError(f"{path}: schema {table.schema}, this version reads {SCHEMA}; remove the file")
    return table


def write_table(path: Path, table: TuningTable) -> None:
    """Replace the file by a whole table: a crash leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, encode_table(table))


def encode_table(table: TuningTable) -> bytes:
    return msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n"


def tables_for(processor: str, user: Path, packaged: Path = PACKAGED) -> tuple[ProcessorTable, ...]:
    """Where to look schedules up, in this order: the user's table, then those of the package."""
    paths = [user, *sorted(packaged.glob("*.json"))]
    return tuple(read_table(path).on(processor) for path in paths)


def used_entries(kernels: Iterable[Kernel], options: LoweringOptions) -> TuningTable:
    """The entries that decided a schedule of these kernels; what is not there runs with the fallback."""
    used: dict[Place, Entry] = {}
    keys = {k.tunable.key: None for k in kernels if k.tunable}
    for place in ((key, isa.name) for key in keys for isa in options.isas):
        tables = (t for t in options.tables if isinstance(t, ProcessorTable) and place in t.entries)
        found = next(tables, None)
        if found:
            used[found.entries[place].place] = found.entries[place]
    return TuningTable(entries=tuple(used.values()))
