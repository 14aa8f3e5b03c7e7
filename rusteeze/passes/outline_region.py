"""Move nodes of a graph into the body of one ``fused`` node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rusteeze.ir.graph import Graph, Node, Value, make_node


@dataclass(frozen=True)
class Region:
    """Nodes to be fused, in execution order, and those of their results that are used outside.

    ``anchor`` names the kind of kernel, ``main`` is the node that gives the region its origin."""

    anchor: str
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    main: Node


def outline_regions(graph: Graph, regions: Sequence[Region]) -> None:
    """Replace each region, in place. ValueError if a region is not convex (a cycle would arise)."""
    last = {id(r.nodes[-1]): r for r in regions}
    inside = {id(n) for r in regions for n in r.nodes}
    replaced: dict[Value, Value] = {}
    order: list[Node] = []
    for node in graph.nodes:
        if id(node) in last:
            region = last[id(node)]
            fused = fused_node(region)
            order.append(fused)
            replaced.update(zip(region.outputs, fused.results, strict=True))
        elif id(node) not in inside:
            order.append(node)
    graph.nodes = order
    graph.substitute(replaced)
    graph.sort()
    graph.eliminate_dead_code()


def fused_node(region: Region) -> Node:
    """The fused node of a region: operands in the order of first use, constants inside the body."""
    body = Graph(region.anchor)
    bound: dict[Value, Value] = {}
    operands: list[Value] = []

    def inner(v: Value) -> Value:
        if v not in bound:
            if v.op == "const" and v.node is not None:
                body.nodes.append(make_node("const", [], dict(v.node.attrs)))
                bound[v] = body.nodes[-1].result
            else:
                bound[v] = body.input(f"x{len(operands)}", v.type)
                operands.append(v)
        return bound[v]

    for node in region.nodes:
        mapped = [inner(v) if v is not None else None for v in node.operands]
        clone = make_node(node.op.name, mapped, dict(node.attrs), node.origin)
        body.nodes.append(clone)
        bound.update(zip(node.results, clone.results, strict=True))
    body.outputs = [bound[v] for v in region.outputs]
    return make_node("fused", [*operands], {"anchor": region.anchor}, region.main.origin, body)
