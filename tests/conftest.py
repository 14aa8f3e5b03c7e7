"""The small real model, compiled once a run for each kind of activations, outside the checkout; a GPU that is
not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from smollm2 import compiled
from stub_gpu import StubGpu, stub_gpu


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def smollm2(shared_folder: Path) -> Path:
    """The artifact with activations as they are by default: int8."""
    return compiled(shared_folder, "auto")


@pytest.fixture(scope="session")
def exact_smollm2(shared_folder: Path) -> Path:
    """The artifact with activations in float32."""
    return compiled(shared_folder, "f32")


@pytest.fixture
def gpu() -> Iterator[StubGpu]:
    """A fresh GPU. Whatever a test leaves behind on it is an error, and so is a copy to or from host memory
    that the device cannot reach by itself."""
    stub = stub_gpu()
    stub.reset()
    yield stub
    left, unpinned = stub.live(), stub.unpinned_copies
    stub.reset()
    assert left == {}
    assert unpinned == 0
