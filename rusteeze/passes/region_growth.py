"""How fused regions grow: node by node along the uses of their results.

A region that has grown is *closed* when only its newest result (and results that were allowed to leave
it from the start) is used outside. Growth stops at the first user that cannot join; the region is then
cut back to where it was last closed. Closed regions never form a cycle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from rusteeze.ir.graph import Graph, Node, Value

MAX_NODES = 48
Objection = Callable[[Node, "Growth"], str]


@dataclass
class Surroundings:
    """What growing regions need to know of their graph. ``claimed``: nodes that are in a region."""

    graph: Graph
    uses: dict[Value, list[Node]] = field(init=False)
    position: dict[int, int] = field(init=False)
    static: set[Value] = field(init=False)
    outputs: set[Value] = field(init=False)
    claimed: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.uses = self.graph.uses()
        self.position = {id(n): i for i, n in enumerate(self.graph.nodes)}
        self.static = self.graph.static_values()
        self.outputs = set(self.graph.outputs)

    def claim(self, nodes: Iterable[Node]) -> None:
        self.claimed.update(map(id, nodes))

    def is_free(self, node: Node) -> bool:
        return id(node) not in self.claimed and not all(r in self.static for r in node.results)

    def in_order(self, nodes: Iterable[Node]) -> tuple[Node, ...]:
        return tuple(sorted(nodes, key=lambda n: self.position[id(n)]))


class Growth:
    """A region that grows from ``start``. ``exposed`` results may be used outside in any case.

    After ``run``: ``nodes`` is the largest closed region, ``newest`` its last result and ``stop`` why it
    grew no further."""

    def __init__(self, around: Surroundings, start: list[Node], exposed: frozenset[Value]) -> None:
        self.around, self.exposed = around, exposed
        self.nodes, self.newest = list(start), start[-1].results[0]
        self.members = {id(n): n for n in start}
        self.stop: tuple[Node, str] | None = None

    def run(self, objection: Objection) -> None:
        while len(self.members) < MAX_NODES:
            user = self._next_user()
            if user is None:
                return
            reason = objection(user, self) or self._common_objection(user)
            if reason:
                self.stop = user, reason
                return
            self.members[id(user)] = user
            if self._is_closed(user):
                self.nodes, self.newest = list(self.members.values()), user.results[0]

    def holds(self, v: Value | None) -> bool:
        return v is not None and v.node is not None and id(v.node) in self.members

    def _next_user(self) -> Node | None:
        """The first outside user of what is not exposed; None if there is none."""
        users = [
            u
            for n in self.members.values()
            for r in n.results
            if r not in self.exposed
            for u in self.around.uses.get(r, ())
            if id(u) not in self.members
        ]
        return min(users, key=lambda u: self.around.position[id(u)], default=None)

    def _common_objection(self, user: Node) -> str:
        if not self.around.is_free(user):
            return "it belongs to another region"
        if any(self.holds(v) and v in self.around.outputs for v in user.inputs()):
            return "what it reads is an output of the graph"
        if any(self._comes_too_late(v) for v in user.inputs()):
            return "it also reads what is computed after an early result of the region"
        return ""

    def _is_closed(self, newest: Node) -> bool:
        return not any(
            self._is_used_outside(r)
            for n in self.members.values()
            if n is not newest
            for r in n.results
            if r not in self.exposed
        )

    def _is_used_outside(self, v: Value) -> bool:
        used = any(id(u) not in self.members for u in self.around.uses.get(v, ()))
        return used or v in self.around.outputs

    def _comes_too_late(self, v: Value) -> bool:
        """Could an outside value wait for an exposed result, directly or through another region?

        If all that enters a region precedes all that leaves it, regions form no cycle."""
        if not self.exposed or self.holds(v) or v.node is None:
            return False
        first = min(self.around.position[id(e.node)] for e in self.exposed)
        return self.around.position[id(v.node)] > first


def pointwise_objection(user: Node, growth: Growth) -> str:
    """Why ``user`` cannot follow in the same loop over elements; "" if it can."""
    if growth.newest.op == "quantize":
        return "rounded values only feed products"
    if user.op.name == "quantize":
        return ""
    if "elementwise" not in user.op.traits:
        return f"{user.op.name} is not pointwise"
    shape = user.result.type.shape
    if any(growth.holds(v) and v.type.shape != shape for v in user.inputs()):
        return "it spreads or changes the shape of the result"
    return ""
