"""The small real model, compiled once a run for each kind of activations, outside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from smollm2 import compiled


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
def int8_cache_smollm2(shared_folder: Path) -> Path:
    """The same with an int8 cache."""
    return compiled(shared_folder, "auto", "int8")


@pytest.fixture(scope="session")
def exact_smollm2(shared_folder: Path) -> Path:
    """The artifact with activations in float32."""
    return compiled(shared_folder, "f32")
