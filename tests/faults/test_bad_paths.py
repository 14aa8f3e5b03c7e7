"""Names that lead to no model: every command says so in one line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from outcomes import refused, rusteeze

COMMANDS = {"compile": (), "generate": ("-p", "x"), "info": (), "validate": (), "chat": ()}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_does_not_exist(command: str, tmp_path: Path) -> None:
    missing = tmp_path / "missing.gguf"
    assert "no such file or folder" in refused(command, missing, *COMMANDS[command])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_hub_id_that_was_not_downloaded(command: str) -> None:
    """Nothing is fetched unless asked for, so this needs no network."""
    message = refused(command, "org/nonesuch", *COMMANDS[command])
    assert "run: rusteeze download org/nonesuch" in message


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    assert "not a GGUF file" in refused("generate", path, "-p", "x")
    path.write_text("")
    assert "not a GGUF file" in refused("generate", path, "-p", "x")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    assert "neither a model" in refused("generate", tmp_path, "-p", "x")
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF")
    assert "name one of them" in refused("generate", tmp_path, "-p", "x")


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "no such file or folder" in refused("generate", tmp_path / "pipe", "-p", "x")


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000, "../../etc", "org/", "/dev/null"])
def test_strange_names(name: str) -> None:
    refused("generate", name, "-p", "x")


def test_a_folder_that_is_not_overwritten(sound_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    message = refused("compile", sound_folder, "-o", tmp_path / "precious")
    assert "not overwritten" in message
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


def test_the_model_itself_is_not_overwritten(folder: Path) -> None:
    assert "not overwritten" in refused("compile", folder, "-o", folder)
    assert rusteeze("info", folder).exit_code == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_may_not_be_read(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modes alone would not stop a test that runs as root."""

    def denied(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", denied)
    assert "Permission denied" in refused(command, "models/private", *COMMANDS[command])
