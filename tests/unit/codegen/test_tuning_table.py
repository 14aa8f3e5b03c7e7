"""The tuning table: what is refused, which table wins, and what travels in an artifact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from rusteeze.codegen.cpu.isa import V3, V4
from rusteeze.codegen.cpu.lower import LoweringOptions
from rusteeze.codegen.cpu.lowering import Kernel, Tunable
from rusteeze.codegen.cpu.schedule import MatmulKey, Schedule, fallback
from rusteeze.codegen.cpu.tuning_table import (
    PACKAGED,
    Entry,
    Measured,
    TableError,
    TuningTable,
    read_table,
    tables_for,
    used_entries,
    write_table,
)

KEY = MatmulKey("affine4g32m-f16", "q8", 576, 960, "store")
OTHER_KEY = replace(KEY, n=576)
FAST = replace(fallback(V4, "q8"), block_tiles=2)
ENTRY = Entry(KEY, V4.name, "some processor", 2, True, FAST, (Measured(1, 10.0, 8.0, 0.8),))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "tuning.json"


def test_what_is_written_is_read(path: Path) -> None:
    assert read_table(path) == TuningTable()
    table = TuningTable().updated(ENTRY).updated(replace(ENTRY, key=OTHER_KEY))
    write_table(path, table)
    assert read_table(path) == table
    assert [p.name for p in path.parent.iterdir()] == ["tuning.json"]


def test_a_newer_entry_takes_the_place_of_the_older() -> None:
    slower = replace(ENTRY, schedule=fallback(V4, "q8"))
    assert TuningTable().updated(slower).updated(ENTRY).entries == (ENTRY,)
    elsewhere = replace(ENTRY, processor="another")
    assert TuningTable().updated(elsewhere).updated(ENTRY).entries == (elsewhere, ENTRY)


def spoil(path: Path, change: object) -> None:
    write_table(path, TuningTable().updated(ENTRY))
    data = json.loads(path.read_text())
    change(data)  # type: ignore[operator]
    path.write_text(json.dumps(data))


def first(data: dict) -> dict:
    return data["entries"][0]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(schema=2),
        lambda d: d.update(more=1),
        lambda d: d["entries"].append(first(d)),
        lambda d: first(d).update(more=1),
        lambda d: first(d).pop("processor"),
        lambda d: first(d)["key"].update(n=0),
        lambda d: first(d)["schedule"].update(row_tiles=[4, 2]),
        lambda d: first(d)["schedule"].update(accumulators=1000),
        lambda d: first(d)["schedule"].update(speed=1),
        lambda d: first(d)["measured"][0].update(us=-1),
        lambda d: first(d).update(finished="yes"),
    ],
)
def test_a_damaged_table_is_an_error_that_names_the_file(path: Path, change: object) -> None:
    spoil(path, change)
    with pytest.raises(TableError, match=r"tuning\.json: ") as error:
        read_table(path)
    assert error.value.user_error


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_table_at_all(path: Path, text: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(text)
    with pytest.raises(TableError, match=r"tuning\.json: "):
        read_table(path)


def test_the_users_table_comes_before_those_of_the_package(path: Path, tmp_path: Path) -> None:
    packaged, shipped = tmp_path / "tuned", replace(FAST, block_tiles=4)
    write_table(packaged / "a.json", TuningTable().updated(replace(ENTRY, schedule=shipped)))
    write_table(packaged / "b.json", TuningTable().updated(replace(ENTRY, key=OTHER_KEY)))

    def found(processor: str, key: MatmulKey) -> Schedule | None:
        schedules = (t.find(key, V4.name) for t in tables_for(processor, path, packaged))
        return next((s for s in schedules if s), None)

    assert found("some processor", KEY) == shipped
    assert found("some processor", OTHER_KEY) == FAST
    write_table(path, TuningTable().updated(ENTRY))
    assert found("some processor", KEY) == FAST
    assert found("another", KEY) is None


def test_the_entries_that_were_used_travel(path: Path) -> None:
    unused = replace(ENTRY, key=OTHER_KEY)
    write_table(path, TuningTable().updated(ENTRY).updated(unused))
    tables = tables_for("some processor", path, path.parent / "none")
    kernels = [Kernel("k", lambda k, isa: None, Tunable(KEY, lambda k, s: None)), Kernel("l", lambda k, i: None)]
    assert used_entries(kernels, LoweringOptions(isas=(V3, V4), tables=tables)).entries == (ENTRY,)
    assert used_entries(kernels, LoweringOptions(isas=(V3,), tables=tables)).entries == ()


def test_the_tables_of_the_package_can_be_read() -> None:
    for table in sorted(PACKAGED.glob("*.json")):
        entries = read_table(table).entries
        assert entries
        assert all(e.finished and e.measured for e in entries)
