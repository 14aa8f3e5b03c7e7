"""Loads and stores of operands: strided views as pointer expressions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rusteeze.codegen.access import Access
from rusteeze.codegen.gpu.source import Source

STORED = {
    "f32": "tl.float32", "bf16": "tl.bfloat16", "f16": "tl.float16", "i32": "tl.int32", "bool": "tl.int32",
}  # fmt: skip


def offset(access: Access, row: str, position: Sequence[str]) -> str:
    """Which element a position is; ``row`` and the positions are expressions that broadcast."""
    terms = [f"{row} * {access.row}"] if access.row else []
    for p, s in zip(position, access.strides, strict=True):
        if s:
            terms.append(p if s == 1 else f"{p} * {s}")
    return " + ".join(terms) or "0"


@dataclass(frozen=True)
class Place:
    """Where a block of a result lies: row and position expressions that broadcast, and which of them are
    real. An operand that does not vary along rows or columns is loaded without that mask. ``block``: an
    integer expression of the whole block's shape, where the positions alone may be single numbers."""

    row: str
    position: tuple[str, ...]
    row_mask: str = ""
    column_mask: str = ""
    block: str = ""

    @property
    def mask(self) -> str:
        return " & ".join(m for m in (self.row_mask, self.column_mask) if m) or "True"


def load(k: Source, pointer: str, access: Access, place: Place) -> str:
    """Elements as float32, int32 or bool; 0 where they are not real."""
    used = [place.row_mask] if access.row and place.row_mask else []
    used += [place.column_mask] if any(access.strides) and place.column_mask else []
    masked = f", mask={' & '.join(used)}, other=0" if used else ""
    where = offset(access, place.row, place.position)
    where += f" + {place.block} * 0" if used and place.block else ""
    return k.let(widened(f"tl.load({pointer} + {where}{masked})", access.dtype))


def widened(value: str, dtype: str) -> str:
    if dtype in ("bf16", "f16"):
        return f"{value}.to(tl.float32)"
    return f"{value} != 0" if dtype == "bool" else value


def store(k: Source, pointer: str, access: Access, place: Place, value: str) -> None:
    target = f"{pointer} + {offset(access, place.row, place.position)}"
    target += f" + {place.block} * 0" if place.block else ""
    k.line(f"tl.store({target}, ({value}).to({STORED[access.dtype]}), mask={place.mask})")


def unflattened(k: Source, flat: str, shape: Sequence[int]) -> list[str]:
    """The position in ``shape`` of a flat index, row-major."""
    position: list[str] = []
    step = 1
    for i, d in reversed(list(enumerate(shape))):
        part = flat if step == 1 else f"{flat} // {step}"
        position.insert(0, k.let(f"({part}) % {d}" if i else f"({part})") if d > 1 else "0")
        step *= d
    return position
