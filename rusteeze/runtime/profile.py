"""Where the time of a step goes: every kernel call with its work, beside what the processor or GPU can do.

    profile = take_profile(executor, decode_batches(executor, 1, 128), seconds=2)

A profile is of one or several batches that follow each other (the chunks of a long prompt); each runs a
number of times through the step loop that takes the time, and the median of each call counts.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rusteeze.artifact.contract import Cost
from rusteeze.runtime.backend import DeviceExecutor
from rusteeze.runtime.batch import Batch, build_batch
from rusteeze.runtime.blocks import blocks_for
from rusteeze.runtime.scheduler import Chunk, Step

FEWEST_RUNS, MOST_RUNS = 3, 1000
# A finite number in every type of cache (bf16 0.0115, f32 0.0115): pages are backed and hold no NaN.
CACHE_BYTE = 0x3C
ANY_TOKEN = 1


@dataclass(frozen=True)
class CallProfile:
    """One call of the plan, all batches together. Times are means over the threads, in ns; a GPU has one.

    ``kernel``: of the last batch, where a call's kernels depend on the size of a step."""

    kernel: str
    origin: str
    busy_ns: float
    wait_ns: float
    flops: int
    bytes: int
    arithmetic: str

    @property
    def ns(self) -> float:
        return self.busy_ns + self.wait_ns


@dataclass(frozen=True)
class Profile:
    """``stamps``: of the last run of each batch, see ThreadPool.run_timed. ``ordinary_ns``: the same work
    in the ordinary loop, as the caller sees it."""

    calls: list[CallProfile]
    stamps: list[np.ndarray]
    timed_ns: float
    ordinary_ns: float
    tokens: int
    threads: int
    where: str = ""
    """What ran it, for people."""


def fits(executor: DeviceExecutor, sequences: int, length: int) -> bool:
    """Whether the cache holds so many sequences, each of which takes whole blocks."""
    return sequences * blocks_for(length, executor.block_size) <= executor.num_blocks


def decode_batches(executor: DeviceExecutor, sequences: int, context: int) -> list[Batch]:
    """One step: a token for each sequence, ``context`` tokens of each in the cache when it is done.

    ValueError when they do not fit into the cache."""
    if not fits(executor, sequences, context):
        raise ValueError(f"{sequences} sequences of {context} tokens do not fit into the cache")
    each = blocks_for(context, executor.block_size)
    chunks = [
        Chunk(
            str(n), context - 1, (ANY_TOKEN,), array("i", range(n * each, (n + 1) * each)),
            num_rows=1, samples=True,
        )
        for n in range(sequences)
    ]  # fmt: skip
    return [build_batch(Step(tuple(chunks)), executor.block_size)]


def prefill_batches(executor: DeviceExecutor, length: int) -> list[Batch]:
    """A prompt in chunks; only the last one wants logits. ValueError when the cache cannot hold it."""
    if not fits(executor, 1, length):
        raise ValueError(f"{length} tokens do not fit into the cache")
    table = array("i", range(blocks_for(length, executor.block_size)))
    size = executor.max_batched_tokens
    steps = []
    for start in range(0, length, size):
        tokens = (ANY_TOKEN,) * min(size, length - start)
        last = start + len(tokens) == length
        steps.append(Step((Chunk("0", start, tokens, table, num_rows=int(last), samples=last),)))
    return [build_batch(step, executor.block_size) for step in steps]


def take_profile(executor: DeviceExecutor, batches: Sequence[Batch], seconds: float) -> Profile:
    """Measure for about ``seconds``. The executor must be idle; its cache is overwritten."""
    executor.fill_cache(CACHE_BYTE)
    totals, stamps, ordinary, timed = [], [], 0.0, 0.0
    for batch in batches:
        plain_ns, runs = _run(executor, batch, seconds / len(batches))
        busy = np.median([(r[:, :, 1] - r[:, :, 0]).mean(0) for r in runs], axis=0)
        wait = np.median([(r[:, :, 2] - r[:, :, 1]).mean(0) for r in runs], axis=0)
        ordinary += plain_ns
        timed += float(np.median([r[:, :, 2].max() - r[:, :, 0].min() for r in runs]))
        stamps.append(runs[-1])
        totals.append(
            [
                CallProfile(kernel, origin, b, w, *work(cost, batch), cost.arithmetic)
                for (kernel, origin, cost), b, w in zip(
                    executor.calls(batch), busy.tolist(), wait.tolist(), strict=True
                )
            ]
        )
    calls = [_sum(same) for same in zip(*totals, strict=True)]
    tokens = sum(batch.num_tokens for batch in batches)
    return Profile(calls, stamps, timed, ordinary, tokens, len(stamps[0]), executor.where)


def _run(
    executor: DeviceExecutor, batch: Batch, seconds: float
) -> tuple[float, list[np.ndarray]]:  # fmt: skip
    """Median nanoseconds in the ordinary loop, and the stamps of each run in the other, in turns."""
    executor.execute(batch)
    plain: list[int] = []
    runs: list[np.ndarray] = []
    end = time.perf_counter() + seconds
    while len(runs) < FEWEST_RUNS or (time.perf_counter() < end and len(runs) < MOST_RUNS):
        start = time.perf_counter_ns()
        executor.execute(batch)
        plain.append(time.perf_counter_ns() - start)
        runs.append(executor.execute_timed(batch))
    return float(np.median(plain)), runs


def work(cost: Cost, batch: Batch) -> tuple[int, int]:
    """(operations, bytes) of a call in a step."""
    rows = batch.num_tokens if cost.space == "T" else len(batch.rows)
    seen = batch.positions + 1
    context = batch.context_len
    if cost.window:
        seen = np.minimum(seen, cost.window)
        context = np.minimum(context, cost.window + np.diff(batch.query_start))
    flops = rows * cost.row_flops + int(seen.sum()) * cost.pair_flops
    moved = rows * cost.row_bytes + int(context.sum()) * cost.cached_bytes
    moved += min(rows * cost.gathered_row_bytes, cost.gathered_bytes)
    return flops, moved + (cost.weight_bytes if rows else 0)


def _sum(calls: Sequence[CallProfile]) -> CallProfile:
    return replace(
        calls[-1],
        busy_ns=sum(c.busy_ns for c in calls), wait_ns=sum(c.wait_ns for c in calls),
        flops=sum(c.flops for c in calls), bytes=sum(c.bytes for c in calls),
    )  # fmt: skip
