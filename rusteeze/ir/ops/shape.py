"""Ops that move, select or rearrange elements but compute nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rusteeze.ir.op import declare
from rusteeze.ir.types import Dim, DType, TensorType

Array = np.ndarray


def axis_of(x: TensorType, axis: int) -> int:
    if not -x.rank <= axis < x.rank:
        raise TypeError(f"axis {axis} of a rank-{x.rank} tensor")
    return axis % x.rank


def static_dim(x: TensorType, axis: int) -> int:
    d = x.shape[axis]
    if not isinstance(d, int):
        raise TypeError(f"axis {axis} is the named dimension {d}")
    return d


def _count(shape: tuple[Dim, ...]) -> tuple[int, list[str]]:
    return (
        math.prod(d for d in shape if isinstance(d, int)),
        sorted(d for d in shape if isinstance(d, str)),
    )


def _infer_reshape(x: TensorType, shape: tuple[Dim, ...]) -> TensorType:
    if _count(x.shape) != _count(shape):
        raise TypeError(f"{list(x.shape)} has another number of elements than {list(shape)}")
    return x.with_shape(*shape)


def concrete(shape: tuple[Dim, ...]) -> list[int]:
    """For numpy.reshape: the (at most one) named dimension becomes -1."""
    return [d if isinstance(d, int) else -1 for d in shape]


declare(
    "reshape(x) {shape: ints}", infer=_infer_reshape, traits="view",
    reference=lambda x, shape: x.reshape(concrete(shape)),
)  # fmt: skip


def _infer_permute(x: TensorType, perm: tuple[int, ...]) -> TensorType:
    if sorted(perm) != list(range(x.rank)):
        raise TypeError(f"{perm} is no permutation of {x.rank} axes")
    return x.with_shape(*(x.shape[p] for p in perm))


declare(
    "permute(x) {perm: ints}", infer=_infer_permute, traits="view",
    reference=lambda x, perm: np.transpose(x, perm),
)  # fmt: skip


def _infer_slice(x: TensorType, axis: int, start: int, stop: int, step: int) -> TensorType:
    axis = axis_of(x, axis)
    n = static_dim(x, axis)
    if not (0 <= start < stop <= n and step >= 1):
        raise TypeError(f"slice {start}:{stop}:{step} of {n} elements")
    shape = list(x.shape)
    shape[axis] = len(range(start, stop, step))
    return x.with_shape(*shape)


def _slice(x: Array, axis: int, start: int, stop: int, step: int) -> Array:
    index: list[Any] = [slice(None)] * x.ndim
    index[axis] = slice(start, stop, step)
    part: Array = x[tuple(index)]
    return part


declare(
    "slice(x) {axis: int, start: int, stop: int, step: int = 1}", infer=_infer_slice,
    reference=_slice, traits="view",
)  # fmt: skip


def _infer_concat(*xs: TensorType, axis: int) -> TensorType:
    if not xs:
        raise TypeError("nothing to concatenate")
    axis = axis_of(xs[0], axis)
    total = 0
    for x in xs:
        if x.dtype != xs[0].dtype or x.rank != xs[0].rank:
            raise TypeError("operands differ in element type or rank")
        for i, (d, e) in enumerate(zip(x.shape, xs[0].shape, strict=True)):
            if i != axis and d != e:
                raise TypeError("operands differ in another axis")
        total += static_dim(x, axis)
    shape = list(xs[0].shape)
    shape[axis] = total
    return xs[0].with_shape(*shape)


declare(
    "concat(xs*) {axis: int}", infer=_infer_concat,
    reference=lambda *xs, axis: np.concatenate(xs, axis),
)  # fmt: skip


def _infer_broadcast_to(x: TensorType, shape: tuple[Dim, ...]) -> TensorType:
    if len(shape) != x.rank or any(d not in (1, s) for d, s in zip(x.shape, shape, strict=True)):
        raise TypeError(f"{list(x.shape)} does not broadcast to {list(shape)}")
    return x.with_shape(*shape)


def _broadcast_to(x: Array, shape: tuple[Dim, ...]) -> Array:
    full = [d if isinstance(d, int) else x.shape[i] for i, d in enumerate(shape)]
    return np.broadcast_to(x, full)


declare(
    "broadcast_to(x) {shape: ints}", infer=_infer_broadcast_to, reference=_broadcast_to, traits="view"
)


def _infer_embedding(ids: TensorType, table: TensorType) -> TensorType:
    if ids.dtype is not DType.i32 or ids.rank != 1 or table.rank != 2:
        raise TypeError("wants i32[n] ids and a [rows, width] table")
    return table.with_shape(ids.shape[0], table.shape[1])


# Row lookup: token embeddings, learned positions and rotary tables alike.
declare(
    "embedding(ids, table)", infer=_infer_embedding, reference=lambda ids, table: table[ids]
)


def _infer_gather_rows(x: TensorType, rows: TensorType) -> TensorType:
    if rows.dtype is not DType.i32 or rows.rank != 1:
        raise TypeError("rows must be i32[n]")
    return x.with_shape(rows.shape[0], *x.shape[1:])


# Keeps the rows (tokens) whose logits are wanted.
declare("gather_rows(x, rows)", infer=_infer_gather_rows, reference=lambda x, rows: x[rows])


def _infer_gather_columns(x: TensorType, columns: TensorType) -> TensorType:
    if columns.dtype is not DType.i32 or columns.rank != 1:
        raise TypeError("columns must be i32[n]")
    return x.with_shape(*x.shape[:-1], columns.shape[0])


# y[..., j] = x[..., columns[j]]: the order in which a weight stores its columns.
declare(
    "gather_columns(x, columns)", infer=_infer_gather_columns, reference=lambda x, columns: x[..., columns]
)


def _infer_gather(x: TensorType, index: TensorType, axis: int) -> TensorType:
    axis_of(x, axis)
    if index.dtype is not DType.i32 or index.rank != x.rank:
        raise TypeError("index must be i32 of the same rank")
    return x.with_shape(*index.shape)


declare(
    "gather(x, index) {axis: int}", infer=_infer_gather,
    reference=lambda x, index, axis: np.take_along_axis(x, index, axis),
)  # fmt: skip


def _infer_scatter(x: TensorType, index: TensorType, src: TensorType, axis: int) -> TensorType:
    axis_of(x, axis)
    if index.dtype is not DType.i32 or x.dtype != src.dtype:
        raise TypeError("index must be i32, source of the element type of x")
    return x


def _scatter(x: Array, index: Array, src: Array, axis: int) -> Array:
    out = x.copy()
    np.put_along_axis(out, index, np.broadcast_to(src, index.shape), axis)
    return out


declare("scatter(x, index, src) {axis: int}", infer=_infer_scatter, reference=_scatter)
