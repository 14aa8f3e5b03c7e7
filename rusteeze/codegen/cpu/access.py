"""Operands of CPU kernels: an access (codegen/access.py) bound to a kernel's argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rusteeze.codegen.access import Access
from rusteeze.codegen.cpu.emit import Buffer, Emitter, Expr, convert, i32, splat

PHYSICAL = {"f32": "float32", "i32": "int32", "bool": "int32", "f16": "float16", "u8": "uint8", "i8": "int8"}


def element_index(access: Access, row: Expr, position: Sequence[Expr | int]) -> Expr:
    """Which element of its memory a position is."""
    out = row * i32(access.row) if access.row else i32(0)
    for p, s in zip(position, access.strides, strict=True):
        if s:
            out = out + (i32(p) if isinstance(p, int) else p) * i32(s)
    return out


@dataclass
class Operand:
    """An access bound to a kernel argument."""

    access: Access
    buffer: Buffer

    @staticmethod
    def argument(k: Emitter, access: Access) -> Operand:
        return Operand(access, k.pointer(PHYSICAL[access.dtype]))

    def load(self, k: Emitter, row: Expr, position: Sequence[Expr | int], lanes: int = 1) -> Expr:
        """Element(s) at a position; lanes run along the last axis."""
        at = k.let(element_index(self.access, row, position))
        step = self.access.strides[-1] if self.access.strides else 0
        if lanes > 1 and step == 0:
            value = splat(k.let(self.buffer[at]), lanes)
        else:
            value = self.buffer.load(at, lanes, step)
        if self.access.dtype == "f16":
            value = convert(value, "float32")
        return k.let(value)

    def store(self, k: Emitter, row: Expr, position: Sequence[Expr | int], value: Expr) -> None:
        """Write one element, or 16 along the last axis (which must be contiguous)."""
        k.store(self.buffer, k.let(element_index(self.access, row, position)), value)
