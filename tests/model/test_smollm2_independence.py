"""What a request gets does not depend on its company: bitwise, on the real model as it is by default."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from independence import Answer, alone, differences, draw_prompts, run
from smollm2 import MARKS

from rusteeze.runtime import llm
from rusteeze.runtime.executor import CpuExecutor

pytestmark = MARKS

VOCABULARY = 49152
NEW_TOKENS = 12
PROMPTS = draw_prompts([1 + 29 * i % 83 for i in range(32)], vocabulary=VOCABULARY)
SOME = {name: PROMPTS[name] for name in list(PROMPTS)[:8]}


@pytest.fixture(scope="module", params=["smollm2", "int8_cache_smollm2"])
def artifact(request: pytest.FixtureRequest) -> Path:
    """With int8 activations, and a bf16 or int8 cache."""
    return Path(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def executor(artifact: Path) -> Iterator[CpuExecutor]:
    """Two threads, and a cache just large enough for the longest sequence."""
    model = llm.load(artifact, threads=2, kv_bytes=1)
    yield model.executor
    model.close()


@pytest.fixture(scope="module")
def wanted(executor: CpuExecutor) -> dict[str, Answer]:
    return alone(executor, PROMPTS, NEW_TOKENS)


def test_a_batch_of_32(executor: CpuExecutor, wanted: dict[str, Answer]) -> None:
    found = run(executor, PROMPTS, NEW_TOKENS)
    assert found.most_sequences == 32
    assert not differences(found.answers, wanted)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_any_chunks(chunk: int, executor: CpuExecutor, wanted: dict[str, Answer]) -> None:
    found = run(executor, SOME, NEW_TOKENS, chunk=chunk)
    assert found.most_tokens == chunk
    assert not differences(found.answers, wanted)


def test_preemption(executor: CpuExecutor) -> None:
    """With eight blocks, of which six sequences want up to six each."""
    prompts = draw_prompts([14, 30, 13, 15, 29, 60], vocabulary=VOCABULARY)
    found = run(executor, prompts, 3 * NEW_TOKENS, num_blocks=8)
    assert found.num_preemptions > 2
    assert not differences(found.answers, alone(executor, prompts, 3 * NEW_TOKENS))


def test_cached_prefixes(executor: CpuExecutor, wanted: dict[str, Answer]) -> None:
    found = run(executor, PROMPTS, NEW_TOKENS, earlier=list(PROMPTS.values()))
    assert found.num_cached_tokens == sum((len(p) - 1) // 16 * 16 for p in PROMPTS.values())
    assert not differences(found.answers, wanted)


def test_one_thread_or_two(artifact: Path, wanted: dict[str, Answer]) -> None:
    single = llm.load(artifact, threads=1, kv_bytes=1)
    found = run(single.executor, SOME, NEW_TOKENS)
    single.close()
    assert not differences(found.answers, wanted)
