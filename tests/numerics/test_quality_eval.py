"""Divergences that benchmarks/quality_eval.py finds are those of whole models, whatever stands behind their head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_models import save_model
from quality_eval import evaluate


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
