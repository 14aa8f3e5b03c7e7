"""GGUF block types decoded into weight families, bit for bit.

A row of K elements is stored as K / elements blocks, each holding its scales and codes; blocks never
span rows. Sub-scales are multiplied out, in float32 where float16 would round. Layouts: ggml-quants.c
of llama.cpp, and the dequantisers of the gguf package, against which the tests compare every type.
The types whose values come from tables of points are in gguf_grids.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T
from gguf.quants import IQ4_NL, MXFP4, NVFP4

from rusteeze.frontend.checkpoint_errors import CheckpointError
from rusteeze.frontend.gguf_grids import GRID_GROUPS, decode_grid
from rusteeze.weights import Affine, Codebook, Dense, Format, Weight, dense_format

Array = np.ndarray  # `blocks` below is uint8 [M, bytes of a block]

_DENSE = {
    T.F32: "f32", T.F16: "f16", T.BF16: "bf16", T.F64: "f64",
    T.I8: "i8", T.I16: "i16", T.I32: "i32", T.I64: "i64",
}  # fmt: skip

_FORMATS = {
    T.Q4_0: Format("affine", "f16", 4, 32, True, 8),
    T.Q4_1: Format("affine", "f16", 4, 32),
    T.Q5_0: Format("affine", "f16", 5, 32, True, 16),
    T.Q5_1: Format("affine", "f16", 5, 32),
    T.Q8_0: Format("affine", "f16", 8, 32, True, 128),
    T.Q2_K: Format("affine", "f32", 2, 16),
    T.Q3_K: Format("affine", "f32", 3, 16, True, 4),
    T.Q4_K: Format("affine", "f32", 4, 32),
    T.Q5_K: Format("affine", "f32", 5, 32),
    T.Q6_K: Format("affine", "f32", 6, 16, True, 32),
    T.TQ1_0: Format("affine", "f16", 2, 256, True, 1),
    T.TQ2_0: Format("affine", "f16", 2, 256, True, 1),
    T.IQ4_NL: Format("codebook", "f16", 4, 32, integral=True),
    T.IQ4_XS: Format("codebook", "f32", 4, 32, integral=True),
    T.MXFP4: Format("codebook", "f32", 4, 32, integral=True),
    T.NVFP4: Format("codebook", "f32", 4, 16, integral=True),
    **{type: Format("affine", "f32", 8, group, True, 128) for type, group in GRID_GROUPS.items()},
}


def format_of_type(type: T) -> Format:
    """The format that weights of a GGUF type decode to. CheckpointError for types that models never
    store (Q8_1 and Q8_K are scratch formats) or that are not known here."""
    if type in _DENSE:
        return dense_format(_DENSE[type])
    if type not in _FORMATS:
        raise CheckpointError(f"weights of GGUF type {type.name} are not supported; use another quantisation")
    return _FORMATS[type]


def decode(data: Array, type: T) -> Weight:
    """Weight of the stored bytes uint8 [..., bytes of a row]; plain types stay a view of them."""
    layout = format_of_type(type)
    if layout.family == "dense":
        return Dense(data.view(_STORED[layout.dtype]), layout.dtype)
    _, size = GGML_QUANT_SIZES[type]
    rows = data.shape[:-1]
    blocks = data.reshape(-1, size)
    codes, *scales = decode_grid(blocks, type) if type in GRID_GROUPS else _DECODERS[type](blocks)
    codes = codes.reshape(*rows, -1)
    scale, *rest = (s.reshape(*rows, codes.shape[-1] // layout.group) for s in scales)
    if layout.family == "codebook":
        return Codebook(layout.group, codes, _TABLES[type], scale)
    return Affine(layout.bits, layout.group, codes, scale, rest[0] if rest else None, layout.zero)


_STORED = {
    "f32": "<f4", "f16": "<f2", "bf16": "<u2", "f64": "<f8", "i8": "i1", "i16": "<i2", "i32": "<i4",
    "i64": "<i8",
}  # fmt: skip
_TABLES = {
    T.IQ4_NL: np.array(IQ4_NL.kvalues, np.float32), T.IQ4_XS: np.array(IQ4_NL.kvalues, np.float32),
    T.MXFP4: np.array(MXFP4.kvalues, np.float32), T.NVFP4: np.array(NVFP4.kvalues, np.float32),
}  # fmt: skip


def _f16(blocks: Array, start: int) -> Array:
    """The f16 of each block at that byte: [M, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2")


def _f32(blocks: Array, start: int) -> Array:
    return _f16(blocks, start).astype(np.float32)


def _fields(packed: Array, bits: int, run: int) -> Array:
    """Bit fields of bytes uint8 [M, B]: each run of bytes gives its lowest fields, then the next."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = packed.reshape(len(packed), -1, 1, run) >> shifts & np.uint8((1 << bits) - 1)
    return fields.reshape(len(packed), -1)


def _q4_0(b: Array) -> tuple[Array, ...]:
    return _fields(b[:, 2:], 4, 16), _f16(b, 0)


def _q4_1(b: Array) -> tuple[Array, ...]:
    return _fields(b[:, 4:], 4, 16), _f16(b, 0), _f16(b, 2)


def _fifth_bits(packed: Array) -> Array:
    return np.unpackbits(packed, axis=1, bitorder="little") << 4


def _q5_0(b: Array) -> tuple[Array, ...]:
    return _fields(b[:, 6:], 4, 16) | _fifth_bits(b[:, 2:6]), _f16(b, 0)


def _q5_1(b: Array) -> tuple[Array, ...]:
    return _fields(b[:, 8:], 4, 16) | _fifth_bits(b[:, 4:8]), _f16(b, 0), _f16(b, 2)


def _q8_0(b: Array) -> tuple[Array, ...]:
    return b[:, 2:] ^ np.uint8(0x80), _f16(b, 0)  # two's complement to offset 128


def _q2_k(b: Array) -> tuple[Array, ...]:
    scales, codes = b[:, :16], _fields(b[:, 16:80], 2, 32)
    return codes, _f32(b, 80) * (scales & 15), -(_f32(b, 82) * (scales >> 4))


def _q3_k(b: Array) -> tuple[Array, ...]:
    low, high = b[:, 96:104], b[:, 104:108]
    scales = _fields(low, 4, 8) | _fields(high, 2, 4) << 4
    codes = _fields(b[:, 32:96], 2, 32) | _fields(b[:, :32], 1, 32) << 2
    return codes, _f32(b, 108) * (scales.astype(np.float32) - 32)


def _six_bit_scales(packed: Array) -> tuple[Array, Array]:
    """Eight scales and eight minima of six bits each, out of twelve bytes [M, 12]."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = np.concatenate([first & 63, rest & 15 | first >> 6 << 4], axis=1)
    minimum = np.concatenate([second & 63, rest >> 4 | second >> 6 << 4], axis=1)
    return scale, minimum


def _q4_k(b: Array) -> tuple[Array, ...]:
    scale, minimum = _six_bit_scales(b[:, 4:16])
    return _fields(b[:, 16:], 4, 32), _f32(b, 0) * scale, -(_f32(b, 2) * minimum)


def _q5_k(b: Array) -> tuple[Array, ...]:
    scale, minimum = _six_bit_scales(b[:, 4:16])
    codes = _fields(b[:, 48:], 4, 32) | _fields(b[:, 16:48], 1, 32) << 4
    return codes, _f32(b, 0) * scale, -(_f32(b, 2) * minimum)


def _q6_k(b: Array) -> tuple[Array, ...]:
    codes = _fields(b[:, :128], 4, 64) | _fields(b[:, 128:192], 2, 32) << 4
    return codes, _f32(b, 208) * b[:, 192:208].view(np.int8)


def _trits(packed: Array, count: int, run: int) -> Array:
    """Base-3 digits of bytes, each held as a fraction of 256, most significant digit first."""
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:count, None]
    digits = packed.reshape(len(packed), -1, 1, run) * powers  # wraps at 256 on purpose
    return (digits.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(packed), -1)


