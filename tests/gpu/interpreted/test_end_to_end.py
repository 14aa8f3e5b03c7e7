"""From a checkpoint to tokens: compiled for CPU and sm_90, loaded, and served by one engine on each.

The GPU is the stub of libcuda. It reads the real machine code's parameters and threads, and runs a kernel by
interpreting its source, so arguments, arenas, copies, graphs and results are all checked but the instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_models import LETTERS, quantized, save_model
from stub_gpu import MIB, StubGpu
from stub_kernels import InterpretedKernels

from rusteeze.artifact.cuda_contract import PLAN_FILE, decode_cuda_plan
from rusteeze.artifact.store import verify
from rusteeze.compiler import compile_model
from rusteeze.config import CompileOptions
from rusteeze.runtime.config import EngineConfig
from rusteeze.runtime.cuda.driver import LostDevice
from rusteeze.runtime.llm import LLM, load
from rusteeze.runtime.params import SamplingParams

MAX_MODEL_LEN = 48
PROMPTS = [np.random.default_rng(n).integers(2, LETTERS, n).tolist() for n in (3, 21, 9)]
# the second prompt comes in two chunks, the third beside tokens of the others
CONFIG = EngineConfig(max_num_seqs=2, max_batched_tokens=16)
GREEDY = SamplingParams(temperature=0, max_tokens=7, logprobs=4)
TOLERANCE = 0.05


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Compile for both devices; the kernels' sources go to tmp_path / "dump"."""

    def compile(model: Path, **options: str) -> Path:
        monkeypatch.setenv("RUSTEEZE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("RUSTEEZE_DUMP", str(tmp_path / "dump"))
        asked = CompileOptions("cpu,cuda:sm_90", max_model_len=MAX_MODEL_LEN, jobs=2, **options)
        with monkeypatch.context() as own:
            own.delenv("TRITON_INTERPRET")  # compilers are processes of their own, and compile
            return compile_model(model, tmp_path / "out.rz", asked, lambda *_: None)

    return compile


def generated(llm: LLM) -> list[tuple[list[int], list[dict[int, float]]]]:
    """Of each prompt its tokens, and of each token the likeliest ones with their logarithms."""
    try:
        found = llm.engine.generate(PROMPTS, GREEDY)
        (alone,) = llm.engine.generate(PROMPTS[:1], replace(GREEDY, logprobs=None))  # whose logits nobody reads
        assert alone.token_ids == found[0].token_ids
        return [(list(c.token_ids), [dict(t.top) for t in c.logprobs]) for c in found]
    finally:
        llm.close()


def on_both(artifact: Path, gpu: StubGpu, dump: Path):  # type: ignore[no-untyped-def]
    gpu.reset(256 * MIB)
    plan = decode_cuda_plan((artifact / PLAN_FILE).read_bytes())
    kernels = InterpretedKernels(gpu, plan, dump / "kernels/cuda")
    llm = load(artifact, config=CONFIG, device="cuda", num_blocks=lambda _: 8)
    try:
        found = generated(llm)
    except LostDevice:
        raise gpu.errors[0] from None  # what went wrong inside a kernel
    assert gpu.replays > 0, "no step came twice, so no graph was replayed"
    assert {k.name for k in plan.kernels} >= set(kernels.seen)
    return found, generated(load(artifact, threads=1, config=CONFIG, num_blocks=lambda _: 8))


@pytest.mark.parametrize("model", ["llama3.2", "mixtral", "llama3.2 int4", "deepseek-v3"])
def test_the_same_tokens_where_nothing_is_rounded(
    model: str, gpu: StubGpu, compiled: Callable[..., Path], tmp_path: Path
) -> None:
    name, _, kind = model.partition(" ")
    source = save_model(name, tmp_path, torch.float32 if kind else torch.bfloat16)
    if kind:
        source = quantized(source, "rtn", bits=4)
    artifact = compiled(source, activations="f32")
    expected = {"int4": "affine4g16"}.get(kind, "bf16")
    assert any(f.startswith(expected) for f in verify(artifact).facts["weights"])
    found, wanted = on_both(artifact, gpu, tmp_path / "dump")
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in wanted]
    for (_, ours), (_, theirs) in zip(found, wanted, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a == pytest.approx(b, abs=1e-3)


def test_likely_tokens_where_activations_are_bf16(
    gpu: StubGpu, compiled: Callable[..., Path], tmp_path: Path
) -> None:
    """Both sides round, each its own way: the first tokens have the same odds within what that costs."""
    artifact = compiled(save_model("llama3.2", tmp_path, torch.bfloat16))
    found, wanted = on_both(artifact, gpu, tmp_path / "dump")
    for (_, ours), (_, theirs) in zip(found, wanted, strict=True):
        common = ours[0].keys() & theirs[0].keys()
        assert len(common) >= 3
        for token in common:
            assert ours[0][token] == pytest.approx(theirs[0][token], abs=TOLERANCE)
