"""DeepSeek's attention keeps the latent of a token, not the heads that are computed from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compiled import CompiledStep, host_isa
from configs import tiny
from harness import (
    MAX_MODEL_LEN,
    draw_sequences,
    drive,
    make_config,
    random_model,
    reference_logits,
    relative_error,
    weights_of,
)

from rusteeze.artifact.contract import BLOCK_SIZE
from rusteeze.cli.info import _memory
from rusteeze.codegen.cpu.isa import ALL
from rusteeze.frontend.trace import trace
from rusteeze.runtime.launch import runs_here

FAMILIES = ("deepseek-v2", "deepseek-v3")
ISAS = [isa.name for isa in ALL if runs_here(isa.machine, isa.requires)]
# of the largest logit: exact, and with a bf16 cache and bf16 products
LIMITS = {"f32": 1e-4, "bf16": 5e-2}
ELEMENT_BYTES = {"f32": 4, "bf16": 2}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.slow
@pytest.mark.parametrize("activations", LIMITS)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_latent_is_kept_and_logits_are_those_of_hugging_face(
    family: str, isa: str, activations: str, tmp_path: Path
) -> None:
    # without experts: rounding might send a token to others
    config = make_config({**tiny(family), "first_k_dense_replace": 2})
    model = random_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # numbers that both kinds of weights hold exactly
                parameter.copy_(parameter.bfloat16().float())
    traced = trace(config, MAX_MODEL_LEN)
    step = CompiledStep(
        traced.graph, weights_of(model, traced), traced.constants, tmp_path, activations,
        isa=host_isa(isa), dtype=activations,
    )  # fmt: skip
    sequences = draw_sequences()
    error = relative_error(drive(step, sequences), reference_logits(model, sequences))
    plan = step.executor.plan
    step.close()
    assert error <= LIMITS[activations]
    per_layer = (config.kv_lora_rank + config.qk_rope_head_dim) * ELEMENT_BYTES[activations]
    assert plan.kv_bytes_per_block() == BLOCK_SIZE * per_layer * config.num_hidden_layers
    assert _memory(plan)["kv_bytes_per_token"] == per_layer * config.num_hidden_layers
