"""Pointwise ops: accuracy of the functions on special values, broadcasting, element types."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from fused_nodes import fused
from graph_runner import GraphRunner, dense, tokens

from rusteeze.codegen.cpu.isa import Isa
from rusteeze.ir import Graph, TensorType, Value
from rusteeze.ir.ops.elementwise import BINARY, COMPARE, UNARY
from rusteeze.ir.types import TOKENS, DType

Array = np.ndarray
SPECIAL = [
    0.0, -0.0, 1e-8, -1e-8, 0.01, -0.01, 0.249, -0.249, 0.251, -0.251, 0.3, -0.3, 0.5, -0.5, 1.0, -1.0,
    1.5, -2.5, 5.0, -5.0, 9.0, -9.0, 20.0, -20.0, 87.5, -87.5, 90.0, -90.0, 1e4, -1e4, 1e30, -1e30,
    np.inf, -np.inf,
]  # fmt: skip
WIDTH = 43  # whole vectors and single elements
SMALLEST, LARGEST = 2.0**-126, 2.0**127


def values() -> Array:
    """[43, 43]: every number at every place of a row."""
    row = np.array([*SPECIAL, *np.linspace(-3, 3, WIDTH - len(SPECIAL))], np.float32)
    return np.stack([np.roll(row, n) for n in range(WIDTH)])


# op: (relative, absolute) tolerance against float64
TOLERANCES: dict[str, tuple[float, float]] = {
    "neg": (0, 0), "abs": (0, 0), "relu": (0, 0), "sqrt": (1e-7, 0), "rsqrt": (3e-7, 0),
    "reciprocal": (1e-7, 0), "exp": (5e-6, 0), "log": (2e-7, 0), "sin": (1e-7, 1e-7),
    "cos": (1e-7, 1e-7), "tanh": (1e-6, 0), "erf": (0, 4e-7), "sigmoid": (2e-7, 1e-9),
    "silu": (2e-7, 1e-8), "gelu": (2e-7, 3e-7), "gelu_tanh": (2e-7, 4e-7), "softplus": (2e-7, 1e-8),
}  # fmt: skip


def meaning(op: str, x: Array) -> Array:
    """The op in float64, with what is promised where float32 ends."""
    with np.errstate(all="ignore"):
        wanted = UNARY[op](x.astype(np.float64))
    if op == "exp":  # no infinities, no zeros: softmax needs neither
        return np.clip(wanted, SMALLEST, LARGEST)
    if op == "silu":  # -inf * 0
        return np.where(x == -np.inf, -np.inf, wanted)
    return wanted


@pytest.fixture(scope="module")
def functions(isa: Isa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphRunner]:
    graph = Graph()
    ids = graph.input("input_ids", TensorType(DType.i32, (TOKENS,)))
    table = graph.weight("table", TensorType(DType.f32, (WIDTH, WIDTH)), "f32")
    x = graph.add("embedding", ids, table)
    graph.outputs = [graph.add(op, x) for op in UNARY]
    weights = {"table": dense(values())}
    runner = GraphRunner(graph, weights, isa, tmp_path_factory.mktemp("functions"))
    yield runner
    runner.executor.close()


def test_every_function_is_accurate_on_special_values(functions):
    x = values()
    found = dict(zip(UNARY, functions.run(tokens(range(WIDTH))), strict=True))
    assert TOLERANCES.keys() == UNARY.keys()
    for op, (relative, absolute) in TOLERANCES.items():
        wanted = meaning(op, x)
        np.testing.assert_allclose(
            found[op], wanted.astype(np.float32), relative, absolute, equal_nan=True, err_msg=op
        )


def test_vectors_and_single_elements_give_the_same(functions):
    """Column j of row n holds what column j + 1 of row n + 1 holds: the place must not matter."""
    for op, found in zip(UNARY, functions.run(tokens(range(WIDTH))), strict=True):
        for n in range(WIDTH):
            np.testing.assert_array_equal(np.roll(found[n], -n), found[0], err_msg=op)


# ---- shapes and element types ----------------------------------------------------------------------
HEADS, HEAD = 3, 20
NUM_TOKENS = 9


class Shapes:
    """A graph of binary ops over x f32[T,3,20], positions and static operands."""

    def __init__(self) -> None:
        self.graph, self.weights = Graph(), {}
        self.rng = np.random.default_rng(5)
        ids, self.positions = (
            self.graph.input(n, TensorType(DType.i32, (TOKENS,))) for n in ("input_ids", "positions")
        )
        flat = self.graph.add("embedding", ids, self.static(NUM_TOKENS, HEADS * HEAD))
        self.x = self.graph.add("reshape", flat, shape=(TOKENS, HEADS, HEAD))
        self.names: list[str] = []

    def static(self, *shape: int) -> Value:
        """Distinct small numbers, some equal to those of x."""
        name = f"w{len(self.weights)}"
        self.weights[name] = dense(np.round(self.rng.uniform(-2, 2, shape), 1))
        return self.graph.weight(name, TensorType(DType.f32, shape), "f32")

    def const(self, value: float, dtype: str = "f32") -> Value:
        return self.graph.add("const", value=value, dtype=dtype)

    def out(self, name: str, v: Value) -> None:
        self.names.append(name)
        self.graph.outputs.append(v)


def add_broadcasts(s: Shapes) -> None:
    g = s.graph
    shapes = ((HEADS, HEAD), (HEAD,), (HEADS, 1), (1,), (1, HEADS, HEAD), (1, 1, HEAD), (1, HEADS, 1))
    for shape in shapes:
        s.out(f"x - {shape}", g.add("sub", s.x, s.static(*shape)))
        s.out(f"{shape} / x", g.add("div", s.static(*shape), s.x))
    by_head = g.add("slice", s.x, axis=2, start=3, stop=4)
    by_column = g.add("slice", s.x, axis=1, start=1, stop=2)
    s.out("x * [T,3,1]", g.add("mul", s.x, by_head))
    s.out("[T,1,20] - x", g.add("sub", by_column, s.x))
    s.out("[T,3,1] * [T,1,20]", g.add("mul", by_head, by_column))
    s.out("every third column", g.add("neg", g.add("slice", s.x, axis=2, start=1, stop=HEAD, step=3)))
    turned = g.add("permute", s.x, perm=(0, 2, 1))
    s.out("permuted", g.add("add", turned, s.static(HEAD, HEADS)))
    s.out("spread", g.add("broadcast_to", by_head, shape=(TOKENS, HEADS, HEAD)))
    s.out("a constant", g.add("maximum", s.x, s.const(0.25)))
    s.out("full_like", g.add("add", s.x, g.add("full_like", s.x, value=-1.5)))


def add_binary(s: Shapes) -> None:
    y = s.static(HEADS, HEAD)
    for op in BINARY:
        left = s.graph.add("abs", s.x) if op == "pow" else s.x
        s.out(op, s.graph.add(op, left, y))
    for op in COMPARE:
        s.out(op, s.graph.add(op, s.x, y))


def add_element_types(s: Shapes) -> None:
    g, p = s.graph, s.positions
    number = g.add("cast", p, dtype="f32")
    s.out("i32 to f32", number)
    s.out("i32 sum", g.add("sub", g.add("mul", p, p), s.const(7, "i32")))
    s.out("i32 remainder", g.add("remainder", g.add("sub", p, s.const(5, "i32")), s.const(3, "i32")))
    s.out("i32 maximum", g.add("maximum", p, s.const(4, "i32")))
    s.out("i32 abs", g.add("abs", g.add("neg", p)))
    s.out("f32 to i32", g.add("cast", g.add("mul", s.x, s.const(3.0)), dtype="i32"))
    s.out("f32 to bool", g.add("cast", g.add("relu", s.x), dtype="bool"))
    s.out("i32 to bool", g.add("cast", g.add("sub", p, s.const(2, "i32")), dtype="bool"))
    truth, other = g.add("gt", s.x, s.const(0.0)), g.add("lt", s.x, s.const(1.0))
    s.out("and", g.add("logical_and", truth, other))
    s.out("or", g.add("logical_or", truth, other))
    s.out("not", g.add("logical_not", truth))
    s.out("not i32", g.add("logical_not", g.add("sub", p, s.const(2, "i32"))))
    s.out("where", g.add("where", truth, g.add("neg", s.x), s.const(0.125)))
    s.out("bool to f32", g.add("mul", g.add("cast", truth, dtype="f32"), s.x))
    s.out("clamp", g.add("clamp", s.x, min=-0.5, max=0.75))
    s.out("clamp below", g.add("clamp", s.x, min=-0.5))
    s.out("softcap", g.add("softcap", s.x, cap=0.7))
    s.out("glu", g.add("glu", s.x, g.add("neg", s.x), act="relu"))


def add_regions(s: Shapes) -> None:
    g, y = s.graph, s.static(HEAD)

    def chain() -> Value:
        scaled = g.add("mul", g.add("add", s.x, y), s.const(0.5))
        return g.add("glu", scaled, s.x, act="silu")

    def two() -> list[Value]:
        total = g.add("add", s.x, y)
        return [total, g.add("gt", total, s.const(0.0))]

    (result,) = fused(g, "pointwise", chain)
    s.out("region", result)
    for v in fused(g, "pointwise", two):
        s.out("region of two results", v)


@pytest.fixture(scope="module")
def shapes(isa: Isa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], GraphRunner]]:
    s = Shapes()
    for add in (add_broadcasts, add_binary, add_element_types, add_regions):
        add(s)
    runner = GraphRunner(s.graph, s.weights, isa, tmp_path_factory.mktemp("shapes"))
    yield s.names, runner
    runner.executor.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_operands_broadcast_and_convert_as_in_the_interpreter(shapes, threads):
    names, runner = shapes
    runner.use_threads(threads)
    for name, (found, wanted) in zip(names, runner.pairs(tokens(range(NUM_TOKENS))), strict=True):
        np.testing.assert_allclose(found, wanted, 2e-6, 1e-6, err_msg=name)
