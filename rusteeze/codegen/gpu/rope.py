"""Rotary position embedding where heads are loaded: for queries, and for keys on their way to the cache."""

from __future__ import annotations

from dataclasses import dataclass

from rusteeze.codegen.gpu import elements
from rusteeze.codegen.gpu.elements import Place
from rusteeze.codegen.gpu.source import Pointer, Source
from rusteeze.codegen.views import View


@dataclass(frozen=True)
class Rotation:
    """Attributes of the IR op ``rope``, and its tables [P, width / 2], looked up by position."""

    style: str
    width: int
    at_end: bool
    cos: View
    sin: View


@dataclass(frozen=True)
class Heads:
    """x[T, H, D], rotated or not."""

    view: View
    rotation: Rotation | None

    @property
    def width(self) -> int:
        return self.view.access.shape[-1]


class BoundHeads:
    """Heads whose memory is parameters of a kernel; ``name`` begins their names."""

    def __init__(self, k: Source, name: str, heads: Heads, positions: Pointer) -> None:
        self.k, self.heads = k, heads
        self.x = k.view(name, heads.view)
        if heads.rotation is not None:
            self.cos = k.view(f"{name}_cos", heads.rotation.cos)
            self.sin = k.view(f"{name}_sin", heads.rotation.sin)
            self.positions = k.pointer(f"{name}_positions", "i32", positions)

    def load(self, row: str, head: str, d: str, row_mask: str, column_mask: str) -> str:
        """Elements as float32. ``row`` and ``head`` vary along rows, ``d`` along columns of a block."""
        k, rotation = self.k, self.heads.rotation
        access = self.heads.view.access

        def element(at: str) -> str:
            return elements.load(k, self.x, access, Place(row, (head, at), row_mask, column_mask))

        if rotation is None:
            return element(d)
        width, half = rotation.width, rotation.width // 2
        start = self.heads.width - width if rotation.at_end else 0
        partial = width != self.heads.width
        e = k.let(f"{d} - {start}") if start else d
        if partial:
            inside = k.let(f"({e} >= 0) & ({e} < {width})")
            e = k.let(f"tl.where({inside}, {e}, 0)")
        own, other, pair, second = (k.let(text) for text in _indices(rotation.style, e, half))
        shift = f" + {start}" if start else ""
        a, b = element(f"({own}{shift})"), element(f"({other}{shift})")
        mask = f", mask={row_mask}, other=0" if row_mask else ""
        position = k.let(f"tl.load({self.positions} + {row}{mask})")
        cos, sin = (self._angle(name, position, pair, column_mask) for name in ("cos", "sin"))
        turned = k.let(f"{a} * {cos} + tl.where({second}, {b}, -{b}) * {sin}")
        return k.let(f"tl.where({inside}, {turned}, {element(d)})") if partial else turned

    def _angle(self, name: str, position: str, pair: str, column_mask: str) -> str:
        assert self.heads.rotation is not None
        table = {"cos": self.cos, "sin": self.sin}[name]
        access = getattr(self.heads.rotation, name).access
        row_stride, step = access.strides
        at = f"{position} * {row_stride} + {pair}" + (f" * {step}" if step != 1 else "")
        mask = f", mask={column_mask}, other=0" if column_mask else ""
        return self.k.let(f"tl.load({table} + {at}{mask})")


def _indices(style: str, e: str, half: int) -> tuple[str, str, str, str]:
    """Of element e of the result: the elements of x it is made of (own, and its partner in the rotation), the
    pair, and whether it is the second of its pair."""
    if style == "half":
        return e, f"({e} + {half}) % {2 * half}", f"{e} % {half}", f"{e} >= {half}"
    if style == "inter":
        return e, f"{e} ^ 1", f"{e} // 2", f"{e} % 2 == 1"
    pair, second = f"{e} % {half}", f"{e} >= {half}"
    return f"{pair} * 2 + ({second})", f"{pair} * 2 + ({e} < {half})", pair, second
