"""Runs a compiled or interpreted model the way a server would, and compares with Hugging Face.

Three sequences go through mixed batches (prefill chunks beside decode steps), then token by token. What
executes a batch is any ``step(batch) -> logits [T, V]``: the interpreter here, a compiled artifact elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rusteeze.frontend.trace import Traced
from rusteeze.ir import Graph, KVState, interpret

Array = np.ndarray
LENGTHS = (21, 9, 15)
MAX_MODEL_LEN = 60
# Chunks (sequence, tokens) per batch, until all sequences have begun; then one token of each.
PREFILL = (((0, 10), (1, 5)), ((0, 3), (1, 1), (2, 11)))


@dataclass(frozen=True)
class Batch:
    """One step: ``chunks`` lists (sequence, number of its tokens) in row order."""

    chunks: tuple[tuple[int, int], ...]
    input_ids: Array  # i32 [T]
    positions: Array  # i32 [T]
    rows: Array  # i32 [R]


Step = Callable[[Batch], Array]


def draw_sequences(vocabulary: int = 128, seed: int = 1) -> list[Array]:
    """Random token ids (i32), without the special tokens 0 and 1."""
    generator = np.random.default_rng(seed)
    return [generator.integers(2, vocabulary, n).astype(np.int32) for n in LENGTHS]


def batches(sequences: Sequence[Array]) -> Iterator[Batch]:
    done = [0] * len(sequences)
    for chunks in _chunks([len(s) for s in sequences]):
        spans = [(s, range(done[s], done[s] + n)) for s, n in chunks]
        for s, n in chunks:
            done[s] += n
        ids = np.concatenate([sequences[s][span.start : span.stop] for s, span in spans])
        positions = np.concatenate([np.asarray(span, np.int32) for _, span in spans])
        yield Batch(chunks, ids, positions, np.arange(len(ids), dtype=np.int32))


def _chunks(lengths: Sequence[int]) -> Iterator[tuple[tuple[int, int], ...]]:
    left = list(lengths)
    for chunks in PREFILL:
        for s, n in chunks:
            left[s] -= n
        yield chunks
    while any(left):
        step = tuple((s, 1) for s, n in enumerate(left) if n)
        for s, _ in step:
            left[s] -= 1
        yield step


def whole_prompt(ids: Array, sequence: int) -> Batch:
    """A sequence at once, of which only the last row is wanted: what a server asks for most."""
    positions = np.arange(len(ids), dtype=np.int32)
    return Batch(((sequence, len(ids)),), ids, positions, positions[-1:])


def drive(step: Step, sequences: Sequence[Array]) -> list[Array]:
    """Logits [length, V] of every sequence."""
    found: list[list[Array]] = [[] for _ in sequences]
    for batch in batches(sequences):
        logits = step(batch)
        row = 0
        for s, n in batch.chunks:
            found[s].append(logits[row : row + n])
            row += n
    return [np.concatenate(parts) for parts in found]


@dataclass
class InterpreterStep:
    """Executes batches with the reference interpreter."""

    graph: Graph
    weights: Mapping[str, Array]
    state: KVState = field(default_factory=KVState)

    def __call__(self, batch: Batch) -> Array:
        self.state.batch = list(batch.chunks)
        inputs = {
            "input_ids": batch.input_ids, "positions": batch.positions, "rows": batch.rows,
        }  # fmt: skip
        return interpret(self.graph, inputs, self.weights, self.state)[0]


def make_config(kwargs: Mapping[str, object]) -> PretrainedConfig:
    return AutoConfig.for_model(**kwargs)


def random_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """An eager float32 model whose weights are large enough for every part to matter."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def reference_logits(model: PreTrainedModel, sequences: Sequence[Array]) -> list[Array]:
    """Hugging Face's logits, one whole sequence at a time."""
    with torch.no_grad():
        return [
            model(input_ids=torch.from_numpy(s).long()[None], use_cache=False).logits[0].numpy()
            for s in sequences
        ]


def weights_of(model: PreTrainedModel, traced: Traced) -> dict[str, Array]:
    """All weights of a traced graph by name: the model's parameters and the trace's constants."""
    parameters = {name: t.detach().numpy() for name, t in model.state_dict().items()}
    return {**parameters, **traced.constants}


def relative_error(found: Sequence[Array], wanted: Sequence[Array]) -> float:
    """The largest deviation over the largest magnitude of what is wanted."""
    scale = max(float(np.abs(w).max()) for w in wanted)
    return max(float(np.abs(f - w).max()) for f, w in zip(found, wanted, strict=True)) / scale
