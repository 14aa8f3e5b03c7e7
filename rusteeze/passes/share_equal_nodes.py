"""Compute equal expressions once (common subexpression elimination)."""

from __future__ import annotations

from typing import Any

from rusteeze.ir.graph import Graph, Node, Value
from rusteeze.ir.rewrite import Firing


def share_equal_nodes(graph: Graph) -> list[Firing]:
    """Of equal nodes only the first stays. Stateful nodes and fused regions are never merged."""
    first: dict[Any, Node] = {}
    same: dict[Value, Value] = {}
    kept: list[Node] = []
    firings: list[Firing] = []
    for node in graph.nodes:
        node.operands = [same.get(v, v) if v is not None else None for v in node.operands]
        key = _key(node)
        twin = first.setdefault(key, node) if key is not None else node
        if twin is node:
            kept.append(node)
            continue
        same.update(zip(node.results, twin.results, strict=True))
        firings.append(Firing(f"share {node.op.name}", node.origin))
    graph.nodes = kept
    graph.outputs = [same.get(v, v) for v in graph.outputs]
    return firings


def _key(node: Node) -> Any:
    if "stateful" in node.op.traits or node.body is not None:
        return None
    operands = tuple(id(v) for v in node.operands)
    if "commutative" in node.op.traits:
        operands = tuple(sorted(operands))
    return node.op.name, operands, tuple(node.attrs.items())
