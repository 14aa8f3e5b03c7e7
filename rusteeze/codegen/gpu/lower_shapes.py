"""Lower shape ops: they become views; a copy is made only where no view can say it."""

from __future__ import annotations

from rusteeze.codegen.access import Access
from rusteeze.codegen.gpu.lower_rowwise import call_rowwise
from rusteeze.codegen.gpu.lowering import Lowering, LoweringError
from rusteeze.codegen.views import View, inner_shape, row_major
from rusteeze.ir import Node, Value, print_node_line


def contiguous(ctx: Lowering, value: Value, node: Node) -> View:
    """The value with its inner axes row-major, copied if they are not."""
    view = ctx.view(value)
    if view.access.contiguous:
        return view
    target = ctx.scratch(ctx.space(value), view.access.dtype, view.access.shape)
    call_rowwise(ctx, "copy", {}, [view], [target], value, node)
    return target


def reshape(ctx: Lowering, node: Node) -> None:
    (source,) = node.inputs()
    view = contiguous(ctx, source, node)
    _see(ctx, node, view, row_major(inner_shape(node.result.type)))


def permute(ctx: Lowering, node: Node) -> None:
    view = ctx.view(next(node.inputs()))
    perm: tuple[int, ...] = node.attrs["perm"]  # type: ignore[assignment]
    if perm[0] != 0:
        raise LoweringError(f"permute moves the token axis: {print_node_line(node)}")
    _see(ctx, node, view, tuple(view.access.strides[p - 1] for p in perm[1:]))


def slice_axis(ctx: Lowering, node: Node) -> None:
    (source,) = node.inputs()
    view = ctx.view(source)
    strides = view.access.strides
    axis = int(node.attrs["axis"]) % source.type.rank - 1  # type: ignore[call-overload]
    start, step = int(node.attrs["start"]), int(node.attrs["step"])  # type: ignore[call-overload]
    stepped = tuple(s * step if i == axis else s for i, s in enumerate(strides))
    _see(ctx, node, view, stepped, start * strides[axis])


def broadcast_to(ctx: Lowering, node: Node) -> None:
    view = ctx.view(next(node.inputs()))
    a = view.access
    _see(ctx, node, view, tuple(0 if d == 1 else s for d, s in zip(a.shape, a.strides, strict=True)))


def _see(ctx: Lowering, node: Node, view: View, strides: tuple[int, ...], offset: int = 0) -> None:
    """The result is a view of ``view`` with these strides, from ``offset`` elements on."""
    a = view.access
    access = Access(a.dtype, a.row, inner_shape(node.result.type), strides)
    ctx.env[node.result] = view.moved(access, offset)
