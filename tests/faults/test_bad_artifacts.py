"""Artifacts that are damaged or of another version are never run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from outcomes import edit_json, refused, rusteeze

from rusteeze import compiler
from rusteeze.artifact.contract import SCHEMA
from rusteeze.artifact.store import publish

FILES = (
    "manifest.json", "plan.json", "weights.safetensors", "tokenizer.json", "generation_config.json",
    "graph.ir",
)  # fmt: skip
COMMANDS = {"generate": ("-p", "x"), "validate": ()}


def check(artifact: Path, words: str) -> None:
    for command, rest in COMMANDS.items():
        message = refused(command, artifact, *rest)
        assert words in message
        assert "compile the model again" in message


def test_the_sound_artifact_runs(artifact: Path) -> None:
    result = rusteeze("generate", artifact, "-p", "x", "--max-tokens", "2")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte(name: str, artifact: Path) -> None:
    content = bytearray((artifact / name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (artifact / name).write_bytes(content)
    check(artifact, name)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file(name: str, artifact: Path) -> None:
    content = (artifact / name).read_bytes()
    (artifact / name).write_bytes(content[: len(content) // 3])
    check(artifact, name)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_missing_file(name: str, artifact: Path) -> None:
    (artifact / name).unlink()
    check(artifact, name)


def test_far_more_threads_than_cores_are_warned_about(artifact: Path) -> None:
    enough = len(os.sched_getaffinity(0))
    arguments = ("generate", artifact, "-p", "a", "--max-tokens", "1", "--threads")
    assert f"{2 * enough + 1} threads on {enough} cores" in rusteeze(*arguments, str(2 * enough + 1)).stderr
    assert "threads on" not in rusteeze(*arguments, str(enough)).stderr


def test_no_manifest_no_artifact(artifact: Path) -> None:
    (artifact / "manifest.json").unlink()
    assert "neither a model" in refused("generate", artifact, "-p", "x")


def test_damaged_kernels(artifact: Path) -> None:
    for library in (artifact / "cpu").iterdir():
        library.write_bytes(library.read_bytes()[:-64])
    check(artifact, ".so")


def test_no_kernels_for_this_processor(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTEEZE_ISA", "nonesuch")
    assert "no kernels for this processor" in refused("generate", artifact, "-p", "x")


@pytest.mark.parametrize("schema", [0, 2, 999, -1, "1", None])
def test_an_artifact_of_another_schema(schema: object, artifact: Path) -> None:
    edit_json(artifact / "manifest.json", schema=schema)
    check(artifact, "manifest.json")


def test_a_plan_of_another_schema(artifact: Path) -> None:
    """Whole and sealed, but written by a later compiler."""
    edit_json(artifact / "plan.json", schema=SCHEMA + 1)
    reseal(artifact)
    assert f"schema {SCHEMA + 1}, this version reads {SCHEMA}" in refused("generate", artifact, "-p", "x")
    assert f"schema {SCHEMA + 1}, this version reads {SCHEMA}" in refused("info", artifact)


def test_a_plan_without_a_field(artifact: Path) -> None:
    plan = json.loads((artifact / "plan.json").read_text())
    del plan["buffers"]
    (artifact / "plan.json").write_text(json.dumps(plan))
    reseal(artifact)
    check(artifact, "buffers")


def reseal(artifact: Path) -> None:
    """Make the manifest fit the files again, as a compiler with other ideas would."""
    changed = artifact.rename(artifact.with_name("changed.rz"))
    publish(artifact, lambda folder: copy_files(changed, folder), key="k", facts={})


def test_a_broken_artifact_in_the_cache_is_compiled_again(
    sound_folder: Path, sound_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        compiler, "_build", lambda _, folder, *rest: copy_files(sound_artifact, folder)
    )
    first = Path(rusteeze("compile", sound_folder).stdout.strip())
    (first / "plan.json").write_text("{}")
    result = rusteeze("generate", sound_folder, "-p", "x", "--max-tokens", "2")
    assert result.exit_code == 0, result.output
    assert (first / "plan.json").read_bytes() == (sound_artifact / "plan.json").read_bytes()


def copy_files(artifact: Path, folder: Path) -> None:
    ignore = shutil.ignore_patterns("manifest.json", ".verified")
    shutil.copytree(artifact, folder, dirs_exist_ok=True, ignore=ignore)
