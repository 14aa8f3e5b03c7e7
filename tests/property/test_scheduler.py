"""The scheduler and the block pool under arbitrary arrivals, steps and cancels."""

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
from rusteeze.runtime.scheduler import Chunk, Scheduler, Step
from rusteeze.runtime.sequence import FinishReason, Sequence, State


class SchedulerMachine(RuleBasedStateMachine):
    """Plays the engine: every finished prefill and decode yields a token, until the target length."""

    arrived = Bundle("arrived")

    @initialize(
        num_blocks=st.integers(1, 12), block_size=st.integers(1, 4), tokens=st.integers(1, 12),
        seqs=st.integers(1, 6), length=st.integers(2, 40),
    )  # fmt: skip
    def start(self, num_blocks: int, block_size: int, tokens: int, seqs: int, length: int) -> None:
        self.limits = SchedulerLimits(num_blocks, block_size, tokens, seqs, length)
        self.scheduler = Scheduler(self.limits)
        self.live: dict[str, Sequence] = {}
        self.targets: dict[str, int] = {}
        self.tables: dict[str, list[int]] = {}
        self.count = 0

    @rule(target=arrived, prompt=st.integers(1, 20), output=st.integers(1, 20))
    def arrive(self, prompt: int, output: int) -> str:
        self.count += 1
        sequence = Sequence(f"s{self.count}", list(range(prompt)))
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

    @precondition(lambda self: self.live)
    @rule()
    def step(self) -> None:
        self.run_step()

    def run_step(self) -> None:
        decoding = [s.id for s in self.live.values() if s.state is State.RUNNING and s.num_uncomputed == 1]
        step = self.scheduler.schedule()
        self.check_step(step, decoding)
        self.scheduler.commit(step)
        for chunk in step.chunks:
            if chunk.samples:
                self.sample(self.live[chunk.sequence_id])

    def sample(self, sequence: Sequence) -> None:
        sequence.append(1000 + sequence.num_tokens)
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

    def check_chunk(self, chunk: Chunk) -> None:
        sequence = self.live[chunk.sequence_id]
        assert chunk.token_ids == tuple(sequence.token_ids[chunk.start : chunk.end])
        assert chunk.start == sequence.num_computed
        assert len(chunk.token_ids) > 0
        assert chunk.end <= len(chunk.block_table) * self.limits.block_size
        assert chunk.samples == (chunk.end == sequence.num_tokens) == (chunk.num_rows == 1)

    def forget(self, id: str) -> None:
        self.live.pop(id, None)
        self.tables.pop(id, None)

    @invariant()
    def blocks_are_accounted_for(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check_integrity()
        pool = self.scheduler.pool
        held = [block for s in self.live.values() for block in s.block_table]
        assert len(held) == len(set(held)), "a block is in two tables"
        assert pool.num_free + len(held) == pool.num_blocks

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
