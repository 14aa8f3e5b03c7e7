"""Matrix products with weights, dense, by block and by expert, and the quantisation of activations.

``linear`` always *means* x @ W.T (+ b) on the dequantised weight. How the weight is stored is the
format of the weight value; whether the activations are rounded to int8 groups first is said by an
explicit ``quantize`` in front, so that the interpreter computes what the kernel computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rusteeze.ir.op import declare
from rusteeze.ir.ops.elementwise import bf16_bits, bf16_values
from rusteeze.ir.types import DType, TensorType

Array = np.ndarray


def _infer_linear(x: TensorType, w: TensorType, b: TensorType | None) -> TensorType:
    if w.rank != 2 or x.rank < 1 or x.shape[-1] != w.shape[1]:
        raise TypeError("wants x[..., K] and w[N, K]")
    if b is not None and b.shape != w.shape[:1]:
        raise TypeError("wants a bias of N elements")
    return TensorType(DType.f32, (*x.shape[:-1], w.shape[0]))


def _linear(x: Array, w: Array, b: Array | None) -> Array:
    y = x.astype(np.float32) @ w.astype(np.float32).T
    return y if b is None else y + b


declare("linear(x, w, b?)", infer=_infer_linear, reference=_linear)


def _infer_block_linear(x: TensorType, w: TensorType) -> TensorType:
    if w.rank != 3 or x.rank != 2 or x.shape[1] != w.shape[0] * w.shape[2]:  # type: ignore[operator]
        raise TypeError("wants w[B, N, K] and x[T, B * K]")
    return TensorType(DType.f32, (x.shape[0], w.shape[0] * w.shape[1]))  # type: ignore[operator]


def _block_linear(x: Array, w: Array) -> Array:
    blocks = x.astype(np.float32).reshape(len(x), w.shape[0], w.shape[2])
    y: Array = np.matmul(blocks[:, :, None], w.astype(np.float32).transpose(0, 2, 1))
    return y.reshape(len(x), -1)


# Block b of the result's columns is W[b] @ block b of x's columns: a product of each head's own.
declare("block_linear(x, w)", infer=_infer_block_linear, reference=_block_linear)


def _infer_expert_linear(
    x: TensorType, idx: TensorType, w: TensorType, b: TensorType | None, transposed: bool
) -> TensorType:
    if w.rank != 3 or idx.rank != 2 or idx.dtype is not DType.i32:
        raise TypeError("wants w[E, N, K] and idx i32[T, k]")
    n, k = (w.shape[2], w.shape[1]) if transposed else (w.shape[1], w.shape[2])
    if x.shape[-1] != k or x.shape[:-1] not in (idx.shape[:1], idx.shape):
        raise TypeError("wants x[T, K] or x[T, k, K]")
    return TensorType(DType.f32, (*idx.shape, n))


def _expert_linear(x: Array, idx: Array, w: Array, b: Array | None, transposed: bool) -> Array:
    out: list[Any] = []
    for t in range(idx.shape[0]):
        for j, e in enumerate(idx[t]):
            row = x[t] if x.ndim == 2 else x[t, j]
            y = row @ (w[e] if transposed else w[e].T)
            out.append(y if b is None else y + b[e])
    n = w.shape[2] if transposed else w.shape[1]
    return np.asarray(out, np.float32).reshape(*idx.shape, n)


# y[t, j] = W[idx[t, j]] @ x[t] (or x[t, j]): a token's share of a mixture of experts.
declare(
    "expert_linear(x, idx, w, b?) {transposed: bool = False}", infer=_infer_expert_linear,
    reference=_expert_linear,
)  # fmt: skip


def _infer_quantize(x: TensorType, to: str, group: int) -> TensorType:
    if to not in ("int8", "bf16"):
        raise TypeError(f"cannot round to {to!r}")
    if not isinstance(x.shape[-1], int) or x.shape[-1] % group:
        raise TypeError(f"the last axis is no multiple of the group {group}")
    return x


def quantize_rows(x: Array, group: int) -> tuple[Array, Array]:
    """Symmetric int8 per group of consecutive elements: q [..., K] int8, scale [..., K/group] float32.

    scale = max|x| / 127, q = round-half-even(x * (127 / max|x|)); an all-zero group gets scale 0."""
    g = x.reshape(*x.shape[:-1], -1, group).astype(np.float32)
    top = np.abs(g).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
    q = np.rint(g * inverse).astype(np.int8)
    return q.reshape(x.shape), (top * np.float32(1 / 127))[..., 0]


def _quantize(x: Array, to: str, group: int) -> Array:
    if to == "bf16":
        return bf16_values(bf16_bits(x))
    q, scale = quantize_rows(x, group)
    values: Array = q.reshape(*scale.shape, group).astype(np.float32) * scale[..., None]
    return values.reshape(x.shape)


# Rounds activations to int8 per group, or to bf16; the value is that of the rounded number.
declare("quantize(x) {to: str = 'int8', group: int = 32}", infer=_infer_quantize, reference=_quantize)
