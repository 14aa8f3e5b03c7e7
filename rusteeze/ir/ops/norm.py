"""Normalisations over the last axis."""

from __future__ import annotations

import numpy as np

from rusteeze.ir.op import declare
from rusteeze.ir.types import TensorType, broadcast_shapes

Array = np.ndarray


def _infer_norm(
    x: TensorType, w: TensorType | None, b: TensorType | None = None, **_: float
) -> TensorType:
    for p in (w, b):
        if p is not None and broadcast_shapes(p.shape, x.shape) != x.shape:
            raise TypeError("the weight does not broadcast to x")
    return x


def rms_norm(x: Array, w: Array | None, eps: float, offset: float) -> Array:
    x = x.astype(np.float32)
    y: Array = x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps))
    return y if w is None else y * (w + np.float32(offset))


def layer_norm(x: Array, w: Array | None, b: Array | None, eps: float) -> Array:
    x = x.astype(np.float32)
    c = x - x.mean(-1, keepdims=True)
    y: Array = c / np.sqrt((c * c).mean(-1, keepdims=True) + np.float32(eps))
    y = y if w is None else y * w
    return y if b is None else y + b


# x / rms(x) * (w + offset); offset is 1 for Gemma  (Zhang & Sennrich 2019)
declare(
    "rms_norm(x, w?) {eps: float, offset: float = 0.0}",
    infer=lambda x, w, **a: _infer_norm(x, w), reference=rms_norm,
)  # fmt: skip
# (x - mean) / std * w + b  (Ba et al. 2016)
declare("layer_norm(x, w?, b?) {eps: float}", infer=_infer_norm, reference=layer_norm)
