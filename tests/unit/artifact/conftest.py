"""A small artifact to publish: a plan, code, and weights just above the size that gets a stamp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rusteeze.artifact import store

Build = Callable[[Path], None]


@pytest.fixture
def key() -> str:
    return "0123456789abcdef"


@pytest.fixture
def build_sample() -> Build:
    return _build


def _build(folder: Path) -> None:
    (folder / "plan.json").write_text('{"calls": []}')
    (folder / "cpu").mkdir()
    (folder / "cpu" / "v3.o").write_bytes(b"\x7fELF" * 8)
    (folder / "weights.safetensors").write_bytes(b"w" * 600)
    (folder / "empty.txt").write_bytes(b"")


@pytest.fixture(autouse=True)
def _small_big_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BIG_BYTES", 500)


@pytest.fixture
def artifact(tmp_path: Path, key: str) -> Path:
    path = tmp_path / "model.rz"
    store.publish(path, _build, key=key, facts={"family": "llama"})
    return path
