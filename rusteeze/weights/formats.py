"""Names of weight formats: all that code generation must know of a weight except its numbers.

``f32 f16 bf16 …`` are plain arrays. ``affine4g32m-f16`` is four-bit codes in groups of 32 with a
minimum per group and f16 scales; ``affine8g32s-f16`` has no minimum but one zero point for the whole
weight, 2**(bits-1) unless the name says otherwise (``affine2g256s1-f16``). ``codebook4g32-f32`` looks
its codes up in a table of 16 values, ``codebook4g32i-f32`` in one of integers that fit into int8;
with a ``t`` (``codebook4g32it-f32``) it is stored transposed, in groups along its last axis but one.
``float8g128-f32`` is e4m3 numbers in groups of 128.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

DENSE_DTYPES = {
    "f32": "float32", "f16": "float16", "bf16": "uint16", "f64": "float64",
    "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
}  # fmt: skip
"""numpy element type that holds each dense element type; bf16 is held as its bits."""

SCALE_DTYPES = {"f16": "float16", "f32": "float32"}


@dataclass(frozen=True)
class Format:
    """A parsed format name.

    ``family`` is "dense", "affine", "codebook" or "float8"; ``dtype`` is the element type of a dense
    weight and the type of the scales otherwise. ``group`` counts elements along K that share a scale (0:
    dense). ``symmetric`` affine weights are scale * (code - zero), the others scale * code + minimum.
    ``integral`` codebooks hold integers of -128 .. 127, ``transposed`` ones have their last axes swapped.
    """

    family: str
    dtype: str
    bits: int
    group: int = 0
    symmetric: bool = False
    zero: int = 0
    integral: bool = False
    transposed: bool = False

    def __str__(self) -> str:
        if self.family == "dense":
            return self.dtype
        if self.family == "codebook":
            marks = "i" * self.integral + "t" * self.transposed
            return f"codebook{self.bits}g{self.group}{marks}-{self.dtype}"
        if self.family == "float8":
            return f"float8g{self.group}-{self.dtype}"
        if not self.symmetric:
            return f"affine{self.bits}g{self.group}m-{self.dtype}"
        zero = "" if self.zero == 1 << (self.bits - 1) else str(self.zero)
        return f"affine{self.bits}g{self.group}s{zero}-{self.dtype}"


_AFFINE = re.compile(r"affine([1-8])g([1-9]\d*)(?:m|(s)(\d*))-(f16|f32)")
_CODEBOOK = re.compile(r"codebook4g([1-9]\d*)(i?)(t?)-(f16|f32)")
_FLOAT8 = re.compile(r"float8g([1-9]\d*)-(f32)")
_DENSE_BITS = re.compile(r"[a-z]+(\d+)")


def dense_format(dtype: str) -> Format:
    """The format of a plain array. ValueError for an element type that weights never have."""
    if dtype not in DENSE_DTYPES:
        raise ValueError(f"{dtype!r} is no element type of weights: {', '.join(DENSE_DTYPES)}")
    bits = _DENSE_BITS.fullmatch(dtype)
    assert bits is not None
    return Format("dense", dtype, int(bits[1]))


def parse_format(text: str) -> Format:
    """Inverse of ``str(Format)``. ValueError when the text names no format."""
    if text in DENSE_DTYPES:
        return dense_format(text)
    if m := _AFFINE.fullmatch(text):
        bits, symmetric = int(m[1]), m[3] is not None
        zero = 0 if not symmetric else int(m[4]) if m[4] else 1 << (bits - 1)
        return Format("affine", m[5], bits, int(m[2]), symmetric, zero)
    if m := _CODEBOOK.fullmatch(text):
        return Format("codebook", m[4], 4, int(m[1]), integral=m[2] == "i", transposed=m[3] == "t")
    if m := _FLOAT8.fullmatch(text):
        return Format("float8", m[2], 8, int(m[1]))
    raise ValueError(f"{text!r} is no weight format; one is e.g. f16 or affine4g32s-f16")
