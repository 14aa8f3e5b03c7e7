"""What a person sees of a plan: launches while it runs, and the plan as text."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from graph_runner import GraphRunner, Sequences, tokens
from test_step_loop import LAYERS, WIDTH, chain

from rusteeze import env
from rusteeze.artifact.plan_text import plan_text
from rusteeze.codegen.cpu.isa import Isa


@pytest.fixture(scope="module")
def runner(best_isa: Isa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphRunner]:
    runner = GraphRunner(*chain(), best_isa, tmp_path_factory.mktemp("chain"))
    yield runner
    runner.executor.close()


def test_launches_are_printed_once_for_each_size_of_step(
    runner: GraphRunner, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(env.DEBUG.name, "2")
    runner.use_threads(1)
    sizes = [range(1), range(2), range(1), range(40)]
    shown = []
    for size in sizes:
        runner.executor.execute(Sequences().batch(tokens(size)))
        shown.append(capfd.readouterr().err)
    calls = runner.lowered.plan.calls
    assert [text.count("\n") for text in shown] == [len(calls) + 1, len(calls) + 1, 0, len(calls) + 1]
    for call in calls:
        assert call.kernel in shown[0]
    assert shown[0].count("  barrier") == sum(call.barrier for call in calls)


def test_nothing_is_printed_below_that_level(
    runner: GraphRunner, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(env.DEBUG.name, "1")
    runner.use_threads(1)
    runner.executor.execute(Sequences().batch(tokens(range(3))))
    assert capfd.readouterr().err == ""


def test_the_text_of_a_plan_has_weights_offsets_and_lifetimes(runner: GraphRunner) -> None:
    plan = runner.lowered.plan
    text = plan_text(plan, runner.nbytes)
    calls, buffers = text.split("\n\n")
    assert len(calls.splitlines()) == len(plan.calls)
    fewer = sum(call.barrier and not call.lone_barrier for call in plan.calls)
    assert calls.count("(not with one token)") == fewer == LAYERS + 1
    products = [line for line in calls.splitlines() if "linear" in line]
    assert len(products) == LAYERS
    assert all(f"weights {runner.nbytes(f'w{n}.tiles')}" in line for n, line in enumerate(products))
    assert runner.nbytes("w0.tiles") == 4 * WIDTH * WIDTH
    for n, buffer in enumerate(plan.buffers):
        (line,) = (x.split() for x in buffers.splitlines() if x.startswith(f"b{n} "))
        assert line[1:4] == [buffer.space, str(buffer.offset), str(buffer.row_bytes)]
    (logits,) = (x.split() for x in buffers.splitlines() if x.startswith(f"b{plan.logits} "))
    assert logits[4].endswith(f"-{len(plan.calls)}")
