"""One ragged trace computes what Hugging Face computes, for every family; others are refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from configs import SUPPORTED, UNSUPPORTED, tiny
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

from rusteeze.frontend import errors
from rusteeze.frontend.trace import trace
from rusteeze.ir import parse, print_graph

FAST = {"llama3.1", "gemma3", "mixtral", "gpt2", "phi3", "deepseek-v3"}
TOLERANCE = 1e-4  # of the largest logit


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in SUPPORTED]
)
def test_interpreted_trace_matches_hugging_face(name: str) -> None:
    config = make_config(tiny(name))
    model = random_model(config)
    sequences = draw_sequences()
    traced = trace(config, MAX_MODEL_LEN)
    found = drive(InterpreterStep(traced.graph, weights_of(model, traced)), sequences)
    assert relative_error(found, reference_logits(model, sequences)) <= TOLERANCE
    assert parse(print_graph(traced.graph)) == traced.graph


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_models_are_refused_by_name(name: str) -> None:
    kwargs, error = UNSUPPORTED[name]
    with pytest.raises(getattr(errors, error)) as caught:
        trace(make_config(kwargs), MAX_MODEL_LEN)
    assert "\n" not in str(caught.value)


def test_only_the_wanted_rows_get_logits() -> None:
    config = make_config(tiny("llama3.1"))
    model, traced = random_model(config), trace(config, MAX_MODEL_LEN)
    tokens = draw_sequences()[0]
    wanted = reference_logits(model, [tokens])[0]
    rows = np.asarray([len(tokens) - 1, 3], np.int32)
    positions = np.arange(len(tokens), dtype=np.int32)
    step = InterpreterStep(traced.graph, weights_of(model, traced))
    found = step(Batch(((0, len(tokens)),), tokens, positions, rows))
    assert relative_error([found], [wanted[rows]]) <= TOLERANCE


def test_the_comparison_notices_a_lost_window() -> None:
    config = make_config(tiny("phi3"))
    model, traced = random_model(config), trace(config, MAX_MODEL_LEN)
    for node in traced.graph.nodes:
        if node.op.name == "attention":
            node.attrs["window"] = 0
    sequences = draw_sequences()
    found = drive(InterpreterStep(traced.graph, weights_of(model, traced)), sequences)
    assert relative_error(found, reference_logits(model, sequences)) > 100 * TOLERANCE
