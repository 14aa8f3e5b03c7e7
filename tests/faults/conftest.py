"""A sound tiny model, as folder, GGUF file and artifact, from which every fault starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from outcomes import SIZES, rusteeze, save_letters
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from rusteeze import env


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache and no setting of this machine."""
    for variable in env.VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.setenv(env.CACHE.name, str(tmp_path / "cache"))
    monkeypatch.setenv(env.HF_HOME.name, str(tmp_path / "hf"))


@pytest.fixture(scope="session")
def sound_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    disable_progress_bar()
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sound") / "model"
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES)).save_pretrained(folder)
    save_letters(folder / "tokenizer.json")
    return folder


@pytest.fixture
def folder(sound_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model to spoil."""
    return shutil.copytree(sound_folder, tmp_path / "models" / "model")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where an artifact would be written, in a folder of its own."""
    parent = tmp_path / "artifacts"
    parent.mkdir()
    return parent / "model.rz"


@pytest.fixture(scope="session")
def sound_artifact(sound_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "model.rz"
    result = rusteeze("compile", sound_folder, "-o", path, "--jobs", "1")
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture
def artifact(sound_artifact: Path, tmp_path: Path) -> Path:
    """A copy of the artifact to spoil."""
    return shutil.copytree(sound_artifact, tmp_path / "model.rz")
