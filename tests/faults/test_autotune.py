"""autotune on a tiny model: killed, gone on with, over a damaged table, and without changing a result."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from outcomes import python_rusteeze, refused, rusteeze

from rusteeze.artifact import cache
from rusteeze.artifact.store import read_manifest, verify
from rusteeze.artifact.tuned import processor, user_table
from rusteeze.codegen.cpu.tuning_table import TuningTable, read_table, write_table

pytestmark = pytest.mark.slow

PATIENCE = 120.0
"""Seconds, on a machine however busy."""


def tune(model: Path, budget: str) -> dict[str, Any]:
    result = rusteeze("autotune", model, "--budget", budget, "--json")
    assert result.exit_code == 0, result.output
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def answer(model: Path) -> str:
    result = rusteeze("generate", model, "-p", "abc", "--max-tokens", "12")
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()[0]


def test_an_artifact_is_compiled_anew_in_its_place(artifact: Path) -> None:
    before, answered = read_manifest(artifact), answer(artifact)
    facts = tune(artifact, "2s")
    assert (facts["artifact"], facts["table"]) == (str(artifact), str(user_table()))
    after = verify(artifact, full=True)
    assert (after.key, after.facts) == (before.key, before.facts)
    assert after.files["weights.safetensors"] == before.files["weights.safetensors"]
    assert [s["step"] for s in facts["steps"]] == ["decode 1", "decode 8", "decode 32", "prefill 64"]
    assert all(s["before_ms"] > 0 and s["after_ms"] > 0 for s in facts["steps"])
    assert answer(artifact) == answered
    # what travels with it is what was found for its kernels
    entries = read_table(user_table()).entries
    assert entries
    assert set(read_table(artifact / "tuning.json").entries) == set(entries)
    assert {e.processor for e in entries} == {processor()}


def test_schedules_that_were_found_are_compiled_in(artifact: Path, sound_folder: Path) -> None:
    """Other schedules in the table make other kernels, another key, and the same answer."""
    answered, plain = answer(sound_folder), {e.key for e in cache.entries()}
    tune(artifact, "2s")
    table = read_table(user_table())
    changed = TuningTable()
    for entry in table.entries:
        schedule = replace(entry.schedule, row_tiles=(2, 1), block_tiles=2, accumulators=4)
        changed = changed.updated(replace(entry, schedule=schedule))
    write_table(user_table(), changed)
    assert answer(sound_folder) == answered
    (new,) = {e.key for e in cache.entries()} - plain
    entry = cache.entry_path(new)
    assert set(read_table(entry / "tuning.json").entries) == set(changed.entries)
    names = {c["kernel"] for c in json.loads((entry / "plan.json").read_text())["calls"]}
    usual = {c["kernel"] for c in json.loads((artifact / "plan.json").read_text())["calls"]}
    assert {n.partition("_")[0] for n in names ^ usual} == {"linear"}


def test_a_model_is_compiled_and_cached_with_what_was_found(sound_folder: Path) -> None:
    facts = tune(sound_folder, "1s")
    before = cache.entries()
    assert facts["artifact"] in {str(e.path) for e in before}
    answer(sound_folder)
    assert len(cache.entries()) == len(before), "the tuned artifact should have been found"


def test_finished_kernels_are_skipped(artifact: Path) -> None:
    table = user_table()
    facts = tune(artifact, "2s")
    entries = read_table(table).entries
    first = replace(entries[0], finished=True)
    write_table(table, TuningTable(entries=(first, *entries[1:])))
    again = tune(artifact, "1s")
    (skipped,) = [k for k in again["kernels"] if k["name"] == facts["kernels"][0]["name"]]
    assert (skipped["skipped"], skipped["tried"]) == (True, 0)
    assert first in read_table(table).entries


def test_killed_at_any_moment_the_table_stays_valid(artifact: Path) -> None:
    """Killed after its first kernel; the next run goes on, and the artifact is whole all the while."""
    command = python_rusteeze("autotune", artifact, "--budget", "60s")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + PATIENCE
    while not user_table().exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed = read_table(user_table()).entries
    assert killed
    verify(artifact, full=True)
    facts = tune(artifact, "1s")
    done = {k["name"] for k in facts["kernels"] if k["skipped"]}
    assert len(done) == sum(e.finished for e in killed)
    verify(artifact, full=True)


@pytest.mark.parametrize("text", ["", "{", '{"schema": 1, "entries": [], "more": 1}', '{"schema": 9}'])
def test_a_damaged_table_is_told_in_one_line(text: str, artifact: Path, sound_folder: Path) -> None:
    user_table().parent.mkdir(parents=True, exist_ok=True)
    user_table().write_text(text)
    for arguments in (("autotune", artifact), ("compile", sound_folder)):
        assert "tuning.json" in refused(*arguments)
    assert user_table().read_text() == text


def test_what_cannot_be_tuned_is_told_in_one_line(artifact: Path, tmp_path: Path) -> None:
    assert "no such file" in refused("autotune", tmp_path / "none")
    manifest = artifact / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"compiler": "0.', '"compiler": "0.0.'))
    assert "compile the model again" in refused("autotune", artifact)
    result = rusteeze("autotune", artifact, "--budget", "soon")
    assert (result.exit_code, "no duration" in result.stderr) == (2, True)
