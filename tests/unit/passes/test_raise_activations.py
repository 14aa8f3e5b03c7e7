from __future__ import annotations

import pytest

from rusteeze.ir import Graph, Value, parse_type, verify
from rusteeze.ir.probe import compare_graphs
from rusteeze.passes.canonicalize import Canonicalize
from rusteeze.passes.raise_activations import RaiseActivations


class Builder(Graph):
    """Arithmetic with Python numbers as constants."""

    def number(self, value: float) -> Value:
        return self.add("const", value=value)

    def op(self, name: str, *operands: Value | float) -> Value:
        return self.add(name, *(v if isinstance(v, Value) else self.number(v) for v in operands))


def gelu_of_gpt2(g: Builder, x: Value) -> Value:
    cubed = g.op("mul", g.op("pow", x, 3.0), 0.044715)
    bend = g.op("tanh", g.op("mul", g.op("add", x, cubed), (2 / 3.141592653589793) ** 0.5))
    return g.op("mul", g.op("mul", x, 0.5), g.op("add", bend, 1.0))


def gelu_of_neox(g: Builder, x: Value) -> Value:
    inner = g.op("add", g.op("mul", g.op("mul", x, 0.044715), x), 1.0)
    bend = g.op("tanh", g.op("mul", g.op("mul", x, 0.7978845608), inner))
    return g.op("mul", g.op("mul", x, 0.5), g.op("add", bend, 1.0))


def gelu_by_erf(g: Builder, x: Value) -> Value:
    bend = g.op("erf", g.op("div", x, 2**0.5))
    return g.op("mul", x, g.op("mul", 0.5, g.op("add", bend, 1.0)))


def silu_by_sigmoid(g: Builder, x: Value) -> Value:
    return g.op("mul", g.op("sigmoid", x), x)


def silu_by_exp(g: Builder, x: Value) -> Value:
    return g.op("div", x, g.op("add", g.op("exp", g.op("neg", x)), 1.0))


def cap_by_division(g: Builder, x: Value) -> Value:
    return g.op("mul", g.op("tanh", g.op("div", x, 30.0)), 30.0)


def cap_by_power_of_two(g: Builder, x: Value) -> Value:
    return g.op("mul", g.op("tanh", g.op("div", x, 16.0)), 16.0)


@pytest.mark.parametrize(
    ("spelling", "op"),
    [
        (gelu_of_gpt2, "gelu_tanh"), (gelu_of_neox, "gelu_tanh"), (gelu_by_erf, "gelu"),
        (silu_by_sigmoid, "silu"), (silu_by_exp, "silu"), (cap_by_division, "softcap"),
        (cap_by_power_of_two, "softcap"),
    ],
)  # fmt: skip
def test_spelling_becomes_one_node(spelling, op):
    graph = Builder()
    graph.outputs = [spelling(graph, graph.input("x", parse_type("f32[T,8]")))]
    before = graph.copy()
    Canonicalize().run(graph)
    RaiseActivations().run(graph)
    verify(graph)
    assert [n.op.name for n in graph.nodes] == [op]
    assert compare_graphs(before, graph) < 1e-5


@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_tanh", "relu", "sigmoid"])
def test_gate_over_halves_of_one_value(check, act):
    body = """graph @main(%x: f32[T,8]) {{
  %0 = slice(%x) {{axis=-1, start=0, stop=4}} : f32[T,4]
  %1 = slice(%x) {{axis=-1, start=4, stop=8}} : f32[T,4]
{}
}}
"""
    before = body.format(f"  %2 = {act}(%0) : f32[T,4]\n  %3 = mul(%1, %2) : f32[T,4]\n  return %3")
    attrs = "" if act == "silu" else f" {{act='{act}'}}"
    check(
        RaiseActivations(),
        before,
        body.format(f"  %2 = glu(%0, %1){attrs} : f32[T,4]\n  return %2"),
    )


def test_a_constant_is_no_second_factor():
    graph = Builder()
    x = graph.input("x", parse_type("f32[T,8]"))
    graph.outputs = [graph.op("mul", graph.op("silu", x), 2.5)]
    result = RaiseActivations().run(graph)
    assert result.matches == 0
    assert [r.reason for r in result.refusals] == ["the other factor is a constant"]


def test_a_wrong_constant_is_not_a_gelu():
    graph = Builder()
    x = graph.input("x", parse_type("f32[T,8]"))
    bend = graph.op("erf", graph.op("mul", x, 0.6))
    graph.outputs = [graph.op("mul", graph.op("mul", x, 0.5), graph.op("add", bend, 1.0))]
    assert RaiseActivations().run(graph).matches == 0


def test_a_gate_that_broadcasts_is_refused():
    graph = Builder()
    gate, x = graph.input("g", parse_type("f32[T,1]")), graph.input("x", parse_type("f32[T,8]"))
    graph.outputs = [graph.op("mul", graph.op("sigmoid", gate), x)]
    (refusal,) = RaiseActivations().run(graph).refusals
    assert "differ in type" in refusal.reason
