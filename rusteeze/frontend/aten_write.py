"""In-place ops without aliasing: a write makes a new value, and later readers get that one.

Two forms occur in causal LMs. ``x.div_(y)`` on a fresh tensor: ``x`` stands for the quotient from here on.
``buffer[..., a:b] = y`` on an empty tensor, part by part: the parts are concatenated when all are there.
Any other write through a view is refused, since a reader of the view could see the wrong value.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from rusteeze.frontend.aten import IMPORTERS, Importer, module_path, target_name
from rusteeze.frontend.errors import UnsupportedOp, UnsupportedWrite
from rusteeze.ir import Value

_MAY_ALIAS = {"reshape.default", "flatten.using_ints", "contiguous.default", "to.dtype"}


@dataclass
class EmptyTensor:
    """A tensor that is written slice by slice along one axis of the IR."""

    size: int = 0
    axis: int = -1
    parts: dict[int, Value] = field(default_factory=dict)  # by first element

    def complete(self) -> bool:
        at = 0
        while at in self.parts:
            at += int(self.parts[at].type.shape[self.axis])
        return at == self.size


def is_write(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def is_view(node: fx.Node) -> bool:
    """Whether the result of a call may share memory with its first argument."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.arguments or is_write(node):
        return False
    return target_name(node) in _MAY_ALIAS or schema.arguments[0].alias_info is not None


def written_tensor(node: fx.Node) -> fx.Node:
    """The tensor whose memory a write changes, seen through slices of it."""
    target = node.args[0]
    while isinstance(target, fx.Node) and target_name(target) == "slice.Tensor":
        target = target.args[0]
    assert isinstance(target, fx.Node)
    return target


def run_empty(im: Importer, node: fx.Node) -> None:
    im.values[node] = EmptyTensor()


def run_write(im: Importer, node: fx.Node) -> None:
    """Import an in-place call. UnsupportedWrite when others might see the tensor through a view."""
    im.origin = module_path(node)
    root = written_tensor(node)
    if isinstance(im.values.get(root), EmptyTensor):
        _write_part(im, node, root)
    elif node.args[0] is not root or _is_seen_through_views(root, node):
        raise UnsupportedWrite(f"{target_name(node)} in {im.origin} writes through a view")
    else:
        _write_whole(im, node, root)


def _write_whole(im: Importer, node: fx.Node, root: fx.Node) -> None:
    name = target_name(node).replace("_.", ".")
    if name not in IMPORTERS or root.op == "placeholder" or is_view(root):
        raise UnsupportedWrite(f"{target_name(node)} in {im.origin} writes to shared memory")
    result = IMPORTERS[name](im, node, *node.args, **node.kwargs)
    im.values[node] = im.values[root] = result


def _is_seen_through_views(root: fx.Node, write: fx.Node) -> bool:
    """Whether a view of ``root`` made before ``write`` is read after it."""
    order = {n: i for i, n in enumerate(write.graph.nodes)}
    views = [u for u in root.users if is_view(u) and order[u] < order[write]]
    return any(order[reader] > order[write] for v in views for reader in v.users)


def _write_part(im: Importer, node: fx.Node, root: fx.Node) -> None:
    view, source = node.args[0], node.args[1]
    assert isinstance(view, fx.Node)
    if target_name(node) != "copy_.default" or view is root or view.args[0] is not root:
        raise UnsupportedWrite(f"{target_name(node)} in {im.origin} writes to an empty tensor")
    dim, first = _slice_bounds(view)
    layout = im.layout(root)
    buffer: EmptyTensor = im.values[root]
    axis, size = layout.axis(dim), layout.shape[dim]
    if (buffer.parts and axis != buffer.axis) or not isinstance(size, int):
        raise UnsupportedWrite(
            f"{im.origin} fills an empty tensor along several axes or over tokens"
        )
    buffer.axis, buffer.size = axis, size
    buffer.parts[first % size] = im.expanded(view, source)
    if buffer.complete():
        parts = [buffer.parts[at] for at in sorted(buffer.parts)]
        im.values[root] = im.emit("concat", *parts, axis=axis)


def _slice_bounds(view: fx.Node) -> tuple[int, int]:
    dim, first = (*view.args[1:3], 0, 0)[:2] if len(view.args) > 2 else (view.args[1], 0)
    if len(view.args) > 4 and view.args[4] != 1:
        raise UnsupportedOp("writes every n-th element")
    return int(dim), int(first or 0)  # type: ignore[arg-type]
