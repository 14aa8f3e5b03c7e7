from __future__ import annotations

import pytest

from rusteeze.ir import Graph, parse_type
from rusteeze.ir.storage import is_quantized, stored_format

FOUR_BITS = "affine4g32m-f16"


def weight(g: Graph, name: str, format: str):
    return g.weight(name, parse_type("f32[64,64]"), format)


def test_rows_of_one_format_keep_it():
    g = Graph()
    a, b = weight(g, "a", FOUR_BITS), weight(g, "b", FOUR_BITS)
    joined = g.add("concat", a, b, axis=0)
    assert stored_format(joined) == FOUR_BITS
    assert stored_format(g.add("slice", joined, axis=0, start=3, stop=70)) == FOUR_BITS


def test_rows_by_head_keep_it():
    g = Graph()
    heads = g.add("reshape", weight(g, "a", FOUR_BITS), shape=(4, 16, 64))
    assert stored_format(heads) == FOUR_BITS
    assert stored_format(g.add("slice", heads, axis=1, start=3, stop=9)) == FOUR_BITS
    assert stored_format(g.add("slice", heads, axis=0, start=1, stop=3)) == FOUR_BITS
    assert stored_format(g.add("slice", heads, axis=-1, start=0, stop=32)) == "f32"
    assert stored_format(g.add("permute", heads, perm=(0, 2, 1))) == "f32"
    assert stored_format(g.add("reshape", heads, shape=(32, 128))) == "f32"
    assert stored_format(g.add("concat", heads, heads, axis=0)) == "f32"
    turned = g.add("permute", g.add("reshape", weight(g, "b", "bf16"), shape=(4, 16, 64)), perm=(0, 2, 1))
    assert stored_format(turned) == "bf16"


def test_other_expressions_are_plain():
    g = Graph()
    a, b = weight(g, "a", FOUR_BITS), weight(g, "b", "bf16")
    assert stored_format(g.add("concat", a, b, axis=0)) == "f32"
    assert stored_format(g.add("concat", a, a, axis=1)) == "f32"
    assert stored_format(g.add("permute", a, perm=(1, 0))) == "f32"
    assert stored_format(g.add("permute", b, perm=(1, 0))) == "bf16"
    assert stored_format(g.add("neg", b)) == "f32"


@pytest.mark.parametrize(
    ("format", "quantized"),
    [("affine8g32s-f16", True), ("codebook4g32-f32", True), ("bf16", False), ("", False)],
)
def test_quantized_formats(format, quantized):
    assert is_quantized(format) is quantized
