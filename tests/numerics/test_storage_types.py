"""Compiled models whose matrices are stored in 16 bits, with exact and with rounded activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from compiled import CompiledStep
from configs import tiny
from harness import (
    MAX_MODEL_LEN,
    InterpreterStep,
    draw_sequences,
    drive,
    make_config,
    random_model,
    reference_logits,
    relative_error,
    weights_of,
)

from rusteeze.frontend.trace import trace
from rusteeze.weights import Dense

BIASED = {"attention_bias": True, "mlp_bias": True}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _errors(folder: Path, dtype: str, activations: str) -> tuple[float, float]:
    """Compiled against the interpreter on the same stored weights and the same rounded activations, and
    against Hugging Face's float32 model."""
    config = make_config({**tiny("llama3.1"), **BIASED})
    model = random_model(config)
    sequences = draw_sequences()
    traced = trace(config, MAX_MODEL_LEN)
    weights = weights_of(model, traced)
    step = CompiledStep(traced.graph, weights, traced.constants, folder, activations, dtype=dtype)
    stored = {
        name: Dense(array, "f32").converted(dtype).to_f32()
        if array.ndim > 1 and name not in traced.constants
        else array
        for name, array in weights.items()
    }
    found = drive(step, sequences)
    step.close()
    interpreted = drive(InterpreterStep(traced.graph, stored), sequences)
    return relative_error(found, interpreted), relative_error(found, reference_logits(model, sequences))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_sixteen_bit_weights_are_read_exactly(dtype: str, tmp_path: Path) -> None:
    to_interpreter, to_reference = _errors(tmp_path, dtype, "f32")
    assert to_interpreter <= 1e-4
    assert (to_reference <= 1e-4) == (dtype == "f32")


def test_bf16_activations_compute_what_the_graph_says(tmp_path: Path) -> None:
    to_interpreter, to_reference = _errors(tmp_path, "bf16", "bf16")
    # the cache is rounded as well, which the graph does not say
    assert to_interpreter <= 0.02
    assert 1e-4 < to_reference <= 0.1


def test_conversion_rounds_to_nearest_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -0.0, np.inf, np.nan], np.float32)
    found = Dense(values, "f32").converted("bf16").to_f32()
    wanted = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(found, wanted)
