from __future__ import annotations

import numpy as np
import pytest

from rusteeze.ir import Graph, VerifyError, interpret, make_node, parse_type, producers, verify


@pytest.fixture
def g() -> Graph:
    """x → neg → add(x) → output, beside a dead abs of a weight."""
    graph = Graph()
    x = graph.input("x", parse_type("f32[T,4]"))
    graph.add("abs", graph.weight("dead", parse_type("f32[4]")))
    y = graph.add("neg", x, origin="a.b")
    graph.outputs = [graph.add("add", y, x)]
    return graph


def test_types_are_inferred(g):
    assert [str(n.result.type) for n in g.nodes] == ["f32[4]", "f32[T,4]", "f32[T,4]"]


@pytest.mark.parametrize(
    ("op", "attrs", "complaint"),
    [
        ("nope", {}, "unknown op nope"),
        ("neg", {"axis": 1}, "no attribute axis"),
        ("mean", {}, "needs the attribute axis"),
        ("mean", {"axis": 0}, "named dimension T"),
        ("mean", {"axis": "x"}, "wants int"),
        ("reshape", {"shape": ("T", 5)}, "another number of elements"),
        ("add", {}, "takes 2 operands, got 1"),
    ],
)
def test_ill_formed_nodes_say_why(g, op, attrs, complaint):
    with pytest.raises(TypeError, match=complaint):
        g.add(op, g.inputs[0], **attrs)


def test_dead_code_goes_with_its_weights(g):
    assert g.eliminate_dead_code() == 1
    assert [n.op.name for n in g.nodes] == ["neg", "add"]
    assert g.weights == {}


def test_stateful_nodes_are_never_dead():
    g = Graph()
    x = g.input("x", parse_type("f32[T,1,4]"))
    g.add("attention", x, x, x, None, layer=0, scale=1.0)
    g.outputs = [x]
    assert g.eliminate_dead_code() == 0


def test_copies_are_equal_and_independent(g):
    clone = g.copy()
    assert clone == g
    clone.nodes[1].origin = "elsewhere"
    assert clone != g
    assert g.nodes[1].origin == "a.b"


def test_substitution_follows_chains(g):
    x, (_, neg, add) = g.inputs[0], g.nodes
    g.substitute({add.result: neg.result, neg.result: x})
    assert g.outputs == [x]


def test_sort_restores_order(g):
    g.nodes.reverse()
    with pytest.raises(VerifyError, match="used before it is defined"):
        verify(g)
    g.sort()
    verify(g)


def test_sort_finds_cycles(g):
    _, neg, add = g.nodes
    neg.operands[0] = add.result
    with pytest.raises(ValueError, match="cycle"):
        g.sort()


def test_static_values_are_weights_and_what_they_give(g):
    dead = g.weights["dead"]
    assert g.static_values() == {dead, g.nodes[0].result}


def test_producers_stop_where_told(g):
    x, (_, neg, add) = g.inputs[0], g.nodes
    assert set(map(id, producers(g.outputs, lambda v: v is x))) == {id(neg), id(add)}
    assert producers(g.outputs, lambda v: v is neg.result) == [add]


def test_verify_finds_wrong_types_and_foreign_results(g):
    g.nodes[1].results[0].type = parse_type("f32[4]")
    with pytest.raises(VerifyError, match=r"should be \['f32\[T,4\]'\]"):
        verify(g)


def test_a_body_gives_a_fused_node_its_meaning(g):
    body = Graph("body")
    a, b = (body.input(n, parse_type("f32[T,4]")) for n in ("x0", "x1"))
    body.outputs = [body.add("mul", a, b), body.add("sub", a, b)]
    x = g.inputs[0]
    node = make_node("fused", [x, g.nodes[1].result], {"anchor": "pointwise"}, body=body)
    g.nodes.append(node)
    g.outputs = node.results
    verify(g)
    data = np.arange(8, dtype=np.float32).reshape(2, 4)
    product, difference = interpret(g, {"x": data}, {"dead": np.ones(4)})
    assert np.array_equal(product, -data * data)
    assert np.array_equal(difference, 2 * data)
    node.operands.pop()
    with pytest.raises(VerifyError, match="inputs of the body"):
        verify(g)
