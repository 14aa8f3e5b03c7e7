"""Whole plans in the interpreter: in ragged batches over shuffled, NaN-filled cache pages.

With float32 activations against transformers; with bf16 ones against the IR interpreter on the same graph,
whose only other differences are what attention rounds to bf16.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from configs import tiny
from drawn_weights import draw_weight
from gpu_step import GpuStep
from graph_runner import as_interpreted
from harness import (
    MAX_MODEL_LEN,
    Batch,
    InterpreterStep,
    draw_sequences,
    drive,
    make_config,
    random_model,
    reference_logits,
    relative_error,
    weights_of,
)

from rusteeze.codegen.statics import plain
from rusteeze.compiler import optimize_for_cuda
from rusteeze.frontend.trace import Traced, trace
from rusteeze.weights import Weight

EXACT = 1e-4  # of the largest logit
ROUNDED = 0.03
FAMILIES = {
    "llama3.1": "GQA and scaled rope",
    "gemma2": "window, softcap, norms with an offset, a scaled embedding",
    "phi2": "layer norms, biases, rope of a part of a head, parallel residual",
}
SLOW_FAMILIES = ("gpt-oss", "deepseek-v3", "qwen2-moe")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def prepared(traced: Traced, weights: dict[str, Weight], activations: str) -> None:
    for name, value in traced.graph.weights.items():
        value.format = weights[name].format
    optimize_for_cuda(traced.graph, traced.constants, activations)


def as_step(step: GpuStep):  # type: ignore[no-untyped-def]
    return lambda b: step.run(b.chunks, b.input_ids, b.positions, b.rows)


@pytest.mark.parametrize("name", [*FAMILIES, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW_FAMILIES)])
def test_exact_plan_matches_transformers(name: str, tmp_path: Path) -> None:
    config = make_config(tiny(name))
    model = random_model(config)
    traced = trace(config, MAX_MODEL_LEN)
    weights = {n: plain(a) for n, a in weights_of(model, traced).items()}
    prepared(traced, weights, "f32")
    sequences = draw_sequences()
    step = GpuStep(traced.graph, weights, tmp_path, "f32", MAX_MODEL_LEN)
    found, wanted = drive(as_step(step), sequences), reference_logits(model, sequences)
    assert relative_error(found, wanted) <= EXACT
    assert [a.argmax(-1).tolist() for a in found] == [a.argmax(-1).tolist() for a in wanted]


@pytest.mark.parametrize("format", ["bf16", "affine4g32m-f16"])
def test_rounded_plan_matches_the_graph(format: str, tmp_path: Path) -> None:
    config = make_config(tiny("llama3.1"))
    traced = trace(config, MAX_MODEL_LEN)
    rng = np.random.default_rng(5)
    weights: dict[str, Weight] = {n: plain(a) for n, a in traced.constants.items()}
    for name, value in traced.graph.weights.items():
        shape = tuple(int(d) for d in value.type.shape)
        own = format if len(shape) > 1 else "f32"
        if name not in weights:
            weights[name] = draw_weight(own, shape, rng)
    prepared(traced, weights, "bf16")
    oracle = InterpreterStep(traced.graph.copy(), {n: as_interpreted(w) for n, w in weights.items()})
    step = GpuStep(traced.graph, weights, tmp_path, "bf16", MAX_MODEL_LEN)
    sequences = draw_sequences()
    assert relative_error(drive(as_step(step), sequences), drive(oracle, sequences)) <= ROUNDED


def test_launches_of_a_layer(tmp_path: Path) -> None:
    """Norm and qkv, cache, attention, o with residual, norm and gate and up with glu, down with residual. The
    first norm of all stands behind no product."""
    config = make_config(tiny("llama3.2") | {"num_hidden_layers": 4, "head_dim": 32})
    traced = trace(config, MAX_MODEL_LEN)
    weights: dict[str, Weight] = {n: plain(a) for n, a in traced.constants.items()}
    rng = np.random.default_rng(6)
    for name, value in traced.graph.weights.items():
        if name not in weights:
            shape = tuple(int(d) for d in value.type.shape)
            weights[name] = draw_weight("bf16" if len(shape) > 1 else "f32", shape, rng)
    prepared(traced, weights, "bf16")
    step = GpuStep(traced.graph, weights, tmp_path, "bf16", MAX_MODEL_LEN)
    one = Batch(((0, 1),), *(np.array([v], np.int32) for v in (5, 0, 0)))
    as_step(step)(one)
    labels = [name.split("_")[0] for name in step.executor.launched]
    assert labels[:2] == ["embedding", "rms"]
    layer = ["linear", "write", "attention", "linear", "linear", "linear"]
    assert labels[2:14] == [*layer, *layer]
