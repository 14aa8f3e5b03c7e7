from __future__ import annotations

import pytest

from rusteeze.ir import Graph, parse, print_graph, verify
from rusteeze.ir.probe import compare_graphs
from rusteeze.passes.fuse import Fuse
from rusteeze.passes.pass_base import PassResult

HEAD = """graph @main(%x: f32[T,64], %r: f32[T,64]) {
  @w : f32[64,64] = ""
  @wide : f32[128,64] = ""
  @b : f32[128] = ""
  @n : f32[64] = ""
"""


def fused(anchor: str, body: str, result: str) -> tuple[Graph, PassResult]:
    graph = parse(f"{HEAD}{body}\n  return {result}\n}}\n")
    before = graph.copy()
    result_of_pass = Fuse(anchor).run(graph)
    verify(graph)
    assert compare_graphs(before, graph) == 0
    assert parse(print_graph(graph)) == graph
    return graph, result_of_pass


def shape(graph: Graph) -> list[str]:
    """One word per node; the ops of a body in brackets."""
    return [
        f"{n.attrs['anchor']}[{' '.join(i.op.name for i in n.body.nodes)}]" if n.body else n.op.name
        for n in graph.nodes
    ]


def reasons(result: PassResult) -> list[str]:
    return [r.reason for r in result.refusals]


def test_anchor_must_exist():
    with pytest.raises(ValueError, match="attention, linear, norm, pointwise"):
        Fuse("convolution")


# ---- attention ------------------------------------------------------------------------------------
ATTENTION = """  %0 = reshape(%x) {shape=['T',HEADS,WIDTH]} : f32[T,HEADS,WIDTH]
  %1 = attention(%0, %0, %0, _) {layer=0, scale=0.1} : f32[T,HEADS,WIDTH]  # attn
  %2 = reshape(%1) {shape=['T',64]} : f32[T,64]
  %3 = quantize(%2) : f32[T,64]
  %4 = linear(%3, @w, _) : f32[T,64]"""


