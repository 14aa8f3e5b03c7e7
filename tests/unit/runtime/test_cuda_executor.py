"""The executor for GPUs on the toy model: batches in, logits out, through arguments, copies and graphs."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest
from stub_gpu import INVALID_VALUE, MIB, OUT_OF_MEMORY, StubGpu, memory
from toy_cuda import (
    BIAS,
    ROW,
    SCRATCH_BYTES,
    VOCAB,
    ToyKernels,
    cubin,
    expected_logits,
    expected_tokens,
    toy_plan,
)

from rusteeze.artifact.contract import BLOCK_SIZE
from rusteeze.artifact.cuda_contract import Address, Binary, Count, CudaPlan, Param
from rusteeze.runtime.batch import Batch, build_batch
from rusteeze.runtime.config import EngineConfig
from rusteeze.runtime.cuda.device import choose_device
from rusteeze.runtime.cuda.driver import CudaError
from rusteeze.runtime.cuda.executor import CudaExecutor, fixed_bytes
from rusteeze.runtime.cuda.kernels import load_kernels
from rusteeze.runtime.cuda.program import BadLaunch
from rusteeze.runtime.cuda.session import Session
from rusteeze.runtime.engine import SyncEngine
from rusteeze.runtime.interface import ExecutorLost, Fault
from rusteeze.runtime.params import SamplingParams
from rusteeze.runtime.profile import decode_batches, prefill_batches, take_profile
from rusteeze.runtime.scheduler import Chunk, Step

MAX_TOKENS, MAX_SEQUENCES, NUM_BLOCKS = 32, 6, 80
GREEDY = SamplingParams(temperature=0, max_tokens=12)
Make = Callable[..., CudaExecutor]


def made(plan: CudaPlan, num_blocks: int = NUM_BLOCKS) -> CudaExecutor:
    session = Session(choose_device("cuda"))
    try:
        code = {binary.file: cubin(kernel) for kernel in plan.kernels for binary in kernel.binaries}
        kernels = load_kernels(session, plan, "sm_90", code.__getitem__)
        bias = session.allocate(BIAS.nbytes, "weights")
        memory(bias, len(BIAS), np.float32)[:] = BIAS
        return CudaExecutor(
            session, plan, kernels, {"bias": bias}, num_blocks=num_blocks,
            max_batched_tokens=MAX_TOKENS, max_sequences=MAX_SEQUENCES,
        )  # fmt: skip
    except BaseException:
        session.close()
        raise


@pytest.fixture
def toy(gpu: StubGpu) -> ToyKernels:
    kernels = ToyKernels()
    gpu.run_kernels(kernels.table())
    return kernels


@pytest.fixture
def executor(gpu: StubGpu, toy: ToyKernels) -> Iterator[CudaExecutor]:
    executor = made(toy_plan())
    executor.fill_cache(0xFF)
    yield executor
    executor.close()
    assert gpu.errors == []


def chunk(name: str, tokens: list[int], start: int, blocks: list[int], num_rows: int = 1) -> Chunk:
    return Chunk(name, start, tuple(tokens), array("i", blocks), num_rows=num_rows, samples=num_rows > 0)


def batch_of(*chunks: Chunk) -> Batch:
    return build_batch(Step(chunks), BLOCK_SIZE)


def draw(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


class TestLogits:
    def test_ragged_prompts_and_several_rows(self, executor: CudaExecutor) -> None:
        a, b = draw(11, 1), draw(5, 2)
        logits = executor.execute(batch_of(chunk("a", a, 0, [7]), chunk("b", b, 0, [3], num_rows=3)))
        assert logits.shape == (4, VOCAB)
        wanted = [a, b[:3], b[:4], b]
        assert np.array_equal(logits, np.stack([expected_logits(history) for history in wanted]))

    def test_a_chunk_without_rows_then_the_rest(self, executor: CudaExecutor) -> None:
        tokens = draw(40, 3)
        first = executor.execute(batch_of(chunk("a", tokens[:30], 0, [9, 2], num_rows=0)))
        assert first.shape == (0, VOCAB)
        logits = executor.execute(batch_of(chunk("a", tokens[30:], 30, [9, 2, 40])))
        assert np.array_equal(logits, expected_logits(tokens)[None])

    def test_tables_that_change_between_steps_of_one_kind(self, executor: CudaExecutor) -> None:
        """The second step runs as a graph whose block tables are others, the third with the same again."""
        for blocks in ([5], [6], [6], [5]):
            tokens = draw(7, blocks[0])
            logits = executor.execute(batch_of(chunk("a", tokens, 0, blocks)))
            assert np.array_equal(logits, expected_logits(tokens)[None])

    def test_fewer_sequences_then_more_again(self, executor: CudaExecutor) -> None:
        prompts = [draw(2, n) for n in range(3)]
        chunks = [chunk(str(n), prompt, 0, [10 + n]) for n, prompt in enumerate(prompts)]
        for count in (3, 1, 2, 3):
            logits = executor.execute(batch_of(*chunks[:count]))
            assert np.array_equal(logits, np.stack([expected_logits(p) for p in prompts[:count]]))

    def test_an_engine_gets_the_same_tokens_as_without_a_runtime(self, executor: CudaExecutor) -> None:
        prompts = [draw(n, n) for n in (3, 70, 1, 33, 16, 5, 48)]
        engine = SyncEngine(executor, config=EngineConfig(max_num_seqs=MAX_SEQUENCES))
        found = engine.generate(prompts, GREEDY)
        for prompt, completion in zip(prompts, found, strict=True):
            assert list(completion.token_ids) == expected_tokens(prompt, 12)

    def test_a_step_that_is_too_large_is_refused(self, executor: CudaExecutor) -> None:
        with pytest.raises(ValueError, match="33 tokens, 1 sequences is too large"):
            executor.execute(batch_of(chunk("a", draw(33, 1), 0, [1, 2, 3])))


class TestLikeliestTokens:
    def test_they_are_the_argmax_of_the_logits(self, executor: CudaExecutor) -> None:
        a, b = draw(11, 1), draw(5, 2)
        batch = batch_of(chunk("a", a, 0, [7]), chunk("b", b, 0, [3], num_rows=3))
        tokens = executor.execute_for_best(batch)
        assert tokens.dtype == np.int64
        assert tokens.tolist() == executor.execute(batch).argmax(axis=1).tolist()
        nothing = batch_of(chunk("a", a, 0, [7], num_rows=0))
        assert executor.execute_for_best(nothing).tolist() == []

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_rows_that_are_not_finite_have_none(self, executor: CudaExecutor, value: float) -> None:
        bias = memory(executor._weights["bias"], VOCAB, np.float32)
        bias[200] = value
        assert executor.execute_for_best(batch_of(chunk("a", [5], 0, [1]))).tolist() == [-1]

    def test_logits_of_greedy_requests_stay_on_the_device(self, executor: CudaExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
        """But those of others are fetched, and so are those of prompts, if asked for."""
        fetched: list[int] = []
        execute = executor.execute
        monkeypatch.setattr(executor, "execute", lambda batch: fetched.append(len(batch.rows)) or execute(batch))
        engine = SyncEngine(executor, config=EngineConfig(max_num_seqs=MAX_SEQUENCES))
        engine.generate([draw(40, 1), draw(3, 2)], GREEDY)
        assert fetched == []
        engine.generate([draw(3, 2)], SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=0))
        assert fetched == [3]
        engine.generate([draw(3, 2)], SamplingParams(temperature=0.5, max_tokens=2, seed=1))
        assert fetched == [3, 1, 1]

    def test_a_row_that_is_not_finite_ends_its_request(self, executor: CudaExecutor) -> None:
        memory(executor._weights["bias"], VOCAB, np.float32)[7] = np.nan
        (found,) = SyncEngine(executor).generate([[1, 2]], GREEDY)
        assert found.fault is Fault.NOT_FINITE


class TestGraphs:
    def test_a_kind_of_step_is_captured_when_it_comes_again(
        self, gpu: StubGpu, executor: CudaExecutor
    ) -> None:
        batch = batch_of(chunk("a", [5], 0, [1]))
        seen = []
        for _ in range(4):
            executor.execute(batch)
            seen.append((gpu.launches, gpu.replays))
        # launched one by one, captured and replayed, replayed, replayed
        assert seen == [(2, 0), (4, 1), (4, 2), (4, 3)]
        assert gpu.live()["executables"] == 1
        assert "graphs" not in gpu.live()

    def test_steps_beyond_the_buckets_are_launched_one_by_one(
        self, gpu: StubGpu, executor: CudaExecutor
    ) -> None:
        batch = batch_of(chunk("a", draw(20, 1), 0, [1, 2]))
        for _ in range(3):
            executor.execute(batch)
        assert (gpu.launches, gpu.replays) == (6, 0)

    def test_replays_read_the_inputs_of_their_own_step(self, executor: CudaExecutor) -> None:
        for seed in range(4):
            tokens = draw(6, seed)
            logits = executor.execute(batch_of(chunk("a", tokens, 0, [seed])))
            assert np.array_equal(logits, expected_logits(tokens)[None])

    def test_long_contexts_take_the_other_choice(self, executor: CudaExecutor, toy: ToyKernels) -> None:
        tokens = draw(600, 4)
        for start in range(0, 600, MAX_TOKENS):
            part = tokens[start : start + MAX_TOKENS]
            logits = executor.execute(batch_of(chunk("a", part, start, list(range(40)))))
        assert np.array_equal(logits, expected_logits(tokens)[None])
        names = [name for name, _ in toy.seen if name != "store"]
        assert names == ["logits_short"] * 16 + ["logits_long"] * 3

    def test_only_kernels_that_want_scratch_get_it(self, executor: CudaExecutor, toy: ToyKernels) -> None:
        executor.execute(batch_of(chunk("a", draw(2, 4), 0, [1])))
        executor.execute(batch_of(chunk("a", draw(2, 4), 600, list(range(40)), num_rows=0)))
        executor.execute(batch_of(chunk("a", draw(2, 4), 600, list(range(40)), num_rows=0)))
        assert set(toy.scratch) == {0}

    def test_graphs_beyond_the_limit_are_given_back(
        self, gpu: StubGpu, executor: CudaExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rusteeze.runtime.cuda.executor.MOST_KINDS", 1)
        for tokens in (1, 1, 2, 2, 4, 4):
            executor.execute(batch_of(chunk("a", draw(tokens, 1), 0, [1])))
        assert gpu.replays == 3
        assert gpu.live()["executables"] == 1


class TestFailures:
    def test_every_failure_while_it_is_made_leaves_nothing(self, gpu: StubGpu, toy: ToyKernels) -> None:
        functions = [
            "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute",
            "cuStreamCreate", "cuMemHostRegister", "cuMemsetD8Async", "cuStreamSynchronize",
        ]  # fmt: skip
        for function in functions:
            gpu.fail(function, INVALID_VALUE)
            with pytest.raises(CudaError, match=f"{function} failed.*CUDA_ERROR_INVALID_VALUE"):
                made(toy_plan())
            assert gpu.live() == {}, function
        gpu.reset()
        made(toy_plan()).close()
        for number in range(gpu.calls("cuMemAlloc")):
            gpu.fail("cuMemAlloc", OUT_OF_MEMORY, after=number)
            with pytest.raises(CudaError, match=r"cuMemAlloc failed for .* MiB of "):
                made(toy_plan())
            assert gpu.live() == {}, number
            assert gpu.used_bytes == 0

    @pytest.mark.parametrize("function", ["cuMemcpyHtoDAsync", "cuLaunchKernel", "cuMemcpyDtoHAsync"])
    def test_a_step_that_fails_does_not_spoil_the_next(
        self, gpu: StubGpu, executor: CudaExecutor, function: str
    ) -> None:
        tokens = draw(6, 1)
        batch = batch_of(chunk("a", tokens, 0, [4]))
        gpu.fail(function, INVALID_VALUE, after=1 if function == "cuMemcpyHtoDAsync" else 0)
        with pytest.raises(CudaError, match=function):
            executor.execute(batch)
        for _ in range(3):
            assert np.array_equal(executor.execute(batch), expected_logits(tokens)[None])

    @pytest.mark.parametrize("function", ["cuStreamBeginCapture", "cuLaunchKernel", "cuGraphInstantiate"])
    def test_steps_that_cannot_be_captured_are_launched_call_by_call(
        self, gpu: StubGpu, executor: CudaExecutor, function: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        tokens = draw(6, 1)
        batch = batch_of(chunk("a", tokens, 0, [4]))
        executor.execute(batch)
        gpu.fail(function, INVALID_VALUE)
        for _ in range(3):
            assert np.array_equal(executor.execute(batch), expected_logits(tokens)[None])
        assert caplog.text.count("launched call by call") == 1

    def test_a_capture_that_does_not_end_is_an_error(self, gpu: StubGpu, executor: CudaExecutor) -> None:
        batch = batch_of(chunk("a", draw(6, 1), 0, [4]))
        executor.execute(batch)
        gpu.fail("cuStreamEndCapture", INVALID_VALUE)
        with pytest.raises(CudaError, match="cuStreamEndCapture"):
            executor.execute(batch)

    def test_a_kernel_that_faults_ends_the_step_and_closing_still_works(
        self, gpu: StubGpu, toy: ToyKernels
    ) -> None:
        executor = made(toy_plan())

        def fault(grid: tuple[int, int, int], args: list[int]) -> None:
            raise RuntimeError("read outside")

        gpu.run_kernels(toy.table() | {"store_entry": fault})
        with pytest.raises(ExecutorLost, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
            executor.execute(batch_of(chunk("a", [1], 0, [1])))
        with pytest.raises(CudaError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
            executor.execute(batch_of(chunk("a", [1], 0, [1])))
        executor.close()
        gpu.reset()  # as the end of the process: nothing can be given back to a device that has failed

    def test_more_shared_memory_than_the_device_has(self, gpu: StubGpu) -> None:
        plan = toy_plan()
        greedy = msgspec.structs.replace(
            plan.kernels[0], binaries=(Binary("sm_90", "cuda/sm_90/store.cubin", 4, 300_000),)
        )
        with pytest.raises(Exception, match=r"store needs 300000 bytes of shared memory, Stub GPU 0 has 232448"):
            made(toy_plan(kernels=(greedy, *plan.kernels[1:])))


class TestArguments:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda args: args[:-1], "11 arguments for 12 parameters"),
            (lambda args: (*args[:-1], Count(times=2**31)), r"blocks = 2147483648 does not fit into 32 bits"),
            (lambda args: (*args[:-1], Count(times=3)), r"blocks = 3 is no multiple of 2"),
            (lambda args: (Count(), *args[1:]), r"counts = 1 is no \*i32"),
            (lambda args: (*args[:-1], Address("workspace")), r"is no i32"),
            (lambda args: (Address("workspace", 0, 8), *args[1:]), "is no multiple of 16"),
        ],
    )
    def test_what_the_code_relies_on_is_checked(
        self, gpu: StubGpu, toy: ToyKernels, change: Callable[[tuple], tuple], message: str
    ) -> None:
        plan = toy_plan()
        replace = msgspec.structs.replace
        second = plan.calls[1]
        launch = second.choices[0].launches[0]
        choice = replace(second.choices[0], launches=(replace(launch, args=change(launch.args)),))
        calls = (plan.calls[0], replace(second, choices=(choice, second.choices[1])))
        executor = made(toy_plan(calls=calls))
        with pytest.raises(BadLaunch, match=message):
            executor.execute(batch_of(chunk("a", [1], 0, [1])))
        executor.close()

    def test_negative_numbers_are_32_bits(self, gpu: StubGpu) -> None:
        plan = toy_plan()
        replace = msgspec.structs.replace
        kernel = replace(plan.kernels[0], params=(*plan.kernels[0].params, Param("shift", "i32")))
        launch = plan.calls[0].choices[0].launches[0]
        call = replace(plan.calls[0], choices=(replace(plan.calls[0].choices[0], launches=(replace(launch, args=(*launch.args, Count(times=-5))),)),))
        found = []
        gpu.run_kernels({"store_entry": lambda grid, args: found.append(args[5]), "logits_short_entry": lambda g, a: None})
        executor = made(toy_plan(kernels=(kernel, *plan.kernels[1:]), calls=(call, plan.calls[1])))
        executor.execute(batch_of(chunk("a", [1], 0, [1])))
        executor.close()
        assert np.array(found, np.uint32).view(np.int32).tolist() == [-5]


class TestMemory:
    def test_what_is_taken_is_what_was_said(self, gpu: StubGpu, executor: CudaExecutor) -> None:
        plan = executor.plan
        binaries = [kernel.binary("sm_90") for kernel in plan.kernels]
        pages = NUM_BLOCKS * plan.kv_bytes_per_block()
        arenas = MAX_TOKENS * sum(plan.arena_row_bytes.values())
        fixed = fixed_bytes(plan, binaries, MAX_TOKENS, MAX_SEQUENCES)
        assert executor.device_bytes == gpu.used_bytes == BIAS.nbytes + arenas + fixed + pages

    def test_scratch_is_for_the_largest_grid(self) -> None:
        binaries = [kernel.binary("sm_90") for kernel in toy_plan().kernels]
        without = [msgspec.structs.replace(b, global_scratch_bytes=0) for b in binaries]
        need, none = (fixed_bytes(toy_plan(), some, MAX_TOKENS, 1) for some in (binaries, without))
        assert need - none == SCRATCH_BYTES * MAX_TOKENS // 2


class TestMeasuring:
    def test_times_of_calls_are_the_devices(self, executor: CudaExecutor) -> None:
        """The stub takes 1 µs for each program of a grid."""
        (batch,) = decode_batches(executor, 6, 20)
        stamps = executor.execute_timed(batch)
        assert stamps.tolist() == [[[0, 2000, 2000], [2000, 6000, 6000]]]

    def test_a_profile_has_every_call_with_its_kernel(self, executor: CudaExecutor) -> None:
        profile = take_profile(executor, decode_batches(executor, 2, 20), 0.01)
        assert [(c.kernel, c.origin, c.busy_ns) for c in profile.calls] == [
            ("store", "first", 1000.0), ("logits_short", "second", 1000.0),
        ]  # fmt: skip
        assert [(c.bytes, c.flops, c.arithmetic) for c in profile.calls] == [(16, 0, "f32"), (0, 4, "bf16")]
        assert (profile.where, profile.threads, profile.timed_ns) == ("Stub GPU 0", 1, 2000.0)
        assert take_profile(executor, prefill_batches(executor, 100), 0.01).tokens == 100

    def test_copying_is_measured_and_its_memory_given_back(
        self, gpu: StubGpu, executor: CudaExecutor
    ) -> None:
        before = gpu.used_bytes
        ceilings = executor.ceilings()
        # the stub copies 1 KiB in 1 ns
        assert ceilings.read == pytest.approx(2 * 1024e9, rel=0.01)
        assert (ceilings.arithmetic, ceilings.moving) == ({}, "copying")
        assert gpu.used_bytes == before


def test_the_toy_fits_into_little_memory(gpu: StubGpu, toy: ToyKernels) -> None:
    executor = made(toy_plan(), num_blocks=1)
    assert executor.max_model_len == BLOCK_SIZE
    assert 4 * ROW * MAX_TOKENS < gpu.used_bytes < MIB
    executor.close()
