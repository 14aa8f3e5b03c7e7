"""What a request gets does not depend on its company: bitwise, on tiny models of several kinds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from compiled import MAX_BATCHED_TOKENS, CompiledStep
from configs import tiny
from harness import MAX_MODEL_LEN, make_config, random_model, weights_of
from independence import Answer, alone, differences, draw_prompts, run

from rusteeze.frontend.trace import trace
from rusteeze.runtime.executor import CpuExecutor

FAST = {"llama3.1"}
FAMILIES = ("llama3.1", "mistral", "mixtral", "qwen2-moe-window", "gemma2", "deepseek-v3", "gpt-oss")  # fmt: skip
INT8_CACHES = ("llama3.1", "gemma2", "deepseek-v3", "gpt-oss")
NEW_TOKENS = 20
PROMPTS = draw_prompts([1 + 5 * i % 37 for i in range(32)], vocabulary=128)
NUM_BLOCKS = 128
FEW_BLOCKS = 7


@pytest.fixture(
    scope="module",
    params=[
        (f, kv) if f in FAST else pytest.param((f, kv), marks=pytest.mark.slow)
        for families, kv in ((FAMILIES, "auto"), (INT8_CACHES, "int8"))
        for f in families
    ],
    ids="-".join,
)
def executors(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[int, CpuExecutor]]:
    """The same kernels by number of threads."""
    torch.set_num_threads(1)
    family, kv_dtype = request.param
    config = make_config(tiny(family))
    traced = trace(config, MAX_MODEL_LEN)
    weights = weights_of(random_model(config), traced)
    folder = tmp_path_factory.mktemp("kernels")
    step = CompiledStep(traced.graph, weights, traced.constants, folder, kv_dtype=kv_dtype)
    made = {threads: step.new_executor(threads, NUM_BLOCKS) for threads in (1, 2)}
    yield made
    for executor in (step.executor, *made.values()):
        executor.close()


@pytest.fixture(scope="module")
def wanted(executors: dict[int, CpuExecutor]) -> dict[str, Answer]:
    return alone(executors[1], PROMPTS, NEW_TOKENS)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("chunk", [None, 1, 7, 64])
def test_any_company_and_any_chunks(
    chunk: int | None, threads: int, executors: dict[int, CpuExecutor], wanted: dict[str, Answer]
) -> None:
    found = run(executors[threads], PROMPTS, NEW_TOKENS, chunk=chunk)
    assert found.most_tokens == (chunk or MAX_BATCHED_TOKENS)
    assert found.most_sequences >= min(32, found.most_tokens - 1)
    assert not differences(found.answers, wanted)


@pytest.mark.parametrize("threads", [1, 2])
def test_preemption(
    threads: int, executors: dict[int, CpuExecutor], wanted: dict[str, Answer]
) -> None:
    found = run(executors[threads], PROMPTS, NEW_TOKENS, num_blocks=FEW_BLOCKS)
    assert found.num_preemptions > 2
    assert not differences(found.answers, wanted)


@pytest.mark.parametrize("num_blocks", [NUM_BLOCKS, 2 * FEW_BLOCKS])
def test_cached_prefixes(
    num_blocks: int, executors: dict[int, CpuExecutor], wanted: dict[str, Answer]
) -> None:
    """After prompts that begin like them; also where only a few of their blocks survive."""
    earlier = [[*p[: 17 + i % 3 * 9], 2] for i, p in enumerate(PROMPTS.values())][::-1]
    found = run(executors[1], PROMPTS, NEW_TOKENS, num_blocks=num_blocks, earlier=earlier)
    assert found.num_cached_tokens > 0
    assert not differences(found.answers, wanted)


def test_the_logits_are_compared(executors: dict[int, CpuExecutor]) -> None:
    """Another history shows in the logits, even where the next token happens to be the same."""
    prompt = PROMPTS["3: 16 tokens"]
    first, other = ({"p": p} for p in (prompt, [*prompt[:-3], prompt[-3] ^ 3, *prompt[-2:]]))
    assert differences(alone(executors[1], other, 4), alone(executors[1], first, 4))
