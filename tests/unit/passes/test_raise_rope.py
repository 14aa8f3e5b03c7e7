"""The ways in which models spell rotary embeddings, over x[T,2,8] and tables of their own width."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rusteeze.ir import Graph, Value, parse_type, verify
from rusteeze.ir.probe import compare_graphs
from rusteeze.passes.canonicalize import Canonicalize
from rusteeze.passes.raise_rope import RaiseRope

POSITIONS, D = 16, 8
Spelling = Callable[[Graph, Value, Value, Value], Value]


def part(g: Graph, x: Value, start: int, stop: int, step: int = 1) -> Value:
    return g.add("slice", x, axis=x.type.rank - 1, start=start, stop=stop, step=step)


def per_head(g: Graph, table: Value) -> Value:
    return g.add("reshape", table, shape=("T", 1, table.type.shape[-1]))


def turned_halves(g: Graph, x: Value) -> Value:
    n = x.type.shape[-1]
    return g.add("concat", g.add("neg", part(g, x, n // 2, n)), part(g, x, 0, n // 2), axis=2)


def stacked(g: Graph, a: Value, b: Value) -> Value:
    """Elements of a and b in turn."""
    wide = (*a.type.shape, 1)
    pairs = g.add("concat", *(g.add("reshape", v, shape=wide) for v in (a, b)), axis=len(wide) - 1)
    return g.add("reshape", pairs, shape=(*wide[:-2], 2 * wide[-2]))


def turned_pairs(g: Graph, x: Value) -> Value:
    n = x.type.shape[-1]
    return stacked(g, g.add("neg", part(g, x, 1, n, 2)), part(g, x, 0, n, 2))


def combine(g: Graph, x: Value, turned: Value, cos: Value, sin: Value) -> Value:
    c, s = per_head(g, cos), per_head(g, sin)
    return g.add("add", g.add("mul", x, c), g.add("mul", turned, s))


def halves(g: Graph, x: Value, cos: Value, sin: Value) -> Value:
    return combine(g, x, turned_halves(g, x), cos, sin)


def sin_first(g: Graph, x: Value, cos: Value, sin: Value) -> Value:
    c, s = per_head(g, cos), per_head(g, sin)
    return g.add("add", g.add("mul", s, turned_halves(g, x)), g.add("mul", c, x))


def pairs(g: Graph, x: Value, cos: Value, sin: Value) -> Value:
    return combine(g, x, turned_pairs(g, x), cos, sin)


def first_part(g: Graph, x: Value, cos: Value, sin: Value) -> Value:
    return g.add("concat", halves(g, part(g, x, 0, 4), cos, sin), part(g, x, 4, D), axis=2)


def last_part(g: Graph, x: Value, cos: Value, sin: Value) -> Value:
    return g.add("concat", part(g, x, 0, 4), pairs_to_halves(g, part(g, x, 4, D), cos, sin), axis=2)


def pairs_to_halves(g: Graph, x: Value, cos: Value, sin: Value) -> Value:
    t, h, n = x.type.shape
    x = g.add("reshape", x, shape=(t, h, n // 2, 2))
    x = g.add("reshape", g.add("permute", x, perm=(0, 1, 3, 2)), shape=(t, h, n))
    return halves(g, x, cos, sin)


def angle_table(g: Graph, x: Value, cos: Value, sin: Value) -> Value:
    a, b = part(g, x, 0, D // 2), part(g, x, D // 2, D)
    c, s = per_head(g, cos), per_head(g, sin)
    first = g.add("sub", g.add("mul", a, c), g.add("mul", b, s))
    return g.add("concat", first, g.add("add", g.add("mul", b, c), g.add("mul", a, s)), axis=2)


def respread_first_part(g: Graph, x: Value, cos: Value, sin: Value) -> Value:
    """The table has halves, but its first half is spread over pairs, and only a part is rotated."""
    rows = [stacked(g, part(g, t, 0, 2), part(g, t, 0, 2)) for t in (cos, sin)]
    return g.add("concat", pairs(g, part(g, x, 0, 4), *rows), part(g, x, 4, D), axis=2)


def complex_product(g: Graph, x: Value, cos: Value, sin: Value) -> Value:
    a, b = part(g, x, 0, D, 2), part(g, x, 1, D, 2)
    c, s = per_head(g, cos), per_head(g, sin)
    real = g.add("sub", g.add("mul", a, c), g.add("mul", b, s))
    return stacked(g, real, g.add("add", g.add("mul", a, s), g.add("mul", b, c)))


def table(layout: str, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if layout == "angles":
        return rng.standard_normal((POSITIONS, width)).astype(np.float32)
    angles = rng.standard_normal((POSITIONS, width // 2)).astype(np.float32)
    return np.repeat(angles, 2, 1) if layout == "pairs" else np.tile(angles, (1, 2))


def rotated_graph(spelling: Spelling, width: int, copies: int = 1) -> Graph:
    g = Graph()
    positions = g.input("positions", parse_type("i32[T]"))
    type = parse_type(f"f32[{POSITIONS},{width}]")
    cos, sin = (g.add("embedding", positions, g.weight(name, type)) for name in ("c", "s"))
    for i in range(copies):
        x = g.add("reshape", g.input(f"x{i}", parse_type(f"f32[T,{2 * D}]")), shape=("T", 2, D))
        g.outputs.append(spelling(g, x, cos, sin))
    return g


@pytest.mark.parametrize(
    ("spelling", "layout", "table_width", "style", "width", "at_end"),
    [
        (halves, "halves", 8, "half", 8, False),
        (sin_first, "halves", 8, "half", 8, False),
        (pairs, "pairs", 8, "inter", 8, False),
        (first_part, "halves", 4, "half", 4, False),
        (last_part, "halves", 4, "inter_to_half", 4, True),
        (pairs_to_halves, "halves", 8, "inter_to_half", 8, False),
        (angle_table, "angles", 4, "half", 8, False),
        (respread_first_part, "halves", 4, "inter", 4, False),
        (complex_product, "angles", 4, "inter", 8, False),
    ],
)
@pytest.mark.parametrize("with_tables", [True, False])
def test_spelling_becomes_one_rope(
    spelling, layout, table_width, style, width, at_end, with_tables
):
    graph = rotated_graph(spelling, table_width)
    tables = {"c": table(layout, table_width, 1), "s": table(layout, table_width, 2)}
    before = graph.copy()
    Canonicalize().run(graph)
    assert RaiseRope(tables if with_tables else {}).run(graph).matches == 1
    verify(graph)
    (rope,) = [n for n in graph.nodes if n.op.name == "rope"]
    assert rope.attrs == {"style": style, "width": width, "at_end": at_end}
    assert {n.op.name for n in graph.nodes} <= {"embedding", "slice", "reshape", "rope"}
    assert compare_graphs(before, graph, tables) < 1e-5


def test_all_rotations_share_their_lookups():
    graph = rotated_graph(halves, 8, copies=4)
    Canonicalize().run(graph)
    assert RaiseRope().run(graph).matches == 4
    assert sum(n.op.name == "embedding" for n in graph.nodes) == 2


def test_a_table_that_contradicts_the_layout_is_respected():
    graph = rotated_graph(halves, 8)
    Canonicalize().run(graph)
    result = RaiseRope({"c": table("angles", 8, 1), "s": table("angles", 8, 2)}).run(graph)
    assert result.matches == 0
    assert "no rotation" in result.refusals[0].reason


def test_something_else_over_the_tables_stays():
    def scaled(g: Graph, x: Value, cos: Value, sin: Value) -> Value:
        return combine(g, x, part(g, g.add("neg", x), 0, D), cos, sin)

    graph = rotated_graph(scaled, 8)
    Canonicalize().run(graph)
    before = graph.copy()
    assert RaiseRope().run(graph).matches == 0
    assert graph == before


def test_learned_positions_are_no_rotation():
    g = Graph()
    ids, positions = (g.input(n, parse_type("i32[T]")) for n in ("ids", "positions"))
    words = g.add("embedding", ids, g.weight("words", parse_type("f32[16,8]")))
    places = g.add("embedding", positions, g.weight("places", parse_type("f32[16,8]")))
    g.outputs = [g.add("add", words, places)]
    assert RaiseRope().run(g).matches == 0
