"""Writes fused nodes by hand: whatever is added to a graph inside the block becomes one region."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rusteeze.ir import Graph, Value
from rusteeze.passes.outline_region import Region, fused_node


def fused(graph: Graph, anchor: str, build: Callable[[], Value | Sequence[Value]]) -> list[Value]:
    """The results of a fused node that holds all nodes which ``build`` adds."""
    start = len(graph.nodes)
    built = build()
    outputs = (built,) if isinstance(built, Value) else tuple(built)
    nodes = tuple(graph.nodes[start:])
    node = fused_node(Region(anchor, nodes, outputs, nodes[0]))
    graph.nodes[start:] = [node]
    return node.results
