"""Artifacts are published whole or not at all, and nothing that was tampered with is trusted."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rusteeze.artifact import store
from rusteeze.artifact.files import require_free_bytes, write_atomic
from rusteeze.artifact.store import member, publish, read_manifest, verify
from rusteeze.errors import ArtifactError

Build = Callable[[Path], None]

KEY = "0123456789abcdef"
FILES = ["cpu/v3.o", "empty.txt", "plan.json", "weights.safetensors"]


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_published_artifact_verifies_and_lists_every_file(artifact: Path) -> None:
    manifest = verify(artifact)
    assert sorted(manifest.files) == FILES
    assert (manifest.key, manifest.facts) == (KEY, {"family": "llama"})
    assert manifest.files["weights.safetensors"].bytes == 600


def test_facts_may_be_filled_by_the_build(tmp_path: Path) -> None:
    facts: dict[str, Any] = {}
    publish(tmp_path / "m.rz", lambda _: facts.update(num_layers=3), key=KEY, facts=facts)
    assert verify(tmp_path / "m.rz").facts == {"num_layers": 3}


def test_nothing_but_the_artifact_is_left_beside_it(artifact: Path) -> None:
    assert [p.name for p in artifact.parent.iterdir()] == ["model.rz"]


def test_failed_build_leaves_nothing_and_keeps_the_old_artifact(artifact: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "plan.json").write_text("half")
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        publish(artifact, fail, key="other-key", facts={})
    assert verify(artifact).key == KEY
    assert [p.name for p in artifact.parent.iterdir()] == ["model.rz"]


def test_publishing_again_replaces_the_artifact(artifact: Path) -> None:
    publish(artifact, lambda f: (f / "new").write_text("n") and None, key="second", facts={})
    assert list(verify(artifact).files) == ["new"]
    assert [p.name for p in artifact.parent.iterdir()] == ["model.rz"]


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json"])
def test_a_folder_of_something_else_is_never_overwritten(
    tmp_path: Path, name: str, build_sample: Build
) -> None:
    (tmp_path / name).write_text('{"display": "standalone"}')
    with pytest.raises(ArtifactError, match="not an artifact"):
        publish(tmp_path, build_sample, key=KEY, facts={})
    assert (tmp_path / name).exists()


def test_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "weights.safetensors").write_bytes(b"w" * 100)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ArtifactError, match=r"^disk full: .* MiB free at "):
        publish(tmp_path / "m.rz", fill, key=KEY, facts={})
    assert list(tmp_path.iterdir()) == []


def test_other_disk_errors_are_not_called_a_full_disk(tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output"):
        publish(tmp_path / "m.rz", fail, key=KEY, facts={})


def test_free_space_is_asked_for_before_work(tmp_path: Path) -> None:
    require_free_bytes(tmp_path, 1)
    with pytest.raises(ArtifactError, match="disk full"):
        require_free_bytes(tmp_path, 2**60)


def test_links_are_refused_at_publication(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "weights.safetensors").symlink_to("/etc/hostname")

    with pytest.raises(ArtifactError, match="regular files only"):
        publish(tmp_path / "m.rz", build, key=KEY, facts={})


@pytest.mark.parametrize("name", FILES[:1] + FILES[2:])
@pytest.mark.parametrize("full", [False, True])
def test_one_changed_byte_is_found(artifact: Path, name: str, full: bool) -> None:
    verify(artifact)
    data = bytearray((artifact / name).read_bytes())
    data[-1] ^= 1
    (artifact / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"model\.rz/{name}: its content"):
        verify(artifact, full=full)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    with pytest.raises(ArtifactError, match=rf"model\.rz/{name}: No such file"):
        verify(artifact)


@pytest.mark.parametrize("name", FILES)
def test_a_longer_file_is_named(artifact: Path, name: str) -> None:
    with (artifact / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match=f"{name}: .* bytes, the manifest says"):
        verify(artifact)


def test_a_link_in_place_of_a_file_is_refused(artifact: Path, tmp_path: Path) -> None:
    (artifact / "plan.json").rename(tmp_path / "plan.json")
    (artifact / "plan.json").symlink_to(tmp_path / "plan.json")
    with pytest.raises(ArtifactError, match=r"plan\.json: not a regular file"):
        verify(artifact)


def test_a_linked_folder_cannot_lead_outside(artifact: Path, tmp_path: Path) -> None:
    (artifact / "cpu").rename(tmp_path / "cpu")
    (artifact / "cpu").symlink_to(tmp_path / "cpu")
    with pytest.raises(ArtifactError, match=r"cpu/v3\.o: not a regular file inside"):
        verify(artifact)


def test_big_files_are_hashed_once(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = store.sha256_file
    monkeypatch.setattr(store, "sha256_file", lambda p: hashed.append(p.name) or real(p))
    verify(artifact)
    assert "weights.safetensors" not in hashed
    assert "plan.json" in hashed
    verify(artifact, full=True)
    assert hashed.count("weights.safetensors") == 1
    os.utime(artifact / "weights.safetensors")
    verify(artifact)
    verify(artifact)
    assert hashed.count("weights.safetensors") == 2


@pytest.mark.parametrize("text", ["", "null", "[]", '{"weights.safetensors": 1}', "\xff"])
def test_a_broken_stamp_file_only_costs_a_hash(artifact: Path, text: str) -> None:
    (artifact / ".verified").write_bytes(text.encode("latin-1"))
    assert verify(artifact).key == KEY
    assert b"weights" in (artifact / ".verified").read_bytes()


def test_a_stamp_does_not_outlive_a_change_of_the_manifest(artifact: Path) -> None:
    def forge(manifest: dict[str, Any]) -> None:
        manifest["files"]["weights.safetensors"]["sha256"] = "0" * 64

    edit_manifest(artifact, forge)
    with pytest.raises(ArtifactError, match="its content does not match"):
        verify(artifact)


BAD_NAMES = [
    "../plan.json", "/etc/hostname", "cpu/../plan.json", "cpu//v3.o", ".", "", "a\\b", "./plan.json",
    "manifest.json", ".verified", "C:plan.json", "plan.json\n", "a\x00b", "cpu/",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_name_leaves_the_folder(artifact: Path, name: str) -> None:
    edit_manifest(artifact, lambda m: m["files"].update({name: m["files"]["plan.json"]}))
    with pytest.raises(ArtifactError, match=r"manifest\.json: .* is no name"):
        verify(artifact)


TAMPERINGS: list[Callable[[dict[str, Any]], Any]] = [
    lambda m: m.update(schema=2),
    lambda m: m.update(schema=10**5000),
    lambda m: m.update(schema="1"),
    lambda m: m.pop("files"),
    lambda m: m.update(files=[]),
    lambda m: m.update(unknown=1),
    lambda m: m["files"]["plan.json"].update(bytes=-1),
    lambda m: m["files"]["plan.json"].update(bytes=10**30),
    lambda m: m["files"]["plan.json"].update(bytes=2**63),
    lambda m: m["files"]["plan.json"].update(bytes=13.5),
    lambda m: m["files"]["plan.json"].update(sha256="0" * 63),
    lambda m: m["files"]["plan.json"].update(sha256="G" * 64),
    lambda m: m["files"].update({"plan.json": None}),
]


@pytest.mark.parametrize("change", TAMPERINGS)
def test_tampered_manifest_is_refused(
    artifact: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    change(manifest)
    (artifact / "manifest.json").write_text(dumps_any_int(manifest))
    with pytest.raises(ArtifactError, match=r"model\.rz/manifest\.json: "):
        verify(artifact)


def dumps_any_int(value: dict[str, Any]) -> str:
    """JSON text, also for integers beyond Python's limit of digits."""
    if value.get("schema") == 10**5000:
        return json.dumps(value | {"schema": 77777}).replace("77777", "1" + "0" * 5000)
    return json.dumps(value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1}'])
