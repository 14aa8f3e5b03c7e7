"""Write the last axis as -1 and every other axis as a count from the front."""

from __future__ import annotations

from rusteeze.ir.graph import Graph, Node
from rusteeze.ir.rewrite import Firing


def write_last_axis_as_minus_one(graph: Graph) -> list[Firing]:
    """In place. The only axis of a vector stays 0, as the rows of a matrix do."""
    return [Firing("axis => canonical axis", n.origin) for n in graph.nodes if _rewrite_axis(n)]


def _rewrite_axis(node: Node) -> bool:
    axis, x = node.attrs.get("axis"), node.operands[0] if node.operands else None
    if not isinstance(axis, int) or x is None:
        return False
    canonical = axis % x.type.rank
    if 0 < canonical == x.type.rank - 1:
        canonical = -1
    node.attrs["axis"] = canonical
    return canonical != axis
