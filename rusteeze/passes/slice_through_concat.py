"""Take a slice of a concatenation from the one part in which it lies."""

from __future__ import annotations

from rusteeze.ir.graph import Graph, Node, Value, make_node
from rusteeze.ir.ops.shape import axis_of, static_dim
from rusteeze.ir.rewrite import Firing


def slice_through_concat(graph: Graph) -> list[Firing]:
    """slice(concat(a, b)) => slice(b) where the bounds allow it, in place."""
    firings: list[Firing] = []
    for i, node in enumerate(graph.nodes):
        replacement = _part(node)
        if replacement is None:
            continue
        replacement.results = node.results
        replacement.results[0].node = replacement
        graph.nodes[i] = replacement
        firings.append(Firing("slice(concat(a, b)) => slice(b)", node.origin))
    return firings


def _part(node: Node) -> Node | None:
    whole = node.operands[0] if node.op.name == "slice" else None
    if whole is None or whole.op != "concat" or whole.node is None:
        return None
    axis, start, stop = (_int(node, k) for k in ("axis", "start", "stop"))
    along = axis_of(whole.type, axis)
    if along != axis_of(whole.type, _int(whole.node, "axis")):
        return None
    found = _containing(list(whole.node.inputs()), along, start, stop)
    if found is None:
        return None
    part, offset = found
    bounds = {"start": start - offset, "stop": stop - offset}
    return make_node("slice", [part], {**node.attrs, **bounds}, node.origin)


def _containing(parts: list[Value], axis: int, start: int, stop: int) -> tuple[Value, int] | None:
    offset = 0
    for part in parts:
        size = static_dim(part.type, axis)
        if offset <= start and stop <= offset + size:
            return part, offset
        offset += size
    return None


def _int(node: Node, attr: str) -> int:
    value = node.attrs[attr]
    assert isinstance(value, int)
    return value
