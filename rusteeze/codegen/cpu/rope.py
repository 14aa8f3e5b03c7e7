"""Rotary position embedding: as a kernel for queries, and on the fly where keys go into the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from rusteeze.codegen.cpu.access import Access, Operand
from rusteeze.codegen.cpu.emit import STEP_TOKENS, Emitter, Expr, fma, i32, select


@dataclass(frozen=True)
class Rotation:
    """Attributes of the IR op ``rope``; the tables [P, width/2] are looked up by position in the kernel."""

    style: str
    width: int
    at_end: bool
    table_row: int  # elements per row of the tables

    def label(self) -> str:
        return f"{self.style}{self.width}{'e' if self.at_end else ''}"


Source = Callable[[Expr, Expr, Expr], Expr]
"""(row, head, element) → value"""


def rotated(k: Emitter, source: Access, rotation: Rotation | None) -> Source:
    """Element-wise access to x[T, H, D] or to its rotation. Arguments: x, [positions, cos, sin]."""
    x = Operand.argument(k, source)
    if rotation is None:
        return lambda row, head, d: x.load(k, row, (head, d))
    positions, cos, sin = k.pointer("int32"), k.pointer("float32"), k.pointer("float32")
    half = rotation.width // 2
    start = source.shape[-1] - rotation.width if rotation.at_end else 0

    def value(row: Expr, head: Expr, d: Expr) -> Expr:
        e = k.let(d - i32(start))
        inside = k.let(tirx.all(e >= i32(0), e < i32(rotation.width)))
        e = k.let(select(inside, e, i32(0)))
        # which pair the element belongs to, and whether it is the pair's second half
        if rotation.style == "inter":
            pair, second = k.let(tirx.Div(e, i32(2))), k.let(tirx.EQ(tirx.Mod(e, i32(2)), i32(1)))
        else:
            pair, second = k.let(tirx.Mod(e, i32(half))), k.let(e >= i32(half))
        if rotation.style == "half":
            first_at, second_at = pair, pair + i32(half)
        else:
            first_at, second_at = pair * i32(2), pair * i32(2) + i32(1)
        a = x.load(k, row, (head, first_at + i32(start)))
        b = x.load(k, row, (head, second_at + i32(start)))
        at = k.let(positions[row] * i32(rotation.table_row) + pair)
        c, s = k.let(cos[at]), k.let(sin[at])
        turned = select(second, fma(b, c, a * s), fma(a, c, -(b * s)))
        return k.let(select(inside, turned, x.load(k, row, (head, d))))

    return value


def rope(k: Emitter, source: Access, rotation: Rotation, out: Access) -> None:
    """Arguments: x, positions, cos, sin, output. Rows are shared."""
    value = rotated(k, source, rotation)
    target = Operand.argument(k, out)
    first, count = k.share(k.step(STEP_TOKENS))
    heads, width = source.shape
    with k.loop(count) as n:
        row = k.let(first + n)
        with k.loop(heads) as h, k.loop(width) as d:
            target.store(k, row, (h, d), value(row, h, d))
