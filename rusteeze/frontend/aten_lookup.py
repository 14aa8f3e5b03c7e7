"""Importers of matrix products, lookups by index, and our own attention and expert operators."""

from __future__ import annotations

from typing import Any

from torch import fx

from rusteeze.frontend.aten import Importer, imports
from rusteeze.frontend.errors import ContextTooLong, UnsupportedOp
from rusteeze.ir import TOKENS, DType, Value


@imports("linear.default")
def _linear(im: Importer, node: fx.Node, x: fx.Node, w: fx.Node, b: fx.Node | None = None) -> Value:
    return im.emit("linear", im.value(x), im.value(w), None if b is None else im.value(b))


@imports("matmul.default", "mm.default")
def _matmul(im: Importer, node: fx.Node, x: fx.Node, w: fx.Node) -> Value:
    weight = im.value(w)
    if weight.type.rank != 2 or not weight.type.is_static:
        raise UnsupportedOp("multiplies two activations; only attention may do that")
    return im.emit("linear", im.value(x), im.permute(weight, (1, 0)), None)


@imports("addmm.default")
def _addmm(im: Importer, node: fx.Node, b: fx.Node, x: fx.Node, w: fx.Node, **kwargs: Any) -> Value:
    if any(kwargs.get(k, 1) != 1 for k in ("alpha", "beta")):
        raise UnsupportedOp("scales its operands")
    return im.emit("linear", im.value(x), im.permute(im.value(w), (1, 0)), im.value(b))


@imports("embedding.default")
def _embedding(im: Importer, node: fx.Node, table: fx.Node, ids: fx.Node, *_: Any) -> Value:
    index, rows = im.value(ids), im.value(table)
    _check_positions(im, index, rows)
    return im.emit("embedding", index, rows)


def _check_positions(im: Importer, index: Value, table: Value) -> None:
    """ContextTooLong when a table of learned positions is shorter than the context."""
    offset = 0.0
    if index.op == "add":
        assert index.node is not None
        index, constant = index.node.operands  # type: ignore[assignment]
        assert constant is not None
        if constant.node is None or constant.op != "const":
            return
        offset = constant.node.attrs["value"]  # type: ignore[assignment]
    known = int(table.type.shape[0]) - int(offset)
    if index.node is None and index.name == "positions" and known < im.max_model_len:
        raise ContextTooLong(
            f"the model has learned only {known} positions; set max_model_len to at most that"
        )


@imports("index.Tensor")
def _index(im: Importer, node: fx.Node, x: fx.Node, indices: list[fx.Node | None]) -> Value:
    given = [(dim, i) for dim, i in enumerate(indices) if i is not None]
    if len(given) != 1:
        raise UnsupportedOp("indexes several axes at once")
    ((dim, index),) = given
    layout = im.layout(x)
    if layout.shape[dim] == TOKENS:
        return im.emit("gather_rows", im.value(x), im.value(index))
    literal = im.literal(index)
    if literal is None or literal.dim() != 1:
        raise UnsupportedOp("indexes with a tensor that is neither the logits rows nor a literal")
    size, axis = int(layout.shape[dim]), layout.axis(dim)
    picks = [im.slice(im.value(x), axis, i % size, i % size + 1) for i in literal.tolist()]
    return picks[0] if len(picks) == 1 else im.emit("concat", *picks, axis=axis)


@imports("gather.default")
def _gather(im: Importer, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, **_: Any) -> Value:
    return im.emit("gather", im.value(x), im.value(index), axis=im.layout(x).axis(dim))


@imports("scatter.value", "scatter.src")
def _scatter(im: Importer, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, src: Any) -> Value:
    value, axis = im.value(x), im.layout(x).axis(dim)
    return im.emit(
        "scatter", value, im.value(index), im.cast(im.value(src), value.type.dtype), axis=axis
    )


@imports("rusteeze.attention.default")
def _attention(
    im: Importer, node: fx.Node, q: fx.Node, k: fx.Node, v: fx.Node, sinks: fx.Node | None,
    layer: int, scale: float, window: int, softcap: float,
) -> Value:  # fmt: skip
    return im.emit(
        "attention", im.value(q), im.value(k), im.value(v),
        None if sinks is None else im.value(sinks),
        layer=layer, scale=scale, softcap=softcap,
        window=window if window < im.max_model_len else 0,
    )  # fmt: skip


@imports("rusteeze.expert_linear.default")
def _expert_linear(
    im: Importer, node: fx.Node, x: fx.Node, idx: fx.Node, w: fx.Node, b: fx.Node | None,
    transposed: bool,
) -> Value:  # fmt: skip
    index = im.cast(im.value(idx), DType.i32)
    bias = None if b is None else im.value(b)
    return im.emit("expert_linear", im.value(x), index, im.value(w), bias, transposed=transposed)