def test_manifest_that_is_no_manifest(artifact: Path, data: bytes) -> None:
    (artifact / "manifest.json").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.rz/manifest\.json: "):
        verify(artifact)


def test_giant_manifest_is_not_read(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(ArtifactError, match="larger than 100 bytes"):
        read_manifest(artifact)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_the_manifest_is_refused_or_harmless(artifact: Path, data: Any) -> None:
    """A mangled manifest gives an ArtifactError or one that lists the same files; nothing else."""
    path = artifact / "manifest.json"
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    patch = data.draw(st.binary(max_size=4))
    path.write_bytes(original[:position] + patch + original[position + 1 :])
    try:
        files = verify(artifact).files
    except ArtifactError:
        return
    finally:
        path.write_bytes(original)
    assert all((artifact / name).is_file() for name in files)


def test_member_gives_listed_files_only(artifact: Path) -> None:
    manifest = verify(artifact)
    assert member(artifact, manifest, "cpu/v3.o").read_bytes()[:4] == b"\x7fELF"
    (artifact / "extra.so").write_bytes(b"")
    with pytest.raises(ArtifactError, match="not listed"):
        member(artifact, manifest, "extra.so")


def test_write_atomic_replaces_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_manifest_is_readable_json_with_the_compiler_in_it(artifact: Path) -> None:
    manifest = msgspec.json.decode((artifact / "manifest.json").read_bytes())
    assert manifest["schema"] == store.SCHEMA
    assert manifest["compiler"].startswith("0.")
