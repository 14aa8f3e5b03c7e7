"""Lower shape ops: they become views; a copy is made only where no view can say it."""

from __future__ import annotations

from rusteeze.codegen.access import Access
from rusteeze.codegen.cpu.lower_rowwise import call_rowwise
from rusteeze.codegen.cpu.lowering import Lowering, LoweringError
from rusteeze.codegen.views import View, inner_shape, row_major
from rusteeze.ir import Node, Value, print_node_line


def contiguous(ctx: Lowering, value: Value, node: Node) -> View:
    """The value with its inner axes row-major, copied if they are not."""
    view = ctx.view(value)
    if view.access.contiguous:
        return view
    target = ctx.scratch(ctx.space(value), value, view.access.shape)
    call_rowwise(ctx, "copy", {}, [view], [target], value, node)
    return target


def reshape(ctx: Lowering, node: Node) -> None:
    (source,) = node.inputs()
    shape = inner_shape(node.result.type)
    view = contiguous(ctx, source, node)
    a = view.access
    ctx.env[node.result] = view.moved(Access(a.dtype, a.row, shape, row_major(shape)))


def permute(ctx: Lowering, node: Node) -> None:
    (source,) = node.inputs()
    view = ctx.view(source)
    perm: tuple[int, ...] = node.attrs["perm"]  # type: ignore[assignment]
    if perm[0] != 0:
        raise LoweringError(f"permute moves the token axis: {print_node_line(node)}")
    a = view.access
    strides = tuple(a.strides[p - 1] for p in perm[1:])
    ctx.env[node.result] = view.moved(Access(a.dtype, a.row, inner_shape(node.result.type), strides))


def slice_axis(ctx: Lowering, node: Node) -> None:
    (source,) = node.inputs()
    view = ctx.view(source)
    a = view.access
    axis = int(node.attrs["axis"]) % source.type.rank - 1  # type: ignore[call-overload]
    start, step = int(node.attrs["start"]), int(node.attrs["step"])  # type: ignore[call-overload]
    strides = tuple(s * step if i == axis else s for i, s in enumerate(a.strides))
    access = Access(a.dtype, a.row, inner_shape(node.result.type), strides)
    ctx.env[node.result] = view.moved(access, start * a.strides[axis])


def broadcast_to(ctx: Lowering, node: Node) -> None:
    (source,) = node.inputs()
    view = ctx.view(source)
    a = view.access
    strides = tuple(0 if d == 1 else s for d, s in zip(a.shape, a.strides, strict=True))
    ctx.env[node.result] = view.moved(Access(a.dtype, a.row, inner_shape(node.result.type), strides))
