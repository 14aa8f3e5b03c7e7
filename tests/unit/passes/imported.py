"""Graphs as the importer delivers them: all in primitive arithmetic."""

from __future__ import annotations

from rusteeze.ir import Graph, Value, parse_type

HIDDEN, HEADS, KEY_HEADS, HEAD_WIDTH, INNER, VOCABULARY, POSITIONS = 32, 4, 2, 8, 48, 64, 16


def norm(g: Graph, x: Value, name: str) -> Value:
    w = g.weight(f"{name}.weight", parse_type(f"f32[{HIDDEN}]"))
    mean = g.add("mean", g.add("pow", x, g.add("const", value=2.0)), axis=1, keepdim=True)
    scale = g.add("rsqrt", g.add("add", mean, g.add("const", value=1e-6)))
    return g.add("mul", w, g.add("cast", g.add("mul", x, scale), dtype="f32"), origin=name)


def linear(g: Graph, x: Value, name: str, n: int) -> Value:
    w = g.weight(f"{name}.weight", parse_type(f"f32[{n},{x.type.shape[-1]}]"), "f32")
    return g.add("linear", x, w, None, origin=name)


def table_rows(g: Graph, positions: Value, name: str) -> Value:
    table = g.weight(f"rotary.0.{name}", parse_type(f"f32[{POSITIONS},{HEAD_WIDTH}]"))
    return g.add("embedding", positions, table)


def rotate(g: Graph, x: Value, cos: Value, sin: Value) -> Value:
    half = HEAD_WIDTH // 2
    a = g.add("slice", x, axis=2, start=0, stop=half)
    b = g.add("slice", x, axis=2, start=half, stop=HEAD_WIDTH)
    turned = g.add("concat", g.add("neg", b), a, axis=2)
    c, s = (g.add("reshape", t, shape=("T", 1, HEAD_WIDTH)) for t in (cos, sin))
    return g.add("add", g.add("mul", x, c), g.add("mul", turned, s))


def heads(g: Graph, x: Value, n: int) -> Value:
    return g.add("reshape", x, shape=("T", n, HEAD_WIDTH))


def attention(g: Graph, x: Value, cos: Value, sin: Value, layer: int, name: str) -> Value:
    q = heads(g, linear(g, x, f"{name}.q_proj", HEADS * HEAD_WIDTH), HEADS)
    k = heads(g, linear(g, x, f"{name}.k_proj", KEY_HEADS * HEAD_WIDTH), KEY_HEADS)
    v = heads(g, linear(g, x, f"{name}.v_proj", KEY_HEADS * HEAD_WIDTH), KEY_HEADS)
    q, k = rotate(g, q, cos, sin), rotate(g, k, cos, sin)
    y = g.add("attention", q, k, v, None, layer=layer, scale=0.35, origin=name)
    y = g.add("reshape", y, shape=("T", HEADS * HEAD_WIDTH))
    return linear(g, y, f"{name}.o_proj", HIDDEN)


def feed_forward(g: Graph, x: Value, name: str) -> Value:
    gate = linear(g, x, f"{name}.gate_proj", INNER)
    up = linear(g, x, f"{name}.up_proj", INNER)
    y = g.add("mul", g.add("mul", gate, g.add("sigmoid", gate)), up)
    return linear(g, y, f"{name}.down_proj", HIDDEN)


def llama(layers: int = 2) -> Graph:
    g = Graph()
    ids = g.input("input_ids", parse_type("i32[T]"))
    positions = g.input("positions", parse_type("i32[T]"))
    rows = g.input("rows", parse_type("i32[R]"))
    embedding = g.weight("embed.weight", parse_type(f"f32[{VOCABULARY},{HIDDEN}]"), "f32")
    x = g.add("embedding", ids, embedding)
    cos, sin = table_rows(g, positions, "cos"), table_rows(g, positions, "sin")
    for i in range(layers):
        y = attention(g, norm(g, x, f"layers.{i}.norm_1"), cos, sin, i, f"layers.{i}.attention")
        x = g.add("add", x, y)
        x = g.add("add", x, feed_forward(g, norm(g, x, f"layers.{i}.norm_2"), f"layers.{i}.mlp"))
    y = g.add("gather_rows", norm(g, x, "norm"), rows)
    g.outputs = [g.add("linear", y, embedding, None, origin="lm_head")]
    return g
