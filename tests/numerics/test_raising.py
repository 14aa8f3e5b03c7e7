"""Graphs of real families, as traced: everything is recognised, and every pass keeps the meaning."""

from __future__ import annotations

import pytest
import torch
from configs import SUPPORTED, tiny
from harness import MAX_MODEL_LEN, make_config

from rusteeze.frontend.trace import trace
from rusteeze.ir.probe import compare_graphs
from rusteeze.passes.pipeline import fusing, lowering, raising, run_passes

FAST = {"llama3.1", "gemma3", "gpt-oss", "command-r-plus", "deepseek-v3", "falcon-40b", "gpt-neox"}
SPELLINGS = {"mean", "rsqrt", "neg", "erf", "tanh", "pow", "exp", "silu", "permute", "div"}
LEFT_OVER = {
    "gpt2": {"permute"},  # of static weights, which are stored transposed
    "mixtral": {"div"}, "qwen3-moe": {"div"}, "deepseek-v3": {"div"}, "phi3.5-moe": {"div"},  # routers
}  # fmt: skip
NUM_ROTATIONS = {"gpt2": 0, "opt": 0, "cohere2": 2}


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in SUPPORTED]
)
def test_family_is_raised_without_a_change_of_meaning(name: str) -> None:
    torch.set_num_threads(1)
    config = make_config(tiny(name))
    traced = trace(config, MAX_MODEL_LEN)
    graph, before = traced.graph, traced.graph.copy()
    run_passes(graph, raising(traced.constants), verified=True)
    ops = [n.op.name for n in graph.nodes]
    assert set(ops) & SPELLINGS == LEFT_OVER.get(name, set())
    assert ops.count("rope") == NUM_ROTATIONS.get(name, 2 * config.num_hidden_layers)
    run_passes(graph, [*lowering(), *fusing()], verified=True)
    in_keys = [n for n in graph.nodes if n.op.name == "attention" and n.operands[2] is None]
    assert len(in_keys) == (config.num_hidden_layers if name.startswith("deepseek") else 0)
    assert compare_graphs(before, graph, traced.constants) < 1e-4
