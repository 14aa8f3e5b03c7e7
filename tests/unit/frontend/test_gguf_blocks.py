"""Every block type against the dequantiser of the gguf package, on random bytes, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rusteeze.frontend.checkpoint_errors import CheckpointError
from rusteeze.frontend.gguf_blocks import decode, format_of_type
from rusteeze.weights import Dense

BLOCKED = [t for t in T if t.name.startswith(("Q", "IQ", "TQ", "MXFP", "NVFP"))]
SCRATCH = [T.Q8_1, T.Q8_K, T.Q1_0]
DECODED = [t for t in BLOCKED if t not in SCRATCH]


def assert_same_bits(got, want):
    want = want.astype(np.float32)
    same = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
    assert got.shape == want.shape
    assert same.all()


def check(data, type):
    with np.errstate(all="ignore"):  # random bytes hold infinite and absent scales
        weight = decode(data, type)
        assert_same_bits(weight.to_f32(), gguf.dequantize(data, type))
    assert weight.format == str(format_of_type(type))


@pytest.mark.parametrize("type", [T.F16, T.BF16, *DECODED], ids=lambda t: t.name)
@pytest.mark.parametrize("lead", [(5,), (2, 3)])
def test_random_blocks(type, lead):
    rng = np.random.default_rng(type.value)
    elements, size = GGML_QUANT_SIZES[type]
    num_blocks = 3 if elements > 1 else 32
    check(rng.integers(0, 256, (*lead, num_blocks * size), dtype=np.uint8), type)


@pytest.mark.parametrize("type", DECODED, ids=lambda t: t.name)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_drawn_blocks(type, data):
    check(data.draw(arrays(np.uint8, (2, GGML_QUANT_SIZES[type][1]))), type)


@pytest.mark.parametrize("byte", [0, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("type", DECODED, ids=lambda t: t.name)
def test_extreme_blocks(type, byte):
    check(np.full((1, GGML_QUANT_SIZES[type][1]), byte, np.uint8), type)


@pytest.mark.parametrize("type", [T.F32, T.F16, T.BF16, T.I8, T.I32, T.F64], ids=lambda t: t.name)
def test_plain_types_are_views(type):
    data = np.arange(64, dtype=np.uint8).reshape(2, 32)
    weight = decode(data, type)
    assert isinstance(weight, Dense)
    assert np.shares_memory(weight.values, data)
    assert weight.shape == (2, 32 // GGML_QUANT_SIZES[type][1])


@pytest.mark.parametrize("type", SCRATCH, ids=lambda t: t.name)
def test_scratch_types_are_refused(type):
    with pytest.raises(CheckpointError, match=type.name):
        format_of_type(type)


def test_common_formats_keep_their_names():
    names = {t.name: str(format_of_type(t)) for t in (T.Q4_0, T.Q4_1, T.Q8_0, T.Q4_K, T.Q6_K, T.IQ4_NL)}
    assert names == {
        "Q4_0": "affine4g32s-f16", "Q4_1": "affine4g32m-f16", "Q8_0": "affine8g32s-f16",
        "Q4_K": "affine4g32m-f32", "Q6_K": "affine6g16s-f32", "IQ4_NL": "codebook4g32i-f16",
    }  # fmt: skip
