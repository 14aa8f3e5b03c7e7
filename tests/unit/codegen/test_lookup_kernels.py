"""What selects by index: rows of tables in every format, and the products of a mixture of experts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from drawn_weights import draw_weight
from graph_runner import GraphRunner, dense, relative_error, tokens

from rusteeze.codegen.cpu.isa import Isa
from rusteeze.ir import Graph, Value
from rusteeze.ir.types import ROWS, TOKENS, DType, TensorType
from rusteeze.weights import Weight

VOCABULARY = 37  # no multiple of a tile
NUM_TOKENS, MANY_TOKENS = 9, 36
EXPERTS, TOP, WIDTH = 5, 2, 64
TABLES = (
    "affine4g32m-f16", "affine8g32s-f16", "affine4g16s-f32", "affine2g64s1-f16", "affine6g16m-f32",
    "codebook4g32-f16", "affine3g16m-f16", "affine5g32s-f32", "codebook4g16i-f32", "float8g16-f32", "f32", "f16",
    "bf16",
)  # fmt: skip
TIED = (("affine4g32m-f16", 64), ("f32", 39), ("f16", 39), ("bf16", 39), ("bf16", 64))


class Lookups:
    """A graph of named results, with the largest relative error that each may have."""

    def __init__(self) -> None:
        self.graph, self.limits = Graph(), list[tuple[str, float]]()
        self.weights: dict[str, Weight] = {}
        self.rng = np.random.default_rng(4)
        self.ids = self.graph.input("input_ids", TensorType(DType.i32, (TOKENS,)))
        self.rows = self.graph.input("rows", TensorType(DType.i32, (ROWS,)))

    def __call__(self, op: str, *operands: Value | None, **attrs: object) -> Value:
        return self.graph.add(op, *operands, **attrs)

    def weight(self, format: str, *shape: int) -> Value:
        name = f"w{len(self.weights)}"
        self.weights[name] = draw_weight(format, shape, self.rng)
        return self.graph.weight(name, TensorType(DType.f32, shape), format)

    def table(self, values: np.ndarray) -> Value:
        """f32[T, n] whose row t are the values of row t."""
        name = f"w{len(self.weights)}"
        self.weights[name] = dense(values.astype(np.float32))
        return self("embedding", self.ids, self.graph.weight(name, TensorType(DType.f32, values.shape), "f32"))

    def out(self, name: str, limit: float, v: Value) -> None:
        self.limits.append((name, limit))
        self.graph.outputs.append(v)


def add_tables(s: Lookups) -> None:
    """Every table also as the matrix of a product (tied embeddings), which is then stored once."""
    for format, width in TIED:
        table = s.weight(format, VOCABULARY, width)
        x = s("embedding", s.ids, table)
        s.out(f"tied {format} {width}", 1e-6, x)
        s.out(f"logits {format} {width}", 2e-6, s("linear", x, table, None))
    for format in TABLES:
        s.out(f"alone {format}", 1e-6, s("embedding", s.ids, s.weight(format, VOCABULARY, WIDTH)))
    s.out("by row", 0, s("embedding", s.rows, s.weight("f32", VOCABULARY, 5)))
    part = s("slice", s.weight("affine4g32m-f16", VOCABULARY + 3, WIDTH), axis=0, start=2, stop=VOCABULARY)
    s.out("a part of a table", 1e-6, s("embedding", s("minimum", s.ids, s("const", value=30, dtype="i32")), part))


def add_experts(s: Lookups) -> None:
    x = s.table(s.rng.standard_normal((VOCABULARY, WIDTH)))
    by_choice = s("reshape", s.table(s.rng.standard_normal((VOCABULARY, TOP * WIDTH))), shape=(TOKENS, TOP, WIDTH))
    chosen = s("cast", s.table(s.rng.integers(0, EXPERTS, (VOCABULARY, TOP))), dtype="i32")
    few = s("slice", s("gather_rows", x, s.rows), axis=1, start=0, stop=32)
    late = s("gather_rows", chosen, s.rows)
    bias = s.weight("f32", EXPERTS, 43)
    rounded = {"int8": s("quantize", x), "bf16": s("quantize", x, to="bf16")}
    for format in ("f32", "f16", "bf16", "affine4g32m-f16", "codebook4g32-f16", "affine6g32s-f16", "float8g64-f32"):
        w = s.weight(format, EXPERTS, 43, WIDTH)
        s.out(f"experts {format}", 2e-6, s("expert_linear", x, chosen, w, bias))
        s.out(f"experts {format}, by choice", 2e-6, s("expert_linear", by_choice, chosen, w, None))
    for format in ("f32", "affine8g32s-f16"):
        turned = s.weight(format, EXPERTS, WIDTH, 96)
        s.out(f"experts {format}, transposed", 2e-6, s("expert_linear", x, chosen, turned, None, transposed=True))
    for format, kind in (("affine4g16m-f32", "int8"), ("affine8g32s-f16", "int8"), ("bf16", "bf16")):
        w = s.weight(format, EXPERTS, 16, WIDTH)
        s.out(f"experts {format}, {kind}", 1e-5, s("expert_linear", rounded[kind], chosen, w, None))
        by = s("quantize", by_choice, to=kind)
        s.out(f"experts {format}, {kind}, by choice", 1e-5, s("expert_linear", by, chosen, w, None))
    s.out("experts of rows", 2e-6, s("expert_linear", few, late, s.weight("f32", EXPERTS, 7, 32), None))
    one = s("slice", chosen, axis=1, start=1, stop=2)
    s.out("one expert", 2e-6, s("expert_linear", x, one, s.weight("f32", EXPERTS, 20, WIDTH), None))


@pytest.fixture(scope="module")
def lookups(isa: Isa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lookups, GraphRunner]]:
    s = Lookups()
    add_tables(s)
    add_experts(s)
    runner = GraphRunner(s.graph, s.weights, isa, tmp_path_factory.mktemp("lookups"))
    yield s, runner
    runner.executor.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_experts_do_not_see_how_many_tokens_they_have(lookups, threads):
    """Pairs are sorted by expert and multiplied in blocks of any size: every token's result stays the same."""
    s, runner = lookups
    runner.use_threads(threads)
    ids = np.random.default_rng(2).integers(0, VOCABULARY, MANY_TOKENS)
    every, wanted = runner.run(tokens(ids)), runner.interpret(tokens(ids))
    for (name, limit), found, right in zip(s.limits, every, wanted, strict=True):
        assert relative_error(found, right) <= limit, name
    runner.restart()
    for part in (slice(0, 1), slice(1, 6), slice(6, 36)):
        for (name, _), some, all_of in zip(s.limits, runner.run(tokens(ids[part])), every, strict=True):
            if name != "by row":
                np.testing.assert_array_equal(some, all_of[part], err_msg=name)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("wanted", [None, (4, 8)], ids=["all rows", "few rows"])
def test_lookups_are_those_of_the_interpreter(lookups, threads, wanted):
    s, runner = lookups
    runner.use_threads(threads)
    ids = np.random.default_rng(1).permutation(VOCABULARY)[:NUM_TOKENS]
    ids[:2] = 0, VOCABULARY - 1
    pairs = runner.pairs(tokens(ids, wanted))
    errors = [(n, relative_error(*p), limit) for (n, limit), p in zip(s.limits, pairs, strict=True)]
    assert [(n, e) for n, e, limit in errors if e > limit] == []


def test_a_tied_table_is_stored_once(lookups):
    s, runner = lookups
    tied = [v.name for v in s.graph.weights.values()][: len(TIED)]
    for name in tied:
        layouts = [e for e in runner.lowered.statics.entries if e.startswith(name + ".")]
        assert f"{name}.tiles" in layouts
        assert f"{name}.rows" not in layouts
