"""Which tokens of which sequences are computed in the next step. Ints and deques in, a Step out.

Policy: one order of precedence, under a budget of tokens per step. Lower priorities go before higher
ones, equal ones in order of arrival. So that no class starves, a sequence counts as if it had arrived
AGING arrivals later for each unit of its priority: no more than that can overtake it.

1. Running sequences come first: decodes take one token each, then a prefill takes the rest.
2. Waiting ones are admitted while budget, places and blocks for all their known tokens remain.
   What the prefix cache has of them is not computed again; one whose next block is being computed
   for another sequence in this very step waits for it, instead of computing it a second time.
3. Out of blocks, the last in the order is preempted: its blocks are given up and computed again later,
   as far as the prefix cache has lost them by then.
4. No sequence may outgrow the pool, so the first can always go on and nothing deadlocks. Nobody is
   preempted for one who waits, and nobody passes the first who waits, however large it is.

Because of 1 and 2 only one running sequence can be in the middle of its prefill; all others decode, so
a long prompt delays nobody who is already producing tokens:

    running   [ A decode | B decode | C decode | D prefill … ]      waiting [ E, F, … ]
    budget    |    1     |    1     |    1     |  rest       |
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count, pairwise

import msgspec

from rusteeze.runtime.blocks import BlockPool, BlockTable, blocks_for
from rusteeze.runtime.config import SchedulerLimits
from rusteeze.runtime.prefix_cache import PrefixCache
from rusteeze.runtime.sequence import FinishReason, Sequence, State

AGING = 64


class Chunk(msgspec.Struct, frozen=True):
    """Tokens ``start … start + len(token_ids)`` of one sequence, computed together.

    Logits are wanted for the last ``num_rows`` of them; from the last row a token is sampled if
    ``samples``, the others predict tokens of the prompt. ``block_table`` may be longer than this
    chunk needs; its entries never change.
    """

    sequence_id: str
    start: int
    token_ids: tuple[int, ...]
    block_table: BlockTable[int]
    num_rows: int
    samples: bool

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True)
class Step:
    """What one run of the model computes, and which sequences lost their cache to make room."""

    chunks: tuple[Chunk, ...]
    preempted: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(len(chunk.token_ids) for chunk in self.chunks)

    @cached_property
    def is_decode(self) -> bool:
        """Every chunk is one token from which one is sampled."""
        return all(chunk.samples and len(chunk.token_ids) == 1 for chunk in self.chunks)

    def rows_of_chunks(self) -> Iterator[tuple[Chunk, int, int]]:
        """Each chunk with the half-open range of its rows in the logits."""
        end = 0
        for chunk in self.chunks:
            begin, end = end, end + chunk.num_rows
            yield chunk, begin, end


class Scheduler:
    """Owns the sequences and the block pool. The cycle: schedule, run the model, commit, append.

    ``cache_layout`` names what wrote the cache, kernels and plan; ``None`` turns prefix caching off.
    """

    def __init__(self, limits: SchedulerLimits, cache_layout: str | None = "") -> None:
        self.limits = limits
        self.pool = BlockPool(limits.num_blocks)
        self.prefixes = None
        if cache_layout is not None:
            self.prefixes = PrefixCache(self.pool, limits.block_size, cache_layout)
        self.num_preemptions = 0
        self._sequences: dict[str, Sequence] = {}
        self._waiting: list[Sequence] = []  # both in the order of precedence
        self._running: list[Sequence] = []
        self._arrivals = count()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def sequences(self) -> Iterator[Sequence]:
        """Running then waiting ones, each in the order of precedence."""
        yield from self._running
        yield from self._waiting

    def check_prompt(self, num_prompt_tokens: int) -> None:
        """ValueError when such a prompt leaves no room for a single output token."""
        if num_prompt_tokens >= self.limits.max_sequence_len:
            raise ValueError(
                f"the prompt has {num_prompt_tokens} tokens; prompt and output together may have "
                f"{self.limits.max_sequence_len}"
            )

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. ValueError when it can never fit or its id is in use."""
        self.check_prompt(sequence.num_prompt_tokens)
        if sequence.id in self._sequences:
            raise ValueError(f"sequence id {sequence.id!r} is in use")
        sequence.arrival = next(self._arrivals)
        self._sequences[sequence.id] = sequence
        insort(self._waiting, sequence, key=precedence)

    def finish(self, sequence_id: str, reason: FinishReason, doubtful: bool = False) -> bool:
        """End a sequence in any state and free its blocks. False if there is none of that id.

        ``doubtful``: what its blocks hold may be wrong, so nobody shall find them any more.
        """
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return False
        queue = self._waiting if sequence.state is State.WAITING else self._running
        queue.remove(sequence)
        if doubtful and self.prefixes:
            self.prefixes.forget(sequence)
        self._release_blocks(sequence)
        sequence.finish(reason)
        return True

    def schedule(self) -> Step:
        """The next step; without chunks when nothing is to be done."""
        chunks: list[Chunk] = []
        preempted: list[str] = []
        budget = self.limits.max_batched_tokens
        filling: set[bytes] = set()
        for sequence in sorted(self._running, key=_is_prefill):
            wanted = min(budget, len(sequence.token_ids) - sequence.num_computed)
            if wanted and self._make_room(sequence, wanted, preempted):
                chunk = self._chunk(sequence, budget)
                chunks.append(chunk)
                budget -= wanted
                if wanted > 1:
                    filling.update(self._filled_keys(sequence, chunk))
        # Only what is left admits, so every running sequence gets a token into every step; and nobody
        # is admitted while there is a shortage, least of all who has just been preempted.
        while budget and not preempted and (admitted := self._admit_next(filling)):
            chunks.append(self._chunk(admitted, budget))
            budget -= len(chunks[-1].token_ids)
            filling.update(self._filled_keys(admitted, chunks[-1]))
        return Step(tuple(chunks), tuple(preempted))

    def commit(self, step: Step) -> None:
        """The step has run: its tokens are in the cache. Sequences finished since are skipped."""
        size = self.limits.block_size
        for chunk in step.chunks:
            sequence = self._sequences.get(chunk.sequence_id)
            if sequence is not None and sequence.num_computed == chunk.start:
                num_tokens = len(chunk.token_ids)
                sequence.advance(num_tokens)
                if sequence.num_computed % size < num_tokens and self.prefixes:
                    self.prefixes.store(sequence, chunk.start, chunk.end)

    def _chunk(self, sequence: Sequence, budget: int) -> Chunk:
        start, tokens = sequence.num_computed, sequence.token_ids
        if len(tokens) == start + 1:  # nearly all chunks
            last = (tokens[start],)
            return Chunk(sequence.id, start, last, sequence.block_table, num_rows=1, samples=True)
        end = min(len(tokens), start + budget)
        return Chunk(
            sequence.id, start, tuple(tokens[start:end]), sequence.block_table,
            num_rows=max(0, end - max(start, sequence.next_row)), samples=end == len(tokens),
        )  # fmt: skip

    def _make_room(self, sequence: Sequence, num_tokens: int, preempted: list[str]) -> bool:
        """Blocks for the next tokens, by preemption if need be. False if it lost its own."""
        end = sequence.num_computed + num_tokens
        if end <= len(sequence.block_table) * self.limits.block_size:
            return True  # whoever was preempted has no blocks
        while sequence.state is State.RUNNING and self._missing_blocks(sequence, end):
            if self.pool.num_free:
                sequence.block_table.append(self.pool.allocate())
            else:
                preempted.append(self._preempt_last())
        return sequence.state is State.RUNNING

    def _preempt_last(self) -> str:
        victim = self._running.pop()
        self._release_blocks(victim)
        victim.preempt()
        insort(self._waiting, victim, key=precedence)
        self.num_preemptions += 1
        return victim.id

    def _admit_next(self, filling: set[bytes]) -> Sequence | None:
        """The next waiting sequence, with its blocks; None when it has to go on waiting.

        ``filling``: keys of the blocks that this step computes.
        """
        if not self._waiting or len(self._running) >= self.limits.max_num_seqs:
            return None
        # One spare block for each running sequence, else the newcomer would soon be preempted.
        available = self.pool.num_free - len(self._running)
        if available <= 0:
            return None
        sequence = self._waiting[0]
        cached = self.prefixes.find(sequence) if self.prefixes else []
        missing = blocks_for(sequence.num_tokens, self.limits.block_size) - len(cached)
        taken = missing + sum(self.pool.is_free(block) for block in cached)
        if taken > available or self._next_key(sequence, len(cached)) in filling:
            return None
        self._waiting.pop(0)
        self._admit(sequence, cached, missing)
        return sequence

    def _admit(self, sequence: Sequence, cached: list[int], missing: int) -> None:
        num_cached = len(cached) * self.limits.block_size
        if self.prefixes and sequence.num_cached_tokens is None:
            self.prefixes.num_queried += sequence.num_tokens
            self.prefixes.num_hits += num_cached
        for block in cached:  # before others are allocated, which may reuse any free block
            self.pool.share(block)
        sequence.block_table.extend(cached)
        sequence.block_table.extend(self.pool.allocate() for _ in range(missing))
        sequence.admit(num_cached)
        insort(self._running, sequence, key=precedence)

    def _next_key(self, sequence: Sequence, index: int) -> bytes | None:
        """The key of block ``index`` if it could be taken from the prefix cache."""
        if self.prefixes is None or index >= sequence.next_row // self.limits.block_size:
            return None
        return self.prefixes.keys(sequence, index + 1)[index]

    def _filled_keys(self, sequence: Sequence, chunk: Chunk) -> list[bytes]:
        """Keys of the blocks that a chunk fills; those filled by decoding are not waited for."""
        if self.prefixes is None or len(chunk.token_ids) == 1 < self.limits.block_size:
            return []
        size = self.limits.block_size
        return self.prefixes.keys(sequence, chunk.end // size)[chunk.start // size :]

    def _missing_blocks(self, sequence: Sequence, num_tokens: int) -> int:
        needed = blocks_for(num_tokens, self.limits.block_size)
        return max(0, needed - len(sequence.block_table))  # a prefill has all its blocks already

    def _release_blocks(self, sequence: Sequence) -> None:
        # Last block first: so the start of a prompt stays in the prefix cache the longest.
        for block in reversed(sequence.block_table):
            self.pool.release(block)

    def check_integrity(self) -> None:
        """RuntimeError when an invariant of this module or of blocks.py is broken."""
        self.pool.check_integrity(sequence.block_table for sequence in self.sequences())
        if self.prefixes:
            self.prefixes.check_integrity()
        for queue in (self._running, self._waiting):
            if any(precedence(a) >= precedence(b) for a, b in pairwise(queue)):
                raise RuntimeError("sequences are not in their order")
        if sum(map(_is_prefill, self._running)) > 1:
            raise RuntimeError("two running sequences are in the middle of their prefill")
        if any(sequence.block_table for sequence in self._waiting):
            raise RuntimeError("a waiting sequence holds blocks")
        for sequence in self._running:
            if self._missing_blocks(sequence, sequence.num_computed):
                raise RuntimeError(f"sequence {sequence.id} has cached tokens without a block")


def precedence(sequence: Sequence) -> tuple[int, int]:
    """Smaller goes first; it never changes while the sequence lives."""
    return sequence.arrival + AGING * sequence.priority, sequence.arrival


def _is_prefill(sequence: Sequence) -> bool:
    return len(sequence.token_ids) - sequence.num_computed > 1
