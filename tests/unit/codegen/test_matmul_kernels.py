"""Products with weights of every format, for every number of rows, against the interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from drawn_weights import draw_weight
from graph_runner import GraphRunner, dense, relative_error, tokens

from rusteeze.codegen.cpu.isa import Isa
from rusteeze.ir import Graph, Value
from rusteeze.ir.types import ROWS, DType, TensorType
from rusteeze.weights import Weight

WIDTH = 512
ROW_COUNTS = (1, 2, 5, 12, 13, 33, 400)
MOST_ROWS = max(ROW_COUNTS)
FEW, MANY = 8, 75  # columns: threads share rows, threads share columns
INTEGERS = (
    "affine4g32m-f16", "affine8g32s-f16", "affine4g16m-f32", "affine2g16s1-f16", "affine3g32s5-f32",
    "affine1g128m-f16", "affine5g64s-f32", "affine6g16s33-f16", "affine7g32m-f32", "affine8g256s127-f16",
    "affine2g128m-f16", "affine3g16m-f16", "affine3g128s-f32", "affine5g16m-f32", "affine6g32m-f16",
    "codebook4g32i-f16", "codebook4g16i-f32", "codebook4g128i-f32",
)  # fmt: skip
DECODED = (*INTEGERS[:5], "affine5g64s-f32", "affine6g16s33-f16", "affine3g16m-f16", "codebook4g32i-f16")
FLOAT8 = ("float8g128-f32", "float8g32-f32", "float8g512-f32", "float8g4-f32")
FLOATS = ("f32", "f16", "bf16", "codebook4g64-f16", *FLOAT8)
# (weight format, what activations are rounded to, K, N)
CASES = [
    *((f, "", WIDTH, MANY) for f in (*DECODED, *FLOATS)),
    *((f, "int8", WIDTH, MANY) for f in INTEGERS),
    *((f, "bf16", WIDTH, MANY) for f in ("bf16", *FLOAT8)),
    *((f, "", 39, MANY) for f in ("f32", "f16", "bf16")),
    ("affine4g32m-f16", "", 96, FEW),
    ("affine4g32m-f16", "int8", 96, FEW),
    ("affine8g16m-f16", "int8", 32, 1),
    ("bf16", "bf16", 96, FEW),
    ("float8g96-f32", "bf16", 96, FEW),
    ("float8g16-f32", "", 48, FEW),
    ("affine3g16s-f16", "", 48, MANY),  # three groups: no pairs of them
    ("affine5g24m-f32", "", 48, MANY),
    ("affine3g16s-f16", "int8", 96, FEW),
    ("codebook4g32i-f16", "int8", 96, FEW),
    ("f32", "", 1, 16),
]
EXACT, ROUNDED = 2e-6, 1e-5  # of the largest result


def name_of(case: tuple[str, str, int, int]) -> str:
    format, rounding, k, n = case
    return f"{format}-{rounding or 'f32'}-{n}x{k}"


def products() -> tuple[Graph, dict[str, Weight]]:
    """A graph with the product of every case as an output."""
    graph, weights, rng = Graph(), {}, np.random.default_rng(0)
    rows = graph.input("rows", TensorType(DType.i32, (ROWS,)))
    table = graph.weight("table", TensorType(DType.f32, (MOST_ROWS, WIDTH)), "f32")
    weights["table"] = dense(rng.standard_normal((MOST_ROWS, WIDTH)))
    x = graph.add("embedding", rows, table)
    prepared: dict[tuple[int, str], Value] = {}
    for case in CASES:
        format, rounding, k, n = case
        if (k, rounding) not in prepared:
            part = graph.add("slice", x, axis=1, start=WIDTH - k, stop=WIDTH) if k < WIDTH else x
            prepared[k, rounding] = graph.add("quantize", part, to=rounding) if rounding else part
        w = graph.weight(name_of(case), TensorType(DType.f32, (n, k)), format)
        weights[w.name] = draw_weight(format, (n, k), rng)
        graph.outputs.append(graph.add("linear", prepared[k, rounding], w, None))
    return graph, weights


@pytest.fixture(scope="module")
def runner(isa: Isa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphRunner]:
    graph, weights = products()
    runner = GraphRunner(graph, weights, isa, tmp_path_factory.mktemp("products"), max_tokens=MOST_ROWS)
    yield runner
    runner.executor.close()


@pytest.fixture(scope="module")
def all_rows(runner: GraphRunner) -> list[np.ndarray]:
    """The compiled results of the largest batch, on one thread."""
    return runner.run(tokens(range(MOST_ROWS)))


def test_products_are_those_of_the_interpreter(runner, all_rows):
    wanted = runner.interpret(tokens(range(MOST_ROWS)))
    errors = {
        name_of(case): relative_error(a, b) / (ROUNDED if case[1] else EXACT)
        for case, a, b in zip(CASES, all_rows, wanted, strict=True)
    }
    assert {name: e for name, e in errors.items() if e > 1} == {}


@pytest.mark.parametrize("count", ROW_COUNTS)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_does_not_depend_on_its_company(runner, all_rows, count, threads):
    runner.use_threads(threads)
    chosen = np.random.default_rng(count).permutation(MOST_ROWS)[:count]
    for case, some, every in zip(CASES, runner.run(tokens(range(count), chosen)), all_rows, strict=True):
        np.testing.assert_array_equal(some, every[chosen], err_msg=name_of(case))
