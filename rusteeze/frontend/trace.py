"""Hugging Face config → Graph: one ragged trace that serves every batch.

The model is exported once on ``input_ids [1, T]`` and ``position_ids [1, T]``, tokens of all sequences in
one row. Only attention (an op of its own) knows about sequences, so prefill chunks and decode steps
are the same graph. No weights are read::

    traced = trace(AutoConfig.from_pretrained("HuggingFaceTB/SmolLM2-135M"), max_model_len=2048)
    print(print_graph(traced.graph))
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from transformers import PretrainedConfig

from rusteeze.frontend.build import build_model, give_fake_storage
from rusteeze.frontend.export import RaggedCausalLM, export_ragged
from rusteeze.frontend.import_program import import_program
from rusteeze.frontend.masks import probed_sdpa_masks
from rusteeze.frontend.operators import InterceptSdpa
from rusteeze.frontend.rotary import tabulate_rotary
from rusteeze.frontend.shared_heads import share_heads
from rusteeze.ir import Graph


@dataclass
class Traced:
    """A model as a graph.

    ``graph`` maps input_ids i32[T], positions i32[T], rows i32[R] to logits f32[R, V]. Its weights bear
    the model's parameter names, except those in ``constants`` (rotary tables, scales: values known
    already). ``param_shapes`` lists what a checkpoint holds; ``tied`` maps a parameter's further
    names to the one that is used."""

    graph: Graph
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    param_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def trace(config: PretrainedConfig, max_model_len: int) -> Traced:
    """Trace the causal LM of ``config`` for contexts of up to ``max_model_len`` tokens.

    FrontendError (its subclasses say which guard) when the model cannot be compiled faithfully."""
    built = build_model(config)
    module = RaggedCausalLM(built.model, tabulate_rotary(built.model, max_model_len))
    give_fake_storage(built)
    with _intercepted_sdpa() if built.intercepts_sdpa else contextlib.nullcontext():
        program = export_ragged(module, built.fake_mode)
    graph, constants = import_program(
        program, module, num_layers=built.num_layers, max_model_len=max_model_len,
        checkpoint=built.param_shapes, tied=built.tied,
    )  # fmt: skip
    share_heads(graph)
    return Traced(graph, constants, built.tied, built.param_shapes)


@contextlib.contextmanager
def _intercepted_sdpa() -> Iterator[None]:
    with probed_sdpa_masks(), InterceptSdpa():
        yield
