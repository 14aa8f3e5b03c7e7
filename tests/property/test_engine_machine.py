"""The engine under arbitrary requests, cancels, passing time and an executor that misbehaves.

After each step every count must add up, and whoever ends well must have got what the model says.
"""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from mock_executor import MockExecutor, greedy_tokens

from rusteeze.runtime.batch import Batch
from rusteeze.runtime.config import EngineConfig
from rusteeze.runtime.engine import SyncEngine
from rusteeze.runtime.interface import Fault, QueueFull, RequestOutput, SamplingParams
from rusteeze.runtime.request import LiveRequest

MAX_SEQS, MAX_QUEUE = 3, 4
FAULTS = {None: None, "raise": Fault.EXECUTOR, "nan": Fault.NOT_FINITE}


class Moody(MockExecutor):
    """Misbehaves in its next step as it is told."""

    mood: str | None = None

    def execute(self, batch: Batch) -> np.ndarray:
        logits = super().execute(batch)
        mood, self.mood = self.mood, None
        if mood == "raise":
            raise RuntimeError("told to")
        if mood == "nan":
            logits[:1] = np.nan
        return logits


class EngineMachine(RuleBasedStateMachine):
    submitted = Bundle("submitted")

    @initialize(num_blocks=st.integers(4, 20), tokens=st.integers(1, 16), caching=st.booleans())
    def start(self, num_blocks: int, tokens: int, caching: bool) -> None:
        self.now = 0.0
        self.executor = Moody(num_blocks=num_blocks, block_size=2, max_batched_tokens=tokens)
        config = EngineConfig(MAX_SEQS, prefix_caching=caching, max_queue=MAX_QUEUE)
        self.engine = SyncEngine(self.executor, config=config, clock=lambda: self.now)
        self.prompts: dict[str, list[int]] = {}
        self.outputs: dict[str, list[RequestOutput]] = {}
        self.ended: dict[str, RequestOutput] = {}
        self.totals = (0, 0)

    @rule(
        target=submitted, length=st.integers(1, 6), last=st.integers(0, 2), n=st.integers(1, 4),
        priority=st.integers(-1, 1), timeout=st.sampled_from([None, 2.0]), new=st.integers(1, 9),
        salt=st.sampled_from(["", "x"]),
    )  # fmt: skip
    def submit(
        self, length: int, last: int, n: int, priority: int, timeout: float | None, new: int, salt: str
    ):  # fmt: skip
        prompt = [1] * (length - 1) + [last]
        params = SamplingParams(
            temperature=0, n=n, priority=priority, timeout_s=timeout, max_tokens=new, cache_salt=salt
        )
        room = MAX_SEQS + MAX_QUEUE - (len(self.prompts) - len(self.ended))
        try:
            ids = [f"{len(self.prompts)}-{index}" for index in range(n)]
            self.engine.submit_together([(prompt, own) for own in params.choices()], ids)
        except QueueFull:
            assert n > room
            return multiple()
        assert n <= room
        self.prompts |= dict.fromkeys(ids, prompt)
        return multiple(*ids)

    @rule(id=submitted)
    def cancel(self, id: str) -> None:
        self.engine.cancel(id)

    @rule(mood=st.sampled_from([None, None, "raise", "nan"]), seconds=st.sampled_from([0.0, 1.0]))
    def step(self, mood: str | None, seconds: float) -> None:
        self.now += seconds
        self.executor.mood = mood
        allowed = {None, Fault.TIMEOUT, FAULTS[mood]}
        for output in self.engine.step():
            assert output.request_id not in self.ended, "something came after the end"
            assert output.fault in allowed
            assert (output.fault is None) == (output.error is None) == (output.finish_reason != "error")
            self.outputs.setdefault(output.request_id, []).append(output)
            if output.finish_reason:
                self.ended[output.request_id] = output
        self.executor.mood = None
        self.check_answers()

    def check_answers(self) -> None:
        """Whatever happened, the tokens so far are those of the model."""
        for id, outputs in self.outputs.items():
            tokens = [token for output in outputs for token in output.token_ids]
            assert tokens == greedy_tokens(self.prompts[id], len(tokens))

    @invariant()
    def everything_adds_up(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.check_integrity()
        stats = self.engine.stats()
        live = len(self.prompts) - len(self.ended)
        assert stats.num_running + stats.num_waiting == live
        assert stats.num_running <= MAX_SEQS
        assert stats.free_blocks + stats.used_blocks == stats.total_blocks
        totals = (stats.prompt_tokens, stats.generation_tokens)
        assert all(new >= old for new, old in zip(totals, self.totals, strict=True))
        self.totals = totals
        assert self.timed() <= live

    def timed(self) -> int:
        timed: dict[str, LiveRequest] = self.engine._timed
        return len(timed)

    def teardown(self) -> None:
        for _ in range(2000):
            if not getattr(self, "engine", None) or not self.engine.has_work:
                break
            self.step(None, 0.0)
            self.everything_adds_up()
        if hasattr(self, "engine"):
            assert self.ended.keys() == self.prompts.keys()
            usages = [output.usage for output in self.ended.values() if output.usage]
            stats = self.engine.stats()
            assert stats.generation_tokens == sum(usage.completion_tokens for usage in usages)
            assert stats.prompt_tokens == sum(usage.prompt_tokens for usage in usages)
            assert stats.used_blocks == 0


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
