from __future__ import annotations

import pytest

from rusteeze.ir import parse
from rusteeze.passes.canonicalize import Canonicalize
from rusteeze.passes.raise_norms import RaiseNorms


def graph_of(body: str, result: str, weights: str = '  @w : f32[8] = ""\n') -> str:
    return f"graph @main(%x: f32[T,8]) {{\n{weights}{body}\n  return {result}\n}}\n"


HAT = """
  %0 = mul(%x, %x) : f32[T,8]
  %1 = mean(%0) {axis=-1, keepdim=True} : f32[T,1]
  %2 = const() {value=1e-06} : f32[]
  %3 = add(%1, %2) : f32[T,1]
  %4 = rsqrt(%3) : f32[T,1]
  %5 = mul(%x, %4) : f32[T,8]"""
CENTRED = """
  %a = mean(%x) {axis=-1, keepdim=True} : f32[T,1]
  %y = sub(%x, %a) : f32[T,8]""" + HAT.replace("%x", "%y")


@pytest.mark.parametrize("operands", ["%5, @w", "@w, %5"])
def test_weight_on_either_side(check, operands):
    before = graph_of(f"{HAT}\n  %6 = mul({operands}) : f32[T,8]", "%6")
    result = check(
        RaiseNorms(), before, graph_of("  %0 = rms_norm(%x, @w) {eps=1e-06} : f32[T,8]", "%0")
    )
    assert result.matches == 2


def test_weight_that_is_stored_minus_one(check):
    tail = """
  %6 = const() {value=1.0} : f32[]
  %7 = add(%6, @w) : f32[8]
  %8 = mul(%5, %7) : f32[T,8]"""
    after = graph_of("  %0 = rms_norm(%x, @w) {eps=1e-06, offset=1.0} : f32[T,8]", "%0")
    check(RaiseNorms(), graph_of(HAT + tail, "%8"), after)


def test_other_spellings_meet_after_canonicalisation():
    spelled = """
  %0 = const() {value=2.0} : f32[]
  %1 = pow(%x, %0) : f32[T,8]
  %2 = mean(%1) {axis=1, keepdim=False} : f32[T]
  %3 = reshape(%2) {shape=['T',1]} : f32[T,1]
  %4 = const() {value=1e-05} : f32[]
  %5 = add(%4, %3) : f32[T,1]
  %6 = sqrt(%5) : f32[T,1]
  %7 = div(%x, %6) : f32[T,8]
  %8 = mul(@w, %7) : f32[T,8]"""
    graph = parse(graph_of(spelled, "%8"))
    Canonicalize().run(graph)
    RaiseNorms().run(graph)
    assert [n.op.name for n in graph.nodes] == ["rms_norm"]
    assert graph.nodes[0].attrs == {"eps": 1e-5, "offset": 0.0}


def test_layer_norm_with_weight_and_bias(check):
    weights = '  @w : f32[8] = ""\n  @b : f32[8] = ""\n'
    tail = "\n  %6 = mul(@w, %5) : f32[T,8]\n  %7 = add(%6, @b) : f32[T,8]"
    after = "  %0 = layer_norm(%x, @w, @b) {eps=1e-06} : f32[T,8]"
    check(RaiseNorms(), graph_of(CENTRED + tail, "%7", weights), graph_of(after, "%0", weights))


def test_layer_norm_without_weight(check):
    after = "  %0 = layer_norm(%x, _, _) {eps=1e-06} : f32[T,8]"
    check(RaiseNorms(), graph_of(CENTRED, "%5", ""), graph_of(after, "%0", ""))


def test_per_head_weight(check):
    text = graph_of(f"{HAT}\n  %6 = mul(%5, @w) : f32[T,8]", "%6")
    text = text.replace("[T,", "[T,2,").replace("@w : f32[8]", "@w : f32[2,8]")
    after = graph_of("  %0 = rms_norm(%x, @w) {eps=1e-06} : f32[T,8]", "%0")
    check(
        RaiseNorms(), text,
        after.replace("[T,", "[T,2,").replace("@w : f32[8]", "@w : f32[2,8]"),
    )  # fmt: skip


def test_a_mean_over_another_axis_is_no_norm():
    text = graph_of(HAT, "%5", "").replace("[T,8]", "[T,8,8]").replace("[T,1]", "[T,1,8]")
    graph = parse(text.replace("axis=-1", "axis=-2"))
    assert RaiseNorms().run(graph).matches == 0


def test_a_weight_that_would_widen_the_result_is_refused():
    body = """
  %0 = rms_norm(%x, _) {eps=1e-06} : f32[T,8]
  %1 = mul(%0, @w) : f32[2,T,8]"""
    graph = parse(graph_of(body, "%1", '  @w : f32[2,1,8] = ""\n'))
    (refusal,) = RaiseNorms().run(graph).refusals
    assert "does not broadcast" in str(refusal)
