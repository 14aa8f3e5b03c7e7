"""What a request gets depends on nothing but the request: not on its company, chunking or preemption."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mock_executor import MockExecutor, greedy_tokens

from rusteeze.runtime.config import EngineConfig
from rusteeze.runtime.engine import SyncEngine
from rusteeze.runtime.interface import Completion, SamplingParams

PROMPTS = [
    np.random.default_rng(i).integers(0, 97, 1 + (i * 7) % 30).tolist() for i in range(32)
]
GREEDY = SamplingParams(temperature=0, max_tokens=20)
SAMPLED = [
    SamplingParams(
        seed=i, temperature=1.2, top_k=20 * (i % 2), top_p=0.9, repetition_penalty=1.1, max_tokens=20,
        logprobs=2, prompt_logprobs=1,
    )
    for i in range(32)
]  # fmt: skip


def engine(config: EngineConfig | None = None, **limits: Any) -> SyncEngine:
    return SyncEngine(MockExecutor(**limits), config=config)


def tokens(completions: list[Completion]) -> list[list[int]]:
    return [list(completion.token_ids) for completion in completions]


@pytest.fixture(scope="module")
def sampled_alone() -> list[tuple[Any, ...]]:
    pairs = zip(PROMPTS, SAMPLED, strict=True)
    return [essence(engine().generate([prompt], params)[0]) for prompt, params in pairs]


def essence(completion: Completion) -> tuple[Any, ...]:
    return completion.token_ids, completion.logprobs, completion.prompt_logprobs


SETTINGS = [
    pytest.param({}, None, id="roomy"),
    pytest.param({"max_batched_tokens": 1}, None, id="budget-1"),
    pytest.param({"max_batched_tokens": 7}, None, id="budget-7"),
    pytest.param({"block_size": 1, "num_blocks": 2000}, None, id="block-size-1"),
    pytest.param({"num_blocks": 14}, None, id="preemption"),
    pytest.param({"num_blocks": 50, "block_size": 1}, None, id="preemption-block-size-1"),
    pytest.param({"num_blocks": 14, "max_batched_tokens": 7}, None, id="preemption-budget-7"),
    pytest.param({}, EngineConfig(max_num_seqs=3, max_batched_tokens=5), id="three-at-a-time"),
]


@pytest.mark.parametrize(("limits", "config"), SETTINGS)
def test_greedy_tokens_are_the_model_s(limits: dict[str, int], config: EngineConfig | None) -> None:
    target = engine(config, **limits)
    completions = target.generate(PROMPTS, GREEDY)
    assert tokens(completions) == [greedy_tokens(prompt, 20) for prompt in PROMPTS]
    assert (target.scheduler.num_preemptions > 0) == (limits.get("num_blocks", 256) < 100)
    target.check_integrity()
    assert target.scheduler.pool.num_used == 0


@pytest.mark.parametrize(("limits", "config"), SETTINGS)
def test_sampled_tokens_and_logprobs_are_those_of_the_request_alone(
    limits: dict[str, int], config: EngineConfig | None, sampled_alone: list[tuple[Any, ...]]
) -> None:
    completions = engine(config, **limits).generate(PROMPTS, SAMPLED)
    assert [essence(completion) for completion in completions] == sampled_alone


def test_staggered_arrivals_and_cancels_change_nothing() -> None:
    target = engine(num_blocks=20, max_batched_tokens=8)
    got: dict[str, list[int]] = {}
    for index, prompt in enumerate(PROMPTS):
        target.submit(prompt, GREEDY, f"keep-{index}")
        target.submit(prompt[::-1], GREEDY, f"drop-{index}")
        collect(target, got)
        collect(target, got)
        target.cancel(f"drop-{index}")
    while target.has_work:
        collect(target, got)
    for index, prompt in enumerate(PROMPTS):
        assert got[f"keep-{index}"] == greedy_tokens(prompt, 20)
    assert target.scheduler.pool.num_used == 0


def collect(target: SyncEngine, got: dict[str, list[int]]) -> None:
    for output in target.step():
        got.setdefault(output.request_id, []).extend(output.token_ids)
    target.check_integrity()


def test_decodes_are_batched() -> None:
    executor = MockExecutor()
    SyncEngine(executor).generate(PROMPTS, GREEDY)
    assert max(batch.num_sequences for batch in executor.batches) == 32
    assert len(executor.batches) < 40
