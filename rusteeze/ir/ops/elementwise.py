"""Pointwise ops: every result element depends on one element of each operand (after broadcasting)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rusteeze.ir.op import declare
from rusteeze.ir.types import DType, TensorType, broadcast_shapes

Array = np.ndarray
_erf = np.vectorize(math.erf, otypes=[np.float32])


def same(x: TensorType, **_: Any) -> TensorType:
    return x


def as_bool(x: TensorType, **_: Any) -> TensorType:
    return TensorType(DType.bool, x.shape)


def broadcast(a: TensorType, b: TensorType) -> TensorType:
    if a.dtype != b.dtype:
        raise TypeError(f"operands of different element types {a.dtype.value}, {b.dtype.value}")
    return TensorType(a.dtype, broadcast_shapes(a.shape, b.shape))


def comparison(a: TensorType, b: TensorType) -> TensorType:
    return TensorType(DType.bool, broadcast(a, b).shape)


def sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        y: Array = 1 / (1 + np.exp(-x))
    return y.astype(x.dtype)


def gelu(x: Array) -> Array:
    return (x * 0.5 * (1 + _erf(x / math.sqrt(2)))).astype(x.dtype) if x.size else x


def gelu_tanh(x: Array) -> Array:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    y: Array = 0.5 * x * (1 + np.tanh(inner))
    return y.astype(x.dtype)


UNARY: dict[str, Callable[[Array], Array]] = {
    "neg": np.negative, "abs": np.abs, "exp": np.exp, "log": np.log, "sqrt": np.sqrt,
    "rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype), "reciprocal": lambda x: 1 / x,
    "sin": np.sin, "cos": np.cos, "tanh": np.tanh, "erf": lambda x: _erf(x) if x.size else x,
    "sigmoid": sigmoid, "silu": lambda x: x * sigmoid(x), "relu": lambda x: np.maximum(x, 0),
    "gelu": gelu, "gelu_tanh": gelu_tanh,
    "softplus": lambda x: np.logaddexp(x, 0).astype(x.dtype),
}  # fmt: skip
for _name, _fn in UNARY.items():
    declare(f"{_name}(x)", infer=same, reference=_fn, traits="elementwise")
declare("logical_not(x)", infer=as_bool, reference=np.logical_not, traits="elementwise")

BINARY: dict[str, tuple[Callable[..., Array], str]] = {
    "add": (np.add, "commutative"), "sub": (np.subtract, ""), "mul": (np.multiply, "commutative"),
    "div": (np.divide, ""), "pow": (np.power, ""), "minimum": (np.minimum, "commutative"),
    "maximum": (np.maximum, "commutative"), "remainder": (np.remainder, ""),
}  # fmt: skip
for _name, (_ufunc, _trait) in BINARY.items():
    declare(f"{_name}(a, b)", infer=broadcast, reference=_ufunc, traits=f"elementwise {_trait}")

COMPARE: dict[str, Callable[..., Array]] = {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "eq": np.equal, "ne": np.not_equal, "logical_and": np.logical_and, "logical_or": np.logical_or,
}  # fmt: skip
for _name, _ufunc in COMPARE.items():
    declare(f"{_name}(a, b)", infer=comparison, reference=_ufunc, traits="elementwise")


def _infer_where(c: TensorType, a: TensorType, b: TensorType) -> TensorType:
    if c.dtype is not DType.bool:
        raise TypeError("the condition must be bool")
    t = broadcast(a, b)
    return t.with_shape(*broadcast_shapes(c.shape, t.shape))


declare("where(condition, a, b)", infer=_infer_where, reference=np.where, traits="elementwise")
declare(
    "clamp(x) {min: float = -3.4e38, max: float = 3.4e38}",
    infer=same, reference=lambda x, min, max: np.clip(x, min, max).astype(x.dtype),
    traits="elementwise",
)  # fmt: skip


def _infer_cast(x: TensorType, dtype: str) -> TensorType:
    return TensorType(DType(dtype), x.shape)


def bf16_bits(x: Array) -> Array:
    """float32 → bf16 bit patterns (uint16), round to nearest even."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def bf16_values(bits: Array) -> Array:
    """bf16 bit patterns (uint16) → float32, exactly."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)


def _cast(x: Array, dtype: str) -> Array:
    return bf16_bits(x) if dtype == "bf16" else x.astype(DType(dtype).numpy)


declare("cast(x) {dtype: str}", infer=_infer_cast, reference=_cast, traits="elementwise")
declare(
    "const() {value: float, dtype: str = 'f32'}",
    infer=lambda value, dtype: TensorType(DType(dtype)),
    reference=lambda value, dtype: np.asarray(value, DType(dtype).numpy),
)
# A tensor of one value, in the shape of another (whose elements are not looked at).
declare(
    "full_like(x) {value: float, dtype: str = 'f32'}",
    infer=lambda x, value, dtype: TensorType(DType(dtype), x.shape),
    reference=lambda x, value, dtype: np.full(x.shape, value, DType(dtype).numpy),
    traits="elementwise",
)  # fmt: skip


def _infer_glu(g: TensorType, u: TensorType, act: str) -> TensorType:
    if act not in UNARY:
        raise TypeError(f"unknown activation {act!r}")
    if g != u:
        raise TypeError("gate and up differ in type")
    return g


# act(g) * u  (Shazeer 2020, "GLU Variants Improve Transformer")
declare(
    "glu(g, u) {act: str = 'silu'}", infer=_infer_glu,
    reference=lambda g, u, act: UNARY[act](g) * u, traits="elementwise",
)  # fmt: skip
# tanh(x / cap) * cap  (Gemma 2 technical report, logit soft-capping)
declare(
    "softcap(x) {cap: float}", infer=same,
    reference=lambda x, cap: (np.tanh(x / np.float32(cap)) * np.float32(cap)).astype(x.dtype),
    traits="elementwise",
)  # fmt: skip
