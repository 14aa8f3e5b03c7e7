"""The step loop that takes the time, and the kernels that show a processor's limits."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from graph_runner import GraphRunner, Sequences, aligned, tokens
from test_step_loop import LAYERS, chain

from rusteeze.codegen.cpu.ceilings import NAMES
from rusteeze.codegen.cpu.isa import Isa

KIB = 1024
READ, *DOTS = NAMES


@pytest.fixture(scope="module")
def runner(isa: Isa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphRunner]:
    runner = GraphRunner(*chain(), isa, tmp_path_factory.mktemp(isa.name))
    yield runner
    runner.executor.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_every_call_of_every_thread_has_its_times(runner: GraphRunner, threads: int) -> None:
    runner.use_threads(threads)
    batch = Sequences().batch(tokens(range(5)))
    wanted = runner.executor.execute(batch).copy()
    start = time.monotonic_ns()
    stamps = runner.executor.execute_timed(batch)
    end = time.monotonic_ns()
    calls = runner.lowered.plan.calls
    assert stamps.shape == (threads, len(calls), 3)
    assert len(calls) > LAYERS
    in_order = stamps.reshape(threads, -1)
    assert (np.diff(in_order) >= 0).all()
    assert start <= in_order.min() <= in_order.max() <= end
    for n, call in enumerate(calls):
        if call.barrier:
            assert stamps[:, n, 2].min() >= stamps[:, n, 1].max(), "nobody goes on before all are there"
    np.testing.assert_array_equal(runner.executor.execute(batch), wanted)


def test_the_ordinary_loop_leaves_the_stamps_alone(runner: GraphRunner) -> None:
    batch = Sequences().batch(tokens(range(5)))
    stamps = runner.executor.execute_timed(batch)
    before = stamps.copy()
    runner.executor.execute(batch)
    np.testing.assert_array_equal(stamps, before)


@pytest.mark.parametrize("threads", [1, 3])
def test_reading_touches_every_word_once(runner: GraphRunner, threads: int) -> None:
    runner.use_threads(threads)
    words = np.random.default_rng(1).integers(-100, 100, 70 * KIB // 4, np.int32)
    memory, out = aligned(words.view(np.uint8)), np.zeros((threads, 16), np.int32)
    runner.executor.run_alone(READ, [memory.ctypes.data, out.ctypes.data], 70)
    assert out.sum() == words.sum()


@pytest.mark.parametrize("kernel", DOTS)
def test_dot_products_are_really_computed(runner: GraphRunner, isa: Isa, kernel: str) -> None:
    """All factors are 1: every lane of a dot product adds as many ones as it has factors."""
    ones = {"int8": 0x01010101, "bf16": 0x3F803F80, "f32": 0x3F800000}
    factors_per_lane = {"int8": 4, "bf16": 2, "f32": 1}
    kind, rows, rounds = kernel.rpartition("_")[2], isa.row_tiles[0], 50
    runner.use_threads(2)
    factors = aligned(np.full(16 * 16, ones[kind], np.uint32).view(np.uint8))
    out = np.zeros((2, 16), np.int32 if kind == "int8" else np.float32)
    runner.executor.run_alone(kernel, [factors.ctypes.data, out.ctypes.data], rows * rounds)
    assert (out == factors_per_lane[kind] * rows * rounds).all()
