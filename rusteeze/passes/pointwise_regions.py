"""Regions of pointwise nodes alone: one loop over elements instead of one per node."""

from __future__ import annotations

from collections.abc import Iterator

from rusteeze.ir.graph import Node, Value
from rusteeze.ir.rewrite import Refusal
from rusteeze.passes.outline_region import Region
from rusteeze.passes.region_growth import Surroundings

ANCHOR = "pointwise"
EQUATION = "pointwise(pointwise(x)) => fused pointwise"


def pointwise_regions(around: Surroundings) -> Iterator[Region | Refusal]:
    """Largest groups of pointwise nodes of one shape that only serve one result; a quantize may end one."""
    for root in reversed(around.graph.nodes):
        if not _is_root(root) or not around.is_free(root):
            continue
        nodes = [root]
        for node in nodes:
            for v in node.inputs():
                reason = _objection(around, v, nodes)
                if reason:
                    yield Refusal(EQUATION, root, reason)
                elif reason is None and v.node is not None and v.node not in nodes:
                    nodes.append(v.node)
        if len(nodes) > 1:
            around.claim(nodes)
            yield Region(ANCHOR, around.in_order(nodes), (root.result,), root)


def _is_root(node: Node) -> bool:
    return "elementwise" in node.op.traits or node.op.name == "quantize"


def _objection(around: Surroundings, v: Value, nodes: list[Node]) -> str | None:
    """Why the producer of ``v`` stays out; "" if it is no candidate; None if it joins."""
    node = v.node
    if node is None or "elementwise" not in node.op.traits or not around.is_free(node):
        return ""
    if v.type.shape != nodes[0].result.type.shape:
        return f"{node.op.name} has another shape"
    members = {id(n) for n in nodes}
    if v in around.outputs or any(id(u) not in members for u in around.uses.get(v, ())):
        return f"the result of {node.op.name} is also used elsewhere"
    return None
