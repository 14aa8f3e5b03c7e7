"""Attention whose values are part of its keys, on ragged batches over shuffled blocks full of NaN, and the
products of each head's own around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from drawn_weights import draw_weight
from graph_runner import GraphRunner, Tokens, dense, relative_error
from test_attention_kernels import STEPS, VOCABULARY, collect, steps, token_by_token

from rusteeze.artifact.contract import BLOCK_SIZE
from rusteeze.codegen.cpu.isa import Isa
from rusteeze.codegen.cpu.lowering import LoweringError
from rusteeze.ir import Graph, Value, parse
from rusteeze.ir.types import ROWS, TOKENS, DType, TensorType
from rusteeze.passes.fuse import Fuse
from rusteeze.passes.round_cache import RoundCache
from rusteeze.weights import Weight

MAX_TOKENS = 96
# of the largest result: a bf16 cache rounds the weights of values and the scaled queries
LIMITS = {"f32": 3e-6, "bf16": 8e-3}
BYTES = {"f32": 4, "bf16": 2}


@dataclass(frozen=True)
class Case:
    """One attention: query heads, width of a key, of the values in it, whether the kernel rotates both, to
    what it rounds results for a product with one weight a head."""

    heads: int
    width: int
    values: int
    rotated: bool = False
    rounded: str = ""


TILES_OF_ONE = (
    Case(16, 576, 512), Case(20, 48, 32, rounded="int8"), Case(35, 80, 64, rotated=True, rounded="bf16"),
    Case(9, 40, 24),
)  # fmt: skip
TILES_OF_THREE = (Case(5, 64, 48), Case(4, 40, 32), Case(3, 33, 20, rotated=True), Case(1, 26, 7))
GRAPHS = {1: TILES_OF_ONE, 3: TILES_OF_THREE}


class Drawn:
    """A graph of drawn tables."""

    def __init__(self) -> None:
        self.graph, self.rng = Graph(), np.random.default_rng(8)
        self.weights: dict[str, Weight] = {}
        self.ids, self.positions = (
            self.graph.input(n, TensorType(DType.i32, (TOKENS,))) for n in ("input_ids", "positions")
        )

    def weight(self, values: Weight) -> Value:
        name = f"w{len(self.weights)}"
        self.weights[name] = values
        return self.graph.weight(name, TensorType(DType.f32, values.shape), values.format)

    def table(self, *shape: int) -> Value:
        """[T, *shape] of bf16 numbers, which a bf16 cache holds exactly."""
        values = dense(self.rng.standard_normal((VOCABULARY, int(np.prod(shape)))), "bf16").to_f32()
        x = self.graph.add("embedding", self.ids, self.weight(dense(values)))
        return self.graph.add("reshape", x, shape=(TOKENS, *shape))

    def rope(self, x: Value, width: int) -> Value:
        angles = np.outer(np.arange(200), 0.8 ** np.arange(width // 2))
        cos, sin = (
            self.graph.add("embedding", self.positions, self.weight(dense(f(angles)))) for f in (np.cos, np.sin)
        )
        return self.graph.add("rope", x, cos, sin, style="half", width=width, at_end=True)


def latent_graph(cases: tuple[Case, ...]) -> tuple[Graph, dict[str, Weight]]:
    drawn = Drawn()
    graph = drawn.graph
    for layer, case in enumerate(cases):
        q, k = drawn.table(case.heads, case.width), drawn.table(1, case.width)
        if case.rotated:
            q, k = (drawn.rope(x, 12) for x in (q, k))
        out = graph.add(
            "attention", q, k, None, None, layer=layer, scale=1.5 * case.width**-0.5, value_width=case.values
        )
        if case.rounded:
            out = graph.add("reshape", out, shape=(TOKENS, case.heads * case.values))
            format = {"int8": "affine8g32s-f16", "bf16": "bf16"}[case.rounded]
            w = drawn.weight(draw_weight(format, (case.heads, 20, case.values), drawn.rng))
            out = graph.add("block_linear", graph.add("quantize", out, to=case.rounded), w)
        graph.outputs.append(out)
    return graph, drawn.weights


@pytest.fixture(scope="module", params=LIMITS)
def cache(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=GRAPHS, ids=lambda n: f"tiles of {n}")
def tile(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def runner(
    isa: Isa, tile: int, cache: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GraphRunner]:
    graph, weights = latent_graph(GRAPHS[tile])
    RoundCache(cache).run(graph)
    Fuse("attention").run(graph)
    folder = tmp_path_factory.mktemp("latents")
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
    # rounding of results may tip to the other side where a sum differs in the last bit
    limits = {c: 2e-2 if c.rounded or (c.rotated and cache == "bf16") else LIMITS[cache] for c in worst}
    assert {c: e for c, e in worst.items() if e > limits[c]} == {}


def test_a_token_does_not_depend_on_how_its_sequence_was_cut(runner):
    whole, single = collect(runner, STEPS), collect(runner, token_by_token())
    assert whole.keys() == single.keys()
    for sequence, rows in whole.items():
        np.testing.assert_array_equal(rows, single[sequence])


def test_the_cache_holds_one_row_per_token(runner, tile, cache):
    for pages, case in zip(runner.lowered.plan.pages, GRAPHS[tile], strict=True):
        element = 4 if case.width % 2 else BYTES[cache]
        assert pages.value_bytes == 0
        # rows are read in whole vectors of values, which only shows where nothing lies behind these
        row = max(case.width * element, -(-case.values * element // 64) * 64)
        assert pages.key_bytes == BLOCK_SIZE * row


@pytest.mark.parametrize(
    ("heads", "attrs"), [(2, ""), (1, ", window=3"), (1, ", softcap=2.0")], ids=["heads", "window", "softcap"]
)
def test_what_has_no_kernel_is_said(best_isa, tmp_path, heads, attrs):
    graph = parse(f"""graph @main(%input_ids: i32[T], %rows: i32[R]) {{
  @x : f32[9,64] = "f32"
  %0 = embedding(%input_ids, @x) : f32[T,64]
  %1 = reshape(%0) {{shape=['T',{heads},{64 // heads}]}} : f32[T,{heads},{64 // heads}]
  %2 = attention(%1, %1, _, _) {{layer=0, scale=0.5{attrs}, value_width=16}} : f32[T,{heads},16]
  %3 = gather_rows(%2, %rows) : f32[R,{heads},16]
  return %3
}}
""")
    with pytest.raises(LoweringError, match="values that are part of keys"):
        GraphRunner(graph, {"x": dense(np.ones((9, 64)))}, best_isa, tmp_path)


# format of the weight, rounding of x, blocks, N, K
BLOCKS = (
    ("f32", "", 3, 20, 24), ("f16", "", 2, 16, 7), ("bf16", "", 4, 33, 48), ("bf16", "bf16", 16, 128, 512),
    ("affine8g32s-f16", "int8", 4, 20, 64), ("affine4g16m-f32", "int8", 2, 48, 32), ("codebook4g32-f16", "", 3, 5, 64),
    ("codebook4g32i-f16", "int8", 3, 20, 64), ("float8g32-f32", "bf16", 2, 20, 64), ("float8g64-f32", "", 3, 16, 64),
)  # fmt: skip


def test_products_of_blocks(isa: Isa, tmp_path):
    drawn = Drawn()
    graph = drawn.graph
    rows = graph.input("rows", TensorType(DType.i32, (ROWS,)))
    for format, to, blocks, n, width in BLOCKS:
        x = drawn.table(blocks * width)
        x = graph.add("quantize", x, to=to) if to else x
        w = drawn.weight(draw_weight(format, (blocks, n, width), drawn.rng))
        graph.outputs.append(graph.add("block_linear", x, w))
    late = graph.add("gather_rows", drawn.table(6 * 24), rows)
    w = drawn.weight(draw_weight("bf16", (24, 10, 6), drawn.rng))
    graph.outputs.append(graph.add("block_linear", graph.add("slice", late, axis=1, start=0, stop=144), w))
    runner = GraphRunner(graph, drawn.weights, isa, tmp_path, threads=2)
    rng = np.random.default_rng(3)
    alone: dict[int, list[np.ndarray]] = {}
    for count in (1, 5, 40, 64):
        ids = rng.integers(0, VOCABULARY, count).astype(np.int32)
        pairs = runner.pairs(Tokens(ids, ((0, count),), np.arange(count, dtype=np.int32)))
        for (found, wanted), case in zip(pairs, (*BLOCKS, "rows"), strict=True):
            assert relative_error(found, wanted) < 1e-5, case
        for row, token in enumerate(ids):
            results = [found[row] for found, _ in pairs]
            for result, other in zip(results, alone.setdefault(int(token), results), strict=True):
                np.testing.assert_array_equal(result, other)
    runner.executor.close()
