"""The order of a graph's nodes in which everything a site reads is computed before its first product."""

from __future__ import annotations

from collections.abc import Sequence

from rusteeze.ir import Graph, Node
from rusteeze.quantize.find_sites import GraphSite


def scheduled(graph: Graph, sites: Sequence[GraphSite]) -> tuple[list[Node], list[int]]:
    """The nodes, and where each site begins among them. Experts chosen by a router are the reason: the site
    they share with a plain product would begin before the choice is made."""
    order: list[Node] = []
    placed: set[int] = set()
    site_of = {id(node): site for site in sites for node in site.nodes}
    starts: dict[int, int] = {}

    def place(node: Node) -> None:
        stack = [(node, False)]
        while stack:
            current, ready = stack.pop()
            if id(current) in placed:
                continue
            if ready:
                placed.add(id(current))
                order.append(current)
            else:
                stack.append((current, True))
                stack += [(v.node, False) for v in current.inputs() if v.node is not None]

    for node in graph.nodes:
        site = site_of.get(id(node))
        if site is not None and id(site) not in starts:
            for needed in [v.node for n in site.nodes for v in n.inputs() if v.node is not None]:
                place(needed)
            assert not any(id(n) in placed for n in site.nodes), site.name
            starts[id(site)] = len(order)
        place(node)
    return order, [starts[id(site)] for site in sites]
