"""Loads on a scripted executor with a clock by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from mock_executor import MockExecutor

from rusteeze.runtime.benchmark import Load, measure, repeated
from rusteeze.runtime.engine import SyncEngine

VOCABULARY = 50


def engine(**limits: int) -> SyncEngine:
    return SyncEngine(MockExecutor(vocab_size=VOCABULARY, **limits))


def ticking() -> Callable[[], float]:
    """One second later every time it is read: once at the start, then once a step."""
    return map(float, itertools.count()).__next__


def test_every_request_has_a_first_token_and_gaps() -> None:
    run = measure(engine(), Load(3, 5, 4), VOCABULARY, 0, ticking())
    assert run.first == [1.0, 1.0, 1.0]
    assert run.gaps == [1.0] * 9
    assert (run.tail_tokens, run.tail, run.seconds) == (9, 3.0, 4.0)


def test_a_prompt_in_chunks_takes_more_steps_to_its_first_token() -> None:
    run = measure(engine(max_batched_tokens=4), Load(1, 10, 2), VOCABULARY, 0, ticking())
    assert run.first == [3.0]
    assert run.gaps == [1.0]


def test_the_tail_begins_when_the_last_request_has_begun() -> None:
    run = measure(engine(max_batched_tokens=5), Load(2, 5, 6), VOCABULARY, 0, ticking())
    assert run.tail_tokens < 10
    assert run.tail == run.seconds - max(run.first)


def test_the_budget_is_shared_and_nobody_repeats_beyond_it() -> None:
    loads = [Load(1, 2, 3), Load(1, 2, 4)]
    plenty = dict(repeated(engine(), loads, VOCABULARY, 200.0, ticking()))
    scarce = dict(repeated(engine(), loads, VOCABULARY, 10.0, ticking()))
    assert all(len(plenty[load]) > 5 for load in loads)
    assert len(scarce[loads[0]]) == 1


def test_a_load_that_finds_no_time_has_no_runs() -> None:
    first, second = repeated(engine(), [Load(1, 2, 9), Load(1, 2, 9)], VOCABULARY, 5.0, ticking())
    assert (len(first[1]), len(second[1])) == (1, 0)


def test_a_request_that_fails_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = engine()
    monkeypatch.setattr(broken._executor, "execute", lambda _: 1 / 0)
    with pytest.raises(RuntimeError, match="ended early"):
        measure(broken, Load(1, 5, 4), VOCABULARY, 0)


@pytest.mark.parametrize("seed", [1, 2])
def test_prompts_are_drawn_anew_for_each_run_and_the_same_for_a_seed(seed: int) -> None:
    seen: list[list[list[int]]] = []
    for s in (0, seed, seed):
        mock = MockExecutor(vocab_size=VOCABULARY)
        measure(SyncEngine(mock), Load(1, 8, 1), VOCABULARY, s)
        seen.append([batch.input_ids.tolist() for batch in mock.batches])
    assert seen[0] != seen[1] == seen[2]
