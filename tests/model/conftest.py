"""The small real model, compiled once a run for each kind of activations, outside the checkout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from smollm2 import compiled

from rusteeze.runtime import llm


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def artifact(shared_folder: Path) -> Path:
    """With activations as they are by default: int8."""
    return compiled(shared_folder, "auto")


@pytest.fixture(scope="session")
def exact_artifact(shared_folder: Path) -> Path:
    """With activations in float32."""
    return compiled(shared_folder, "f32")


@pytest.fixture(scope="module")
def model(artifact: Path) -> Iterator[llm.LLM]:
    loaded = llm.load(artifact)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def exact_model(exact_artifact: Path) -> Iterator[llm.LLM]:
    loaded = llm.load(exact_artifact)
    yield loaded
    loaded.close()
