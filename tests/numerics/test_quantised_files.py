"""GGUF files of mixed block types, compiled, against Hugging Face's model of the dequantised weights."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pytest
import torch
from compiled import CompiledStep
from gguf import GGMLQuantizationType as T
from gguf_samples import EXPERTS, tensors_of, tiny_model, write_model
from harness import MAX_MODEL_LEN, draw_sequences, drive, reference_logits, relative_error

from rusteeze.frontend.checkpoint import open_checkpoint
from rusteeze.frontend.trace import trace
from rusteeze.ir.storage import is_quantized
from rusteeze.model_weights import Weights

TOLERANCE = 1e-4  # of the largest logit
VOCABULARY = 96
MODELS = {
    "llama": ("llama", "llama", {}),
    "qwen2": ("qwen2", "qwen2", {"tie_word_embeddings": True}),
    "mixtral": ("llama", "mixtral", {"num_local_experts": 4}),
    "qwen3moe": ("qwen3moe", "qwen3_moe", {**EXPERTS, "norm_topk_prob": True, "head_dim": 16}),
}
TYPES = (T.Q4_0, T.Q4_1)
"""In turns; the other types are tested block by block."""


class FileWeights(dict):  # type: ignore[type-arg]
    """Weights by name, loaded when they are asked for."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = weights

    def __missing__(self, name: str):  # type: ignore[no-untyped-def]
        return self.weights.load(name)


@pytest.mark.parametrize("name", ["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in list(MODELS)[1:])])
def test_compiled_file_matches_the_dequantised_model(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    arch, model_type, changes = MODELS[name]
    model = tiny_model(model_type, **changes)
    next_type = cycle(TYPES)
    matrices = [n for n, value in tensors_of(model, arch).items() if value.ndim > 1 and "gate_inp" not in n]
    path = write_model(tmp_path / "tiny.gguf", model, arch, types={n: next(next_type) for n in matrices})
    checkpoint = open_checkpoint(path)
    assert any(is_quantized(checkpoint.format_of(p)) for p in checkpoint.params())
    traced = trace(checkpoint.config, MAX_MODEL_LEN)
    weights = FileWeights(Weights(checkpoint, traced.constants, "auto"))
    step = CompiledStep(traced.graph, weights, traced.constants, tmp_path)
    sequences = draw_sequences(VOCABULARY)
    found = drive(step, sequences)
    step.close()
    model.load_state_dict({p: torch.from_numpy(checkpoint.load(p).to_f32()) for p in checkpoint.params()})
    assert relative_error(found, reference_logits(model, sequences)) <= TOLERANCE
