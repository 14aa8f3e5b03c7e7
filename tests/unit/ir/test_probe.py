from __future__ import annotations

import numpy as np
import pytest

from rusteeze.ir import Graph, parse_type
from rusteeze.ir.probe import Probe, compare_graphs, difference, disagreement, draw, signature


def test_drawn_rows_differ_in_magnitude():
    data = draw(parse_type("f32[T,64]"), np.random.default_rng(0))
    assert data.shape == (3, 64)
    small, large = np.abs(data[1]).max(), np.abs(data[2]).max()
    assert small < 1e-2 < 10 < large
    even = draw(parse_type("f32[T,64]"), np.random.default_rng(0), even=True)
    assert 1 < np.abs(even[1]).max() < 10


def test_drawn_indices_are_different_tokens():
    rng = np.random.default_rng(0)
    assert draw(parse_type("i32[T]"), rng).tolist() == [2, 1, 0]
    assert draw(parse_type("i32[R]"), rng).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("got", "wanted", "expected"),
    [
        ([[1.0, 2.0]], [[1.0, 2.0]], 0.0),
        ([[1.0, 2.2]], [[1.0, 2.0]], 0.1),
        ([[np.nan]], [[1.0]], np.inf),
        ([[np.nan]], [[np.nan]], 0.0),
        ([1.0], [[1.0]], np.inf),
    ],
)
def test_difference_is_relative_to_the_row(got, wanted, expected):
    assert difference(np.array(got), np.array(wanted)) == pytest.approx(expected)


def test_integers_must_be_equal():
    assert difference(np.array([1, 2]), np.array([1, 2])) == 0
    assert difference(np.array([1, 2]), np.array([1, 3])) == np.inf


def test_probe_computes_only_up_to_what_is_bound():
    g = Graph()
    x = g.input("x", parse_type("f32[T,4]"))
    y = g.add("neg", x)
    z = g.add("add", y, y)
    assert Probe({y: np.ones((3, 4), np.float32)}).value(z).tolist() == [[2.0] * 4] * 3


def test_disagreement_and_signature():
    g = Graph()
    a, b = (g.input(n, parse_type("f32[T,4]")) for n in "ab")
    left, right = g.add("add", a, b), g.add("add", b, a)
    assert disagreement(left, right, [a, b]) is None
    assert disagreement(left, g.add("sub", a, b), [a, b])
    assert signature(left, [a, b]) == signature(right, [b, a])
    assert signature(left, [a, b]) != signature(right, [a, b])


def attention_graph(scale: float) -> Graph:
    g = Graph()
    q, k, v = (g.input(n, parse_type("f32[T,1,4]")) for n in "qkv")
    y = g.add("attention", q, k, v, None, layer=0, scale=scale)
    g.outputs = [g.add("gather_rows", y, g.input("rows", parse_type("i32[R]")))]
    return g


def test_graphs_are_compared_through_attention():
    assert compare_graphs(attention_graph(0.5), attention_graph(0.5)) == 0
    assert compare_graphs(attention_graph(0.5), attention_graph(0.6)) > 1e-3


def test_attention_is_compared_whatever_its_layer():
    g = Graph()
    q, k, v = captured = [g.input(n, parse_type("f32[T,1,4]")) for n in "qkv"]
    first, second, other = (
        g.add("attention", q, k, v, None, layer=layer, scale=scale) for layer, scale in ((0, 0.5), (1, 0.5), (0, 0.6))
    )
    assert disagreement(first, second, captured) is None
    assert signature(first, captured) == signature(second, captured)
    assert disagreement(first, other, captured)
    assert signature(first, captured) != signature(other, captured)


def test_given_weights_are_used():
    def scaled(factor: str) -> Graph:
        g = Graph()
        w = g.weight(factor, parse_type("f32[4]"))
        g.outputs = [g.add("mul", g.input("x", parse_type("f32[T,4]")), w)]
        return g

    ones = {n: np.ones(4, np.float32) for n in ("a", "b")}
    assert compare_graphs(scaled("a"), scaled("b"), ones) == 0
    assert compare_graphs(scaled("a"), scaled("b")) > 1e-3
