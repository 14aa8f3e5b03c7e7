"""Prefix caching: what is found, what is not, what is given up first; and that it changes no output."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mock_executor import MockExecutor, greedy_tokens

from rusteeze.runtime import prefix_cache
from rusteeze.runtime.config import EngineConfig
from rusteeze.runtime.engine import SyncEngine
from rusteeze.runtime.interface import Completion, Fault, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=4)
PROMPT = list(range(1, 19))  # four blocks of four tokens and two


def serve(engine: SyncEngine, prompt: list[int], **params: Any) -> Completion:
    (done,) = engine.generate([prompt], replace(GREEDY, **params))
    engine.check_integrity()
    assert done.error is None
    assert list(done.token_ids) == greedy_tokens(prompt, len(done.token_ids))
    return done


def cached(engine: SyncEngine, prompt: list[int], **params: Any) -> int:
    usage = serve(engine, prompt, **params).usage
    assert usage is not None
    return usage.cached_tokens


def test_full_blocks_of_an_equal_beginning_are_found() -> None:
    engine = SyncEngine(MockExecutor())
    assert [cached(engine, PROMPT) for _ in range(2)] == [0, 16]
    assert cached(engine, [*PROMPT[:13], 90, *PROMPT[14:]]) == 12
    assert cached(engine, [90, *PROMPT[1:]]) == 0
    assert engine.scheduler.prefixes is not None
    assert engine.scheduler.prefixes.num_queried == 4 * 18
    assert engine.scheduler.prefixes.num_hits == 28


def test_only_the_rest_is_computed() -> None:
    executor = MockExecutor()
    engine = SyncEngine(executor)
    serve(engine, PROMPT)
    executor.batches.clear()
    serve(engine, PROMPT)
    assert executor.batches[0].positions.tolist() == [16, 17]


@pytest.mark.parametrize("length", [4, 8, 16])
def test_the_last_token_of_a_prompt_is_always_computed(length: int) -> None:
    engine = SyncEngine(MockExecutor())
    serve(engine, PROMPT)
    assert cached(engine, PROMPT[:length]) == length - 4


def test_output_is_found_as_well() -> None:
    """The next turn of a conversation: prompt and answer of the last one, and something new."""
    engine = SyncEngine(MockExecutor())
    answer = list(serve(engine, PROMPT, max_tokens=11).token_ids)
    # The KV of the last token was never computed.
    assert cached(engine, [*PROMPT, *answer, 5]) == 28


def test_salts_keep_requests_apart() -> None:
    engine = SyncEngine(MockExecutor())
    serve(engine, PROMPT, cache_salt="a")
    assert cached(engine, PROMPT, cache_salt="b") == 0
    assert cached(engine, PROMPT) == 0
    assert cached(engine, PROMPT, cache_salt="a") == 16


def test_another_layout_has_other_keys() -> None:
    keys = []
    for layout in ("one", "two"):
        engine = SyncEngine(MockExecutor(), cache_layout=layout)
        serve(engine, PROMPT)
        assert engine.scheduler.prefixes is not None
        keys.append(set(engine.scheduler.prefixes._blocks))
    assert keys[0].isdisjoint(keys[1])


def test_it_can_be_turned_off() -> None:
    engine = SyncEngine(MockExecutor(), config=EngineConfig(prefix_caching=False))
    assert [cached(engine, PROMPT) for _ in range(2)] == [0, 0]
    assert engine.scheduler.pool.num_free_kept == 0


def test_equal_keys_do_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    class Collision:
        def __init__(self, data: bytes) -> None: ...
        def digest(self) -> bytes:
            return b"the same for all"

    monkeypatch.setattr(prefix_cache, "sha256", Collision)
    engine = SyncEngine(MockExecutor())
    for prompt in (PROMPT, [*PROMPT[:4], 9, 9, 9, 9, 1], [9] * 6, PROMPT):
        serve(engine, prompt)


def test_prompt_logprobs_skip_nothing() -> None:
    engine = SyncEngine(MockExecutor())
    first, second = (serve(engine, PROMPT, prompt_logprobs=1) for _ in range(2))
    assert first.prompt_logprobs == second.prompt_logprobs
    assert len(second.prompt_logprobs) == len(PROMPT) - 1
    assert second.usage is not None
    assert second.usage.cached_tokens == 0


def test_equal_prompts_that_arrive_together_are_computed_once() -> None:
    executor = MockExecutor()
    engine = SyncEngine(executor)
    done = engine.generate([PROMPT] * 5, GREEDY)
    assert [list(d.token_ids) for d in done] == [greedy_tokens(PROMPT, 4)] * 5
    assert [d.usage.cached_tokens for d in done if d.usage] == [0, 16, 16, 16, 16]
    assert sum(batch.num_tokens for batch in executor.batches[:2]) == 18 + 1 + 4 * 2


def test_the_prefix_used_longest_ago_goes_first_and_its_end_before_its_beginning() -> None:
    engine = SyncEngine(MockExecutor(num_blocks=12))
    old, young = ([base + i for i in range(17)] for base in (0, 40))
    serve(engine, old, max_tokens=1)
    serve(engine, young, max_tokens=1)
    assert engine.scheduler.pool.num_free_kept == 8
    serve(engine, [80] * 19, max_tokens=1)  # takes the four blocks without contents, and one more
    assert cached(engine, young, max_tokens=1) == 16
    assert cached(engine, old, max_tokens=1) == 12


def test_a_hit_makes_a_prefix_young_again() -> None:
    engine = SyncEngine(MockExecutor(num_blocks=12))
    old, young = ([base + i for i in range(17)] for base in (0, 40))
    for prompt in (old, young, old):
        serve(engine, prompt, max_tokens=1)
    serve(engine, [80] * 22, max_tokens=1)
    assert cached(engine, old, max_tokens=1) == 16
    assert cached(engine, young, max_tokens=1) < 16


def test_a_preempted_sequence_finds_what_is_left_of_its_cache() -> None:
    executor = MockExecutor(num_blocks=8)
    engine = SyncEngine(executor)
    prompts = [[1] * 8, [2] * 7]
    done = engine.generate(prompts, replace(GREEDY, max_tokens=17))
    assert [list(d.token_ids) for d in done] == [greedy_tokens(p, 17) for p in prompts]
    assert engine.scheduler.num_preemptions == 1
    assert [d.usage.cached_tokens for d in done if d.usage] == [0, 0]
    computed = sum(batch.num_tokens for batch in executor.batches)
    assert computed < 8 + 7 + 2 * 16 + 8, "all of it was computed again"


def test_what_a_failed_request_computed_is_not_shared() -> None:
    class Faulty(MockExecutor):
        def _logits(self, history: np.ndarray) -> np.ndarray:
            row = super()._logits(history)
            return row * np.nan if len(history) == 20 and len(self.batches) < 5 else row

    engine = SyncEngine(Faulty())
    (failed,) = engine.generate([PROMPT], GREEDY)
    assert failed.finish_reason == "error"
    assert cached(engine, PROMPT) == 0
    assert engine.scheduler.pool.num_used == 0


def test_what_a_request_computed_that_ran_out_of_time_is_still_shared() -> None:
    now = [0.0]
    engine = SyncEngine(MockExecutor(), clock=lambda: now[0])
    engine.submit(PROMPT, replace(GREEDY, timeout_s=1.0))
    engine.step()
    now[0] = 2.0
    (output,) = engine.step()
    assert output.fault is Fault.TIMEOUT
    assert cached(engine, PROMPT) == 16


def test_what_a_request_computed_that_ran_out_of_tokens_is_still_shared() -> None:
    executor = MockExecutor()
    engine = SyncEngine(executor)
    all_end_it = tuple(range(executor.vocab_size))
    (done,) = engine.generate([PROMPT], replace(GREEDY, min_tokens=1, stop_token_ids=all_end_it))
    assert done.fault is Fault.NO_TOKEN
    assert cached(engine, PROMPT) == 16


@pytest.mark.parametrize("salt", ["x" * 257, "é", "a\nb", None, 3])
def test_bad_salts_are_refused(salt: Any) -> None:
    with pytest.raises(ValueError, match="cache_salt must be at most 256 printable"):
        SamplingParams(cache_salt=salt)
