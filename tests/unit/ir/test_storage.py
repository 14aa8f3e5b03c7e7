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
