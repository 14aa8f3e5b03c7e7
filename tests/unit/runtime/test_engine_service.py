"""What a server builds on: several choices, a bounded queue, timeouts, named faults."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from threading import Thread
from typing import Any

import numpy as np
import pytest
from mock_executor import MockExecutor, greedy_tokens

from rusteeze.runtime.batch import Batch
from rusteeze.runtime.config import EngineConfig
from rusteeze.runtime.engine import SyncEngine
from rusteeze.runtime.interface import (
    Completion,
    ExecutorLost,
    Fault,
    QueueFull,
    RequestError,
    RequestOutput,
    SamplingParams,
)

GREEDY = SamplingParams(temperature=0, max_tokens=6)
DRAWN = SamplingParams(temperature=1.5, seed=7, max_tokens=12, n=4)
PROMPT = list(range(1, 23))


def submit_choices(engine: SyncEngine, params: SamplingParams, name: str = "r") -> list[str]:
    each = params.choices()
    ids = [f"{name}-{index}" for index in range(len(each))]
    engine.submit_together([(PROMPT, own) for own in each], ids)
    return ids


def collect(engine: SyncEngine) -> dict[str, Completion]:
    outputs: dict[str, list[RequestOutput]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
        engine.check_integrity()
    return {id: Completion.collect(found) for id, found in outputs.items()}


# Several choices


def test_choices_are_different_and_repeatable_and_the_first_is_that_of_one() -> None:
    engine = SyncEngine(MockExecutor())
    found = []
    for _ in range(2):
        ids = submit_choices(engine, DRAWN)
        assert ids == ["r-0", "r-1", "r-2", "r-3"]
        done = collect(engine)
        found.append([done[id].token_ids for id in ids])
    assert found[0] == found[1]
    assert len(set(found[0])) == 4
    (single,) = SyncEngine(MockExecutor()).generate([PROMPT], replace(DRAWN, n=1))
    assert single.token_ids == found[0][0]


def test_choices_share_the_prompt_and_get_what_they_would_get_alone() -> None:
    executor = MockExecutor()
    engine = SyncEngine(executor)
    ids = submit_choices(engine, DRAWN)
    engine.step()
    engine.step()
    tables = [list(s.block_table[:5]) for s in engine.scheduler.sequences()]
    assert tables == [tables[0]] * 4
    assert engine.scheduler.pool.num_used == 5 + 4
    done = collect(engine)
    assert sum(batch.num_tokens for batch in executor.batches[:2]) == 22 + 1 + 3 * 2
    alone = [SyncEngine(MockExecutor()).generate([PROMPT], p)[0] for p in DRAWN.choices()]
    # the first step's token of the first choice was read before collect
    assert [done[id].token_ids[-8:] for id in ids] == [d.token_ids[-8:] for d in alone]
    assert engine.scheduler.pool.num_used == 0


def test_choices_without_a_seed_are_drawn_afresh() -> None:
    assert [p.seed for p in SamplingParams(n=2).choices()] == [None, None]


def test_one_request_is_one_sample() -> None:
    with pytest.raises(RequestError, match="n is 4"):
        SyncEngine(MockExecutor()).submit(PROMPT, DRAWN)


@pytest.mark.parametrize(
    "params", [{"n": 0}, {"n": 129}, {"priority": 101}, {"priority": True}, {"timeout_s": 0}]
)
def test_bad_values_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(params))):
        SamplingParams(**params)


# The queue


def test_a_full_queue_refuses_and_takes_again() -> None:
    engine = SyncEngine(MockExecutor(), config=EngineConfig(max_num_seqs=2, max_queue=1))
    for _ in range(3):
        engine.submit(PROMPT, GREEDY)
    with pytest.raises(QueueFull, match="too many requests are waiting"):
        engine.submit(PROMPT, GREEDY)
    with pytest.raises(QueueFull):
        submit_choices(engine, DRAWN)
    assert len(collect(engine)) == 3
    submit_choices(engine, replace(DRAWN, n=3))
    assert len(collect(engine)) == 3


def test_choices_are_queued_all_or_none() -> None:
    engine = SyncEngine(MockExecutor())
    engine.submit(PROMPT, GREEDY, "r-2")
    with pytest.raises(RequestError, match="'r-2' is in use"):
        submit_choices(engine, DRAWN)
    assert list(collect(engine)) == ["r-2"]


def test_priority_reaches_the_scheduler() -> None:
    engine = SyncEngine(MockExecutor(), config=EngineConfig(max_num_seqs=1))
    for name, priority in {"low": 3, "high": -3}.items():
        engine.submit(PROMPT, replace(GREEDY, priority=priority), name)
    assert list(collect(engine)) == ["high", "low"]


# Statistics


def test_statistics_add_up_at_every_step() -> None:
    engine = SyncEngine(MockExecutor(num_blocks=24), config=EngineConfig(max_num_seqs=6))
    done: list[RequestOutput] = []
    before = engine.stats()
    for i in range(12):
        engine.submit(PROMPT[: 10 + i % 3 * 6], replace(GREEDY, max_tokens=20), str(i))
    engine.cancel("11")
    while engine.has_work:
        done += [output for output in engine.step() if output.finish_reason]
        stats = engine.stats()
        assert stats.free_blocks + stats.used_blocks == stats.total_blocks == 24
        assert stats.num_running + stats.num_waiting + len(done) == 12
        assert 0 <= stats.cached_blocks <= stats.free_blocks
        assert stats.kv_usage == stats.used_blocks / 24
        assert stats.prompt_tokens >= before.prompt_tokens
        assert stats.generation_tokens >= before.generation_tokens
        before = stats
    usages = [output.usage for output in done if output.usage]
    assert stats.prompt_tokens == sum(usage.prompt_tokens for usage in usages)
    assert stats.generation_tokens == sum(usage.completion_tokens for usage in usages)
    assert stats.prefix_hit_tokens == sum(usage.cached_tokens for usage in usages) > 0
    assert stats.prefix_queried_tokens == stats.prompt_tokens - usages[0].prompt_tokens
    assert stats.num_preemptions == engine.scheduler.num_preemptions > 0
    assert stats.used_blocks == stats.num_running == stats.num_waiting == 0


# Several threads


def test_a_cancel_in_the_middle_of_a_submit_takes_effect_after_it() -> None:
    engine = SyncEngine(MockExecutor())
    cancels: list[Thread] = []

    class Interrupted(deque[Any]):
        """Another thread cancels when the first command is on its way."""

        def _interrupt(self) -> None:
            if not cancels:
                cancels.append(Thread(target=engine.cancel, args=["a"]))
                cancels[0].start()
                cancels[0].join(0.1)  # if it can go on now, it does

        def append(self, command: Any) -> None:
            self._interrupt()
            super().append(command)

        def extend(self, commands: Iterable[Any]) -> None:
            self._interrupt()
            super().extend(commands)

    engine._commands = Interrupted()
    engine.submit(PROMPT, GREEDY, "a")
    cancels[0].join()
    done = collect(engine)
    assert done["a"].finish_reason == "abort"
    assert engine.scheduler.num_running == engine.scheduler.num_waiting == 0


# Timeouts


@pytest.mark.parametrize("waiting", [False, True])
def test_a_request_that_takes_too_long_ends(waiting: bool) -> None:
    now = [0.0]
    config = EngineConfig(max_num_seqs=1)
    engine = SyncEngine(MockExecutor(), config=config, clock=lambda: now[0])
    timed = replace(GREEDY, timeout_s=2.5, max_tokens=100)
    submits = [("timed", timed), ("other", GREEDY)]
    for name, params in reversed(submits) if waiting else submits:
        engine.submit(PROMPT, params, name)
    ends = {}
    while engine.has_work:
        ends.update({o.request_id: (now[0], o) for o in engine.step() if o.finish_reason})
        now[0] += 1.0
    moment, output = ends["timed"]
    assert (moment, output.finish_reason, output.fault) == (3.0, "error", Fault.TIMEOUT)
    assert "longer than its timeout" in str(output.error)
    assert ends["other"][1].finish_reason == "length"
    assert engine.scheduler.pool.num_used == 0


def test_a_request_that_ends_in_time_leaves_nothing_behind() -> None:
    engine = SyncEngine(MockExecutor())
    (done,) = engine.generate([PROMPT], replace(GREEDY, timeout_s=1e6))
    assert done.finish_reason == "length"
    assert engine._timed == {}


# Faults: an executor that misbehaves


class Misbehaving(MockExecutor):
    """Does ``what`` to its logits, or instead of giving them, in step number ``step``."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__()
        self.what, self.step = what, step

    def execute(self, batch: Batch) -> np.ndarray:
        logits = super().execute(batch)
        if len(self.batches) != self.step:
            return logits
        if self.what == "raise":
            raise RuntimeError("the device is gone: 0x7f3a")
        if self.what == "rows":
            return logits[:-1]
        logits[0] = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}[self.what]
        return logits


