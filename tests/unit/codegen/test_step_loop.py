"""The native step loop: any number of threads, thousands of steps, crowded cores."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from drawn_weights import draw_weight
from graph_runner import GraphRunner, Sequences, Tokens, dense, tokens

from rusteeze.codegen.cpu.isa import Isa
from rusteeze.ir import Graph
from rusteeze.ir.types import TOKENS, DType, TensorType
from rusteeze.runtime.launch import Library, Program, ThreadPool
from rusteeze.weights import Weight

WIDTH = 80
LAYERS = 4
NUM_TOKENS = 5
STEPS = 2000


def chain() -> tuple[Graph, dict[str, Weight]]:
    """Products (which share columns among threads) and norms (which share rows) in turn: a thread that
    runs ahead of another reads what is not there yet."""
    graph, weights, rng = Graph(), dict[str, Weight](), np.random.default_rng(6)
    ids = graph.input("input_ids", TensorType(DType.i32, (TOKENS,)))
    weights["table"] = dense(rng.standard_normal((32, WIDTH)))
    x = graph.add("embedding", ids, graph.weight("table", TensorType(DType.f32, (32, WIDTH)), "f32"))
    for layer in range(LAYERS):
        name = f"w{layer}"
        weights[name] = draw_weight("f32", (WIDTH, WIDTH), rng)
        w = graph.weight(name, TensorType(DType.f32, (WIDTH, WIDTH)), "f32")
        x = graph.add("rms_norm", graph.add("linear", x, w, None), None, eps=1e-5)
    graph.outputs = [x]
    return graph, weights


@pytest.fixture(scope="module")
def runner(best_isa: Isa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphRunner]:
    runner = GraphRunner(*chain(), best_isa, tmp_path_factory.mktemp("chain"))
    yield runner
    runner.executor.close()


def assert_steps_repeat(
    runner: GraphRunner, threads: int, count: int, num_tokens: int = NUM_TOKENS
) -> None:
    """Steps of changing tokens give the same results every time."""
    runner.use_threads(threads)
    kinds = [tokens(np.arange(n, n + num_tokens)) for n in (0, 9, 20)]
    runner.use_threads(1)
    wanted = [runner.run(step)[0] for step in kinds]
    runner.use_threads(threads)
    batches = [Sequences().batch(step) for step in kinds]
    for n in range(count):
        found = runner.executor.execute(batches[n % 3])
        np.testing.assert_array_equal(found, wanted[n % 3])


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_thousands_of_steps_give_the_same(runner, threads):
    assert_steps_repeat(runner, threads, STEPS)


@pytest.mark.parametrize("threads", [2, 4])
def test_steps_of_one_token_whose_norms_each_thread_repeats(runner, threads):
    plan = runner.lowered.plan
    assert [c.repeats for c in plan.calls] == [True, *[False, True] * LAYERS, False, False]
    assert_steps_repeat(runner, threads, STEPS, num_tokens=1)


def test_more_threads_than_cores_than_rows_than_columns(runner):
    assert_steps_repeat(runner, (os.cpu_count() or 1) + 7, 50)


def test_steps_while_other_processes_hold_the_cores(runner):
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        assert_steps_repeat(runner, 3, 200)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def test_helpers_sleep_between_steps_and_wake_up(runner):
    runner.use_threads(3)
    step = tokens(range(NUM_TOKENS))
    wanted = runner.run(step)[0]
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.2  # two spinning helpers would take 0.6 s
    np.testing.assert_array_equal(runner.run(step)[0], wanted)


# ---- life of a pool --------------------------------------------------------------------------------
@pytest.fixture
def library(runner: GraphRunner) -> Library:
    return Library(runner.library)


EMPTY = Program([])
STEP = np.zeros(8, np.int64)


def helpers() -> int:
    return threading.active_count()


def wait_until_helpers_are(count: int) -> None:
    deadline = time.monotonic() + 5
    while helpers() != count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert helpers() == count


def test_closing_ends_the_helpers(library):
    before = helpers()
    pool = ThreadPool(library, 4)
    assert helpers() == before + 3
    assert pool.num_threads == 4
    pool.run(EMPTY, STEP)
    pool.close()
    assert helpers() == before
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.run(EMPTY, STEP)


def test_forgetting_a_pool_ends_the_helpers(library):
    gc.collect()  # pools that other tests left in cycles end now, not below
    time.sleep(0.1)
    before = helpers()
    pool = ThreadPool(library, 3)
    pool.run(EMPTY, STEP)
    del pool
    gc.collect()
    wait_until_helpers_are(before)


def test_a_pool_may_be_closed_before_its_first_step(library):
    for _ in range(20):
        ThreadPool(library, 3).close()


def test_pools_do_not_disturb_each_other(library):
    pools = [ThreadPool(library, n) for n in (1, 2, 3)]
    for _ in range(50):
        for pool in pools:
            pool.run(EMPTY, STEP)
    for pool in pools:
        pool.close()


def test_a_pool_has_at_least_one_thread(library):
    with pytest.raises(ValueError, match="thread"):
        ThreadPool(library, 0)


def test_a_process_may_end_with_a_living_pool(runner):
    script = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from rusteeze.runtime.launch import Library, Program, ThreadPool\n"
        "pool = ThreadPool(Library(Path(sys.argv[1])), 3)\n"
        "pool.run(Program([]), np.zeros(8, np.int64))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, runner.library], timeout=30, check=False)
    assert done.returncode == 0


def test_two_threads_of_python_may_each_run_an_executor(runner):
    """Steps release the interpreter lock: two engines in a process run side by side."""
    step = tokens(range(NUM_TOKENS))
    wanted = runner.run(step)[0]
    failures: list[str] = []

    def work(step: Tokens) -> None:
        executor, batch = runner.start(2), Sequences().batch(step)
        for _ in range(200):
            if not np.array_equal(executor.execute(batch), wanted):
                failures.append("another result")
        executor.close()

    workers = [threading.Thread(target=work, args=(step,)) for _ in range(2)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert failures == []
