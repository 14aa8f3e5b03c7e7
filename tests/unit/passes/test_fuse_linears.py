from __future__ import annotations

from rusteeze.ir import parse, verify
from rusteeze.ir.probe import compare_graphs
from rusteeze.passes.fuse_linears import FuseLinears

HEAD = """graph @main(%x: f32[T,8]) {
  @q : f32[8,8] = "f32"
  @k : f32[4,8] = "f32"
  @v : f32[4,8] = "f32"
  @b : f32[4] = ""
"""
TAIL = """  %3 = reshape(%0) {shape=['T',4,2]} : f32[T,4,2]
  %4 = reshape(%1) {shape=['T',2,2]} : f32[T,2,2]
  %5 = reshape(%2) {shape=['T',2,2]} : f32[T,2,2]
  %6 = attention(%3, %4, %5, _) {layer=0, scale=0.5} : f32[T,4,2]
  return %6
}
"""
QKV = """  %0 = linear(%x, @q, _) : f32[T,8]  # attn.q_proj
  %1 = linear(%x, @k, @b) : f32[T,4]  # attn.k_proj
  %2 = linear(%x, @v, _) : f32[T,4]  # attn.v_proj
"""


def test_queries_keys_and_values_in_one_product(check):
    origin = "  # attn.q_proj+k_proj+v_proj"
    after = f"""  %w = concat(@q, @k, @v) {{axis=0}} : f32[16,8]{origin}
  %c = const() {{value=0.0}} : f32[]{origin}
  %z = reshape(%c) {{shape=[1]}} : f32[1]{origin}
  %z1 = broadcast_to(%z) {{shape=[8]}} : f32[8]{origin}
  %z2 = broadcast_to(%z) {{shape=[4]}} : f32[4]{origin}
  %bias = concat(%z1, @b, %z2) {{axis=0}} : f32[16]{origin}
  %y = linear(%x, %w, %bias) : f32[T,16]{origin}
  %0 = slice(%y) {{axis=-1, start=0, stop=8}} : f32[T,8]{origin}
  %1 = slice(%y) {{axis=-1, start=8, stop=12}} : f32[T,4]{origin}
  %2 = slice(%y) {{axis=-1, start=12, stop=16}} : f32[T,4]{origin}
"""
    assert check(FuseLinears(), HEAD + QKV + TAIL, HEAD + after + TAIL).matches == 1


def test_no_bias_without_need():
    graph = parse((HEAD + QKV + TAIL).replace("@k, @b", "@k, _"))
    FuseLinears().run(graph)
    (product,) = [n for n in graph.nodes if n.op.name == "linear"]
    assert product.operands[2] is None


def test_other_formats_stay_apart_and_it_says_why():
    text = (HEAD + QKV + TAIL).replace('@v : f32[4,8] = "f32"', '@v : f32[4,8] = "affine4g32m-f16"')
    graph, before = parse(text), parse(text)
    result = FuseLinears().run(graph)
    verify(graph)
    widths = [n.result.type.shape[-1] for n in graph.nodes if n.op.name == "linear"]
    assert sorted(widths) == [4, 12]
    assert [r.reason for r in result.refusals] == ["weights are stored as affine4g32m-f16 and f32"]
    assert compare_graphs(before, graph) < 1e-6


def test_order_is_kept_when_the_odd_one_is_in_the_middle():
    text = (HEAD + QKV + TAIL).replace('@k : f32[4,8] = "f32"', '@k : f32[4,8] = "bf16"')
    graph = parse(text)
    assert FuseLinears().run(graph).matches == 0


def test_products_for_different_steps_stay_apart():
    text = """graph @main(%x: f32[T,8]) {
  @a : f32[16,8] = ""
  @b : f32[16,8] = ""
  @c : f32[8,16] = ""
  %0 = linear(%x, @a, _) : f32[T,16]
  %1 = linear(%x, @b, _) : f32[T,16]
  %2 = relu(%1) : f32[T,16]
  %3 = linear(%2, @c, _) : f32[T,8]
  return %0, %3
}
"""
    assert FuseLinears().run(parse(text)).matches == 0


def test_computed_matrices_are_no_weights():
    text = """graph @main(%x: f32[T,8], %w: f32[8,8]) {
  %0 = linear(%x, %w, _) : f32[T,8]
  %1 = linear(%x, %w, _) : f32[T,8]
  %2 = glu(%0, %1) : f32[T,8]
  return %2
}
"""
    assert FuseLinears().run(parse(text)).matches == 0


def test_two_layers_do_not_mix():
    layer = """  %{0} = linear(%{4}, @a, _) : f32[T,8]
  %{1} = linear(%{4}, @b, _) : f32[T,8]
  %{2} = glu(%{0}, %{1}) : f32[T,8]
  %{3} = linear(%{2}, @c, _) : f32[T,8]
"""
    head = "graph @main(%x: f32[T,8]) {\n" + "".join(f'  @{n} : f32[8,8] = ""\n' for n in "abc")
    body = layer.format(0, 1, 2, 3, "x") + layer.format(4, 5, 6, 7, 3)
    graph = parse(head + body + "  return %7\n}\n")
    before = graph.copy()
    assert FuseLinears().run(graph).matches == 2
    verify(graph)
    assert compare_graphs(before, graph) < 1e-6