@pytest.mark.parametrize("params", [GREEDY, replace(GREEDY, temperature=1.0, seed=3, top_p=0.9)])
@pytest.mark.parametrize("what", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("step", [1, 3])
def test_logits_that_are_not_finite_end_their_request_only(
    what: str, step: int, params: SamplingParams
) -> None:
    engine = SyncEngine(Misbehaving(what, step))
    prompts = [PROMPT, [9, 9], [8, 8, 8]]
    bad, *good = engine.generate(prompts, params)
    assert (bad.finish_reason, bad.fault, len(bad.token_ids)) == ("error", Fault.NOT_FINITE, step - 1)
    wanted = SyncEngine(MockExecutor()).generate(prompts[1:], params)
    assert [d.token_ids for d in good] == [d.token_ids for d in wanted]
    assert engine.scheduler.pool.num_used == 0


def test_a_lost_executor_ends_the_engine() -> None:
    class Lost(MockExecutor):
        def execute(self, batch: Batch) -> np.ndarray:
            raise ExecutorLost("the device is gone")

    with pytest.raises(ExecutorLost):
        SyncEngine(Lost()).generate([PROMPT], GREEDY)


@pytest.mark.parametrize("what", ["raise", "rows"])
def test_a_failing_step_ends_its_requests_and_the_engine_goes_on(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = SyncEngine(Misbehaving(what, 3), config=EngineConfig(max_num_seqs=2))
    done = engine.generate([PROMPT, [9, 9], [8, 8, 8]], GREEDY)
    assert [d.finish_reason for d in done] == ["error", "error", "length"]
    assert [d.fault for d in done] == [Fault.EXECUTOR, Fault.EXECUTOR, None]
    assert done[0].error == "internal error", "what failed is for the log, not for the client"
    assert "the executor failed" in caplog.text
    assert list(done[2].token_ids) == greedy_tokens([8, 8, 8], 6)
    engine.check_integrity()
    (again,) = engine.generate([PROMPT], GREEDY)
    assert list(again.token_ids) == greedy_tokens(PROMPT, 6)
    assert again.usage is not None
    assert again.usage.cached_tokens == 0