def attention(heads: int, extra: str = "", result: str = "%4") -> tuple[Graph, PassResult]:
    body = ATTENTION.replace("HEADS", str(heads)).replace("WIDTH", str(64 // heads))
    return fused("attention", body + extra, result)


def test_attention_rounds_its_result():
    graph, _ = attention(2)
    assert shape(graph) == ["reshape", "attention[attention reshape quantize]", "linear"]
    assert graph.nodes[1].origin == "attn"


def test_attention_whose_result_others_read_stays_alone():
    graph, _ = attention(2, "\n  %5 = neg(%2) : f32[T,64]", "%4, %5")
    assert "attention" in shape(graph)


def test_heads_that_share_a_group_are_refused():
    graph, result = attention(4)
    assert "attention" in shape(graph)
    assert reasons(result) == ["heads of 16 elements are no whole groups of 32"]


# ---- products -------------------------------------------------------------------------------------
def test_body_is_bound_by_position_and_holds_its_constants():
    body = """  %0 = linear(%x, @w, _) : f32[T,64]  # mlp.down
  %1 = const() {value=0.5} : f32[]
  %2 = mul(%0, %1) : f32[T,64]  # mlp
  %3 = add(%r, %2) : f32[T,64]  # layer"""
    graph, _ = fused("linear", body, "%3")
    (node,) = graph.nodes
    assert [v.name for v in node.operands] == ["x", "w", "r"]
    assert [v.name for v in node.body.inputs] == ["x0", "x1", "x2"]
    assert shape(graph) == ["linear[linear const mul add]"]
    assert node.origin == "mlp.down"
    assert [n.origin for n in node.body.nodes if n.origin] == ["mlp.down", "mlp", "layer"]


def test_gate_and_up_halves():
    body = """  %0 = linear(%x, @wide, _) : f32[T,128]
  %1 = slice(%0) {axis=-1, start=0, stop=64} : f32[T,64]
  %2 = slice(%0) {axis=-1, start=64, stop=128} : f32[T,64]
  %3 = glu(%1, %2) : f32[T,64]
  %4 = quantize(%3) {group=32} : f32[T,64]
  %5 = linear(%4, @w, _) : f32[T,64]
  %6 = add(%5, %r) : f32[T,64]"""
    graph, _ = fused("linear", body, "%6")
    assert shape(graph) == ["linear[linear slice slice glu quantize]", "linear[linear add]"]


@pytest.mark.parametrize(
    ("bounds", "bias", "reason"),
    [
        ("start=0, stop=32", "_", "one half"),
        ("start=0, stop=128, step=2", "_", "one half"),
    ],
)
def test_other_cuts_are_refused(bounds, bias, reason):
    width = 32 if "stop=32" in bounds else 64
    body = f"""  %0 = linear(%x, @wide, {bias}) : f32[T,128]
  %1 = slice(%0) {{axis=-1, {bounds}}} : f32[T,{width}]
  %2 = silu(%1) : f32[T,{width}]"""
    graph, result = fused("linear", body, "%2")
    assert shape(graph) == ["linear", "slice", "silu"]
    assert reason in reasons(result)[0]


def test_a_residual_around_a_product_is_no_epilogue_of_what_it_skips():
    """y is both read by the second product and added to its result."""
    body = """  %0 = linear(%x, @w, _) : f32[T,64]
  %1 = relu(%0) : f32[T,64]
  %2 = linear(%1, @w, _) : f32[T,64]
  %3 = add(%1, %2) : f32[T,64]"""
    graph, result = fused("linear", body, "%3")
    assert shape(graph) == ["linear[linear relu]", "linear[linear add]"]
    assert reasons(result) == ["linear is not pointwise"]


def test_what_is_an_output_is_not_swallowed():
    body = "  %0 = linear(%x, @w, _) : f32[T,64]\n  %1 = silu(%0) : f32[T,64]"
    graph, result = fused("linear", body, "%0, %1")
    assert shape(graph) == ["linear", "silu"]
    assert reasons(result) == ["what it reads is an output of the graph"]


def test_a_column_does_not_spread():
    body = """  %1 = reshape(@n) {shape=[1,64]} : f32[1,64]
  %2 = linear(%x, %1, _) : f32[T,1]
  %3 = sigmoid(%2) : f32[T,1]
  %4 = mul(%3, %x) : f32[T,64]"""
    graph, result = fused("linear", body, "%4")
    assert shape(graph) == ["reshape", "linear[linear sigmoid]", "mul"]
    assert "spreads" in reasons(result)[0]


def test_two_products_share_one_sum():
    body = """  %0 = linear(%x, @w, _) : f32[T,64]
  %1 = linear(%r, @w, _) : f32[T,64]
  %2 = add(%0, %1) : f32[T,64]
  %3 = add(%2, %x) : f32[T,64]"""
    graph, result = fused("linear", body, "%3")
    assert shape(graph) == ["linear", "linear[linear add add]"]
    assert reasons(result) == ["it belongs to another region"]


# ---- norms ----------------------------------------------------------------------------------------
def test_residual_sum_leaves_the_region_beside_the_norm():
    body = """  %0 = add(%x, %r) : f32[T,64]
  %1 = rms_norm(%0, @n) {eps=1e-06} : f32[T,64]  # norm
  %2 = quantize(%1) {group=32} : f32[T,64]
  %3 = linear(%2, @w, _) : f32[T,64]
  %4 = add(%0, %3) : f32[T,64]"""
    graph, _ = fused("norm", body, "%4")
    assert shape(graph) == ["norm[add rms_norm quantize]", "linear", "add"]
    assert [str(r.type) for r in graph.nodes[0].results] == ["f32[T,64]", "f32[T,64]"]


def test_a_private_prologue_leaves_nothing():
    body = """  %0 = const() {value=8.0} : f32[]
  %1 = mul(%x, %0) : f32[T,64]
  %2 = add(%1, %r) : f32[T,64]
  %3 = layer_norm(%2, @n, _) {eps=1e-06} : f32[T,64]
  %4 = add(%3, %x) : f32[T,64]"""
    graph, _ = fused("norm", body, "%4")
    assert shape(graph) == ["norm[const mul add layer_norm add]"]
    assert len(graph.nodes[0].results) == 1


def test_rounded_and_plain_result_of_one_norm():
    body = """  %0 = rms_norm(%x, @n) {eps=1e-06} : f32[T,64]
  %1 = quantize(%0) {group=32} : f32[T,64]
  %2 = linear(%1, @w, _) : f32[T,64]
  %3 = linear(%0, @w, _) : f32[T,64]"""
    graph, _ = fused("norm", body, "%2, %3")
    assert shape(graph) == ["norm[rms_norm quantize]", "linear", "linear"]
    assert len(graph.nodes[0].results) == 2


def test_an_epilogue_that_waits_for_the_early_sum_is_refused():
    """norm(s) + linear(s) cannot be computed in the region that s leaves."""
    body = """  %0 = add(%x, %r) : f32[T,64]
  %1 = rms_norm(%0, @n) {eps=1e-06} : f32[T,64]
  %2 = linear(%0, @w, _) : f32[T,64]
  %3 = add(%1, %2) : f32[T,64]"""
    graph, result = fused("norm", body, "%3")
    assert shape(graph) == ["norm[add rms_norm]", "linear", "add"]
    assert "after an early result" in reasons(result)[0]


def test_a_sum_of_another_shape_is_no_prologue():
    body = """  %0 = const() {value=1.0} : f32[]
  %1 = add(@n, %0) : f32[64]
  %2 = rms_norm(%x, %1) {eps=1e-06} : f32[T,64]"""
    graph, _ = fused("norm", body, "%2")
    assert shape(graph) == ["const", "add", "rms_norm"]


# ---- pointwise ------------------------------------------------------------------------------------
def test_everything_that_serves_one_result():
    body = """  %0 = silu(%x) : f32[T,64]
  %1 = neg(%r) : f32[T,64]
  %2 = mul(%0, %1) : f32[T,64]
  %3 = add(%2, @n) : f32[T,64]
  %4 = quantize(%3) {group=32} : f32[T,64]
  %5 = linear(%4, @w, _) : f32[T,64]"""
    graph, _ = fused("pointwise", body, "%5")
    assert shape(graph) == ["pointwise[silu neg mul add quantize]", "linear"]
    assert [v.name for v in graph.nodes[0].operands] == ["x", "r", "n"]


def test_a_value_with_other_users_is_computed_once():
    body = """  %0 = silu(%x) : f32[T,64]
  %1 = neg(%0) : f32[T,64]
  %2 = mul(%0, %1) : f32[T,64]
  %3 = linear(%0, @w, _) : f32[T,64]"""
    graph, result = fused("pointwise", body, "%2, %3")
    assert shape(graph) == ["silu", "pointwise[neg mul]", "linear"]
    assert "the result of silu is also used elsewhere" in reasons(result)


def test_shapes_do_not_mix():
    body = """  %0 = mean(%x) {axis=-1, keepdim=True} : f32[T,1]
  %1 = neg(%0) : f32[T,1]
  %2 = mul(%1, %x) : f32[T,64]"""
    graph, result = fused("pointwise", body, "%2")
    assert shape(graph) == ["mean", "neg", "mul"]
    assert reasons(result) == ["neg has another shape"]


def test_static_arithmetic_stays_out():
    body = """  %0 = neg(@n) : f32[64]
  %1 = abs(%0) : f32[64]
  %2 = add(%x, %1) : f32[T,64]"""
    graph, _ = fused("pointwise", body, "%2")
    assert shape(graph) == ["neg", "abs", "add"]
