"""What a MODEL argument names, and when two of them share an artifact."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rusteeze import env
from rusteeze.config import CompileOptions
from rusteeze.errors import UserError
from rusteeze.source import HEAD_BYTES, key, resolve

OPTIONS = CompileOptions()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"w" * (HEAD_BYTES + 100))
    (path / "README.md").write_text("about")
    (path / "pytorch_model.bin").write_bytes(b"never read")
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A download of org/name as huggingface_hub stores it: two snapshots, main is the older one."""
    repository = tmp_path / "hub" / "models--org--name"
    for age, revision in enumerate(("aaa", "bbb")):
        snapshot = repository / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        os.utime(snapshot, (1000 + age, 1000 + age))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("aaa\n")
    monkeypatch.setenv(env.HF_HUB_CACHE.name, str(tmp_path / "hub"))
    return repository


def test_a_folder_and_its_files(folder: Path) -> None:
    source = resolve(str(folder))
    assert (source.kind, source.name) == ("folder", "model")
    assert [p.name for p in source.files()] == ["config.json", "model.safetensors"]
    assert source.num_bytes == HEAD_BYTES + 102


def test_a_gguf_file_alone_or_in_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "m.Q4_0.gguf"
    path.write_bytes(b"GGUF....")
    assert resolve(path).kind == resolve(tmp_path).kind == "gguf"
    assert resolve(tmp_path).path == path
    (tmp_path / "n.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="holds 2 GGUF files"):
        resolve(tmp_path)


def test_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert resolve(tmp_path).kind == "artifact"


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"m\.gguf: not a GGUF file"):
        resolve(tmp_path / "m.gguf")


@pytest.mark.parametrize("model", ["nowhere", "a/b/c", "../up", "/no/such", "org/", ""])
def test_nothing_there(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        resolve(model)


def test_a_downloaded_repository(hub: Path) -> None:
    source = resolve("org/name")
    assert (source.kind, source.name, source.path.name) == ("hub", "org/name", "aaa")


def test_without_a_main_branch_the_newest_snapshot_counts(hub: Path) -> None:
    (hub / "refs" / "main").unlink()
    assert resolve("org/name").path.name == "bbb"


@pytest.mark.parametrize("text", ["../../../etc", "/etc", "", "a/b"])
def test_a_branch_file_leads_nowhere_else(hub: Path, text: str) -> None:
    (hub / "refs" / "main").write_text(text)
    assert resolve("org/name").path.name == "bbb"


def test_a_repository_that_is_not_downloaded(hub: Path) -> None:
    with pytest.raises(UserError, match="run: rusteeze download org/other"):
        resolve("org/other")


def test_the_same_files_give_the_same_key(folder: Path) -> None:
    assert key(resolve(folder), OPTIONS, "1") == key(resolve(folder), OPTIONS, "1")


def _rename(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")


def _touch(folder: Path) -> None:
    os.utime(folder / "model.safetensors")


def _edit_head(folder: Path) -> None:
    path = folder / "model.safetensors"
    times = path.stat()
    path.write_bytes(b"v" + path.read_bytes()[1:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _grow(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize("change", [_rename, _touch, _edit_head, _grow])
def test_a_changed_model_has_another_key(folder: Path, change: Callable[[Path], None]) -> None:
    before = key(resolve(folder), OPTIONS, "1")
    change(folder)
    assert key(resolve(folder), OPTIONS, "1") != before


def test_files_that_are_not_the_model_change_nothing(folder: Path) -> None:
    before = key(resolve(folder), OPTIONS, "1")
    (folder / "README.md").write_text("more about")
    assert key(resolve(folder), OPTIONS, "1") == before


def test_compiler_and_options_are_in_the_key(folder: Path) -> None:
    source = resolve(folder)
    keys = {
        key(source, OPTIONS, "1"),
        key(source, OPTIONS, "2"),
        key(source, CompileOptions(dtype="f32"), "1"),
        key(source, CompileOptions(max_model_len=7), "1"),
    }
    assert len(keys) == 4
    assert key(source, CompileOptions(jobs=2), "1") == key(source, OPTIONS, "1")


def test_no_environment_variable_is_in_the_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(resolve(folder), OPTIONS, "1")
    for variable in env.VARIABLES:
        monkeypatch.setenv(variable.name, "3")
    assert key(resolve(folder), OPTIONS, "1") == before
