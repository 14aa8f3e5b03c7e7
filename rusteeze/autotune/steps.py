"""Whole steps of two artifacts of one model, in turns: what new kernels are worth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

from rusteeze.autotune.race import Pairs
from rusteeze.runtime.batch import Batch
from rusteeze.runtime.executor import CpuExecutor
from rusteeze.runtime.profile import CACHE_BYTE, decode_batches, fits, prefill_batches, take_profile

CONTEXT, PROMPT = 128, 512
SEQUENCES = (1, 8, 32)
ROUNDS = 15
SHARE_SECONDS = 0.5


def kernel_shares(executor: CpuExecutor) -> dict[str, float]:
    """Which part of a step's time each kernel takes: the mean of decoding one sequence and of a prompt."""
    context, prompt = _lengths(executor)
    found: dict[str, float] = {}
    for batches in (decode_batches(executor, 1, context), prefill_batches(executor, prompt)):
        profile = take_profile(executor, batches, SHARE_SECONDS)
        total = sum(c.ns for c in profile.calls)
        for call in profile.calls:
            found[call.kernel] = found.get(call.kernel, 0.0) + call.ns / total / 2
    return found


def compare_steps(old: CpuExecutor, new: CpuExecutor) -> Iterator[tuple[str, Pairs]]:
    """What was run, and its seconds with both. Both executors must be idle; their caches are overwritten."""
    for executor in (old, new):
        executor.fill_cache(CACHE_BYTE)
    context, prompt = _lengths(old)
    for sequences in (n for n in SEQUENCES if fits(old, n, context)):
        yield f"decode {sequences}", _pairs(old, new, decode_batches(old, sequences, context))
    yield f"prefill {prompt}", _pairs(old, new, prefill_batches(old, prompt))


def _lengths(executor: CpuExecutor) -> tuple[int, int]:
    """Tokens of a context and of a prompt that the model takes."""
    return min(CONTEXT, executor.max_model_len), min(PROMPT, executor.max_model_len)


def _pairs(old: CpuExecutor, new: CpuExecutor, batches: list[Batch]) -> Pairs:
    pairs = Pairs(sum(batch.num_tokens for batch in batches))
    for number in range(ROUNDS + 1):
        sides = [(old, pairs.old), (new, pairs.new)]
        for executor, times in sides if number % 2 else reversed(sides):
            seconds = _seconds(executor, batches)
            if number:  # the first round warms up
                times.append(seconds)
    return pairs


def _seconds(executor: CpuExecutor, batches: list[Batch]) -> float:
    """The median of a few runs in a row: the other side's weights are in the cache before."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        for batch in batches:
            executor.execute(batch)
        found.append(time.perf_counter() - start)
    return median(found)
