"""Packing keeps every weight as it is, and sizes are known before the data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rusteeze.codegen.cpu.tiles import TILE, TileLayout, pack, tile_format, unpack
from rusteeze.codegen.statics import PADDING, Layout, Statics
from rusteeze.ir import Graph, TensorType, Value
from rusteeze.ir.types import DType
from rusteeze.weights import Affine, Codebook, Dense, Float8, Weight, parse_format
from rusteeze.weights.e4m3 import NAN_CODE

MANY = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
GROUPS = (16, 32, 64, 128, 256)
SCALES = {"f16": np.float16, "f32": np.float32}
ROWS = st.integers(1, 50)
STACKS = st.sampled_from(((), (1,), (3,)))


def rng_of(draw: st.DrawFn) -> np.random.Generator:
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


@st.composite
def dense_weights(draw: st.DrawFn) -> Dense:
    shape = (*draw(STACKS), draw(ROWS), draw(st.integers(1, 40)))
    values = rng_of(draw).standard_normal(shape, np.float32)
    return Dense(values, "f32").converted(draw(st.sampled_from(("f32", "f16", "bf16"))))


@st.composite
def affine_weights(draw: st.DrawFn) -> Affine:
    bits, group, rng = draw(st.integers(1, 8)), draw(st.sampled_from(GROUPS)), rng_of(draw)
    groups = (*draw(STACKS), draw(ROWS), draw(st.integers(1, 3)))
    codes = rng.integers(0, 1 << bits, (*groups[:-1], groups[-1] * group), np.uint8)
    dtype = SCALES[draw(st.sampled_from(("f16", "f32")))]
    scale = rng.standard_normal(groups).astype(dtype)
    if draw(st.booleans()):
        return Affine(bits, group, codes, scale, rng.standard_normal(groups).astype(dtype))
    return Affine(bits, group, codes, scale, zero=draw(st.integers(0, (1 << bits) - 1)))


@st.composite
def codebook_weights(draw: st.DrawFn) -> Codebook:
    group, rng = draw(st.sampled_from(GROUPS)), rng_of(draw)
    groups = (*draw(STACKS), draw(ROWS), draw(st.integers(1, 3)))
    codes = rng.integers(0, 16, (*groups[:-1], groups[-1] * group), np.uint8)
    dtype = SCALES[draw(st.sampled_from(("f16", "f32")))]
    table = rng.standard_normal(16).astype(np.float32)
    if draw(st.booleans()):
        table = rng.integers(-128, 128, 16).astype(np.float32)
    return Codebook(group, codes, table, rng.standard_normal(groups).astype(dtype))


@st.composite
def float8_weights(draw: st.DrawFn) -> Float8:
    group, rng = 4 * draw(st.integers(1, 20)), rng_of(draw)
    groups = (*draw(STACKS), draw(ROWS), draw(st.integers(1, 3)))
    codes = rng.integers(0, NAN_CODE, (*groups[:-1], groups[-1] * group), np.uint8)
    codes |= rng.integers(0, 2, codes.shape, np.uint8) << 7
    return Float8(group, codes, rng.standard_normal(groups).astype(np.float32))


WEIGHTS = st.one_of(dense_weights(), affine_weights(), codebook_weights(), float8_weights())


def layout_of(weight: Weight) -> TileLayout:
    return TileLayout(tile_format(weight.layout), *weight.shape[-2:])


def parts(weight: Weight) -> dict[str, object]:
    """Everything that makes a weight what it is."""
    names = ("values", "dtype", "bits", "group", "codes", "scale", "minimum", "zero", "table")
    return {n: getattr(weight, n) for n in names if getattr(weight, n, None) is not None}


def assert_equal(found: Weight, wanted: Weight) -> None:
    assert parts(found).keys() == parts(wanted).keys()
    for name, value in parts(wanted).items():
        np.testing.assert_array_equal(parts(found)[name], value)
        assert np.asarray(parts(found)[name]).dtype == np.asarray(value).dtype


def restored(weight: Weight) -> list[Weight]:
    """What ``unpack`` makes of the packed matrix, or of each matrix of a packed stack."""
    layout = layout_of(weight)
    table = weight.table if isinstance(weight, Codebook) else None
    data = pack(weight).reshape(-1, layout.bytes)
    return [unpack(row, layout, table) for row in data]


@MANY
@given(WEIGHTS)
def test_unpacking_undoes_packing(weight):
    matrices = [weight.expert(e) for e in range(weight.shape[0])] if len(weight.shape) == 3 else [weight]
    for found, wanted in zip(restored(weight), matrices, strict=True):
        assert_equal(found, wanted)


@MANY
@given(WEIGHTS)
def test_packed_data_is_bytes_of_the_size_that_the_layout_says(weight):
    data, layout = pack(weight), layout_of(weight)
    assert data.dtype == np.uint8
    assert data.nbytes == layout.bytes * math.prod(weight.shape[:-2])
    assert layout.bytes == layout.num_tiles * layout.tile_bytes
    assert layout.num_tiles * TILE - weight.shape[-2] in range(TILE)


@MANY
@given(WEIGHTS)
def test_missing_rows_are_zeros(weight):
    """Kernels compute them beside the others: nothing may become inf or NaN there."""
    layout = layout_of(weight)
    full = TileLayout(layout.format, layout.num_tiles * TILE, layout.k)
    table = weight.table if isinstance(weight, Codebook) else None
    for row in pack(weight).reshape(-1, layout.bytes):
        assert not unpack(row, full, table).to_f32()[layout.n :].any()


@MANY
@given(dense_weights(), st.sampled_from(("f64", "i32")))
def test_other_element_types_are_packed_as_f32(weight, dtype):
    values = np.rint(weight.to_f32() * 8).astype({"f64": np.float64, "i32": np.int32}[dtype])
    for found, wanted in zip(restored(Dense(values, dtype)), values.reshape(-1, *values.shape[-2:]), strict=True):
        assert found.format == "f32"
        np.testing.assert_array_equal(found.to_f32(), wanted)


def declared(weight: Weight, name: str = "w") -> Value:
    return Graph().weight(name, TensorType(DType.f32, weight.shape), weight.format)


@MANY
@given(WEIGHTS)
def test_entries_have_the_size_that_was_promised(weight):
    layouts: list[Layout] = ["tiles", "rows"]
    if len(weight.shape) == 2 and weight.shape[0] % 2 == 0:
        layouts.append("halves")
    if isinstance(weight, Codebook):
        layouts.append("table")
    statics, value = Statics(), declared(weight)
    for layout in layouts:
        name = statics.name(value, layout)
        data = statics.data(name, {"w": weight}.__getitem__)
        assert data.dtype == np.uint8
        assert data.nbytes == statics.nbytes(name)
        assert data.nbytes % PADDING == 0


@MANY
@given(WEIGHTS)
def test_rows_are_plain_numbers(weight):
    statics = Statics()
    data = statics.data(statics.name(declared(weight), "rows"), {"w": weight}.__getitem__)
    values = data.view(np.float32)[: math.prod(weight.shape)].reshape(weight.shape)
    np.testing.assert_array_equal(values, weight.to_f32())


@MANY
@given(st.one_of(dense_weights(), affine_weights(), codebook_weights()), st.integers(1, 20))
def test_halves_are_the_tiles_of_either_half(weight, rows):
    if len(weight.shape) == 3:
        weight = weight.expert(0)
    weight = weight.rows(np.arange(2 * rows) % weight.shape[0])
    statics = Statics()
    data = statics.data(statics.name(declared(weight), "halves"), {"w": weight}.__getitem__)
    ends = (pack(weight.rows(slice(0, rows))), pack(weight.rows(slice(rows, None))))
    np.testing.assert_array_equal(data[: sum(e.nbytes for e in ends)], np.concatenate(ends))


@MANY
@given(affine_weights(), st.data())
def test_joined_and_cut_rows_stay_in_their_format(weight, data):
    """Static values that the graph makes of weights are packed without passing through floats."""
    if len(weight.shape) == 3:
        weight = weight.expert(0)
    n, k = weight.shape
    start = data.draw(st.integers(0, 2 * n - 1))
    graph = Graph()
    w = graph.weight("w", TensorType(DType.f32, (n, k)), weight.format)
    cut = graph.add("slice", graph.add("concat", w, w, axis=0), axis=0, start=start, stop=2 * n)
    statics = Statics()
    packed = statics.data(statics.name(cut, "tiles"), {"w": weight}.__getitem__)
    layout = TileLayout(weight.layout, 2 * n - start, k)
    found = unpack(packed[: layout.bytes], layout)
    assert_equal(found, weight.rows(np.arange(start, 2 * n) % n))


def test_equal_names_of_different_values_are_kept_apart():
    graph, statics = Graph(), Statics()
    w = graph.weight("w", TensorType(DType.f32, (4, 4)), "f32")
    ends = [graph.add("slice", w, axis=0, start=s, stop=s + 2) for s in (0, 2)]
    names = [statics.name(v, "rows") for v in (w, *ends)]
    assert len(set(names)) == 3
    assert names == [statics.name(v, "rows") for v in (w, *ends)]
    values = np.arange(16, dtype=np.float32).reshape(4, 4)
    rows = [statics.data(n, {"w": Dense(values, "f32")}.__getitem__).view(np.float32) for n in names]
    assert [r[0] for r in rows] == [0, 0, 8]


@pytest.mark.parametrize(
    ("name", "k", "bits"),
    [
        ("affine1g32s-f32", 32, 1), ("affine2g16m-f16", 16, 2), ("affine3g32s5-f16", 32, 3),
        ("affine5g64m-f32", 64, 5), ("affine6g16s-f32", 48, 6), ("affine7g32m-f16", 32, 7),
        ("affine8g256m-f16", 256, 8), ("codebook4g64-f32", 64, 4), ("float8g128-f32", 128, 8),
        ("affine3g16s-f16", 32, 3), ("affine3g16s-f16", 48, 4),  # groups of 16 are stored in pairs
        ("affine5g24s-f16", 48, 8), ("affine1g16m-f16", 16, 2), ("affine2g8m-f16", 16, 2),
    ],
)  # fmt: skip
def test_codes_take_their_own_width_where_groups_fill_vectors(name, k, bits):
    f = parse_format(name)
    layout = TileLayout(f, 16, k)
    scales = 16 * (2 if f.dtype == "f16" else 4) * (2 if f.family == "affine" and not f.symmetric else 1)
    assert layout.code_bits == bits
    assert layout.tile_bytes == layout.bytes == 2 * k * bits + scales * (k // f.group)
