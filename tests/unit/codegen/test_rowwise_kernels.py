"""Ops that run as plain loops over a token's elements: reductions, softmax, top-k, selection, copies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from graph_runner import GraphRunner, dense, relative_error, tokens

from rusteeze.codegen.cpu.isa import Isa
from rusteeze.ir import Graph, Value
from rusteeze.ir.types import ROWS, TOKENS, DType, TensorType
from rusteeze.weights import Dense, Weight

HEADS, HEAD = 3, 20
NUM_TOKENS = 8
TOLERANCE = 1e-6  # of the largest result; what only moves elements must be exact
INEXACT = {"sum", "mean", "softmax", "cumsum"}


def numbers() -> np.ndarray:
    """[8, 60]: few distinct values, so that there are ties; then rows with infinities."""
    x = np.round(np.random.default_rng(2).uniform(-3, 3, (NUM_TOKENS, HEADS * HEAD)), 1)
    x[1] = 0.5
    x[2, ::3] = -np.inf
    x[3, 7] = np.inf
    x[4] *= 1e30
    return x.astype(np.float32)


class Rows:
    """A graph of named results over x f32[T,3,20] (finite in ``tame``) and positions i32[T]."""

    def __init__(self) -> None:
        self.graph, self.names = Graph(), list[str]()
        self.weights: dict[str, Weight] = {}
        self.rng = np.random.default_rng(3)
        self.ids, self.positions = (
            self.graph.input(n, TensorType(DType.i32, (TOKENS,))) for n in ("input_ids", "positions")
        )
        self.wanted = self.graph.input("rows", TensorType(DType.i32, (ROWS,)))
        self.x = self.table(numbers(), HEADS, HEAD)
        self.tame = self.table(np.nan_to_num(numbers(), posinf=4.0, neginf=-4.0) % 8, HEADS, HEAD)

    def table(self, values: np.ndarray, *shape: int) -> Value:
        """f32[T, *shape] whose row t are the values of row t."""
        name = f"w{len(self.weights)}"
        self.weights[name] = dense(values.astype(np.float32))
        w = self.graph.weight(name, TensorType(DType.f32, values.shape), "f32")
        return self("reshape", self("embedding", self.ids, w), shape=(TOKENS, *shape))

    def __call__(self, op: str, *operands: Value, **attrs: object) -> Value:
        return self.graph.add(op, *operands, **attrs)

    def out(self, name: str, *values: Value) -> None:
        for v in values:
            self.names.append(name)
            self.graph.outputs.append(v)

    def positions_in(self, n: int, *shape: int) -> Value:
        """i32[T, *shape] of numbers in 0..n-1; no two are equal along the last axis, if n suffices."""
        lines = np.tile(np.arange(max(n, shape[-1])) % n, (NUM_TOKENS, *shape[:-1], 1))
        values = self.rng.permuted(lines, axis=-1)[..., : shape[-1]].reshape(NUM_TOKENS, -1)
        return self("cast", self.table(values, *shape), dtype="i32")


def add_reductions(r: Rows) -> None:
    turned = r("permute", r.tame, perm=(0, 2, 1))
    for op in ("sum", "mean", "max", "min"):
        for axis in (-1, 1):
            for keepdim in (False, True):
                r.out(op, r(op, r.tame, axis=axis, keepdim=keepdim))
        r.out(op, r(op, turned, axis=-1))
    index = r.positions_in(50, HEADS, HEAD)
    for op in ("sum", "max", "min"):
        r.out(f"{op} of integers", r(op, r("sub", index, r("const", value=70, dtype="i32")), axis=-1))
    for op in ("max", "min"):
        r.out(op, r(op, r.x, axis=2))
    r.out("softmax", r("softmax", r.tame, axis=-1), r("softmax", r.tame, axis=1), r("softmax", turned, axis=1))
    masked = r("slice", r.x, axis=-1, start=8, stop=20)
    r.out("softmax", r("softmax", r("minimum", masked, r("const", value=50.0)), axis=-1))
    r.out("cumsum", r("cumsum", r.tame, axis=-1), r("cumsum", r.tame, axis=1), r("cumsum", turned, axis=1))
    r.out("cumsum of integers", r("cumsum", index, axis=-1))


def add_topk(r: Rows) -> None:
    for k in (1, 4, HEAD):
        r.out(f"top {k}", *r.graph.add_many("topk", r.x, k=k))
    r.out("top 2 of heads", *r.graph.add_many("topk", r.x, k=2, axis=1))
    r.out("top 5, strided", *r.graph.add_many("topk", r("slice", r.x, axis=2, start=1, stop=20, step=2), k=5))


def add_selections(r: Rows) -> None:
    for axis, n, shape in ((-1, HEAD, (HEADS, 4)), (1, HEADS, (2, HEAD))):
        r.out("gather", r("gather", r.x, r.positions_in(n, *shape), axis=axis))
    index = r.positions_in(HEAD, HEADS, 4)
    source = r("slice", r.tame, axis=-1, start=2, stop=6)
    r.out("scatter", r("scatter", r.x, index, source, axis=-1))
    ones = r("full_like", r("slice", r.tame, axis=-1, start=0, stop=1), value=1.0)
    r.out("scatter of one value", r("scatter", r.tame, index, ones, axis=2))
    r.out("gather rows", r("gather_rows", r.x, r.wanted), r("gather_rows", r.positions, r.wanted))
    order = r.graph.weight("order", TensorType(DType.i32, (HEAD,)), "i32")
    r.weights["order"] = Dense(r.rng.permutation(HEAD).astype(np.int32), "i32")
    r.out("gather columns", r("gather_columns", r.x, order))
    late = r("gather_rows", r.tame, r.wanted)
    r.out("sum", r("sum", late, axis=-1))


def add_copies(r: Rows) -> None:
    turned = r("permute", r.x, perm=(0, 2, 1))
    thirds = r("slice", r.x, axis=-1, start=1, stop=20, step=3)
    spread = r("broadcast_to", r("slice", r.x, axis=1, start=2, stop=3), shape=(TOKENS, 5, HEAD))
    r.out("reshape of permuted", r("reshape", turned, shape=(TOKENS, HEADS * HEAD)))
    r.out("reshape of strided", r("reshape", thirds, shape=(TOKENS, HEADS * 7)))
    r.out("reshape of spread", r("reshape", spread, shape=(TOKENS, 5 * HEAD)))
    r.out("one axis more", r("reshape", r.x, shape=(TOKENS, HEADS, 4, 5)))
    back = r("permute", r("reshape", r.x, shape=(TOKENS, HEADS, 4, 5)), perm=(0, 3, 1, 2))
    r.out("four axes", back)
    r.out("concat", r("concat", r.x, thirds, r.x, axis=-1), r("concat", spread, r.tame, axis=1))
    r.out("concat of permuted", r("concat", turned, turned, axis=2))
    r.out("concat of integers", r("concat", r.positions_in(9, 3, 4), r.positions_in(9, 3, 2), axis=2))
    tail = r("slice", r("concat", r.x, r.tame, axis=1), axis=1, start=2, stop=5)
    r.out("slice of concat", tail)


@pytest.fixture(scope="module")
def rows(isa: Isa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], GraphRunner]]:
    r = Rows()
    for add in (add_reductions, add_topk, add_selections, add_copies):
        add(r)
    runner = GraphRunner(r.graph, r.weights, isa, tmp_path_factory.mktemp("rows"))
    yield r.names, runner
    runner.executor.close()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("wanted", [None, (7, 2, 2, 5)], ids=["all rows", "some rows"])
def test_rowwise_ops_are_those_of_the_interpreter(rows, threads, wanted):
    names, runner = rows
    runner.use_threads(threads)
    for name, (found, wanted_array) in zip(names, runner.pairs(tokens(range(NUM_TOKENS), wanted)), strict=True):
        if name in INEXACT:
            assert relative_error(found, wanted_array) < TOLERANCE, name
        else:
            np.testing.assert_array_equal(found, wanted_array, err_msg=name)
