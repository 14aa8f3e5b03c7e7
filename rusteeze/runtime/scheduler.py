"""Which tokens of which sequences are computed in the next step. Ints and deques in, a Step out.

Policy: first come, first served, under a budget of tokens per step.
1. Running sequences come first, in order of arrival: a decode takes one token, a prefill the rest.
2. Waiting ones are admitted while budget, places and blocks for all their known tokens remain.
3. Out of blocks, the latest arrival is preempted: its cache is dropped and recomputed later.
4. No sequence may outgrow the pool, so the earliest can always go on and nothing deadlocks.

Because of 1 and 2 only the last running sequence can be in the middle of its prefill; all before it
decode, so a long prompt delays nobody who is already producing tokens:

    running   [ A decode | B decode | C decode | D prefill … ]      waiting [ E, F, … ]
    budget    |    1     |    1     |    1     |  rest       |
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, pairwise

from rusteeze.runtime.blocks import BlockPool, BlockTable, blocks_for
from rusteeze.runtime.config import SchedulerLimits
from rusteeze.runtime.sequence import FinishReason, Sequence, State


@dataclass(frozen=True)
class Chunk:
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


class Scheduler:
    """Owns the sequences and the block pool. The cycle: schedule, run the model, commit, append."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.pool = BlockPool(limits.num_blocks)
        self.num_preemptions = 0
        self._sequences: dict[str, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._arrivals = count()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def sequences(self) -> Iterator[Sequence]:
        """Running then waiting ones: the order of arrival."""
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
        self._waiting.append(sequence)

    def finish(self, sequence_id: str, reason: FinishReason) -> bool:
        """End a sequence in any state and free its blocks. False if there is none of that id."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return False
        queue = self._waiting if sequence.state is State.WAITING else self._running
        queue.remove(sequence)
        self._release_blocks(sequence)
        sequence.finish(reason)
        return True

    def schedule(self) -> Step:
        """The next step; without chunks when nothing is to be done."""
        chunks: list[Chunk] = []
        preempted: list[str] = []
        budget = self.limits.max_batched_tokens
        for sequence in tuple(self._running):
            wanted = min(budget, sequence.num_uncomputed)
            if wanted and self._make_room(sequence, wanted, preempted):
                chunks.append(self._chunk(sequence, budget))
                budget -= len(chunks[-1].token_ids)
        # Only what is left admits, so every running sequence gets a token into every step.
        while budget and self._admit_next():
            chunks.append(self._chunk(self._running[-1], budget))
            budget -= len(chunks[-1].token_ids)
        return Step(tuple(chunks), tuple(preempted))

    def commit(self, step: Step) -> None:
        """The step has run: its tokens are in the cache. Sequences finished since are skipped."""
        for chunk in step.chunks:
            sequence = self._sequences.get(chunk.sequence_id)
            if sequence is not None and sequence.num_computed == chunk.start:
                sequence.advance(len(chunk.token_ids))

    def _chunk(self, sequence: Sequence, budget: int) -> Chunk:
        start = sequence.num_computed
        end = min(sequence.num_tokens, start + budget)
        return Chunk(
            sequence.id, start, tuple(sequence.token_ids[start:end]), sequence.block_table,
            num_rows=max(0, end - max(start, sequence.next_row)),
            samples=end == sequence.num_tokens,
        )  # fmt: skip

    def _make_room(self, sequence: Sequence, num_tokens: int, preempted: list[str]) -> bool:
        """Blocks for the next tokens, by preemption if need be. False if it lost its own."""
        end = sequence.num_computed + num_tokens
        while sequence.state is State.RUNNING and self._missing_blocks(sequence, end):
            if self.pool.num_free:
                sequence.block_table.append(self.pool.allocate())
            else:
                preempted.append(self._preempt_latest())
        return sequence.state is State.RUNNING

    def _preempt_latest(self) -> str:
        victim = self._running.pop()
        self._release_blocks(victim)
        victim.preempt()
        self._waiting.appendleft(victim)
        self.num_preemptions += 1
        return victim.id

    def _admit_next(self) -> bool:
        if not self._waiting or len(self._running) >= self.limits.max_num_seqs:
            return False
        sequence = self._waiting[0]
        missing = self._missing_blocks(sequence, sequence.num_tokens)
        # One spare block for each running sequence, else the newcomer would soon be preempted.
        if self.pool.num_free < missing + len(self._running):
            return False
        self._waiting.popleft()
        sequence.admit()
        sequence.block_table.extend(self.pool.allocate() for _ in range(missing))
        self._running.append(sequence)
        return True

    def _missing_blocks(self, sequence: Sequence, num_tokens: int) -> int:
        needed = blocks_for(num_tokens, self.limits.block_size)
        return max(0, needed - len(sequence.block_table))  # a prefill has all its blocks already

    def _release_blocks(self, sequence: Sequence) -> None:
        # Last block first: should prefixes be shared, the start of a prompt is reused the longest.
        for block in reversed(sequence.block_table):
            self.pool.release(block)

    def check_integrity(self) -> None:
        """RuntimeError when an invariant of this module or of blocks.py is broken."""
        self.pool.check_integrity(sequence.block_table for sequence in self.sequences())
        if any(a.arrival >= b.arrival for a, b in pairwise(self.sequences())):
            raise RuntimeError("sequences are not in order of arrival")
        if any(sequence.num_uncomputed > 1 for sequence in self._running[:-1]):
            raise RuntimeError("a sequence before the last running one is still in its prefill")
        if any(sequence.block_table for sequence in self._waiting):
            raise RuntimeError("a waiting sequence holds blocks")
        for sequence in self._running:
            if self._missing_blocks(sequence, sequence.num_computed):
                raise RuntimeError(f"sequence {sequence.id} has cached tokens without a block")
