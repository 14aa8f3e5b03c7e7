"""Activations as matmul kernels read them.

    f32     rows of float32
    q8      int8 groups of 32: codes int8 [rows, K], and per group a *header* of 8 words:
            [0] scale  [1] scale*sum  [2] scale*sum of the first 16  [3] of the last 16   (float32)
            [4] sum    [5] sum of the first 16   [6] of the last 16                       (int32)
            (the sums are of the int8 codes; they pay for zero points and minima)
    bf16    rows of bf16, read as 32-bit pairs
"""

from __future__ import annotations

from dataclasses import dataclass

from rusteeze.codegen.cpu.emit import (
    Buffer,
    Emitter,
    Expr,
    convert,
    f32,
    i32,
    intrinsic,
    maximum,
    reduce_add_int,
    reduce_max,
    select,
    splat,
)

GROUP = 32
HEADER = 8


@dataclass
class QuantizedRows:
    """Where quantised rows go: codes, headers as floats and as ints (the same memory)."""

    codes: Buffer
    header: Buffer
    header_int: Buffer
    columns: int

    @staticmethod
    def argument(k: Emitter, columns: int) -> QuantizedRows:
        codes, header = k.pointer("int8"), k.pointer("float32")
        return QuantizedRows(codes, header, k.offset(header, i32(0), 0, "int32"), columns)


def quantize_group(k: Emitter, a: Expr, b: Expr, out: QuantizedRows, row: Expr, group: Expr) -> None:
    """Round 32 floats (two vectors) to int8 with one scale; meaning: rusteeze.ir.ops.linear."""
    top = k.let(reduce_max(maximum(intrinsic("fabs", a), intrinsic("fabs", b))))
    inverse = k.let(select(top > f32(0), f32(127) / top, f32(0)))
    scale = k.let(top * f32(1 / 127))
    codes = [k.let(convert(intrinsic("nearbyint", x * splat(inverse, 16)), "int32")) for x in (a, b)]
    at = k.let(row * i32(out.columns) + group * i32(GROUP))
    for half, c in enumerate(codes):
        k.store(out.codes, at + i32(16 * half), convert(c, "int8"))
    sums = [k.let(reduce_add_int(c)) for c in codes]
    total = k.let(sums[0] + sums[1])
    header = k.let((row * i32(out.columns // GROUP) + group) * i32(HEADER))
    k.store(out.header, header, scale)
    for slot, value in enumerate((total, *sums)):
        k.store(out.header, header + i32(1 + slot), scale * convert(value, "float32"))
        k.store(out.header_int, header + i32(4 + slot), value)
