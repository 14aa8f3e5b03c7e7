from __future__ import annotations

import pytest

from rusteeze.ir import Graph, parse_type
from rusteeze.ir.storage import is_quantized, rounding_for, stored_format

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


def test_a_weight_that_is_stored_transposed_keeps_its_codes_when_it_is_turned_back():
    g = Graph()
    w = g.weight("w", parse_type("f32[2,64,64]"), "codebook4g32it-f32")
    assert stored_format(g.add("permute", w, perm=(0, 2, 1))) == "codebook4g32i-f32"
    assert stored_format(g.add("permute", w, perm=(2, 0, 1))) == "f32"
    assert stored_format(g.add("slice", w, axis=0, start=0, stop=1)) == "f32"


@pytest.mark.parametrize(
    ("format", "rounding"),
    [
        ("affine3g32m-f16", "int8"), ("codebook4g32i-f16", "int8"), ("codebook4g32it-f32", "int8"),
        ("codebook4g64-f32", None), ("float8g128-f32", "bf16"), ("bf16", "bf16"), ("f16", None),
    ],
)  # fmt: skip
def test_roundings(format, rounding):
    assert rounding_for(format) == rounding


@pytest.mark.parametrize(
    ("format", "quantized"),
    [("affine8g32s-f16", True), ("codebook4g32-f32", True), ("float8g64-f32", True), ("bf16", False), ("", False)],
)
def test_quantized_formats(format, quantized):
    assert is_quantized(format) is quantized
