from __future__ import annotations

import pytest

from rusteeze.ir import Graph, parse, parse_type, print_graph
from rusteeze.ir.text import ParseError

TEXT = """graph @main(%x: f32[T,8], %rows: i32[R]) {
  @layers.0.w : f32[16,8] = "affine4g32m-f16"
  %0 = fused(%x, @layers.0.w) {anchor='linear'} : f32[T,8] @body(%x0: f32[T,8], %x1: f32[16,8]) {
    %0 = linear(%x0, %x1, _) : f32[T,16]  # layers.0.up
    %1 = slice(%0) {axis=-1, start=0, stop=8} : f32[T,8]
    return %1
  }  # layers.0
  %1, %2 = topk(%0) {k=2} : f32[T,2], i32[T,2]
  %3 = reshape(%1) {shape=['T',2,1]} : f32[T,2,1]
  %4 = clamp(%3) {max=1e999} : f32[T,2,1]
  %5 = gather_rows(%4, %rows) : f32[R,2,1]
  return %5, %2
}
"""


def test_print_is_the_inverse_of_parse():
    assert print_graph(parse(TEXT)) == TEXT
    assert parse(print_graph(parse(TEXT))) == parse(TEXT)


def test_names_and_blank_lines_do_not_matter():
    loose = TEXT.replace("%3", "%number").replace("return %5", "\n  # a remark\n  return %5")
    assert print_graph(parse(loose)) == TEXT


def test_a_graph_without_operands():
    g = Graph("empty")
    g.outputs = [g.add("const", value=1.5)]
    assert parse(print_graph(g)) == g


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("graph @main", "graf @main", "line 1: expected a graph"),
        ("(%1) {shape", "(%9) {shape", "line 9: %9 is not defined"),
        ("topk(%0) {k=2}", "topk(%0) {k=9}", "line 8: topk.*top 9 of 8"),
        ("topk(%0) {k=2}", "topk(%0) {j=2}", "line 8: topk has no attribute j"),
        (": f32[R,2,1]\n", ": f32[T,2,1]\n", "line 11: gather_rows gives"),
        ("%1, %2 = topk", "%1 = topk", "line 8: topk has 2 results, not 1"),
        ("clamp(%3)", "clamp %3", "line 10: cannot read"),
        ("clamp(%3) {max=1e999}", "clamp(%3) {max=print(1)}", "line 10"),
        ("  return %5, %2\n}\n", "", "unexpected end of text"),
        ("f32[T,8], %rows", "f32[Q,8], %rows", "line 1: unknown dimension 'Q'"),
    ],
)
def test_errors_name_the_line(old, new, complaint):
    assert old in TEXT
    with pytest.raises(ParseError, match=complaint):
        parse(TEXT.replace(old, new))


@pytest.mark.parametrize("text", ["f32[T,9,64]", "bool[]", "bf16[R]"])
def test_types(text):
    assert str(parse_type(text)) == text


@pytest.mark.parametrize("text", ["f64[2]", "f32", "f32[x]", "f32[2"])
def test_what_is_no_type(text):
    with pytest.raises(ValueError, match=r"not a tensor type|unknown dimension"):
        parse_type(text)
