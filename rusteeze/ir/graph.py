"""Values, nodes and graphs: a typed SSA form without control flow.

A graph has *inputs* (known when a step runs), *weights* (known when a model is compiled, referred to by
their Hugging Face parameter name) and nodes in execution order. A node may carry a *body*: a nested
graph that says what a fused region computes. Every node keeps its *origin*, the path of the Hugging
Face module that it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rusteeze.ir.op import OPS, AttrValue, OpDef
from rusteeze.ir.types import TensorType


class Value:
    """Something that is computed once. ``node`` is None for inputs and weights."""

    __slots__ = ("format", "index", "is_weight", "name", "node", "type")

    def __init__(
        self, type: TensorType, name: str = "", node: Node | None = None, index: int = 0,
        is_weight: bool = False, format: str = "",
    ) -> None:  # fmt: skip
        self.type, self.name, self.node, self.index = type, name, node, index
        self.is_weight = is_weight
        self.format = format  # how a weight is stored, e.g. "f32" or "affine4g32m" (rusteeze.weights)

    @property
    def op(self) -> str:
        """Name of the producing op; "" for inputs and weights."""
        return self.node.op.name if self.node else ""

    def __repr__(self) -> str:
        return f"<Value {self.name or self.op or '?'}: {self.type}>"


@dataclass(eq=False)
class Node:
    op: OpDef
    operands: list[Value | None]
    attrs: dict[str, AttrValue]
    results: list[Value] = field(default_factory=list)
    origin: str = ""
    body: Graph | None = None

    @property
    def result(self) -> Value:
        """The only result. ValueError if there are several."""
        (value,) = self.results
        return value

    def inputs(self) -> Iterator[Value]:
        return (v for v in self.operands if v is not None)

    def __repr__(self) -> str:
        return f"<Node {self.op.name} @ {self.origin}>"


class Graph:
    """See the module docstring. Mutable; a pass that wants the old graph calls copy() first."""

    def __init__(self, name: str = "main") -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.weights: dict[str, Value] = {}
        self.nodes: list[Node] = []
        self.outputs: list[Value] = []

    def input(self, name: str, type: TensorType) -> Value:
        self.inputs.append(Value(type, name))
        return self.inputs[-1]

    def weight(self, name: str, type: TensorType, format: str = "") -> Value:
        """The weight of that name, declared on first use."""
        if name not in self.weights:
            self.weights[name] = Value(type, name, is_weight=True, format=format)
        return self.weights[name]

    def add(self, op: str, *operands: Value | None, origin: str = "", **attrs: Any) -> Value:
        """Append a node with one result and return that."""
        return self.insert(len(self.nodes), op, *operands, origin=origin, **attrs).result

    def add_many(
        self, op: str, *operands: Value | None, origin: str = "", **attrs: Any
    ) -> list[Value]:
        return self.insert(len(self.nodes), op, *operands, origin=origin, **attrs).results

    def insert(
        self, position: int, op: str, *operands: Value | None, origin: str = "",
        body: Graph | None = None, **attrs: Any,
    ) -> Node:  # fmt: skip
        """Insert a node before ``nodes[position]``; its result types are inferred. TypeError if ill-typed."""
        node = make_node(op, list(operands), attrs, origin, body)
        self.nodes.insert(position, node)
        return node

    def replace(self, old: Value, new: Value) -> None:
        """Let every use of ``old`` use ``new``."""
        for node in self.nodes:
            node.operands = [new if v is old else v for v in node.operands]
        self.outputs = [new if v is old else v for v in self.outputs]

    def substitute(self, mapping: dict[Value, Value]) -> None:
        """Many replacements in one walk; chains are followed."""
        if not mapping:
            return

        def resolve(v: Value | None) -> Value | None:
            while v is not None and v in mapping:
                v = mapping[v]
            return v

        for node in self.nodes:
            node.operands = [resolve(v) for v in node.operands]
        self.outputs = [r for v in self.outputs if (r := resolve(v)) is not None]

    def uses(self) -> dict[Value, list[Node]]:
        """Value → nodes that read it, in order (once per operand). Outputs are not listed here."""
        table: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for v in node.inputs():
                table.setdefault(v, []).append(node)
        return table

    def eliminate_dead_code(self) -> int:
        """Drop nodes (and weights) that no output needs; stateful nodes stay. Returns how many nodes went."""
        live: set[Value] = set(self.outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if "stateful" in node.op.traits or any(r in live for r in node.results):
                live.update(node.inputs())
                kept.append(node)
        dropped = len(self.nodes) - len(kept)
        self.nodes = kept[::-1]
        self.weights = {k: v for k, v in self.weights.items() if v in live}
        return dropped

    def sort(self) -> None:
        """Restore execution order after insertions (stable topological sort). ValueError on a cycle."""
        done: set[int] = set()
        active: set[int] = set()
        order: list[Node] = []

        for root in self.nodes:
            stack: list[tuple[Node, bool]] = [(root, False)]
            while stack:
                node, expanded = stack.pop()
                if id(node) in done:
                    continue
                if expanded:
                    done.add(id(node))
                    order.append(node)
                    continue
                if id(node) in active:
                    raise ValueError(f"cycle through {node!r}")
                active.add(id(node))
                stack.append((node, True))
                stack += [(v.node, False) for v in node.inputs() if v.node and id(v.node) not in done]
        self.nodes = order

    def copy(self) -> Graph:
        """A deep copy that shares nothing mutable."""
        new = Graph(self.name)
        memo: dict[Value, Value] = {}
        for v in self.inputs:
            memo[v] = new.input(v.name, v.type)
        for v in self.weights.values():
            memo[v] = new.weight(v.name, v.type, v.format)
        for node in self.nodes:
            clone = Node(
                node.op, [memo[v] if v is not None else None for v in node.operands],
                dict(node.attrs), origin=node.origin, body=node.body.copy() if node.body else None,
            )  # fmt: skip
            clone.results = [Value(r.type, r.name, clone, i) for i, r in enumerate(node.results)]
            memo.update(zip(node.results, clone.results, strict=True))
            new.nodes.append(clone)
        new.outputs = [memo[v] for v in self.outputs]
        return new

    def static_values(self) -> set[Value]:
        """Weights, constants and whatever is computed from them alone: known at compile time."""
        static: set[Value] = set(self.weights.values())
        for node in self.nodes:
            if "stateful" not in node.op.traits and all(v in static for v in node.inputs()):
                static.update(node.results)
        return static

    def structure(self) -> tuple[Any, ...]:
        """What two equal graphs have in common: everything but object identity."""
        number: dict[Value, Any] = {v: v.name for v in self.inputs}
        number |= {v: "@" + v.name for v in self.weights.values()}
        rows: list[Any] = []
        for node in self.nodes:
            for r in node.results:
                number[r] = len(number)
            rows.append((
                node.op.name, tuple(number[v] if v is not None else None for v in node.operands),
                tuple(sorted(node.attrs.items())), tuple(str(r.type) for r in node.results),
                node.origin, node.body.structure() if node.body else None,
            ))  # fmt: skip
        return (
            self.name, tuple((v.name, str(v.type)) for v in self.inputs),
            tuple((v.name, str(v.type), v.format) for v in self.weights.values()),
            tuple(rows), tuple(number[v] for v in self.outputs),
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self.structure() == other.structure()

    __hash__ = None  # type: ignore[assignment]


def make_node(
    op: str, operands: list[Value | None], attrs: dict[str, Any], origin: str = "",
    body: Graph | None = None,
) -> Node:  # fmt: skip
    """A checked node that is not in a graph yet. TypeError names the op and what is wrong."""
    if op not in OPS:
        raise TypeError(f"unknown op {op}")
    definition = OPS[op]
    definition.check_arity(operands)
    complete = definition.complete_attrs(attrs)
    node = Node(definition, operands, complete, origin=origin, body=body)
    for i, t in enumerate(infer_types(node)):
        node.results.append(Value(t, node=node, index=i))
    return node


def infer_types(node: Node) -> tuple[TensorType, ...]:
    """Result types by the op's own rule (for a fused node: its body's outputs). TypeError if ill-typed."""
    if node.body is not None:
        return tuple(v.type for v in node.body.outputs)
    types = [v.type if v is not None else None for v in node.operands]
    try:
        out = node.op.infer(*types, **node.attrs)
    except TypeError as e:
        shown = ", ".join(str(t) for t in types)
        raise TypeError(f"{node.op.name}({shown}) {node.attrs}: {e}") from None
    return out if isinstance(out, tuple) else (out,)


def producers(values: Iterable[Value], stop: Callable[[Value], bool]) -> list[Node]:
    """The nodes between ``values`` and the values at which ``stop`` holds, in no particular order."""
    seen: dict[int, Node] = {}
    todo = [v for v in values if not stop(v)]
    while todo:
        node = todo.pop().node
        if node is None or id(node) in seen:
            continue
        seen[id(node)] = node
        todo += [v for v in node.inputs() if not stop(v)]
    return list(seen.values())
