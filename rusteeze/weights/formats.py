"""Names of weight formats: all that code generation must know of a weight except its numbers.

``f32 f16 bf16 …`` are plain arrays. ``affine4g32m-f16`` is four-bit codes in groups of 32 with a
minimum per group and f16 scales; ``affine8g32s-f16`` has no minimum but one zero point for the whole
weight, 2**(bits-1) unless the name says otherwise (``affine2g256s1-f16``). ``codebook4g32-f32`` looks
its codes up in a table of 16 values.
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

    ``family`` is "dense", "affine" or "codebook"; ``dtype`` is the element type of a dense weight and
    the type of the scales otherwise. ``group`` counts elements along K that share a scale (0: dense).
    ``symmetric`` weights are scale * (code - zero), the others scale * code + minimum.
    """

    family: str
    dtype: str
    bits: int
    group: int = 0
    symmetric: bool = False
    zero: int = 0

    def __str__(self) -> str:
        if self.family == "dense":
            return self.dtype
        if self.family == "codebook":
            return f"codebook{self.bits}g{self.group}-{self.dtype}"
        if not self.symmetric:
            return f"affine{self.bits}g{self.group}m-{self.dtype}"
        zero = "" if self.zero == 1 << (self.bits - 1) else str(self.zero)
        return f"affine{self.bits}g{self.group}s{zero}-{self.dtype}"


_NAME = re.compile(r"(affine|codebook)([1-8])g([1-9]\d*)(?:(m)|(s)(\d*))?-(f16|f32)")
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
    m = _NAME.fullmatch(text)
    if m is None or (m[1] == "codebook") != (m[4] is None and m[5] is None):
        raise ValueError(f"{text!r} is no weight format; one is e.g. f16 or affine4g32s-f16")
    bits, symmetric = int(m[2]), m[5] is not None
    zero = 0 if not symmetric else int(m[6]) if m[6] else 1 << (bits - 1)
    return Format(m[1], m[7], bits, int(m[3]), symmetric, zero)
