"""Products on weights with sorted columns mean what they meant; what makes their inputs is moved where it can be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from rusteeze.ir import interpret, parse, verify
from rusteeze.ir.storage import stored_format
from rusteeze.passes.fuse_linears import FuseLinears
from rusteeze.passes.sort_columns import COLUMNS, SORTED, SortColumns, SortedWeight

CODES = "affine4g32s-f16"
HEAD = """graph @main(%x: f32[T,8], %rows: i32[R]) {
  @g : f32[6,8] = "f32"
  @u : f32[6,8] = "f32"
  @d : f32[8,6] = "f32"
  @b : f32[6] = "f32"
  @n : f32[8] = "f32"
"""
GLU = """  %0 = rms_norm(%x, @n) {eps=1e-06} : f32[T,8]
  %1 = linear(%0, @g, @b) : f32[T,6]
  %2 = linear(%0, @u, _) : f32[T,6]
  %3 = glu(%1, %2) : f32[T,6]
  %4 = linear(%3, @d, _) : f32[T,8]
  %5 = add(%x, %4) : f32[T,8]
  return %5
}
"""


def ordered(names: str, seeds: dict[str, int] | None = None) -> dict[str, SortedWeight]:
    """Columns in an order drawn from a weight's width, or from its own seed."""
    widths = {"g": 8, "u": 8, "d": 6}
    draw = {n: np.random.default_rng((seeds or {}).get(n, widths[n])).permutation(widths[n]) for n in names}
    return {n: SortedWeight(order.astype(np.int32), CODES) for n, order in draw.items()}


def run(text: str, columns: dict[str, SortedWeight]):
    """The graph after the pass; its meaning is checked on drawn numbers."""
    before, graph = parse(text), parse(text)
    result = SortColumns(columns).run(graph)
    verify(graph)
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal(v.type.shape, np.float32) for n, v in before.weights.items()}
    weights |= {n + SORTED: weights[n][:, s.columns] for n, s in columns.items()}
    weights |= {n + COLUMNS: s.columns for n, s in columns.items()}
    inputs = {"x": rng.standard_normal((5, 8), np.float32), "rows": np.array([1, 4], np.int32)}
    for wanted, found in zip(interpret(before, inputs, weights), interpret(graph, inputs, weights), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    return graph, result


def ops(graph) -> Counter:
    return Counter(n.op.name for n in graph.nodes)


def test_gate_and_up_are_made_in_the_order_of_down():
    graph, result = run(HEAD + GLU, ordered("d"))
    assert ops(graph) == {"rms_norm": 1, "gather_rows": 3, "linear": 3, "glu": 1, "add": 1}
    assert result.matches == 2


def test_products_of_one_order_share_their_gathered_input_and_are_fused():
    graph, _ = run(HEAD + GLU, ordered("gud"))
    assert ops(graph)["gather_columns"] == 1
    FuseLinears().run(graph)
    first, second = (n for n in graph.nodes if n.op.name == "linear")
    assert first.operands[0].op == "gather_columns"
    assert stored_format(first.operands[1]) == stored_format(second.operands[1]) == CODES
    assert {n for n in graph.weights if n.endswith(COLUMNS)} == {"g" + COLUMNS, "d" + COLUMNS}


def test_other_orders_stay_apart():
    graph, _ = run(HEAD + GLU, ordered("gu", {"g": 1, "u": 2}))
    assert ops(graph)["gather_columns"] == 2


@pytest.mark.parametrize(
    "between",
    [
        "  %3 = mul(%1, %2) : f32[T,6]\n",
        "  %s = sigmoid(%1) : f32[T,6]\n  %3 = mul(%s, %2) : f32[T,6]\n",
        "  %c = const() {value=2.0} : f32[]\n  %s = mul(%1, %c) : f32[T,6]\n  %3 = maximum(%s, %2) : f32[T,6]\n",
    ],
)
def test_whatever_treats_columns_alike_is_passed(between):
    graph, _ = run(HEAD + GLU.replace("  %3 = glu(%1, %2) : f32[T,6]\n", between), ordered("d"))
    assert not ops(graph)["gather_columns"]


def test_a_square_moves_its_product_once():
    text = GLU.replace("  %3 = glu(%1, %2) : f32[T,6]\n", "  %3 = mul(%1, %1) : f32[T,6]\n")
    run(HEAD + text, ordered("d"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return %5", "return %5, %3"),  # somebody else reads it
        ("return %5", "return %5, %1"),
        ("%3 = glu(%1, %2) : f32[T,6]", "%3 = softmax(%1) {axis=-1} : f32[T,6]"),  # columns are not alike
        ("%3 = glu(%1, %2) : f32[T,6]", "%3 = mul(%1, @b) : f32[T,6]"),  # a vector has an order of its own
    ],
)
def test_what_cannot_be_moved_is_gathered(old, new):
    assert old in GLU
    graph, _ = run(HEAD + GLU.replace(old, new), ordered("d"))
    assert ops(graph)["gather_columns"] == 1
    assert not ops(graph)["gather_rows"]


def test_weights_that_others_read_keep_their_order():
    text = GLU.replace("return %5", "%6 = gather_rows(@d, %rows) : f32[R,6]\n  return %5, %6")
    graph, result = run(HEAD + text, ordered("d"))
    assert result.matches == 0
    assert "d" in graph.weights
