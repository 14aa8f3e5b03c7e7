"""Whole models of architectures that cannot be compiled faithfully are refused, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from outcomes import refused, refused_to_compile, save_letters
from transformers import AutoConfig, AutoModelForCausalLM

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 260}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 1}
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "llama4_text": (
        SMALL | EXPERTS | {
            "head_dim": 8, "num_key_value_heads": 2, "intermediate_size": 48, "intermediate_size_mlp": 48,
            "attention_chunk_size": 8, "interleave_moe_layer_step": 1,
        },
        "chunked attention",
    ),
    "qwen3_next": (SMALL | {"num_hidden_layers": 4, "num_key_value_heads": 2}, "linear_attention"),
    "bloom": (SMALL, "BloomForCausalLM"),
    "mpt": ({"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 260}, "MptForCausalLM"),
    "gptj": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "vocab_size": 260}, "GPTJ"),
}  # fmt: skip

SLOW = {"qwen3_next"}  # it imports much


@pytest.mark.parametrize(
    "model_type", [pytest.param(m, marks=pytest.mark.slow) if m in SLOW else m for m in MODELS]
)
def test_an_architecture_that_is_not_supported(model_type: str, tmp_path: Path, out: Path) -> None:
    sizes, words = MODELS[model_type]
    config = AutoConfig.for_model(model_type, **sizes)
    torch.manual_seed(0)
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    save_letters(folder / "tokenizer.json")
    message = refused_to_compile(folder, out)
    assert words in message
    assert "choose" in message
    assert refused("generate", folder, "-p", "x") == message
