"""Our compiled kernels compute what Hugging Face computes, for every supported family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compiled import CompiledStep
from configs import SUPPORTED, tiny
from harness import (
    MAX_MODEL_LEN,
    draw_sequences,
    drive,
    make_config,
    random_model,
    reference_logits,
    relative_error,
    weights_of,
    whole_prompt,
)

from rusteeze.frontend.trace import trace

FAST = {"llama3.1", "deepseek-v3"}
TOLERANCE = 1e-4  # of the largest logit


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in SUPPORTED]
)
def test_compiled_model_matches_hugging_face(name: str, tmp_path: Path) -> None:
    config = make_config(tiny(name))
    model = random_model(config)
    sequences = draw_sequences()
    traced = trace(config, MAX_MODEL_LEN)
    step = CompiledStep(traced.graph, weights_of(model, traced), traced.constants, tmp_path)
    found = drive(step, sequences)
    found.append(step(whole_prompt(sequences[0], len(sequences))))
    step.close()
    wanted = reference_logits(model, sequences)
    wanted.append(wanted[0][-1:])
    assert relative_error(found, wanted) <= TOLERANCE
