"""Reductions along one static axis, softmax and top-k."""

from __future__ import annotations

from typing import Any

import numpy as np

from rusteeze.ir.op import declare
from rusteeze.ir.ops.shape import axis_of, static_dim
from rusteeze.ir.types import DType, TensorType

Array = np.ndarray


def _infer_reduce(x: TensorType, axis: int, keepdim: bool) -> TensorType:
    axis = axis_of(x, axis)
    static_dim(x, axis)
    shape = list(x.shape)
    shape[axis : axis + 1] = [1] if keepdim else []
    return x.with_shape(*shape)


def _reducer(fn: Any) -> Any:
    return lambda x, axis, keepdim: np.asarray(fn(x, axis=axis, keepdims=keepdim), dtype=x.dtype)


for _name, _fn in {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}.items():
    declare(
        f"{_name}(x) {{axis: int, keepdim: bool = False}}", infer=_infer_reduce,
        reference=_reducer(_fn),
    )  # fmt: skip


def _infer_along(x: TensorType, axis: int) -> TensorType:
    static_dim(x, axis_of(x, axis))
    return x


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    shares: Array = e / e.sum(axis=axis, keepdims=True)
    return shares.astype(x.dtype)


declare("softmax(x) {axis: int}", infer=_infer_along, reference=softmax)
declare(
    "cumsum(x) {axis: int}", infer=_infer_along,
    reference=lambda x, axis: np.cumsum(x, axis=axis).astype(x.dtype),
)  # fmt: skip


def _infer_topk(x: TensorType, k: int, axis: int) -> tuple[TensorType, TensorType]:
    axis = axis_of(x, axis)
    if not 1 <= k <= static_dim(x, axis):
        raise TypeError(f"top {k} of {x.shape[axis]}")
    shape = list(x.shape)
    shape[axis] = k
    return x.with_shape(*shape), TensorType(DType.i32, tuple(shape))


def _topk(x: Array, k: int, axis: int) -> tuple[Array, Array]:
    order = np.argsort(-x, axis=axis, kind="stable").astype(np.int32)
    index = np.take(order, range(k), axis=axis)
    return np.take_along_axis(x, index, axis), index


# The k largest along an axis, largest first; of equal values the lower index first.
declare("topk(x) {k: int, axis: int = -1}", infer=_infer_topk, reference=_topk)
