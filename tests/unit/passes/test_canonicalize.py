from __future__ import annotations

import pytest

from rusteeze.ir import Graph, parse, parse_type, print_graph
from rusteeze.passes.canonicalize import Canonicalize


def graph_of(body: str, result: str, weights: str = "") -> str:
    return f"graph @main(%x: f32[T,8], %y: f32[T,8]) {{\n{weights}{body}\n  return {result}\n}}\n"


def number(value: float) -> str:
    return f"  %n = const() {{value={value}}} : f32[]\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (number(1.0) + "  %0 = mul(%n, %x) : f32[T,8]", None),
        (number(0.0) + "  %0 = add(%x, %n) : f32[T,8]", None),
        (number(1.0) + "  %0 = pow(%x, %n) : f32[T,8]", None),
        ("  %1 = neg(%x) : f32[T,8]\n  %0 = neg(%1) : f32[T,8]", None),
        ("  %0 = reshape(%x) {shape=['T',8]} : f32[T,8]", None),
        ("  %0 = cast(%x) {dtype='f32'} : f32[T,8]", None),
        ("  %0 = slice(%x) {axis=1, start=0, stop=8} : f32[T,8]", None),
        ("  %0 = permute(%x) {perm=[0,1]} : f32[T,8]", None),
        ("  %0 = concat(%x) {axis=1} : f32[T,8]", None),
        (number(2.0) + "  %0 = pow(%x, %n) : f32[T,8]", "  %0 = mul(%x, %x) : f32[T,8]"),
        (number(-0.5) + "  %0 = pow(%x, %n) : f32[T,8]", "  %0 = rsqrt(%x) : f32[T,8]"),
        (
            number(3.0) + "  %0 = pow(%x, %n) : f32[T,8]",
            "  %1 = mul(%x, %x) : f32[T,8]\n  %0 = mul(%1, %x) : f32[T,8]",
        ),
        (
            number(4.0) + "  %0 = div(%x, %n) : f32[T,8]",
            number(0.25) + "  %0 = mul(%x, %n) : f32[T,8]",
        ),
        (
            number(3.0) + "  %0 = div(%x, %n) : f32[T,8]",
            number(3.0) + "  %0 = div(%x, %n) : f32[T,8]",
        ),
        (
            number(2.5) + "  %0 = sub(%x, %n) : f32[T,8]",
            number(-2.5) + "  %0 = add(%x, %n) : f32[T,8]",
        ),
        (
            "  %1 = sqrt(%y) : f32[T,8]\n  %0 = div(%x, %1) : f32[T,8]",
            "  %1 = rsqrt(%y) : f32[T,8]\n  %0 = mul(%x, %1) : f32[T,8]",
        ),
        (
            "  %1 = reshape(%x) {shape=['T',2,4]} : f32[T,2,4]\n"
            "  %2 = neg(%1) : f32[T,2,4]\n"
            "  %0 = reshape(%2) {shape=['T',8]} : f32[T,8]",
            "  %1 = reshape(%x) {shape=['T',2,4]} : f32[T,2,4]\n"
            "  %2 = neg(%1) : f32[T,2,4]\n"
            "  %0 = reshape(%2) {shape=['T',8]} : f32[T,8]",
        ),
        (
            "  %1 = reshape(%x) {shape=['T',2,4]} : f32[T,2,4]\n"
            "  %0 = reshape(%1) {shape=['T',4,2]} : f32[T,4,2]",
            "  %0 = reshape(%x) {shape=['T',4,2]} : f32[T,4,2]",
        ),
        (
            "  %1 = slice(%x) {axis=1, start=1, stop=8, step=2} : f32[T,4]\n"
            "  %0 = slice(%1) {axis=-1, start=1, stop=3} : f32[T,2]",
            "  %0 = slice(%x) {axis=-1, start=3, stop=6, step=2} : f32[T,2]",
        ),
        (
            "  %1 = concat(%x, %y) {axis=1} : f32[T,16]\n"
            "  %0 = slice(%1) {axis=1, start=8, stop=12} : f32[T,4]",
            "  %0 = slice(%y) {axis=-1, start=0, stop=4} : f32[T,4]",
        ),
        (
            "  %1 = concat(%x, %y) {axis=1} : f32[T,16]\n"
            "  %0 = slice(%1) {axis=1, start=4, stop=12} : f32[T,8]",
            "  %1 = concat(%x, %y) {axis=-1} : f32[T,16]\n"
            "  %0 = slice(%1) {axis=-1, start=4, stop=12} : f32[T,8]",
        ),
        (
            "  %1 = reshape(%x) {shape=['T',1,8]} : f32[T,1,8]\n"
            "  %0 = permute(%1) {perm=[0,2,1]} : f32[T,8,1]",
            "  %0 = reshape(%x) {shape=['T',8,1]} : f32[T,8,1]",
        ),
        (
            "  %1 = add(%x, %y) : f32[T,8]\n  %2 = add(%y, %x) : f32[T,8]\n"
            "  %0 = mul(%1, %2) : f32[T,8]",
            "  %1 = add(%x, %y) : f32[T,8]\n  %0 = mul(%1, %1) : f32[T,8]",
        ),
    ],
)
def test_before_and_after(check, before, after):
    if after is None:
        check(Canonicalize(), graph_of(before, "%0"), graph_of("", "%x"))
    else:
        check(Canonicalize(), graph_of(before, "%0"), graph_of(after, "%0"))


