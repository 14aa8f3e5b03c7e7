"""Importers of pointwise ops, normalisations, reductions, softmax and top-k."""

from __future__ import annotations

from typing import Any

from torch import fx

from rusteeze.frontend.aten import Importer, ImportFunction, imports, target_name
from rusteeze.frontend.errors import UnsupportedOp
from rusteeze.ir import DType, Value

UNARY = (
    "neg", "abs", "exp", "log", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tanh", "erf",
    "sigmoid", "silu", "relu",
)  # fmt: skip
BINARY = ("add", "sub", "div", "minimum", "maximum", "remainder")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
LOGICAL = {"logical_and": "logical_and", "logical_or": "logical_or",
           "bitwise_and": "logical_and", "bitwise_or": "logical_or"}  # fmt: skip


def _unary(op: str) -> ImportFunction:
    return lambda im, node, x: im.emit(op, im.cast(im.value(x), im.type_of(node).dtype))


for _op in UNARY:
    imports(f"{_op}.default")(_unary(_op))


@imports("gelu.default")
def _gelu(im: Importer, node: fx.Node, x: fx.Node, approximate: str = "none") -> Value:
    return im.emit("gelu_tanh" if approximate == "tanh" else "gelu", im.value(x))


@imports("softplus.default")
def _softplus(
    im: Importer, node: fx.Node, x: fx.Node, beta: float = 1.0, threshold: float = 20.0
) -> Value:
    if beta != 1:
        raise UnsupportedOp("softplus with a slope")
    return im.emit("softplus", im.value(x))


@imports("logical_not.default", "bitwise_not.default")
def _not(im: Importer, node: fx.Node, x: fx.Node) -> Value:
    if im.value(x).type.dtype is not DType.bool:
        raise UnsupportedOp("negates the bits of integers")
    return im.emit("logical_not", im.value(x))


def _operands(im: Importer, node: fx.Node, dtype: DType, *xs: Any) -> list[Value]:
    return [im.cast(im.aligned(node, x), dtype) for x in xs]


def _binary(op: str) -> ImportFunction:
    def function(im: Importer, node: fx.Node, a: Any, b: Any, **kwargs: Any) -> Value:
        if kwargs.get("rounding_mode"):
            raise UnsupportedOp("division with rounding")
        x, y = _operands(im, node, im.type_of(node).dtype, a, b)
        return im.emit(op, x, _scaled(im, y, kwargs.get("alpha", 1)))

    return function


def _scaled(im: Importer, y: Value, alpha: float) -> Value:
    return y if alpha == 1 else im.emit("mul", y, im.constant(alpha, y.type.dtype))


for _op in BINARY:
    imports(f"{_op}.Tensor", f"{_op}.Scalar", f"{_op}.default")(_binary(_op))


@imports("mul.Tensor", "mul.Scalar")
def _mul(im: Importer, node: fx.Node, a: Any, b: Any) -> Value:
    if node.meta["val"].dtype.is_complex:
        return _complex_mul(im, im.aligned(node, a), im.aligned(node, b))
    return im.emit("mul", *_operands(im, node, im.type_of(node).dtype, a, b))


def _complex_mul(im: Importer, a: Value, b: Value) -> Value:
    """(a + bi)(c + di) with real and imaginary parts along the last axis."""
    (ar, ai), (br, bi) = _real_and_imaginary(im, a), _real_and_imaginary(im, b)
    real = im.emit("sub", im.emit("mul", ar, br), im.emit("mul", ai, bi))
    imaginary = im.emit("add", im.emit("mul", ar, bi), im.emit("mul", ai, br))
    return im.emit("concat", real, imaginary, axis=real.type.rank - 1)


def _real_and_imaginary(im: Importer, x: Value) -> tuple[Value, Value]:
    last = x.type.rank - 1
    return im.slice(x, last, 0, 1), im.slice(x, last, 1, 2)


@imports("complex.default")
def _complex(im: Importer, node: fx.Node, real: fx.Node, imaginary: fx.Node) -> Value:
    parts = [im.reshape(im.value(x), (*im.value(x).type.shape, 1)) for x in (real, imaginary)]
    return im.emit("concat", *parts, axis=parts[0].type.rank - 1)


@imports("rsub.Scalar", "rsub.Tensor")
def _rsub(im: Importer, node: fx.Node, a: Any, b: Any) -> Value:
    x, y = _operands(im, node, im.type_of(node).dtype, b, a)
    return im.emit("sub", x, y)


@imports("pow.Tensor_Scalar")
def _pow(im: Importer, node: fx.Node, x: fx.Node, exponent: float) -> Value:
    value = im.cast(im.value(x), im.type_of(node).dtype)
    if exponent == 2:
        return im.emit("mul", value, value)
    return im.emit("pow", value, im.constant(exponent, value.type.dtype))


def _comparison(op: str) -> ImportFunction:
    def function(im: Importer, node: fx.Node, a: Any, b: Any) -> Value:
        types = {im.value(x).type.dtype for x in (a, b) if isinstance(x, fx.Node)}
        floats = DType.f32 in types or any(isinstance(x, float) for x in (a, b))
        return im.emit(op, *_operands(im, node, DType.f32 if floats else DType.i32, a, b))

    return function


for _op in COMPARISONS:
    imports(f"{_op}.Tensor", f"{_op}.Scalar")(_comparison(_op))


