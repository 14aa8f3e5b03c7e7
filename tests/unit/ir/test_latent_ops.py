"""Attention whose values are part of its keys, and products of each head's own."""

from __future__ import annotations

import numpy as np
import pytest

from rusteeze.ir import Graph, KVState, interpret, parse, parse_type, print_graph

WIDTH, VALUES = 5, 3


def attention_graph(shared: bool) -> Graph:
    g = Graph()
    q, k = (g.input(name, parse_type(f"f32[T,{heads},{WIDTH}]")) for name, heads in (("q", 4), ("k", 1)))
    if shared:
        out = g.add("attention", q, k, None, None, layer=0, scale=0.7, value_width=VALUES)
    else:
        v = g.add("slice", k, axis=-1, start=0, stop=VALUES)
        out = g.add("attention", q, k, v, None, layer=0, scale=0.7)
    g.outputs = [out]
    return g


def test_values_are_the_beginning_of_the_keys():
    rng = np.random.default_rng(0)
    state, other = KVState(), KVState()
    for batch in ([(0, 3), (1, 2)], [(1, 1), (0, 4)]):
        state.batch = other.batch = batch
        tokens = sum(n for _, n in batch)
        inputs = {"q": rng.standard_normal((tokens, 4, WIDTH)), "k": rng.standard_normal((tokens, 1, WIDTH))}
        (found,) = interpret(attention_graph(shared=True), inputs, {}, state)
        (wanted,) = interpret(attention_graph(shared=False), inputs, {}, other)
        np.testing.assert_array_equal(found, wanted)
    assert found.shape == (tokens, 4, VALUES)


def test_text_form():
    text = print_graph(attention_graph(shared=True))
    assert "attention(%q, %k, _, _) {layer=0, scale=0.7, value_width=3} : f32[T,4,3]" in text
    assert print_graph(parse(text)) == text


@pytest.mark.parametrize("value_width", [0, -1, WIDTH + 1])
def test_values_must_be_part_of_the_keys(value_width):
    g = Graph()
    x = g.input("x", parse_type(f"f32[T,1,{WIDTH}]"))
    with pytest.raises(TypeError, match="value_width of at most"):
        g.add("attention", x, x, None, None, layer=0, scale=1.0, value_width=value_width)
    with pytest.raises(TypeError, match="part of the keys"):
        g.add("attention", x, x, x, None, layer=0, scale=1.0, value_width=VALUES)


def test_a_block_of_columns_has_its_own_weight():
    rng = np.random.default_rng(1)
    g = Graph()
    x = g.input("x", parse_type("f32[T,6]"))
    g.outputs = [g.add("block_linear", x, g.weight("w", parse_type("f32[2,4,3]")))]
    given, w = rng.standard_normal((5, 6)), rng.standard_normal((2, 4, 3))
    (found,) = interpret(g, {"x": given}, {"w": w})
    for block in range(2):
        wanted = given[:, 3 * block : 3 * block + 3] @ w[block].T
        np.testing.assert_allclose(found[:, 4 * block : 4 * block + 4], wanted, rtol=1e-5)


@pytest.mark.parametrize("x", ["f32[T,7]", "f32[T,2,3]", "f32[T,3]"])
def test_blocks_must_fit(x):
    g = Graph()
    with pytest.raises(TypeError, match="wants w"):
        g.add("block_linear", g.input("x", parse_type(x)), g.weight("w", parse_type("f32[2,4,3]")))
