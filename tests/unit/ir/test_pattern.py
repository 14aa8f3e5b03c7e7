from __future__ import annotations

import pytest

from rusteeze.ir import Graph, Value, parse_type
from rusteeze.ir.pattern import (
    Bindings,
    Call,
    Capture,
    Hole,
    Missing,
    Number,
    PatternError,
    captured_names,
    constant_value,
    matches,
    parse_pattern,
)


def found(pattern: str, value: Value, graph: Graph) -> list[Bindings]:
    return list(matches(parse_pattern(pattern), value, graph.static_values(), Bindings()))


@pytest.fixture
def g() -> Graph:
    graph = Graph()
    graph.input("x", parse_type("f32[T,8]"))
    graph.weight("w", parse_type("f32[8]"))
    return graph


def test_the_text_says_everything():
    got = parse_pattern("rms_norm(mul(x, @w), _) {eps=?e, offset=1}")
    product = Call("mul", (Capture("x"), Capture("w", static=True)))
    assert got == Call("rms_norm", (product, Missing()), (("eps", Hole("e")), ("offset", 1.0)))
    assert captured_names(got) == ({"x", "w"}, {"e"})


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1.0), ("-0.5", -0.5), ("1e-6", 1e-6), ("2.", 2.0)],
)
def test_numbers(text, value):
    assert parse_pattern(text) == Number(value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nope(x)", "unknown op nope"),
        ("add(x)", "takes 2 operands"),
        ("mean(x) {axes=1}", "no attribute axes"),
        ("linear(_, w, _)", "operand x is missing"),
        ("add(x, y", "unexpected end"),
        ("add(x, y) z", "unexpected 'z'"),
        ("add(x, $)", "cannot read"),
        ("mean(x) {axis 1}", "expected axis=VALUE"),
    ],
)
def test_bad_patterns_are_refused(text, complaint):
    with pytest.raises(PatternError, match=complaint):
        parse_pattern(text)


def test_commutative_ops_match_both_ways(g):
    x, w = g.inputs[0], g.weights["w"]
    for operands in ((x, w), (w, x)):
        (bound,) = found("mul(v, @p)", g.add("mul", *operands), g)
        assert bound.values == {"v": x, "p": w}
    assert found("sub(@p, v)", g.add("sub", x, w), g) == []


def test_a_name_captures_one_value(g):
    x = g.inputs[0]
    assert found("mul(a, a)", g.add("mul", x, x), g)
    assert not found("mul(a, a)", g.add("mul", x, g.add("neg", x)), g)


def test_holes_capture_constants_and_attributes(g):
    five = g.add("const", value=5.0)
    y = g.add("mean", g.add("add", g.inputs[0], five), axis=-1, keepdim=True)
    (bound,) = found("mean(add(v, ?c)) {axis=?a}", y, g)
    assert bound.attrs == {"c": 5.0, "a": -1}
    assert not found("mean(add(v, 4)) {axis=?a}", y, g)
    assert not found("mean(v) {axis=?a, keepdim=False}", y, g)


def test_a_hole_that_occurs_twice_must_agree(g):
    x = g.inputs[0]
    three, four = (g.add("const", value=v) for v in (3.0, 4.0))
    inner = g.add("div", x, three)
    assert found("mul(div(v, ?c), ?c)", g.add("mul", inner, three), g)
    assert not found("mul(div(v, ?c), ?c)", g.add("mul", inner, four), g)


def test_numbers_match_within_ten_digits(g):
    value = g.add("mul", g.inputs[0], g.add("const", value=0.7978845608))
    assert found("mul(v, 0.7978845608028654)", value, g)
    assert not found("mul(v, 0.79789)", value, g)


def test_absent_operands(g):
    x = g.inputs[0]
    bare, weighted = (g.add("rms_norm", x, w, eps=1e-6) for w in (None, g.weights["w"]))
    assert found("rms_norm(v, _)", bare, g)
    assert not found("rms_norm(v, w)", bare, g)
    assert not found("rms_norm(v, _)", weighted, g)


def test_a_spread_constant_is_still_a_constant(g):
    number = g.add("const", value=2.0)
    wide = g.add("broadcast_to", g.add("reshape", number, shape=(1,)), shape=(8,))
    assert constant_value(wide) == 2.0
    assert constant_value(g.inputs[0]) is None
    assert not found("add(v, @p)", g.add("add", g.inputs[0], wide), g)


def test_only_the_first_result_of_an_op_is_matched(g):
    first, second = g.add_many("topk", g.inputs[0], k=2)
    assert found("topk(v)", first, g)
    assert not found("topk(v)", second, g)
