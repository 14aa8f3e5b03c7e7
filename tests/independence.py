"""Runs requests through the real engine and keeps the rows of logits that their tokens were chosen from.

What a request gets must not depend on its company: on the other sequences of a batch, on how its prompt
is cut into chunks, on which blocks it holds, or on losing them. Bitwise, so rows are kept as hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rusteeze.runtime.batch import Batch
from rusteeze.runtime.config import EngineConfig
from rusteeze.runtime.engine import SyncEngine
from rusteeze.runtime.executor import CpuExecutor
from rusteeze.runtime.interface import SamplingParams

NAN_BYTE = 0xFF


@dataclass
class Answer:
    """One request's tokens, and a hash of the logits behind each."""

    token_ids: list[int] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)


@dataclass
class Run:
    """Answers by name, and what happened on the way."""

    answers: dict[str, Answer]
    num_preemptions: int
    num_cached_tokens: int
    most_sequences: int
    """In one step."""
    most_tokens: int


class Watched:
    """An executor that shows only its first ``num_blocks`` blocks and remembers its last logits."""

    def __init__(self, executor: CpuExecutor, num_blocks: int | None = None) -> None:
        self._executor = executor
        self.num_blocks = num_blocks or executor.num_blocks
        self.block_size = executor.block_size
        self.vocab_size = executor.vocab_size
        self.max_model_len = executor.max_model_len
        self.max_batched_tokens = executor.max_batched_tokens
        self.rows: list[str] = []
        self.most_sequences = self.most_tokens = 0

    def execute(self, batch: Batch) -> np.ndarray:
        self.most_sequences = max(self.most_sequences, batch.num_sequences)
        self.most_tokens = max(self.most_tokens, batch.num_tokens)
        logits = self._executor.execute(batch)
        self.rows = [hashlib.sha256(row.tobytes()).hexdigest() for row in logits]
        return logits


def draw_prompts(lengths: Sequence[int], vocabulary: int) -> dict[str, list[int]]:
    """Random token ids by name; the name says how many."""
    generator = np.random.default_rng(5)
    drawn = [generator.integers(2, vocabulary, length).tolist() for length in lengths]
    return {f"{i}: {len(ids)} tokens": ids for i, ids in enumerate(drawn)}


def run(
    executor: CpuExecutor, prompts: Mapping[str, Sequence[int]], max_tokens: int,
    chunk: int | None = None, num_blocks: int | None = None, earlier: Sequence[Sequence[int]] = (),
) -> Run:  # fmt: skip
    """Greedy answers to all prompts, submitted at once. ``chunk``: most tokens of a step.

    ``earlier`` prompts are served before, one after the other, and leave their cache behind.
    """
    executor.fill_cache(NAN_BYTE)  # what an earlier run left behind must not be read
    watched = Watched(executor, num_blocks)
    engine = SyncEngine(watched, config=EngineConfig(max_batched_tokens=chunk))
    for prompt in earlier:
        engine.generate([prompt], SamplingParams(temperature=0, max_tokens=max_tokens))
    watched.rows = []
    for name, prompt in prompts.items():
        engine.submit(prompt, SamplingParams(temperature=0, max_tokens=max_tokens), name)
    answers = {name: Answer() for name in prompts}
    num_cached = 0
    while engine.has_work:
        outputs = [output for output in engine.step() if output.token_ids]
        for output, row in zip(outputs, watched.rows, strict=True):
            answers[output.request_id].token_ids += output.token_ids
            answers[output.request_id].rows.append(row)
            num_cached += output.usage.cached_tokens if output.usage else 0
        watched.rows = []
    return Run(
        answers, engine.scheduler.num_preemptions, num_cached, watched.most_sequences,
        watched.most_tokens,
    )  # fmt: skip


def alone(
    executor: CpuExecutor, prompts: Mapping[str, Sequence[int]], max_tokens: int
) -> dict[str, Answer]:  # fmt: skip
    """Every prompt's answer when it is served by itself, its prompt in one piece."""
    return {
        name: run(executor, {name: prompt}, max_tokens).answers[name]
        for name, prompt in prompts.items()
    }


def differences(found: Mapping[str, Answer], wanted: Mapping[str, Answer]) -> list[str]:
    """Where each answer first departs from the one that is wanted; empty when all are equal."""
    told = []
    for name, answer in found.items():
        pairs = zip(answer.rows, wanted[name].rows, strict=True)
        changed = [i for i, (a, b) in enumerate(pairs) if a != b]
        if changed or answer.token_ids != wanted[name].token_ids:
            told.append(f"{name}: logits of output {changed[:1]} of {len(answer.rows)}")
    return told
