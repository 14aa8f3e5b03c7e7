"""Paged attention on ragged batches, with shuffled blocks in a cache that is full of NaN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from graph_runner import GraphRunner, Tokens, dense, relative_error

from rusteeze.codegen.cpu.isa import Isa
from rusteeze.ir import Graph, Value
from rusteeze.ir.types import TOKENS, DType, TensorType
from rusteeze.weights import Weight

VOCABULARY = 50
MAX_TOKENS = 96
LIMITS = {"f32": 3e-6, "bf16": 8e-3, "int8": 2e-4}  # of the largest result


@dataclass(frozen=True)
class Case:
    """One attention op: query heads, key heads, width of keys, of values, attributes."""

    heads: int
    kv_heads: int
    width: int
    value_width: int
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False


# A plan has one number of tokens per query tile, the least of its layers': graphs are kept apart by it.
TILES_OF_TWELVE = (
    Case(1, 1, 20, 20, window=5), Case(1, 1, 33, 33, softcap=2.0), Case(1, 1, 256, 256),
    Case(1, 1, 24, 48, window=16), Case(2, 2, 48, 20, window=70),
    Case(2, 2, 16, 7, window=20, softcap=1.5, sinks=True),
)  # fmt: skip
TILES_OF_FOUR = (
    Case(4, 2, 64, 64), Case(9, 3, 64, 64), Case(6, 2, 80, 96), Case(3, 1, 20, 20, window=18, sinks=True),
)
TILES_OF_ONE = (Case(8, 1, 64, 64), Case(71, 1, 16, 16), Case(26, 2, 32, 16, window=9, softcap=3.0, sinks=True))
GRAPHS = {12: TILES_OF_TWELVE, 4: TILES_OF_FOUR, 1: TILES_OF_ONE}

# Steps as (sequence, number of its tokens): chunks and single tokens that cross pages of 16 tokens and
# rounds of 64.
STEPS = (
    ((0, 15), (1, 1)), ((0, 2), (2, 64)), ((2, 1), (0, 1), (1, 14)), ((0, 30), (1, 1), (2, 1)),
    ((1, 1), (2, 2)), ((3, 70), (0, 20), (1, 1)), ((3, 1), (0, 1), (2, 1), (1, 1)), ((3, 63),), ((1, 46),),
    ((0, 1), (1, 1), (2, 1), (3, 1)), ((1, 1), (3, 1)),
)  # fmt: skip


def attention_graph(cases: tuple[Case, ...]) -> tuple[Graph, dict[str, Weight]]:
    """Layers side by side. Queries, keys and values are parts of one table row per token."""
    graph, rng = Graph(), np.random.default_rng(8)
    weights: dict[str, Weight] = {}
    ids = graph.input("input_ids", TensorType(DType.i32, (TOKENS,)))
    for layer, case in enumerate(cases):
        shapes = (
            (case.heads, case.width), (case.kv_heads, case.width), (case.kv_heads, case.value_width)
        )  # fmt: skip
        sizes = [h * d for h, d in shapes]
        # bf16 numbers, so that a bf16 cache holds them exactly
        values = dense(dense(rng.standard_normal((VOCABULARY, sum(sizes))), "bf16").to_f32())
        x = graph.add("embedding", ids, declare(graph, weights, f"qkv{layer}", values))
        parts: list[Value] = []
        at = 0
        for (h, d), size in zip(shapes, sizes, strict=True):
            part = graph.add("slice", x, axis=1, start=at, stop=at + size)
            parts.append(graph.add("reshape", part, shape=(TOKENS, h, d)))
            at += size
        sinks = None
        if case.sinks:
            sinks = declare(graph, weights, f"sinks{layer}", dense(rng.standard_normal(case.heads) + 1))
        attrs = {"scale": 1.5 * case.width**-0.5, "window": case.window, "softcap": case.softcap}
        graph.outputs.append(graph.add("attention", *parts, sinks, layer=layer, **attrs))
    return graph, weights


def declare(graph: Graph, weights: dict[str, Weight], name: str, values: Weight) -> Value:
    weights[name] = values
    return graph.weight(name, TensorType(DType.f32, values.shape), values.format)


def steps(chunks=STEPS) -> Iterator[Tokens]:
    """Each sequence has its own tokens, whatever the steps are."""
    streams = {s: np.random.default_rng(s) for s in range(8)}
    for step in chunks:
        ids = np.concatenate([streams[s].integers(0, VOCABULARY, n) for s, n in step]).astype(np.int32)
        yield Tokens(ids, step, np.arange(len(ids), dtype=np.int32))


def token_by_token() -> tuple[tuple[tuple[int, int], ...], ...]:
    """The same sequences in steps of one token of each."""
    left: dict[int, int] = {}
    for step in STEPS:
        for s, n in step:
            left[s] = left.get(s, 0) + n
    return tuple(
        tuple((s, 1) for s, n in sorted(left.items()) if n > t) for t in range(max(left.values()))
    )


@pytest.fixture(scope="module", params=["f32", "bf16", "int8"])
def cache(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=GRAPHS, ids=lambda n: f"tiles of {n}")
def tile(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def runner(
    isa: Isa, tile: int, cache: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GraphRunner]:
    graph, weights = attention_graph(GRAPHS[tile])
    folder = tmp_path_factory.mktemp("attention")
    runner = GraphRunner(graph, weights, isa, folder, cache=cache, max_tokens=MAX_TOKENS)
    assert runner.lowered.plan.query_tokens == tile
    yield runner
    runner.executor.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_attention_is_that_of_the_interpreter(runner, tile, cache, threads):
    runner.use_threads(threads)
    worst = dict.fromkeys(GRAPHS[tile], 0.0)
    for step in steps():
        for case, pair in zip(GRAPHS[tile], runner.pairs(step), strict=True):
            worst[case] = max(worst[case], relative_error(*pair))
    assert {c: e for c, e in worst.items() if e > LIMITS[cache]} == {}


def collect(runner: GraphRunner, chunks) -> dict[int, list[np.ndarray]]:
    """Results per sequence: one array [length, all outputs]."""
    runner.restart()
    found: dict[int, list[np.ndarray]] = {}
    for step in steps(chunks):
        joined = np.concatenate([a.reshape(len(a), -1) for a in runner.run(step)], axis=1)
        row = 0
        for s, n in step.chunks:
            found.setdefault(s, []).append(joined[row : row + n])
            row += n
    return {s: np.concatenate(parts) for s, parts in found.items()}


def test_a_token_does_not_depend_on_how_its_sequence_was_cut(runner):
    whole, single = collect(runner, STEPS), collect(runner, token_by_token())
    assert whole.keys() == single.keys()
    for sequence, rows in whole.items():
        np.testing.assert_array_equal(rows, single[sequence])