def _logical(op: str) -> ImportFunction:
    def function(im: Importer, node: fx.Node, a: fx.Node, b: fx.Node) -> Value:
        if im.type_of(node).dtype is not DType.bool:
            raise UnsupportedOp("combines the bits of integers")
        return im.emit(op, *_operands(im, node, DType.bool, a, b))

    return function


for _aten, _op in LOGICAL.items():
    imports(f"{_aten}.default", f"{_aten}.Tensor")(_logical(_op))
imports("__and__.Tensor")(_logical("logical_and"))
imports("__or__.Tensor")(_logical("logical_or"))


def _choose(im: Importer, node: fx.Node, condition: fx.Node, a: Any, b: Any) -> Value:
    x, y = _operands(im, node, im.type_of(node).dtype, a, b)
    return im.emit("where", im.aligned(node, condition), x, y)


@imports("where.self", "where.ScalarOther", "where.ScalarSelf")
def _where(im: Importer, node: fx.Node, condition: fx.Node, a: Any, b: Any) -> Value:
    return _choose(im, node, condition, a, b)


@imports("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(im: Importer, node: fx.Node, x: fx.Node, mask: fx.Node, fill: Any) -> Value:
    return _choose(im, node, mask, fill, x)


@imports("clamp.default", "clamp_min.default", "clamp.Tensor")
def _clamp(im: Importer, node: fx.Node, x: fx.Node, low: Any = None, high: Any = None) -> Value:
    dtype = im.type_of(node).dtype
    value = im.aligned(node, x)
    for op, bound in (("maximum", low), ("minimum", high)):
        if bound is not None:
            value = im.emit(op, value, im.cast(im.aligned(node, bound), dtype))
    return value


@imports("zeros_like.default", "ones_like.default", "full_like.default")
def _full_like(im: Importer, node: fx.Node, x: fx.Node, fill: Any = None, **_: Any) -> Value:
    if fill is None:
        fill = 1 if target_name(node) == "ones_like.default" else 0
    dtype = im.type_of(node).dtype.value
    return im.emit("full_like", im.value(x), value=float(fill), dtype=dtype)


@imports("layer_norm.default")
def _layer_norm(
    im: Importer, node: fx.Node, x: fx.Node, shape: list[int], w: fx.Node | None = None,
    b: fx.Node | None = None, eps: float = 1e-5, *_: Any,
) -> Value:  # fmt: skip
    if len(shape) != 1:
        raise UnsupportedOp("normalises several axes")
    weights = [None if p is None else im.value(p) for p in (w, b)]
    return im.emit("layer_norm", im.value(x), *weights, eps=eps)


@imports("rms_norm.default")
def _rms_norm(
    im: Importer, node: fx.Node, x: fx.Node, shape: list[int], w: fx.Node | None = None,
    eps: float | None = None,
) -> Value:  # fmt: skip
    if len(shape) != 1 or eps is None:
        raise UnsupportedOp("normalises several axes, or without an epsilon")
    return im.emit("rms_norm", im.value(x), None if w is None else im.value(w), eps=eps)


def _axes(dims: list[int] | int | None, rank: int) -> list[int]:
    if dims is None:
        return list(range(rank))
    return [dims] if isinstance(dims, int) else dims


def _reduction(op: str) -> ImportFunction:
    def function(
        im: Importer, node: fx.Node, x: fx.Node, dims: list[int] | int | None = None,
        keepdim: bool = False, **_: Any,
    ) -> Value:  # fmt: skip
        layout, value = im.layout(x), im.cast(im.value(x), im.type_of(node).dtype)
        for axis in {layout.axis(d) for d in _axes(dims, len(layout.shape))}:
            value = im.emit(op, value, axis=axis, keepdim=True)
        return im.conform(value, node)

    return function


for _op in ("sum", "mean"):
    imports(f"{_op}.dim", f"{_op}.dim_IntList")(_reduction(_op))
imports("amax.default")(_reduction("max"))
imports("amin.default")(_reduction("min"))


@imports("softmax.int", "_softmax.default")
def _softmax(im: Importer, node: fx.Node, x: fx.Node, dim: int, *_: Any) -> Value:
    return im.emit("softmax", im.cast(im.value(x), DType.f32), axis=im.layout(x).axis(dim))


@imports("cumsum.default")
def _cumsum(im: Importer, node: fx.Node, x: fx.Node, dim: int, **_: Any) -> Value:
    value = im.cast(im.value(x), im.type_of(node).dtype)
    return im.emit("cumsum", value, axis=im.layout(x).axis(dim))


@imports("topk.default")
def _topk(
    im: Importer, node: fx.Node, x: fx.Node, k: int, dim: int = -1, largest: bool = True,
    *_: Any, **__: Any,
) -> tuple[Value, ...]:  # fmt: skip
    if not largest:
        raise UnsupportedOp("takes the smallest")
    axis = im.layout(x).axis(dim)
    return tuple(im.graph.add_many("topk", im.value(x), k=k, axis=axis, origin=im.origin))


@imports("max.dim")
def _max_with_index(
    im: Importer, node: fx.Node, x: fx.Node, dim: int, keepdim: bool = False
) -> tuple[Value, ...]:
    axis = im.layout(x).axis(dim)
    found = im.graph.add_many("topk", im.value(x), k=1, axis=axis, origin=im.origin)
    shape = list(found[0].type.shape)
    if not keepdim:
        del shape[axis]
    return tuple(im.reshape(v, tuple(shape)) for v in found)