def test_scalar_arithmetic_is_done_once(check):
    before = """
  %a = const() {value=2.0} : f32[]
  %b = const() {value=3.0} : f32[]
  %c = mul(%a, %b) : f32[]
  %d = neg(%c) : f32[]
  %0 = div(%x, %d) : f32[T,8]"""
    after = number(-6.0) + "  %0 = div(%x, %n) : f32[T,8]"
    check(Canonicalize(), graph_of(before, "%0"), graph_of(after, "%0"))


def test_division_by_a_zero_constant_is_left_to_the_kernel():
    before = """
  %a = const() {value=1.0} : f32[]
  %b = const() {value=0.0} : f32[]
  %c = div(%a, %b) : f32[]
  %0 = mul(%x, %c) : f32[T,8]"""
    graph = parse(graph_of(before, "%0"))
    Canonicalize().run(graph)
    assert graph.nodes[-1].operands[1].op == "reciprocal"


def test_spreading_before_arithmetic_is_needless(check):
    weights = '  @w : f32[1,8] = ""\n'
    wide = "  %1 = broadcast_to(@w) {shape=['T',8]} : f32[T,8]\n  %0 = mul(%1, %x) : f32[T,8]"
    after = "  %0 = mul(@w, %x) : f32[T,8]"
    check(Canonicalize(), graph_of(wide, "%0", weights), graph_of(after, "%0", weights))


def test_spreading_that_shapes_the_result_stays():
    weights = '  @w : f32[1,8] = ""\n  @v : f32[8] = ""\n'
    wide = "  %1 = broadcast_to(@w) {shape=[3,8]} : f32[3,8]\n  %0 = mul(%1, @v) : f32[3,8]"
    graph = parse(graph_of(wide, "%0", weights))
    Canonicalize().run(graph)
    assert [n.op.name for n in graph.nodes] == ["broadcast_to", "mul"]


@pytest.mark.parametrize("bias", ["_", "@b"])
def test_products_read_matrices(check, bias):
    weights = '  @w : f32[4,8] = ""\n' + ('  @b : f32[4] = ""\n' if bias == "@b" else "")
    before = f"""
  %1 = reshape(%x) {{shape=['T',1,8]}} : f32[T,1,8]
  %0 = linear(%1, @w, {bias}) : f32[T,1,4]"""
    after = f"""
  %1 = linear(%x, @w, {bias}) : f32[T,4]
  %0 = reshape(%1) {{shape=['T',1,4]}} : f32[T,1,4]"""
    check(Canonicalize(), graph_of(before, "%0", weights), graph_of(after, "%0", weights))


def test_axes_are_written_one_way():
    g = Graph()
    x, w = g.input("x", parse_type("f32[T,2,8]")), g.weight("w", parse_type("f32[8]"))
    g.outputs = [
        g.add("mean", x, axis=2), g.add("mean", x, axis=-2), g.add("concat", w, w, axis=-1),
    ]  # fmt: skip
    Canonicalize().run(g)
    assert [n.attrs["axis"] for n in g.nodes] == [-1, 1, 0]


def test_dead_nodes_and_weights_go():
    g = Graph()
    x = g.input("x", parse_type("f32[T,8]"))
    g.add("mul", x, g.weight("w", parse_type("f32[8]")))
    g.outputs = [g.add("neg", x)]
    Canonicalize().run(g)
    assert (len(g.nodes), g.weights) == (1, {})


def test_attention_is_never_shared():
    g = Graph()
    x = g.input("x", parse_type("f32[T,2,8]"))
    g.outputs = [g.add("attention", x, x, x, None, layer=0, scale=1.0) for _ in range(2)]
    Canonicalize().run(g)
    assert len(g.nodes) == 2


def test_canonical_is_a_fixpoint():
    text = graph_of(
        number(2.0) + "  %1 = pow(%x, %n) : f32[T,8]\n  %0 = sub(%1, %n) : f32[T,8]", "%0"
    )
    graph = parse(text)
    Canonicalize().run(graph)
    once = print_graph(graph)
    assert Canonicalize().run(graph).matches == 0
    assert print_graph(graph) == once
