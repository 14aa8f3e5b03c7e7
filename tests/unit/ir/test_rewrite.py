from __future__ import annotations

import pytest

from rusteeze.ir import Graph, parse, print_graph, verify
from rusteeze.ir.pattern import PatternError
from rusteeze.ir.rewrite import RewriteError, Rule, rewrite

GATED = """graph @main(%g: f32[T,8], %u: f32[T,8]) {
  %0 = silu(%g) : f32[T,8]  # mlp.act
  %1 = mul(%u, %0) : f32[T,8]  # mlp
  return %1
}
"""


def ops(graph: Graph) -> list[str]:
    return [n.op.name for n in graph.nodes]


def test_an_equation_is_pattern_and_replacement():
    graph = parse(GATED)
    report = rewrite(graph, [Rule("mul(silu(g), u) => glu(g, u) {act='silu'}")], probed=True)
    verify(graph)
    assert "%0 = glu(%g, %u) : f32[T,8]  # mlp\n" in print_graph(graph)
    assert [str(f) for f in report.firings] == ["mul(silu(g), u) => glu(g, u) {act='silu'}  # mlp"]


def test_larger_patterns_at_the_root_win_over_their_parts():
    graph = parse(GATED)
    rules = [Rule("silu(x) => mul(x, sigmoid(x))"), Rule("mul(silu(g), u) => glu(g, u)")]
    rewrite(graph, rules)
    assert ops(graph) == ["glu"]


def test_rules_apply_to_what_rules_made():
    graph = parse(GATED)
    rules = [Rule("silu(x) => mul(x, sigmoid(x))"), Rule("sigmoid(x) => relu(x)")]
    report = rewrite(graph, rules)
    assert ops(graph) == ["relu", "mul", "mul"]
    assert len(report.firings) == 2


def test_values_used_elsewhere_survive():
    graph = parse(GATED.replace("return %1", "return %1, %0"))
    rewrite(graph, [Rule("mul(silu(g), u) => glu(g, u)")])
    verify(graph)
    assert sorted(ops(graph)) == ["glu", "silu"]


def test_numbers_and_computed_attributes_on_the_right():
    graph = parse(GATED)
    rule = Rule("silu(x) => mul(clamp(x) {max=?top}, 0.5)", let={"top": lambda m: 3.0})
    rewrite(graph, [rule])
    text = print_graph(graph)
    assert "clamp(%g) {max=3.0}" in text
    assert "const() {value=0.5}" in text


def test_constants_are_captured_by_value():
    text = """graph @main(%x: f32[T,8]) {
  %0 = const() {value=2.0} : f32[]
  %1 = div(%x, %0) : f32[T,8]
  return %1
}
"""
    graph = parse(text)
    rewrite(graph, [Rule("div(x, ?c) => softcap(x) {cap=?c}")])
    assert graph.nodes[0].attrs == {"cap": 2.0}


def test_a_rewrite_that_computes_something_else_is_refused():
    graph = parse(GATED)
    report = rewrite(graph, [Rule("silu(x) => gelu(x)")], probed=True)
    assert ops(graph) == ["silu", "mul"]
    (refusal,) = report.refusals
    assert "differs by" in str(refusal)
    assert "# mlp.act" in str(refusal)


def test_a_small_epsilon_is_seen_by_the_probe():
    text = """graph @main(%x: f32[T,8]) {
  %0 = rms_norm(%x, _) {eps=1e-06} : f32[T,8]
  return %0
}
"""
    graph = parse(text)
    rule = Rule("rms_norm(x, _) {eps=1e-6} => rms_norm(x, _) {eps=2e-6}")
    assert len(rewrite(graph, [rule], probed=True).refusals) == 1


def test_a_guard_gives_its_reason():
    graph = parse(GATED)
    rule = Rule("silu(x) => relu(x)", where={"not today": lambda m: False})
    report = rewrite(graph, [rule])
    assert [r.reason for r in report.refusals] == ["not today"]
    assert not report.firings


def test_a_guard_sees_what_was_captured():
    graph = parse(GATED)
    first = Rule(
        "mul(a, b) => a", where={"an op computes it": lambda m: m.values["a"].node is None}
    )
    rewrite(graph, [first])
    assert graph.outputs == [graph.inputs[1]]


def test_an_ill_typed_replacement_is_refused():
    graph = parse(GATED)
    report = rewrite(graph, [Rule("silu(x) => permute(x) {perm=[1,0]}")])
    assert "the type would change" in report.refusals[0].reason
    report = rewrite(graph, [Rule("silu(x) => mean(x) {axis=0}")])
    assert "named dimension" in report.refusals[0].reason


def test_identity_rules_do_not_explain_the_obvious():
    text = """graph @main(%x: f32[T,8]) {
  %0 = reshape(%x) {shape=['T',2,4]} : f32[T,2,4]
  return %0
}
"""
    report = rewrite(parse(text), [Rule("reshape(x) => x")])
    assert report.refusals == []


def test_rules_that_undo_each_other_are_found_out():
    graph = parse(GATED)
    rules = [Rule("silu(x) => relu(x)"), Rule("relu(x) => silu(x)")]
    with pytest.raises(RewriteError, match=r"silu\(x\) => relu\(x\)"):
        rewrite(graph, rules)


@pytest.mark.parametrize(
    "equation",
    ["silu(x)", "x => silu(x)", "silu(x) => mul(x, y)", "silu(x) => softcap(x) {cap=?c}"],
)
def test_bad_equations(equation):
    with pytest.raises(PatternError):
        Rule(equation)
