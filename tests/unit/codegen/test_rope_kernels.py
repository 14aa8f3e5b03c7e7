"""Rotary positions: of queries by a kernel, of keys on their way into the cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from graph_runner import GraphRunner, Tokens, dense, relative_error

from rusteeze.codegen.cpu.isa import Isa
from rusteeze.ir import Graph, Value
from rusteeze.ir.types import TOKENS, DType, TensorType
from rusteeze.weights import Weight

# (style, width of a head, elements that rotate, whether these are the last ones)
CASES = [
    ("half", 64, 64, False), ("half", 64, 32, False), ("half", 64, 32, True), ("half", 64, 20, False),
    ("half", 64, 36, True), ("half", 20, 20, False), ("half", 20, 8, True), ("inter", 64, 64, False),
    ("inter", 64, 16, True), ("inter", 20, 6, False), ("inter_to_half", 64, 64, False),
    ("inter_to_half", 20, 12, True),
]  # fmt: skip
HEADS, KV_HEADS = 2, 1
VOCABULARY, POSITIONS = 30, 90
STEPS = (((0, 3), (1, 1)), ((1, 20), (0, 1)), ((2, 66),), ((0, 1), (1, 1), (2, 1)), ((0, 14), (2, 15)))
LIMITS = {"f32": 2e-6, "bf16": 1e-2}


def rope_graph() -> tuple[Graph, dict[str, Weight]]:
    """Per case: the rotated queries, the rotated keys of every other case, and attention over both."""
    graph, weights, rng = Graph(), dict[str, Weight](), np.random.default_rng(9)
    ids, positions = (graph.input(n, TensorType(DType.i32, (TOKENS,))) for n in ("input_ids", "positions"))

    def rows(index: Value, values: np.ndarray) -> Value:
        name = f"w{len(weights)}"
        weights[name] = dense(values)
        return graph.add("embedding", index, graph.weight(name, TensorType(DType.f32, values.shape), "f32"))

    for layer, (style, width, rotated, at_end) in enumerate(CASES):
        angles = np.outer(np.arange(POSITIONS), 0.9 ** np.arange(rotated // 2))
        tables = [rows(positions, f(angles)) for f in (np.cos, np.sin)]
        heads = [rows(ids, rng.standard_normal((VOCABULARY, h * width))) for h in (HEADS, KV_HEADS, KV_HEADS)]
        shapes = ((TOKENS, h, width) for h in (HEADS, KV_HEADS, KV_HEADS))
        q, k, v = (graph.add("reshape", x, shape=s) for x, s in zip(heads, shapes, strict=True))
        attrs = {"style": style, "width": rotated, "at_end": at_end}
        q, k = (graph.add("rope", x, *tables, **attrs) for x in (q, k))
        graph.outputs += [q, graph.add("attention", q, k, v, None, layer=layer, scale=width**-0.5)]
        if layer % 2:
            graph.outputs.append(k)
    return graph, weights


@pytest.fixture(scope="module", params=LIMITS)
def cache(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def runner(isa: Isa, cache: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphRunner]:
    graph, weights = rope_graph()
    runner = GraphRunner(graph, weights, isa, tmp_path_factory.mktemp("rope"), cache=cache, max_tokens=80)
    yield runner
    runner.executor.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_rotations_are_those_of_the_interpreter(runner, cache, threads):
    runner.use_threads(threads)
    rng = np.random.default_rng(0)
    for chunks in STEPS:
        count = sum(n for _, n in chunks)
        ids = rng.integers(0, VOCABULARY, count).astype(np.int32)
        for pair, v in zip(
            runner.pairs(Tokens(ids, chunks, np.arange(count, dtype=np.int32))), runner.graph.outputs, strict=True
        ):
            limit = LIMITS[cache] if v.op == "attention" else LIMITS["f32"]
            assert relative_error(*pair) < limit, v.node


def test_keys_that_nothing_else_reads_rotate_into_the_cache(runner):
    names = [c.kernel.split("_")[0] for c in runner.lowered.plan.calls]
    assert names.count("rope") == len(CASES) + len(CASES) // 2
    assert not any(n.startswith("embedding") and "positions" in str(c) for n, c in zip(names, runner.lowered.plan.calls, strict=True))
