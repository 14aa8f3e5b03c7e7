"""Ops along an axis of a token's elements, which routers and rare models need: a program per row.

What an op works along is the second axis of a block [positions of the other axes, elements of the axis].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rusteeze.artifact.cuda_contract import Count
from rusteeze.codegen.access import Access
from rusteeze.codegen.gpu import elements
from rusteeze.codegen.gpu.elements import Place
from rusteeze.codegen.gpu.lowering import CAPACITIES, Lowering, rows_of
from rusteeze.codegen.gpu.source import Options, Source, power_of_two, warps_for
from rusteeze.codegen.views import View
from rusteeze.ir import Node, Value

REDUCTIONS = {"sum": ("tl.sum", "0"), "mean": ("tl.sum", "0"), "max": ("tl.max", None), "min": ("tl.min", None)}


@dataclass(frozen=True)
class Bound:
    """An operand or result of a row kernel."""

    k: Source
    name: str
    access: Access

    def load(self, place: Place) -> str:
        return elements.load(self.k, self.name, self.access, place)

    def store(self, place: Place, value: str) -> None:
        elements.store(self.k, self.name, self.access, place, value)


Emit = Callable[[Source, list[Bound], list[Bound], dict[str, Any]], None]


def _inner(axis: int, access: Access) -> int:
    """Axis of the IR value → axis of the access, which has no row axis."""
    return axis % (len(access.shape) + 1) - 1


class Along:
    """The block of an operand whose columns are the elements of an axis."""

    def __init__(self, k: Source, access: Access, axis: int) -> None:
        self.k, self.axis, self.length = k, axis, access.shape[axis]
        self.others = [d for i, d in enumerate(access.shape) if i != axis]
        count = math.prod(self.others)
        self.rows = k.let(f"tl.arange(0, {power_of_two(count)})[:, None]")
        self.columns = k.let(f"tl.arange(0, {power_of_two(self.length)})[None, :]")
        self.real_rows = k.let(f"{self.rows} < {count}")
        self.real = k.let(f"{self.real_rows} & ({self.columns} < {self.length})")
        self.position = elements.unflattened(k, self.rows, self.others)

    def at(self, column: str, mask: str = "") -> Place:
        """A place whose position along the axis is ``column``."""
        position = [*self.position[: self.axis], column, *self.position[self.axis :]]
        return Place("row", tuple(position), "", mask or self.real, self.rows)

    @property
    def whole(self) -> Place:
        return self.at(self.columns)

    def reduced(self, keepdim: bool) -> Place:
        """The place of one result a row of the block."""
        if keepdim:
            return self.at("0", self.real_rows)
        return Place("row", tuple(self.position), "", self.real_rows, self.rows)


def _reduce(op: str) -> Emit:
    def emit(k: Source, ins: list[Bound], outs: list[Bound], attrs: dict[str, Any]) -> None:
        x, y = ins[0], outs[0]
        along = Along(k, x.access, _inner(attrs["axis"], x.access))
        call, neutral = REDUCTIONS[op]
        value = x.load(along.whole)
        if neutral is None:
            worst = {"max": "-", "min": ""}[op]
            neutral = f'float("{worst}inf")' if x.access.dtype == "f32" else f"{worst}2147483647"
        result = f"{call}(tl.where({along.real}, {value}, {neutral}), 1)[:, None]"
        if op == "mean":
            result = f"{result} * {1 / along.length}"
        y.store(along.reduced(attrs["keepdim"]), k.let(result))

    return emit


def _softmax(k: Source, ins: list[Bound], outs: list[Bound], attrs: dict[str, Any]) -> None:
    x, y = ins[0], outs[0]
    along = Along(k, x.access, _inner(attrs["axis"], x.access))
    value = k.let(f'tl.where({along.real}, {x.load(along.whole)}, float("-inf"))')
    # rows that are none hold -inf alone
    top = k.let(f"tl.maximum(tl.max({value}, 1)[:, None], -3.4e38)")
    power = k.let(f"tl.exp({value} - {top})")
    y.store(along.whole, f"{power} / tl.sum({power}, 1)[:, None]")


def _cumsum(k: Source, ins: list[Bound], outs: list[Bound], attrs: dict[str, Any]) -> None:
    x, y = ins[0], outs[0]
    along = Along(k, x.access, _inner(attrs["axis"], x.access))
    y.store(along.whole, f"tl.cumsum({x.load(along.whole)}, 1)")


def _topk(k: Source, ins: list[Bound], outs: list[Bound], attrs: dict[str, Any]) -> None:
    """One pass for each choice: the largest that is left, of equal ones the first."""
    x, values, indices = ins[0], outs[0], outs[1]
    along = Along(k, x.access, _inner(attrs["axis"], x.access))
    k.line(f'left = tl.where({along.real}, {x.load(along.whole)}, float("-inf"))')
    k.line(f"free = {along.real}")
    for j in range(attrs["k"]):
        k.line("best = tl.max(left, 1)[:, None]")
        k.line(f"chosen = tl.min(tl.where((left == best) & free, {along.columns}, {along.length - 1}), 1)[:, None]")
        place = along.at(str(j), along.real_rows)
        values.store(place, "best")
        indices.store(place, "chosen")
        k.line(f"free = free & ({along.columns} != chosen)")
        k.line('left = tl.where(free, left, float("-inf"))')


class Flat:
    """All positions of a shape as one axis."""

    def __init__(self, k: Source, shape: Sequence[int]) -> None:
        count = math.prod(shape)
        self.flat = flat = k.let(f"tl.arange(0, {power_of_two(count)})")
        self.real = k.let(f"{flat} < {count}")
        self.position = elements.unflattened(k, flat, shape)

    def place(self, row: str = "row", axis: int | None = None, at: str = "") -> Place:
        position = list(self.position)
        if axis is not None:
            position[axis] = at
        return Place(row, tuple(position), "", self.real, self.flat)


def _gather(k: Source, ins: list[Bound], outs: list[Bound], attrs: dict[str, Any]) -> None:
    x, index, y = ins[0], ins[1], outs[0]
    flat = Flat(k, index.access.shape)
    source = flat.place("row", _inner(attrs["axis"], x.access), index.load(flat.place()))
    y.store(flat.place(), x.load(source))


def _scatter(k: Source, ins: list[Bound], outs: list[Bound], attrs: dict[str, Any]) -> None:
    x, index, src, y = *ins, outs[0]
    _copy(k, [x], outs, attrs)
    k.line("tl.debug_barrier()")
    flat = Flat(k, index.access.shape)
    source = Bound(k, src.name, src.access.aligned_to(index.access.shape))
    target = flat.place("row", _inner(attrs["axis"], x.access), index.load(flat.place()))
    y.store(target, source.load(flat.place()))


def _copy(k: Source, ins: list[Bound], outs: list[Bound], attrs: dict[str, Any]) -> None:
    flat = Flat(k, ins[0].access.shape)
    outs[0].store(flat.place(), ins[0].load(flat.place()))


def _concat(k: Source, ins: list[Bound], outs: list[Bound], attrs: dict[str, Any]) -> None:
    axis = _inner(attrs["axis"], outs[0].access)
    ends = itertools.accumulate((x.access.shape[axis] for x in ins), initial=0)
    for x, start in zip(ins, ends, strict=False):
        flat = Flat(k, x.access.shape)
        target = flat.place("row", axis, f"({flat.position[axis]} + {start})")
        outs[0].store(target, x.load(flat.place()))


def _gather_rows(k: Source, ins: list[Bound], outs: list[Bound], attrs: dict[str, Any]) -> None:
    x, rows = ins
    source = rows.load(Place("row", ()))
    flat = Flat(k, x.access.shape)
    outs[0].store(flat.place(), x.load(flat.place(source)))


OPS: dict[str, Emit] = {
    **{op: _reduce(op) for op in REDUCTIONS},
    "softmax": _softmax, "cumsum": _cumsum, "topk": _topk, "gather": _gather, "scatter": _scatter,
    "concat": _concat, "copy": _copy, "gather_rows": _gather_rows,
}  # fmt: skip


def lower_rowwise(ctx: Lowering, node: Node) -> None:
    ins = [ctx.operand(v, node.results[0]) for v in node.inputs()]
    outs = [ctx.new(r) for r in node.results]
    call_rowwise(ctx, node.op.name, dict(node.attrs), ins, outs, node.results[0], node)


def call_rowwise(
    ctx: Lowering, op: str, attrs: dict[str, Any], ins: list[View], outs: list[View], like: Value, node: Node
) -> None:
    """``like``: a value with as many rows as the results."""
    shape = "x".join(map(str, outs[0].access.shape)) or "1"
    largest = max(math.prod(v.access.shape) for v in ins + outs)
    k = Source(f"{op}_{shape}", Options(warps_for(largest)), [f"{op} {attrs}"])
    space = ctx.space(like)
    count = ctx.counts(k, space)
    k.line("row = tl.program_id(0)")
    with k.block(f"if row >= {count}:"):
        k.line("return")
    read = [Bound(k, k.view(f"x{i}", v), v.access) for i, v in enumerate(ins)]
    written = [Bound(k, k.view(f"y{i}", v), v.access) for i, v in enumerate(outs)]
    OPS[op](k, read, written, attrs)
    ctx.call_one(node, k, [rows_of(space), Count()], CAPACITIES[space])
