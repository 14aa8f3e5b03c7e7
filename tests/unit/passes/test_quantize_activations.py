from __future__ import annotations

import pytest

from rusteeze.ir import parse, verify
from rusteeze.passes.quantize_activations import QuantizeActivations


def graph_of(format_a: str, format_b: str, width: int = 64) -> str:
    return f"""graph @main(%x: f32[T,{width}]) {{
  @a : f32[32,{width}] = "{format_a}"
  @b : f32[32,{width}] = "{format_b}"
  %0 = linear(%x, @a, _) : f32[T,32]
  %1 = linear(%x, @b, _) : f32[T,32]
  %2 = mul(%0, %1) : f32[T,32]
  return %2
}}
"""


def quantized(text: str, group: int = 32):
    graph = parse(text)
    result = QuantizeActivations(group).run(graph)
    verify(graph)
    return graph, result


def test_one_rounding_serves_all_products():
    graph, result = quantized(graph_of("affine4g32m-f16", "affine8g32s-f16"))
    assert [n.op.name for n in graph.nodes] == ["quantize", "linear", "linear", "mul"]
    assert {n.operands[0] for n in graph.nodes[1:3]} == {graph.nodes[0].result}
    assert result.matches == 2


def test_each_weight_gets_the_rounding_that_its_format_allows():
    graph, result = quantized(graph_of("affine4g32m-f16", "bf16"))
    roundings = [n.attrs["to"] for n in graph.nodes if n.op.name == "quantize"]
    assert roundings == ["int8", "bf16"]
    assert result.matches == 2


@pytest.mark.parametrize("stored", ["f32", "f16", "codebook4g32-f32"])
def test_other_weights_read_exact_activations(stored):
    graph, result = quantized(graph_of(stored, stored))
    assert [n.op.name for n in graph.nodes] == ["linear", "linear", "mul"]
    assert {r.reason for r in result.refusals} == {"activations are not rounded for such a weight"}


def test_int8_can_be_declined():
    graph = parse(graph_of("affine4g32m-f16", "bf16"))
    result = QuantizeActivations(int8=False).run(graph)
    assert [n.attrs["to"] for n in graph.nodes if n.op.name == "quantize"] == ["bf16"]
    assert [r.reason for r in result.refusals] == ["activations are not rounded to int8"]


@pytest.mark.parametrize(("width", "group", "matches"), [(48, 32, 0), (48, 16, 2), (64, 32, 2)])
def test_groups_must_fit(width, group, matches):
    _, result = quantized(graph_of("affine4g16m-f16", "affine4g16m-f16", width), group)
    assert result.matches == matches
    assert all(r.reason == f"{width} elements are no multiple of {group}" for r in result.refusals)


def test_joined_rows_count_as_their_format():
    text = graph_of("affine4g32m-f16", "affine4g32m-f16").replace(
        "  %0 = linear(%x, @a, _) : f32[T,32]\n  %1 = linear(%x, @b, _) : f32[T,32]\n"
        "  %2 = mul(%0, %1) : f32[T,32]",
        "  %0 = concat(@a, @b) {axis=0} : f32[64,64]\n  %2 = linear(%x, %0, _) : f32[T,64]",
    )
    assert quantized(text)[1].matches == 1


def test_experts_too():
    text = """graph @main(%x: f32[T,64], %i: i32[T,2]) {
  @w : f32[4,32,64] = "affine4g32m-f16"
  %0 = expert_linear(%x, %i, @w, _) : f32[T,2,32]
  return %0
}
"""
    graph, _ = quantized(text)
    assert [n.op.name for n in graph.nodes] == ["quantize", "expert_linear"]


def test_what_each_choice_of_experts_gives_is_rounded_too():
    text = """graph @main(%x: f32[T,2,64], %i: i32[T,2]) {
  @w : f32[4,32,64] = "affine4g32m-f16"
  %0 = expert_linear(%x, %i, @w, _) : f32[T,2,32]
  return %0
}
"""
    graph, _ = quantized(text)
    assert [n.op.name for n in graph.nodes] == ["quantize", "expert_linear"]


def test_nothing_is_rounded_twice():
    graph, _ = quantized(graph_of("affine4g32m-f16", "affine4g32m-f16"))
    assert QuantizeActivations().run(graph).matches == 0


@pytest.mark.parametrize(("width", "reason"), [(32, None), (48, "48 elements are no multiple of 32")])
def test_a_group_lies_in_one_block(width, reason):
    graph, result = quantized(f"""graph @main(%x: f32[T,{2 * width}]) {{
  @a : f32[2,16,{width}] = "affine8g16s-f16"
  %0 = block_linear(%x, @a) : f32[T,32]
  return %0
}}
""")
    assert [n.op.name for n in graph.nodes] == (["block_linear"] if reason else ["quantize", "block_linear"])
    assert [r.reason for r in result.refusals] == ([reason] if reason else [])
