"""Products with weights whose columns are stored in another order: the activations follow that order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from rusteeze.ir.graph import Graph, Node, Value, make_node
from rusteeze.ir.rewrite import Firing
from rusteeze.ir.types import DType, TensorType
from rusteeze.passes.pass_base import Pass, PassResult

SORTED, COLUMNS = ".sorted", ".columns"
EQUATION = "linear(x, w) => linear(gather_columns(x, columns), sorted w)"
MOVED = "gather_columns(f(linear(x, w))) => f(linear(x, gather_rows(w)))"


@dataclass(frozen=True)
class SortedWeight:
    """Column j of the sorted weight is column ``columns[j]`` (int32 [K]) of the weight; ``format``: of the sorted one."""

    columns: np.ndarray
    format: str


@dataclass(frozen=True)
class SortColumns(Pass):
    """Before: weights of ``linear`` are the model's own. After: those in ``weights`` (by name) that nothing else
    reads are replaced by weights NAME.sorted, and their inputs by gathered ones; the index is the weight
    NAME.columns. Inputs that products make, and that nothing else reads, are made in that order instead
    (gate and up in the order of down)."""

    weights: Mapping[str, SortedWeight] = field(default_factory=dict, metadata={"option": False})
    name: ClassVar[str] = "sort-columns"

    def run(self, graph: Graph) -> PassResult:
        uses = graph.uses()
        chosen = {graph.weights[name] for name in self.weights if name in graph.weights}
        chosen = {w for w in chosen if all(_multiplies(n, w) for n in uses.get(w, ())) and w not in graph.outputs}
        firings: list[Firing] = []
        indices: dict[bytes, Value] = {}
        gathered: dict[tuple[Value, Value], Value] = {}
        order: list[Node] = []
        for node in graph.nodes:
            if node.op.name == "linear" and node.operands[1] in chosen:
                self._sort(graph, node, indices, gathered, order)
                firings.append(Firing(EQUATION, node.origin))
            order.append(node)
        graph.nodes = order
        firings += _move_into_products(graph)
        graph.eliminate_dead_code()
        return PassResult(tuple(firings))

    def _sort(
        self, graph: Graph, node: Node, indices: dict[bytes, Value], gathered: dict[tuple[Value, Value], Value],
        order: list[Node],
    ) -> None:  # fmt: skip
        x, weight, _ = node.operands
        assert x is not None
        assert weight is not None
        found = self.weights[weight.name]
        index = indices.setdefault(
            found.columns.tobytes(),
            graph.weight(weight.name + COLUMNS, TensorType(DType.i32, (len(found.columns),)), "i32"),
        )
        if (x, index) not in gathered:
            order.append(make_node("gather_columns", [x, index], {}, node.origin))
            gathered[x, index] = order[-1].result
        node.operands[0] = gathered[x, index]
        node.operands[1] = graph.weight(weight.name + SORTED, weight.type, found.format)


def _multiplies(node: Node, weight: Value) -> bool:
    return node.op.name == "linear" and node.operands[1] is weight and weight not in (node.operands[0], node.operands[2])


def _move_into_products(graph: Graph) -> list[Firing]:
    """From the last node to the first, so that products that are changed are changed as wholes."""
    uses, outputs, static = graph.uses(), set(graph.outputs), graph.static_values()
    firings: list[Firing] = []
    replaced: dict[Value, Value] = {}
    for node in reversed(list(graph.nodes)):
        if node.op.name != "gather_columns":
            continue
        x, index = node.operands
        assert x is not None
        assert index is not None
        chain = _chain(x, uses, outputs, static)
        if chain:
            for producer in {id(n): n for n in chain}.values():
                if producer.op.name == "linear":
                    producer.operands[1:] = [_rows(graph, producer, v, index) for v in producer.operands[1:]]
            replaced[node.result] = x
            firings.append(Firing(MOVED, node.origin))
    graph.substitute(replaced)
    graph.sort()
    return firings


def _rows(graph: Graph, node: Node, value: Value | None, index: Value) -> Value | None:
    return None if value is None else graph.insert(0, "gather_rows", value, index, origin=node.origin).result


def _chain(x: Value, uses: dict[Value, list[Node]], outputs: set[Value], static: set[Value]) -> list[Node]:
    """The nodes between x and the products that make its columns, if all treat columns alike and nothing else
    reads them; else none."""
    node = x.node
    if node is None or x in outputs or len(set(map(id, uses[x]))) != 1:
        return []
    if node.op.name == "linear":
        return [node] if all(v is None or v in static for v in node.operands[1:]) else []
    if "elementwise" not in node.op.traits and node.op.name != "glu":
        return []
    found = [node]
    for v in node.inputs():
        if v.type.shape in ((), (1,)):
            continue
        inner = _chain(v, uses, outputs, static) if v.type == x.type else []
        if not inner:
            return []
        found += inner
    return found