def _tq1_0(b: Array) -> tuple[Array, ...]:
    parts = _trits(b[:, :32], 5, 32), _trits(b[:, 32:48], 5, 16), _trits(b[:, 48:52], 4, 4)
    return np.concatenate(parts, axis=1), _f16(b, 52)


def _tq2_0(b: Array) -> tuple[Array, ...]:
    return _fields(b[:, :64], 2, 32), _f16(b, 64)


def _iq4_xs(b: Array) -> tuple[Array, ...]:
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    high = np.ascontiguousarray(b[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = (low | high.astype(np.uint8) << 4).astype(np.float32) - 32
    return _fields(b[:, 8:], 4, 16), _f32(b, 0) * scales


def _mxfp4(b: Array) -> tuple[Array, ...]:
    """The scale byte is a power of two, 2**(e-127); halved because the table holds doubled values."""
    return _fields(b[:, 1:], 4, 16), np.ldexp(np.float32(1), b[:, :1].astype(np.int32) - 128)


def _nvfp4(b: Array) -> tuple[Array, ...]:
    """Scales are unsigned e4m3, again halved; 0x7f would be NaN and counts as nothing."""
    bits = b[:, :4]
    exponent, mantissa = (bits >> 3 & 15).astype(np.int32), (bits & 7).astype(np.float32)
    significand = np.where(exponent == 0, mantissa, mantissa + 8)
    scale = np.ldexp(significand, np.maximum(exponent, 1) - 11).astype(np.float32)
    return _fields(b[:, 4:], 4, 8), np.where(bits == 0x7F, np.float32(0), scale)


_DECODERS: dict[T, Callable[[Array], tuple[Array, ...]]] = {
    T.Q4_0: _q4_0, T.Q4_1: _q4_1, T.Q5_0: _q5_0, T.Q5_1: _q5_1, T.Q8_0: _q8_0, T.Q2_K: _q2_k,
    T.Q3_K: _q3_k, T.Q4_K: _q4_k, T.Q5_K: _q5_k, T.Q6_K: _q6_k, T.TQ1_0: _tq1_0, T.TQ2_0: _tq2_0,
    T.IQ4_NL: _q4_0, T.IQ4_XS: _iq4_xs, T.MXFP4: _mxfp4, T.NVFP4: _nvfp4,
}  # fmt: skip
