"""Divergences that benchmarks/quality_eval.py finds are those of whole models, whatever stands behind their head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_models import save_model
from quality_eval import Truth, evaluate
from safetensors.torch import load_file, save_file


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["smollm2", "gemma2", "granite", "command-r", "qwen2-moe"])
def test_a_model_does_not_diverge_from_itself(name: str, tmp_path: Path) -> None:
    model = save_model(name, tmp_path)
    sums = evaluate(model, {"itself": model}, 1022, tmp_path / "work")["itself"]
    assert sums.tokens == 1022
    assert abs(sums.means["kl"]) < 1e-5
    assert sums.means["top1"] > 0.99


def change(model: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = model / "model.safetensors"
    tensors = {name: t.clone() for name, t in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


def test_what_is_kept_is_of_these_models_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same call reads what it kept; once a folder has changed nothing of it counts."""
    original, other, work = save_model("llama1", tmp_path / "a"), save_model("llama1", tmp_path / "b"), tmp_path / "work"
    asked: list[int] = []
    prediction = Truth.prediction
    monkeypatch.setattr(Truth, "prediction", lambda truth, n: asked.append(n) or prediction(truth, n))

    def divergence() -> float:
        return evaluate(original, {"other": other}, 511, work)["other"].means["kl"]

    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"].div_(2)

    assert abs(divergence()) < 1e-5
    assert abs(divergence()) < 1e-5
    assert asked == [0]
    change(other, halve)
    assert divergence() > 0.01
    change(original, halve)
    assert abs(divergence()) < 1e-5
    assert asked == [0, 0, 0]


def test_a_killed_run_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def dies(*_: object) -> None:
        raise Killed

    model, work = save_model("llama1", tmp_path), tmp_path / "work"
    monkeypatch.setattr("rusteeze.artifact.files.os.fsync", dies)
    with pytest.raises(Killed):
        evaluate(model, {"itself": model}, 511, work)
    assert not [path for path in work.rglob("*") if path.is_file()]
    monkeypatch.undo()
    assert evaluate(model, {"itself": model}, 511, work)["itself"].windows == 1
