"""Plain loops for the ops that only routers and rare models need: reductions, softmax, top-k, gather,
scatter, concatenation, strided copies. One row (token) at a time, rows shared among the threads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from tvm import tirx

from rusteeze.codegen.cpu.access import Operand
from rusteeze.codegen.cpu.emit import Emitter, Expr, f32, i32, maximum, minimum, select
from rusteeze.codegen.cpu.vector_math import exp

Emit = Callable[[Emitter, Expr, list[Operand], list[Operand], dict[str, Any]], None]
LOWEST = -3.4e38


class _Nest(ExitStack):
    """Loops over all positions of a shape."""

    def __init__(self, k: Emitter, shape: Sequence[int]) -> None:
        super().__init__()
        self.k, self.shape = k, shape

    def positions(self) -> list[Expr]:
        return [self.enter_context(self.k.loop(d)) for d in self.shape]


def _drop(shape: Sequence[int], axis: int) -> list[int]:
    return [d for i, d in enumerate(shape) if i != axis]


def _with(position: Sequence[Expr], axis: int, at: Expr) -> list[Expr]:
    return [*position[:axis], at, *position[axis:]]


def _inner(axis: int, operand: Operand) -> int:
    """Axis of the IR value → axis of the access, which has no row axis."""
    rank = len(operand.access.shape) + 1
    return axis % rank - 1


def _kind(operand: Operand) -> str:
    return "float32" if operand.access.dtype == "f32" else "int32"


def _reduce(
    combine: Callable[[Expr, Expr], Expr], start: float, start_int: int = 0, mean: bool = False
) -> Emit:
    def emit(k: Emitter, row: Expr, ins: list[Operand], outs: list[Operand], attrs: dict[str, Any]) -> None:
        x, y = ins[0], outs[0]
        axis = _inner(attrs["axis"], x)
        n = x.access.shape[axis]
        with _Nest(k, _drop(x.access.shape, axis)) as nest:
            position = nest.positions()
            acc = k.local(1, _kind(x), lanes=1)
            k.store(acc, 0, f32(start) if _kind(x) == "float32" else i32(start_int))
            with k.loop(n) as i:
                k.store(acc, 0, combine(acc[0], x.load(k, row, _with(position, axis, i))))
            value = acc[0] * f32(1 / n) if mean else acc[0]
            target = _with(position, axis, i32(0)) if attrs["keepdim"] else position
            y.store(k, row, target, value)

    return emit


def _softmax(k: Emitter, row: Expr, ins: list[Operand], outs: list[Operand], attrs: dict[str, Any]) -> None:
    x, y = ins[0], outs[0]
    axis = _inner(attrs["axis"], x)
    n = x.access.shape[axis]
    with _Nest(k, _drop(x.access.shape, axis)) as nest:
        position = nest.positions()
        acc = k.local(2, lanes=1)
        k.store(acc, 0, f32(LOWEST))
        with k.loop(n) as i:
            k.store(acc, 0, maximum(acc[0], x.load(k, row, _with(position, axis, i))))
        k.store(acc, 1, f32(0))
        with k.loop(n) as i:
            e = exp(k, x.load(k, row, _with(position, axis, i)) - acc[0])
            y.store(k, row, _with(position, axis, i), e)
            k.store(acc, 1, acc[1] + e)
        with k.loop(n) as i:
            at = _with(position, axis, i)
            y.store(k, row, at, y.load(k, row, at) / acc[1])


def _cumsum(k: Emitter, row: Expr, ins: list[Operand], outs: list[Operand], attrs: dict[str, Any]) -> None:
    x, y = ins[0], outs[0]
    axis = _inner(attrs["axis"], x)
    kind = _kind(x)
    with _Nest(k, _drop(x.access.shape, axis)) as nest:
        position = nest.positions()
        acc = k.local(1, kind, lanes=1)
        k.store(acc, 0, tirx.const(0, kind))
        with k.loop(x.access.shape[axis]) as i:
            at = _with(position, axis, i)
            k.store(acc, 0, acc[0] + x.load(k, row, at))
            y.store(k, row, at, acc[0])


def _topk(k: Emitter, row: Expr, ins: list[Operand], outs: list[Operand], attrs: dict[str, Any]) -> None:
    """k passes; each takes the largest value that comes after the previous one in (value down, index up).

    NaN comes after nothing. Where only NaN is left the index is 0, so that it always is one."""
    x, values, indices = ins[0], outs[0], outs[1]
    axis = _inner(attrs["axis"], x)
    n = x.access.shape[axis]
    with _Nest(k, _drop(x.access.shape, axis)) as nest:
        position = nest.positions()
        best, last = k.local(1, lanes=1), k.local(1, lanes=1)
        best_at, last_at = k.local(1, "int32", lanes=1), k.local(1, "int32", lanes=1)
        k.store(last, 0, f32(math.inf))
        k.store(last_at, 0, i32(-1))
        with k.loop(attrs["k"]) as j:
            k.store(best, 0, f32(LOWEST))
            k.store(best_at, 0, i32(-1))
            with k.loop(n) as i:
                v = x.load(k, row, _with(position, axis, i))
                after = tirx.any(v < last[0], tirx.all(tirx.EQ(v, last[0]), i > last_at[0]))
                better = tirx.any(v > best[0], best_at[0] < i32(0))
                take = k.let(tirx.all(after, better))
                k.store(best, 0, select(take, v, best[0]))
                k.store(best_at, 0, select(take, i, best_at[0]))
            chosen = k.let(maximum(best_at[0], i32(0)))
            values.store(k, row, _with(position, axis, j), x.load(k, row, _with(position, axis, chosen)))
            indices.store(k, row, _with(position, axis, j), chosen)
            k.store(last, 0, best[0])
            k.store(last_at, 0, best_at[0])


def _gather(k: Emitter, row: Expr, ins: list[Operand], outs: list[Operand], attrs: dict[str, Any]) -> None:
    x, index, y = ins[0], ins[1], outs[0]
    axis = _inner(attrs["axis"], x)
    with _Nest(k, index.access.shape) as nest:
        position = nest.positions()
        source = list(position)
        source[axis] = k.let(index.load(k, row, position))
        y.store(k, row, position, x.load(k, row, source))


def _gather_columns(k: Emitter, row: Expr, ins: list[Operand], outs: list[Operand], attrs: dict[str, Any]) -> None:
    x, columns = ins
    with _Nest(k, outs[0].access.shape) as nest:
        position = nest.positions()
        source = k.let(columns.load(k, row, position[-1:]))
        outs[0].store(k, row, position, x.load(k, row, [*position[:-1], source]))


def _scatter(k: Emitter, row: Expr, ins: list[Operand], outs: list[Operand], attrs: dict[str, Any]) -> None:
    x, index, src, y = *ins, outs[0]
    axis = _inner(attrs["axis"], x)
    _copy_all(k, row, x, y, axis=None, offset=0)
    source = Operand(src.access.aligned_to(index.access.shape), src.buffer)
    with _Nest(k, index.access.shape) as nest:
        position = nest.positions()
        target = list(position)
        target[axis] = k.let(index.load(k, row, position))
        y.store(k, row, target, source.load(k, row, position))


def _copy_all(k: Emitter, row: Expr, x: Operand, y: Operand, axis: int | None, offset: int) -> None:
    with _Nest(k, x.access.shape) as nest:
        position = nest.positions()
        target = list(position)
        if axis is not None:
            target[axis] = position[axis] + i32(offset)
        y.store(k, row, target, x.load(k, row, position))


def _concat(k: Emitter, row: Expr, ins: list[Operand], outs: list[Operand], attrs: dict[str, Any]) -> None:
    axis = _inner(attrs["axis"], outs[0])
    ends = itertools.accumulate((x.access.shape[axis] for x in ins), initial=0)
    for x, offset in zip(ins, ends, strict=False):
        _copy_all(k, row, x, outs[0], axis, offset)


def _copy(k: Emitter, row: Expr, ins: list[Operand], outs: list[Operand], attrs: dict[str, Any]) -> None:
    _copy_all(k, row, ins[0], outs[0], axis=None, offset=0)


def _gather_rows(k: Emitter, row: Expr, ins: list[Operand], outs: list[Operand], attrs: dict[str, Any]) -> None:
    x, rows = ins
    source = k.let(rows.load(k, row, ()))
    with _Nest(k, x.access.shape) as nest:
        position = nest.positions()
        outs[0].store(k, row, position, x.load(k, source, position))


OPS: dict[str, Emit] = {
    "sum": _reduce(lambda a, b: a + b, 0.0),
    "mean": _reduce(lambda a, b: a + b, 0.0, mean=True),
    "max": _reduce(maximum, -math.inf, -(2**31)),
    "min": _reduce(minimum, math.inf, 2**31 - 1),
    "softmax": _softmax,
    "cumsum": _cumsum,
    "topk": _topk,
    "gather": _gather,
    "gather_columns": _gather_columns,
    "scatter": _scatter,
    "concat": _concat,
    "copy": _copy,
    "gather_rows": _gather_rows,
}


def rowwise(
    k: Emitter, op: str, ins: list[Operand], outs: list[Operand], attrs: dict[str, Any], rows: Expr
) -> None:
    """Emit ``op`` for this thread's share of the rows."""
    first, count = k.share(rows)
    with k.loop(count) as n:
        OPS[op](k, k.let(first + n), ins, outs, attrs)
