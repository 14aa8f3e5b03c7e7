"""What an engine has done and is doing, at one moment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rusteeze.runtime.request import LiveRequest
from rusteeze.runtime.scheduler import Scheduler
from rusteeze.runtime.sequence import Sequence


@dataclass(frozen=True)
class EngineStats:
    """Requests that run and wait, blocks of the cache, and totals since the start.

    ``free_blocks`` + ``used_blocks`` == ``total_blocks``; ``cached_blocks`` are those free ones whose
    contents a prompt can still find. Of ``prefix_queried_tokens``, the prompts that were admitted,
    ``prefix_hit_tokens`` did not have to be computed. ``prompt_tokens`` and ``generation_tokens`` are the
    sums of the usage of all requests that have ended, and of what those that are live have so far.
    """

    num_running: int
    num_waiting: int
    total_blocks: int
    used_blocks: int
    free_blocks: int
    cached_blocks: int
    prefix_queried_tokens: int
    prefix_hit_tokens: int
    num_preemptions: int
    prompt_tokens: int
    generation_tokens: int

    @property
    def kv_usage(self) -> float:
        """Share of the blocks that live requests hold, 0 to 1."""
        return self.used_blocks / self.total_blocks


@dataclass
class Tokens:
    """Sums over requests."""

    prompt: int = 0
    output: int = 0

    def count(self, sequence: Sequence) -> None:
        self.prompt += sequence.num_prompt_tokens
        self.output += sequence.num_output_tokens


def snapshot(scheduler: Scheduler, live: Iterable[LiveRequest], ended: Tokens) -> EngineStats:
    """The statistics now; neither ``live`` nor ``ended`` may change meanwhile."""
    total, num_live = Tokens(ended.prompt, ended.output), 0
    for request in live:
        num_live += 1
        if request.sequence.num_cached_tokens is not None:  # admitted at least once
            total.count(request.sequence)
    pool, prefixes, free = scheduler.pool, scheduler.prefixes, scheduler.pool.num_free
    running = min(scheduler.num_running, num_live)
    return EngineStats(
        num_running=running, num_waiting=num_live - running,
        total_blocks=pool.num_blocks, used_blocks=pool.num_blocks - free, free_blocks=free,
        cached_blocks=pool.num_free_kept,
        prefix_queried_tokens=prefixes.num_queried if prefixes else 0,
        prefix_hit_tokens=prefixes.num_hits if prefixes else 0,
        num_preemptions=scheduler.num_preemptions,
        prompt_tokens=total.prompt, generation_tokens=total.output,
    )  # fmt: skip
