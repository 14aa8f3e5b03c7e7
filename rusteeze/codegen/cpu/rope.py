"""Rotary position embedding: as a kernel for queries, and on the fly where keys go into the cache."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from rusteeze.codegen.access import Access
from rusteeze.codegen.cpu.access import Operand
from rusteeze.codegen.cpu.emit import LANES, STEP_TOKENS, Buffer, Emitter, Expr, fma, i32, select


@dataclass(frozen=True)
class Rotation:
    """Attributes of the IR op ``rope``; the tables [P, width/2] are looked up by position in the kernel."""

    style: str
    width: int
    at_end: bool

    def label(self) -> str:
        return f"{self.style}{self.width}{'e' if self.at_end else ''}"


class Heads:
    """Reads x[T, H, D], rotated or not. Arguments: x, and with a rotation: positions, cos, sin."""

    def __init__(self, k: Emitter, source: Access, rotation: Rotation | None) -> None:
        self.k, self.rotation = k, rotation
        self.x = Operand.argument(k, source)
        self.width = source.shape[-1]
        self.tables: tuple[Buffer, Buffer, Buffer] | None = None
        if rotation is not None:
            self.tables = k.pointer("int32"), k.pointer("float32"), k.pointer("float32")
            self.half = rotation.width // 2
            self.start = self.width - rotation.width if rotation.at_end else 0

    @property
    def in_vectors(self) -> bool:
        """Whether 16 consecutive elements of a head can be had at once: they must be consecutive in
        memory and rotate alike."""
        plain = self.x.access.strides[-1] == 1 and self.width % LANES == 0
        if self.rotation is None:
            return plain
        even = self.half % LANES == 0 and self.start % LANES == 0
        return plain and even and self.rotation.style == "half"

    def _angle(self, row: Expr, pair: Expr | int, lanes: int) -> tuple[Expr, Expr]:
        assert self.tables is not None
        positions, cos, sin = self.tables
        at = self.k.let(positions[row] * i32(self.half) + (i32(pair) if isinstance(pair, int) else pair))
        return self.k.let(cos.load(at, lanes)), self.k.let(sin.load(at, lanes))

    def vector(self, row: Expr, head: Expr, first: int) -> Expr:
        """Elements first .. first+15 of a head; only if ``in_vectors``."""
        k = self.k
        value = self.x.load(k, row, (head, first), LANES)
        e = first - self.start if self.rotation is not None else -1
        if self.rotation is None or not 0 <= e < self.rotation.width:
            return value
        second = e >= self.half
        c, s = self._angle(row, e % self.half, LANES)
        other = self.x.load(k, row, (head, first - self.half if second else first + self.half), LANES)
        return k.let(fma(value, c, other * s) if second else fma(value, c, -(other * s)))

    def element(self, row: Expr, head: Expr, d: Expr) -> Expr:
        """One element of a head, for any style and stride."""
        k, rotation = self.k, self.rotation
        plain = self.x.load(k, row, (head, d))
        if rotation is None:
            return plain
        e = k.let(d - i32(self.start))
        inside = k.let(tirx.all(e >= i32(0), e < i32(rotation.width)))
        e = k.let(select(inside, e, i32(0)))
        pair, second = self._pair(e)
        if rotation.style == "half":
            at_first, at_second = pair, pair + i32(self.half)
        else:
            at_first, at_second = pair * i32(2), pair * i32(2) + i32(1)
        a = self.x.load(k, row, (head, at_first + i32(self.start)))
        b = self.x.load(k, row, (head, at_second + i32(self.start)))
        c, s = self._angle(row, pair, 1)
        turned = select(second, fma(b, c, a * s), fma(a, c, -(b * s)))
        return k.let(select(inside, turned, plain))

    def _pair(self, e: Expr) -> tuple[Expr, Expr]:
        """Which pair a result element belongs to, and whether it is its second half."""
        assert self.rotation is not None
        if self.rotation.style == "inter":
            return self.k.let(tirx.Div(e, i32(2))), self.k.let(tirx.EQ(tirx.Mod(e, i32(2)), i32(1)))
        return self.k.let(tirx.Mod(e, i32(self.half))), self.k.let(e >= i32(self.half))


def rope(k: Emitter, source: Access, rotation: Rotation, out: Access) -> None:
    """Arguments: x, positions, cos, sin, output. Rows are shared."""
    x = Heads(k, source, rotation)
    target = Operand.argument(k, out)
    first, count = k.share(k.step(STEP_TOKENS))
    heads, width = source.shape
    with k.loop(count) as n:
        row = k.let(first + n)
        with k.loop(heads) as h:
            if x.in_vectors:
                for c in range(0, width, LANES):
                    target.store(k, row, (h, c), x.vector(row, h, c))
            else:
                with k.loop(width) as d:
                    target.store(k, row, (h, d), x.element(row, h, d))
