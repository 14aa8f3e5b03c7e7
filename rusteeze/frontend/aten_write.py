"""In-place ops without aliasing: a write makes a new value, and later readers get that one.

Two forms occur in causal LMs. ``x.div_(y)`` on a fresh tensor: ``x`` stands for the quotient from here on.
``buffer[..., a:b] = y`` on an empty tensor, part by part: the parts are concatenated when all are there.
Any other write through a view, or under the eyes of one, is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from rusteeze.frontend.aten import IMPORTERS, Importer, module_path, target_name
from rusteeze.frontend.errors import UnsupportedOp, UnsupportedWrite
from rusteeze.ir import Value

# Ops that return their argument itself when there is nothing to do; their schemas do not say so.
_MAY_ALIAS = {
    "reshape.default", "flatten.using_ints", "contiguous.default", "dropout.default",
    "to.dtype", "to.device", "to.dtype_layout", "to.other", "type_as.default",
}  # fmt: skip


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


def _viewed(node: fx.Node) -> fx.Node | None:
    """The tensor whose memory the result of a call may share; None for a fresh result."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    if node.target is operator.getitem:
        return _viewed(source)
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.arguments:
        return None
    shares = schema.arguments[0].alias_info is not None or target_name(node) in _MAY_ALIAS
    return source if shares else None


def owner(node: fx.Node) -> fx.Node:
    """The tensor in whose memory ``node`` lies, through any views and writes."""
    while (source := _viewed(node)) is not None:
        node = source
    return node


def run_empty(im: Importer, node: fx.Node) -> None:
    im.values[node] = EmptyTensor()


def run_write(im: Importer, node: fx.Node) -> None:
    """Import an in-place call. UnsupportedWrite when others might see the tensor through a view."""
    im.origin = module_path(node)
    root = owner(node)
    if isinstance(im.values.get(root), EmptyTensor):
        _write_part(im, node, root)
    elif not _is_whole(im, node.args[0], root) or _is_seen(root, node):
        raise UnsupportedWrite(f"{target_name(node)} in {im.origin} writes through a view")
    else:
        _write_whole(im, node, root)
    im.aliases[node] = root


def _is_whole(im: Importer, target: Any, root: fx.Node) -> bool:
    """Whether a write to ``target`` (perhaps the result of an earlier write) covers ``root``."""
    return im.aliases.get(target, target) is root


def _write_whole(im: Importer, node: fx.Node, root: fx.Node) -> None:
    name = target_name(node).replace("_.", ".")
    if name not in IMPORTERS or root.op == "placeholder":
        raise UnsupportedWrite(f"{target_name(node)} in {im.origin} writes to a weight or an input")
    im.values[root] = IMPORTERS[name](im, node, *node.args, **node.kwargs)


def _is_seen(root: fx.Node, write: fx.Node) -> bool:
    """Whether a view of ``root`` made before ``write`` is read after it."""
    order = {n: i for i, n in enumerate(write.graph.nodes)}
    views = [v for v in _views(root) if order[v] < order[write]]
    return any(order[reader] > order[write] for v in views for reader in v.users)


def _views(root: fx.Node) -> Iterator[fx.Node]:
    """What lies in the memory of ``root``, except the results of writes."""
    todo = list(root.users)
    while todo:
        node = todo.pop()
        if owner(node) is root:
            todo += node.users
            if not is_write(node):
                yield node


def _write_part(im: Importer, node: fx.Node, root: fx.Node) -> None:
    view, source = node.args[0], node.args[1]
    assert isinstance(view, fx.Node)
    if (target_name(node), target_name(view)) != ("copy_.default", "slice.Tensor") or (
        view.args[0] is not root
    ):
        raise UnsupportedWrite(f"{target_name(node)} in {im.origin} writes to an empty tensor")
    dim, first = _slice_start(view)
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


def _slice_start(view: fx.Node) -> tuple[int, int]:
    """Axis and first element of a slice, as the model counts them."""
    given = list(view.args[1:])
    dim, first, _, step = given + [0, 0, None, 1][len(given) :]
    if step != 1:
        raise UnsupportedOp("writes every n-th element")
    return int(dim), int(first or 0)  # type: ignore[arg-type]
