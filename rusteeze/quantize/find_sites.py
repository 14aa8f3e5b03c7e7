"""Which products of a graph are quantised: those with a matrix of their own, in groups that read one input.

Left as they are: the head (nothing but the logits follows it), routers (experts are chosen by their result),
matrices of fewer than 32 rows, tables that are also looked up, and what is stored transposed. Found from
the graph alone, so no architecture needs to be known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from rusteeze.ir import Graph, Node, Value

PRODUCTS = ("linear", "expert_linear")
BARRIERS = (*PRODUCTS, "attention")
FEWEST_ROWS = 32


@dataclass(frozen=True, eq=False)
class GraphSite:
    """``nodes`` read ``input`` and are quantised; ``beside`` are the other products that read it. ``alone``
    says that nothing else does."""

    input: Value
    nodes: list[Node]
    beside: list[Node] = field(default_factory=list)
    alone: bool = True

    @property
    def params(self) -> list[str]:
        return [weight_of(node).name for node in self.nodes]

    @property
    def name(self) -> str:
        return self.nodes[0].origin or self.params[0]


@dataclass(frozen=True)
class Left:
    """A product that is not quantised, and why."""

    param: str
    reason: str


def find_sites(graph: Graph, is_stored: Callable[[str], bool]) -> tuple[list[GraphSite], list[Left]]:
    """Sites in the order of execution, and what stays. ``is_stored`` says whether a parameter lies in the
    checkpoint as rows of matrices."""
    uses = graph.uses()
    outputs = set(graph.outputs)
    left: list[Left] = []
    chosen: set[int] = set()
    for node in graph.nodes:
        if node.op.name in PRODUCTS:
            reason = _reason_to_leave(node, uses, outputs, is_stored)
            if reason is None:
                chosen.add(id(node))
            else:
                left.append(Left(weight_of(node).name or node.origin, reason))
    sites: dict[Value, GraphSite] = {}
    for node in graph.nodes:
        x = node.operands[0] if id(node) in chosen else None
        if x is not None and x not in sites:
            sites[x] = _site(x, uses[x], chosen, x in outputs)
    return list(sites.values()), left


def weight_of(node: Node) -> Value:
    """The weight of a product."""
    weight = node.operands[1 if node.op.name == "linear" else 2]
    assert weight is not None
    return weight


def num_weights(site: GraphSite) -> int:
    """How many numbers the matrices of a site have."""
    return sum(math.prod(int(d) for d in weight_of(node).type.shape) for node in site.nodes)


def bias_of(node: Node) -> Value | None:
    return node.operands[2 if node.op.name == "linear" else 3]


def _site(x: Value, readers: list[Node], chosen: set[int], leaves: bool) -> GraphSite:
    products = [n for n in readers if n.op.name in PRODUCTS and n.operands[0] is x]
    nodes = [n for n in products if id(n) in chosen]
    beside = [n for n in products if id(n) not in chosen]
    return GraphSite(x, nodes, beside, alone=len(products) == len(readers) and not leaves)


def _reason_to_leave(
    node: Node, uses: dict[Value, list[Node]], outputs: set[Value], is_stored: Callable[[str], bool]
) -> str | None:  # fmt: skip
    weight = weight_of(node)
    if not weight.is_weight or node.attrs.get("transposed"):
        return "stored transposed, or computed"
    if len(uses[weight]) > 1:
        return "used in several places"
    if not is_stored(weight.name):
        return "stored in no rows of matrices"
    reached = _first_reached(node, uses, outputs)
    if "output" in reached:
        return "the head"
    if "topk" in reached:
        return "a router"
    rows = weight.type.shape[-2]
    if isinstance(rows, int) and rows < FEWEST_ROWS:
        return f"only {rows} rows"
    return None


def _first_reached(node: Node, uses: dict[Value, list[Node]], outputs: set[Value]) -> set[str]:
    """What the result meets first on each way: a product, an attention, a choice, or the outputs."""
    found: set[str] = set()
    todo, seen = list(node.results), set(node.results)
    while todo:
        value = todo.pop()
        if value in outputs:
            found.add("output")
        for user in uses.get(value, ()):
            if user.op.name in BARRIERS or user.op.name == "topk":
                found.add(user.op.name)
                continue
            todo += [r for r in user.results if r not in seen]
            seen.update(user.results)
    return found
