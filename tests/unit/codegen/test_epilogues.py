"""What fused regions do with the result of a product while it is in registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
from drawn_weights import draw_weight
from fused_nodes import fused
from graph_runner import GraphRunner, dense, relative_error, tokens

from rusteeze.codegen.cpu.isa import Isa
from rusteeze.ir import Graph, Value
from rusteeze.ir.types import TOKENS, DType, TensorType
from rusteeze.weights import Weight

WIDTH = 96
MOST_TOKENS = 40
TOLERANCE = 1e-5  # of the largest result
ODD, EVEN = 43, 128  # columns: no multiple of a vector; a multiple of a rounding group, also in halves


@dataclass
class Bench:
    """A graph under construction; ``x`` [T, 96] are its activations, ``rounded`` the same as int8."""

    graph: Graph = field(default_factory=Graph)
    weights: dict[str, Weight] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    def __post_init__(self) -> None:
        ids = self.graph.input("input_ids", TensorType(DType.i32, (TOKENS,)))
        self.x = self("embedding", ids, self.static(MOST_TOKENS, WIDTH))
        self.rounded = self("quantize", self.x)
        self.halved = self("quantize", self.x, to="bf16")
        # the last columns of x, in place: operands need not be aligned or contiguous
        self.part = {n: self("slice", self.x, axis=-1, start=WIDTH - n, stop=WIDTH) for n in (ODD, 8, 1)}

    def __call__(self, op: str, *operands: Value | None, **attrs: object) -> Value:
        return self.graph.add(op, *operands, **attrs)

    def static(self, *shape: int, format: str = "f32") -> Value:
        """A weight of normal numbers, matrices in any format."""
        name = f"w{len(self.weights)}"
        plain = len(shape) < 2 or format == "f32"
        values = self.rng.standard_normal(shape)
        self.weights[name] = dense(values) if plain else draw_weight(format, shape, self.rng)
        return self.graph.weight(name, TensorType(DType.f32, shape), format)

    def product(self, n: int, bias: bool = False, kind: str = "f32") -> Value:
        x = {"f32": self.x, "int8": self.rounded, "bf16": self.halved}[kind]
        format = {"f32": "f32", "int8": "affine4g32m-f16", "bf16": "bf16"}[kind]
        w = self.static(n, WIDTH, format=format)
        return self("linear", x, w, self.static(n) if bias else None)

    def halves(self, y: Value) -> tuple[Value, Value]:
        n = int(y.type.shape[-1])
        ends = ((0, n // 2), (n // 2, n))
        first, second = (self("slice", y, axis=-1, start=a, stop=b) for a, b in ends)
        return first, second


Build = Callable[[Bench], Value]


def residual(b: Bench) -> Value:
    return b("add", b.part[ODD], b.product(ODD))


def own_input(b: Bench) -> Value:
    return b("add", b.x, b.product(WIDTH))


def unary(op: str, b: Bench, **attrs: object) -> Value:
    return b(op, b.product(ODD, bias=True), **attrs)


def library_function(op: str, b: Bench) -> Value:
    positive = b("add", b("abs", b.product(ODD)), b("const", value=0.5))
    return b(op, positive) if op != "pow" else b(op, positive, b("const", value=0.3))


def leaky(b: Bench) -> Value:
    y = b.product(ODD)
    small = b("mul", y, b("const", value=0.1))
    return b("where", b("gt", y, b("const", value=0.0)), y, small)


def squared_relu(b: Bench) -> Value:
    y = b("relu", b.product(ODD))
    return b("mul", y, y)


def by_column(b: Bench) -> Value:
    return b("mul", b.product(ODD), b.static(ODD))


def by_column_of_rank_two(b: Bench) -> Value:
    return b("mul", b.product(ODD), b.static(1, ODD))


def by_token(b: Bench) -> Value:
    return b("mul", b.product(ODD), b.part[1])


def few_columns(b: Bench) -> Value:
    return b("add", b("sigmoid", b.product(8, bias=True)), b.part[8])


def gated(n: int, kind: str, act: str, bias: bool, b: Bench) -> Value:
    gate, up = b.halves(b.product(2 * n, bias, kind))
    return b("glu", gate, up, act=act)


def gated_backwards(b: Bench) -> Value:
    up, gate = b.halves(b.product(2 * ODD, bias=True))
    return b("mul", b("silu", gate), b("add", up, b("const", value=1.0)))


def capped(kind: str, b: Bench) -> Value:
    return b("softcap", b.product(ODD, kind=kind), cap=3.0)


CASES: dict[str, Build] = {
    "bias": lambda b: b.product(ODD, bias=True),
    "bias-int8": lambda b: b.product(ODD, bias=True, kind="int8"),
    "residual": residual,
    "own input": own_input,
    "leaky relu": leaky,
    "squared relu": squared_relu,
    "a factor per column": by_column,
    "a factor per column, rank two": by_column_of_rank_two,
    "a factor per token": by_token,
    "few columns": few_columns,
    **{op: partial(unary, op) for op in ("gelu", "gelu_tanh", "silu", "tanh", "exp", "neg")},
    **{op: partial(library_function, op) for op in ("log", "softplus", "sin", "cos", "pow")},
    "clamp": partial(unary, "clamp", min=-0.5, max=0.25),
    "halves": partial(gated, ODD, "f32", "silu", False),
    "halves, bias": partial(gated, ODD, "f32", "gelu_tanh", True),
    "halves, bias, int8": partial(gated, ODD, "int8", "silu", True),
    "halves, few columns": partial(gated, 17, "f32", "relu", True),
    "halves, second first": gated_backwards,
    "softcap": partial(capped, "f32"),
    "softcap, bf16": partial(capped, "bf16"),
}
ROUNDED: dict[str, tuple[str, Build]] = {
    "int8 tail": ("int8", lambda b: b("silu", b.product(EVEN))),
    "bf16 tail": ("bf16", lambda b: b("silu", b.product(EVEN))),
    "int8 tail of halves": ("int8", partial(gated, EVEN, "int8", "silu", True)),
    "bf16 tail of halves": ("bf16", partial(gated, EVEN, "bf16", "gelu", False)),
    "int8 tail, few columns": ("int8", lambda b: b.product(32, bias=True)),
}


def graph_of_all() -> tuple[Graph, dict[str, Weight]]:
    b = Bench()
    for build in CASES.values():
        b.graph.outputs += fused(b.graph, "linear", partial(build, b))
    for kind, build in ROUNDED.values():
        (y,) = fused(b.graph, "linear", lambda build=build, kind=kind: b("quantize", build(b), to=kind))
        n = int(y.type.shape[-1])
        format = {"int8": "affine8g32s-f16", "bf16": "bf16"}[kind]
        b.graph.outputs.append(b("linear", y, b.static(20, n, format=format), None))
    plain, rounded = fused(b.graph, "linear", partial(both_ways, b))
    b.graph.outputs += [plain, b("linear", rounded, b.static(20, EVEN, format="affine8g32s-f16"), None)]
    return b.graph, b.weights


def both_ways(b: Bench) -> list[Value]:
    """A result that is used as it is, and rounded."""
    y = b("tanh", b.product(EVEN))
    return [y, b("quantize", y)]


NAMES = [*CASES, *ROUNDED, "plain", "plain and rounded"]


@pytest.fixture(scope="module")
def runner(isa: Isa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphRunner]:
    runner = GraphRunner(*graph_of_all(), isa, tmp_path_factory.mktemp("epilogues"))
    yield runner
    runner.executor.close()


@pytest.fixture(scope="module")
def all_rows(runner: GraphRunner) -> list[np.ndarray]:
    return runner.run(tokens(range(MOST_TOKENS)))


def test_epilogues_are_those_of_the_interpreter(runner, all_rows):
    wanted = runner.interpret(tokens(range(MOST_TOKENS)))
    errors = {n: relative_error(a, b) for n, a, b in zip(NAMES, all_rows, wanted, strict=True)}
    assert {n: e for n, e in errors.items() if e > TOLERANCE} == {}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [1, 5, 13])
def test_a_row_does_not_depend_on_its_company(runner, all_rows, count, threads):
    runner.use_threads(threads)
    chosen = np.random.default_rng(count).permutation(MOST_TOKENS)[:count]
    for name, some, every in zip(NAMES, runner.run(tokens(chosen)), all_rows, strict=True):
        np.testing.assert_array_equal(some, every[chosen], err_msg=name)


def test_every_region_is_one_call(runner):
    calls = [c.kernel for c in runner.lowered.plan.calls if c.kernel.startswith("linear_")]
    assert len(calls) == len(CASES) + 2 * len(ROUNDED) + 2
