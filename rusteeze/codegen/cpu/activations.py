"""Activations as matmul kernels read them.

    f32     rows of float32
    q8      int8 groups of 32: codes int8 [rows, K], and per group a *header* of 8 words:
            [0] scale  [1] scale*sum  [2] scale*sum of the first 16  [3] of the last 16   (float32)
            [4] sum    [5] sum of the first 16   [6] of the last 16                       (int32)
            (the sums are of the int8 codes; they pay for zero points and minima)
    bf16    rows of bf16, read as 32-bit pairs

The last two are what the IR op ``quantize`` gives; its meaning is in rusteeze.ir.ops.linear.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from rusteeze.codegen.cpu.emit import (
    LANES,
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
"""Elements that are rounded together; K is a multiple of it."""
HEADER = 8


def row_bytes(kind: str, columns: int) -> tuple[int, ...]:
    """Bytes per row of each array that holds rounded rows."""
    if kind == "bf16":
        return (2 * columns,)
    return columns, columns // GROUP * HEADER * 4


@dataclass
class RoundedRows:
    """Where rounded rows go, as the kernel's next argument(s)."""

    kind: str
    columns: int
    codes: Buffer
    header: Buffer | None = None
    header_int: Buffer | None = None

    @staticmethod
    def argument(k: Emitter, kind: str, columns: int) -> RoundedRows:
        if kind == "bf16":
            return RoundedRows(kind, columns, k.pointer("int32"))
        codes, header = k.pointer("int8"), k.pointer("float32")
        return RoundedRows(kind, columns, codes, header, k.offset(header, i32(0), 0, "int32"))

    def store_group(self, k: Emitter, a: Expr, b: Expr, row: Expr, group: Expr) -> None:
        """Round 32 floats (two vectors) into a row's group."""
        if self.kind == "bf16":
            at = k.let(row * i32(self.columns // 2) + group * i32(GROUP // 2))
            for half, x in enumerate((a, b)):
                words = tirx.call_pure_extern("int32x8", "rz_pack_bf16", x)
                k.store(self.codes, at + i32(LANES // 2 * half), words)
        else:
            self._store_q8(k, a, b, row, group)

    def _store_q8(self, k: Emitter, a: Expr, b: Expr, row: Expr, group: Expr) -> None:
        assert self.header is not None
        assert self.header_int is not None
        top = k.let(reduce_max(maximum(intrinsic("fabs", a), intrinsic("fabs", b))))
        inverse = k.let(select(top > f32(0), f32(127) / top, f32(0)))
        scale = k.let(top * f32(1 / 127))
        codes = [_code(k, x, inverse) for x in (a, b)]
        at = k.let(row * i32(self.columns) + group * i32(GROUP))
        for half, c in enumerate(codes):
            k.store(self.codes, at + i32(LANES * half), convert(c, "int8"))
        sums = [k.let(reduce_add_int(c)) for c in codes]
        header = k.let((row * i32(self.columns // GROUP) + group) * i32(HEADER))
        k.store(self.header, header, scale)
        for slot, value in enumerate((k.let(sums[0] + sums[1]), *sums)):
            k.store(self.header, header + i32(1 + slot), scale * convert(value, "float32"))
            k.store(self.header_int, header + i32(4 + slot), value)


def _code(k: Emitter, x: Expr, inverse: Expr) -> Expr:
    return k.let(convert(intrinsic("nearbyint", x * splat(inverse, LANES)), "int32"))
