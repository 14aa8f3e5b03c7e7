"""Importers of ops that move, split, join or repeat elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from rusteeze.frontend.aten import Importer, imports, reshaped
from rusteeze.frontend.errors import UnsupportedOp
from rusteeze.frontend.layout import permutation
from rusteeze.ir import Value


@imports(
    "view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints",
    "unflatten.int", "unsqueeze.default", "squeeze.dim", "squeeze.dims", "squeeze.default",
)  # fmt: skip
def _reshape(im: Importer, node: fx.Node, x: fx.Node, *_: Any) -> Value:
    return reshaped(im, node, x)


@imports(
    "to.dtype", "to.device", "to.dtype_layout", "to.other", "type_as.default", "_to_copy.default",
    "alias.default", "contiguous.default", "clone.default", "detach.default", "dropout.default",
    "lift_fresh_copy.default", "view_as_complex.default", "view_as_real.default",
)  # fmt: skip
def _identity(im: Importer, node: fx.Node, x: fx.Node, *_: Any, **__: Any) -> Value:
    """A cast at most. A complex number is a pair along a last axis, so viewing it as such is nothing."""
    return im.cast(im.value(x), im.type_of(node).dtype)


def _permuted(im: Importer, node: fx.Node, x: fx.Node, axes: Sequence[int]) -> Value:
    if node.meta["val"].dtype.is_complex:
        axes = [*axes, len(axes)]
    perm = permutation(im.layout(x), im.layout(node), axes)
    return im.conform(im.permute(im.value(x), perm), node)


@imports("permute.default")
def _permute(im: Importer, node: fx.Node, x: fx.Node, dims: list[int]) -> Value:
    return _permuted(im, node, x, [d % len(dims) for d in dims])


@imports("transpose.int")
def _transpose(im: Importer, node: fx.Node, x: fx.Node, a: int, b: int) -> Value:
    axes = list(range(x.meta["val"].dim()))
    axes[a], axes[b] = axes[b], axes[a]
    return _permuted(im, node, x, axes)


@imports("numpy_T.default", "t.default")
def _reverse_axes(im: Importer, node: fx.Node, x: fx.Node) -> Value:
    return _permuted(im, node, x, list(range(x.meta["val"].dim()))[::-1])


@imports("slice.Tensor")
def _slice(
    im: Importer, node: fx.Node, x: fx.Node, dim: int = 0, start: int | None = None,
    end: Any = None, step: int = 1,
) -> Value:  # fmt: skip
    layout = im.layout(x)
    size = layout.shape[dim]
    if size == im.layout(node).shape[dim] and step == 1:
        return im.value(x)
    if not isinstance(size, int):
        raise UnsupportedOp("takes a part of the tokens; only logits rows may be selected")
    first, last, _ = slice(start, end, step).indices(size)
    return im.slice(im.value(x), layout.axis(dim), first, last, step)


@imports("select.int")
def _select(im: Importer, node: fx.Node, x: fx.Node, dim: int, index: int) -> Value:
    layout = im.layout(x)
    size = layout.shape[dim]
    if not isinstance(size, int):
        raise UnsupportedOp("picks one token; only logits rows may be selected")
    at = index % size
    return im.conform(im.slice(im.value(x), layout.axis(dim), at, at + 1), node)


def _parts(im: Importer, x: fx.Node, sizes: Sequence[int], dim: int) -> tuple[Value, ...]:
    axis, value = im.layout(x).axis(dim), im.value(x)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return tuple(im.slice(value, axis, end - n, end) for n, end in zip(sizes, ends, strict=True))


def _static_size(im: Importer, x: fx.Node, dim: int) -> int:
    size = im.layout(x).shape[dim]
    if not isinstance(size, int):
        raise UnsupportedOp("splits the tokens")
    return size


def _equal_parts(im: Importer, x: fx.Node, size: int, dim: int) -> tuple[Value, ...]:
    total = _static_size(im, x, dim)
    return _parts(im, x, [min(size, total - at) for at in range(0, total, size)], dim)


@imports("split.Tensor")
def _split(im: Importer, node: fx.Node, x: fx.Node, size: int, dim: int = 0) -> tuple[Value, ...]:
    return _equal_parts(im, x, size, dim)


@imports("split_with_sizes.default", "split.sizes")
def _split_with_sizes(
    im: Importer, node: fx.Node, x: fx.Node, sizes: list[int], dim: int = 0
) -> tuple[Value, ...]:
    return _parts(im, x, sizes, dim)


@imports("chunk.default")
def _chunk(im: Importer, node: fx.Node, x: fx.Node, chunks: int, dim: int = 0) -> tuple[Value, ...]:
    return _equal_parts(im, x, -(-_static_size(im, x, dim) // chunks), dim)


@imports("unbind.int")
def _unbind(im: Importer, node: fx.Node, x: fx.Node, dim: int = 0) -> tuple[Value, ...]:
    pieces = _equal_parts(im, x, 1, dim)
    axis = im.layout(x).axis(dim)
    return tuple(im.reshape(p, _without(p.type.shape, axis)) for p in pieces)


def _without(shape: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
    return shape[:axis] + shape[axis + 1 :]


@imports("cat.default", "concat.default")
def _cat(im: Importer, node: fx.Node, xs: list[fx.Node], dim: int = 0) -> Value:
    dtype = im.type_of(node).dtype
    parts = [im.cast(im.value(x), dtype) for x in xs if 0 not in x.meta["val"].shape]
    if len(parts) == 1:
        return parts[0]
    return im.emit("concat", *parts, axis=im.layout(node).axis(dim))


@imports("stack.default")
def _stack(im: Importer, node: fx.Node, xs: list[fx.Node], dim: int = 0) -> Value:
    layout = im.layout(node)
    axis = layout.axis(dim)
    shape = (*layout.ir_shape[:axis], 1, *layout.ir_shape[axis + 1 :])
    return im.emit("concat", *(im.reshape(im.value(x), shape) for x in xs), axis=axis)


@imports("expand.default", "broadcast_to.default")
def _expand(im: Importer, node: fx.Node, x: fx.Node, *_: Any, **__: Any) -> Value:
    return im.expanded(node, x)


@imports("repeat_interleave.self_int")
def _repeat_interleave(
    im: Importer, node: fx.Node, x: fx.Node, repeats: int, dim: int | None = None, **_: Any
) -> Value:
    if dim is None:
        raise UnsupportedOp("repeats over all axes at once")
    value = im.value(x)
    axis = im.layout(x).axis(dim) + 1
    shape = value.type.shape
    apart = im.reshape(value, (*shape[:axis], 1, *shape[axis:]))
    return im.conform(
        im.emit("broadcast_to", apart, shape=(*shape[:axis], repeats, *shape[axis:])), node
    )
