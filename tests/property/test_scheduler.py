"""The scheduler, the block pool and the prefix cache under arbitrary arrivals, steps and cancels.

The machine keeps, for every slot of the cache, everything that its KV would depend on: the salt and all
tokens up to its position. What a sequence finds through its block table must be its own history.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from rusteeze.runtime.config import SchedulerLimits
from rusteeze.runtime.scheduler import Chunk, Scheduler, Step, precedence
from rusteeze.runtime.sequence import FinishReason, Sequence, State


class SchedulerMachine(RuleBasedStateMachine):
    """Plays the engine: every finished prefill and decode yields a token, until the target length.

    Tokens are few, so that prompts and even outputs often begin alike.
    """

    arrived = Bundle("arrived")

    @initialize(
        num_blocks=st.integers(1, 12), block_size=st.integers(1, 4), tokens=st.integers(1, 12),
        seqs=st.integers(1, 6), length=st.integers(2, 40), layout=st.sampled_from(["", "x", None]),
    )  # fmt: skip
    def start(
        self, num_blocks: int, block_size: int, tokens: int, seqs: int, length: int,
        layout: str | None,
    ) -> None:  # fmt: skip
        self.limits = SchedulerLimits(num_blocks, block_size, tokens, seqs, length)
        self.scheduler = Scheduler(self.limits, layout)
        self.slots: dict[int, object] = {}
        self.live: dict[str, Sequence] = {}
        self.targets: dict[str, int] = {}
        self.tables: dict[str, list[int]] = {}
        self.count = 0

    @rule(
        target=arrived, prompt=st.integers(1, 20), change=st.integers(0, 20), output=st.integers(1, 20),
        salt=st.sampled_from(["", "salt"]), rows=st.booleans(), priority=st.integers(-2, 2),
    )  # fmt: skip
    def arrive(
        self, prompt: int, change: int, output: int, salt: str, rows: bool, priority: int
    ) -> str:
        self.count += 1
        tokens = [int(position == change) for position in range(prompt)]
        sequence = Sequence(f"s{self.count}", tokens, rows, salt, priority)
        if prompt >= self.limits.max_sequence_len:
            self.expect_refusal(sequence)
            return sequence.id
        self.scheduler.add(sequence)
        self.live[sequence.id] = sequence
        self.targets[sequence.id] = min(self.limits.max_sequence_len, prompt + output)
        return sequence.id

    def expect_refusal(self, sequence: Sequence) -> None:
        try:
            self.scheduler.add(sequence)
        except ValueError:
            return
        raise AssertionError("a prompt that cannot fit was accepted")

    @rule(id=arrived)
    def cancel(self, id: str) -> None:
        known = id in self.live
        assert self.scheduler.finish(id, FinishReason.ABORT) == known
        self.forget(id)
        assert not self.scheduler.finish(id, FinishReason.ABORT)

    @rule(id=arrived)
    def fail(self, id: str) -> None:
        """Of what a failed sequence held, nothing may be found again."""
        held = list(self.live[id].block_table) if id in self.live else []
        self.scheduler.finish(id, FinishReason.ERROR, doubtful=True)
        self.forget(id)
        self.spoil(held)

    def spoil(self, blocks: list[int]) -> None:
        size = self.limits.block_size
        in_use = {block for s in self.live.values() for block in s.block_table}
        for block in set(blocks) - in_use:
            for slot in range(block * size, block * size + size):
                self.slots[slot] = "what failed"

    @precondition(lambda self: self.live)
    @rule()
    def step(self) -> None:
        self.run_step()

    def run_step(self) -> None:
        decoding = [s.id for s in self.live.values() if s.state is State.RUNNING and s.num_uncomputed == 1]
        running = {s.id for s in self.live.values() if s.state is State.RUNNING}
        step = self.scheduler.schedule()
        self.check_step(step, decoding)
        self.check_order(step, running)
        self.compute(step)
        self.scheduler.commit(step)
        for chunk in step.chunks:
            if chunk.samples:
                self.sample(self.live[chunk.sequence_id])

    def compute(self, step: Step) -> None:
        """All write first, then all read, as an executor does."""
        written = [slot for chunk in step.chunks for slot in self.slots_of(chunk, chunk.start)]
        assert len(written) == len(set(written)), "two tokens, one slot"
        for chunk in step.chunks:
            history = self.history(self.live[chunk.sequence_id])
            slots = self.slots_of(chunk, chunk.start)
            self.slots.update(zip(slots, history[chunk.start : chunk.end], strict=True))
        for chunk in step.chunks:
            found = [self.slots.get(slot) for slot in self.slots_of(chunk, 0)]
            assert found == self.history(self.live[chunk.sequence_id])[: chunk.end]

    def slots_of(self, chunk: Chunk, start: int) -> list[int]:
        size = self.limits.block_size
        return [chunk.block_table[p // size] * size + p % size for p in range(start, chunk.end)]

    def history(self, sequence: Sequence) -> list[object]:
        """What the KV at each position depends on."""
        tokens = sequence.token_ids
        return [(sequence.cache_salt, *tokens[: end + 1]) for end in range(len(tokens))]

    def sample(self, sequence: Sequence) -> None:
        sequence.append(sequence.num_tokens % 3 % 2)
        if sequence.num_tokens == self.targets[sequence.id]:
            self.scheduler.finish(sequence.id, FinishReason.LENGTH)
            assert sequence.finish_reason is FinishReason.LENGTH
            self.forget(sequence.id)

    def check_step(self, step: Step, decoding: list[str]) -> None:
        scheduled = {chunk.sequence_id for chunk in step.chunks}
        assert step.num_tokens <= self.limits.max_batched_tokens
        assert len(scheduled) == len(step.chunks) <= self.limits.max_num_seqs
        assert scheduled.isdisjoint(step.preempted)
        assert scheduled, "there is work but the step is empty"
        assert set(decoding) <= scheduled | set(step.preempted), "a decode was passed over"
        for id in step.preempted:
            self.tables.pop(id, None)
        for chunk in step.chunks:
            self.check_chunk(chunk)

    def check_order(self, step: Step, running: set[str]) -> None:
        """Nobody is admitted before one who goes first, nobody preempted before one who goes last."""
        waiting = [precedence(s) for s in self.live.values() if s.state is State.WAITING]
        new = {chunk.sequence_id for chunk in step.chunks} - running
        assert all(precedence(self.live[id]) < min(waiting, default=(1 << 60, 0)) for id in new)
        assert not (new and step.preempted)
        victims = [precedence(self.live[id]) for id in step.preempted]
        assert victims == sorted(victims, reverse=True)
        stayed = running - set(step.preempted)
        assert all(precedence(self.live[id]) < min(victims, default=(1 << 60, 0)) for id in stayed)

    def check_chunk(self, chunk: Chunk) -> None:
        sequence = self.live[chunk.sequence_id]
        assert chunk.token_ids == tuple(sequence.token_ids[chunk.start : chunk.end])
        assert chunk.start == sequence.num_computed
        assert len(chunk.token_ids) > 0
        assert chunk.end <= len(chunk.block_table) * self.limits.block_size
        assert chunk.samples == (chunk.end == sequence.num_tokens)
        assert chunk.num_rows == max(0, chunk.end - max(chunk.start, sequence.next_row))
        assert chunk.start <= sequence.next_row, "a wanted row was skipped"
        if self.scheduler.prefixes is None:
            assert not sequence.num_cached_tokens

    def forget(self, id: str) -> None:
        self.live.pop(id, None)
        self.tables.pop(id, None)

    @invariant()
    def blocks_are_accounted_for(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check_integrity()
        pool = self.scheduler.pool
        held = {block for s in self.live.values() for block in s.block_table}
        assert pool.num_free + len(held) == pool.num_blocks
        assert 0 <= pool.num_free_kept <= pool.num_free

    @invariant()
    def tables_only_grow(self) -> None:
        for id, sequence in getattr(self, "live", {}).items():
            table = list(sequence.block_table)
            before = self.tables.get(id, [])
            assert table[: len(before)] == before
            self.tables[id] = table

    def teardown(self) -> None:
        """Every admitted request finishes, in a bounded number of steps, and nothing is left."""
        bound = 50 + 40 * sum(self.targets[id] for id in getattr(self, "live", ()))
        while getattr(self, "live", None):
            self.run_step()
            self.blocks_are_accounted_for()
            bound -= 1
            assert bound > 0, f"no progress: {list(self.live.values())}"
        if hasattr(self, "scheduler"):
            assert self.scheduler.pool.num_used == 0


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
