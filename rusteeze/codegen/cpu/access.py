"""How a kernel addresses an operand: element strides per row (token) and per inner axis.

Where the operand begins is the plan's business; a kernel only depends on strides, so that layers share
kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rusteeze.codegen.cpu.emit import Buffer, Emitter, Expr, convert, i32, splat

PHYSICAL = {"f32": "float32", "i32": "int32", "bool": "int32", "f16": "float16", "u8": "uint8", "i8": "int8"}


@dataclass(frozen=True)
class Access:
    """``row`` is 0 for what does not depend on the token; a stride of 0 repeats along that axis."""

    dtype: str  # IR element type
    row: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        step = 1
        for d, s in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if d != 1 and s != step:
                return False
            step *= d
        return True

    def aligned_to(self, shape: Sequence[int]) -> Access:
        """The same operand as seen from a result of ``shape`` (numpy's broadcasting)."""
        pad = len(shape) - len(self.shape)
        dims = (1,) * pad + self.shape
        steps = (0,) * pad + self.strides
        strides = tuple(0 if d == 1 else s for d, s in zip(dims, steps, strict=True))
        return Access(self.dtype, self.row, tuple(shape), strides)

    def index(self, row: Expr, position: Sequence[Expr | int]) -> Expr:
        out = row * i32(self.row) if self.row else i32(0)
        for p, s in zip(position, self.strides, strict=True):
            if s:
                out = out + (i32(p) if isinstance(p, int) else p) * i32(s)
        return out

    def key(self) -> str:
        return f"{self.dtype}:{self.row}:{self.shape}:{self.strides}"


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
        at = k.let(self.access.index(row, position))
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
        k.store(self.buffer, k.let(self.access.index(row, position)), value)


