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

from rusteeze.codegen.cpu.emit import LANES, Buffer, Emitter, Expr, i32

GROUP = 32
"""Elements that are rounded together; K is a multiple of it."""
HEADER = 8


CACHE_LINE = 64


def row_bytes(kind: str, columns: int) -> tuple[int, ...]:
    """Bytes from one row to the next in each array that holds rounded rows. Where rows lay a multiple of
    8 lines apart, the rows of a block would compete for a few sets of the first-level cache (all for one
    at 4096 columns), so these lie a line further apart."""
    sizes = (2 * columns,) if kind == "bf16" else (columns, columns // GROUP * HEADER * 4)
    return tuple(size + CACHE_LINE if size % (8 * CACHE_LINE) == 0 else size for size in sizes)


@dataclass
class RoundedRows:
    """Where rounded rows go, as the kernel's next argument(s)."""

    kind: str
    columns: int
    codes: Buffer
    header: Buffer | None = None

    @staticmethod
    def argument(k: Emitter, kind: str, columns: int) -> RoundedRows:
        if kind == "bf16":
            return RoundedRows(kind, columns, k.pointer("int32"))
        return RoundedRows(kind, columns, k.pointer("int8"), k.pointer("float32"))

    def store_group(self, k: Emitter, a: Expr, b: Expr, row: Expr, group: Expr) -> None:
        """Round 32 floats (two vectors) into a row's group."""
        if self.kind == "bf16":
            (apart,) = row_bytes(self.kind, self.columns)
            at = k.let(row * i32(apart // 4) + group * i32(GROUP // 2))
            for half, x in enumerate((a, b)):
                words = tirx.call_pure_extern("int32x8", "rz_pack_bf16", x)
                k.store(self.codes, at + i32(LANES // 2 * half), words)
        else:
            self._store_q8(k, a, b, row, group)

    def _store_q8(self, k: Emitter, a: Expr, b: Expr, row: Expr, group: Expr) -> None:
        assert self.header is not None
        apart, headers_apart = row_bytes(self.kind, self.columns)
        codes = k.address(self.codes, row * i32(apart) + group * i32(GROUP))
        at = row * i32(headers_apart // 4) + group * i32(HEADER)
        k.call("rz_quantize32", a, b, codes, k.address(self.header, at))
