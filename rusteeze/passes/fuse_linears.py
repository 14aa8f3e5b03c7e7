"""Merge matrix products that read the same input into one product with stacked weights."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import ClassVar

from rusteeze.ir.graph import Graph, Node, Value, make_node
from rusteeze.ir.rewrite import Firing, Refusal
from rusteeze.ir.storage import stored_format
from rusteeze.passes.pass_base import Pass, PassResult

EQUATION = "linear(x, a), linear(x, b) => slices of linear(x, concat(a, b))"
BARRIERS = ("attention", "linear", "expert_linear", "topk")


@dataclass(frozen=True)
class FuseLinears(Pass):
    """Before: weights of ``linear`` are static. After: linears of one input that serve the same next
    step (queries, keys and values of one attention; gate and up of one down projection) are one linear,
    in their old order, followed by slices. Weights of different storage formats stay apart."""

    name: ClassVar[str] = "fuse-linears"

    def run(self, graph: Graph) -> PassResult:
        firings: list[Firing] = []
        refusals: list[Refusal] = []
        merged: dict[int, list[Node]] = {}
        for group in _groups(graph):
            for same in _by_format(group, refusals):
                merged[id(same[0])] = same
                firings.append(Firing(EQUATION, _joint_origin(same)))
        _merge(graph, merged)
        return PassResult(tuple(firings), tuple(refusals))


def _groups(graph: Graph) -> list[list[Node]]:
    static = graph.static_values()
    by_input: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        if node.op.name == "linear" and all(v in static for v in node.operands[1:] if v):
            x = node.operands[0]
            assert x is not None
            if x not in static:
                by_input.setdefault(x, []).append(node)
    uses = graph.uses()
    position = {id(n): i for i, n in enumerate(graph.nodes)}
    found: dict[tuple[Value, int], list[Node]] = {}
    for x, nodes in by_input.items():
        for node in nodes if len(nodes) > 1 else []:
            found.setdefault((x, _next_step(node, uses, position)), []).append(node)
    return [g for g in found.values() if len(g) > 1]


def _next_step(node: Node, uses: dict[Value, list[Node]], position: dict[int, int]) -> int:
    """Position of the first barrier that the result reaches; that of the node itself if there is none."""
    first = len(position)
    todo, seen = list(node.results), set(node.results)
    while todo:
        for user in uses.get(todo.pop(), ()):
            if user.op.name in BARRIERS:
                first = min(first, position[id(user)])
            elif position[id(user)] < first:
                todo += [r for r in user.results if r not in seen]
                seen.update(user.results)
    return first if first < len(position) else position[id(node)]


def _by_format(group: list[Node], refusals: list[Refusal]) -> list[list[Node]]:
    """Neighbours of one format."""
    runs: list[list[Node]] = []
    for node in group:
        if runs and _format(runs[-1][-1]) == _format(node):
            runs[-1].append(node)
            continue
        if runs:
            reason = f"weights are stored as {_format(node)} and {_format(runs[-1][-1])}"
            refusals.append(Refusal(EQUATION, node, reason))
        runs.append([node])
    return [run for run in runs if len(run) > 1]


def _format(node: Node) -> str:
    weight = node.operands[1]
    assert weight is not None
    return stored_format(weight)


def _joint_origin(nodes: list[Node]) -> str:
    """``layers.0.attn.q`` and ``layers.0.attn.k`` as ``layers.0.attn.q+k``."""
    paths = [n.origin.split(".") for n in nodes]
    columns = takewhile(
        lambda names: len(set(names)) == 1, zip(*(p[:-1] for p in paths), strict=False)
    )
    shared = [names[0] for names in columns]
    return ".".join([*shared, "+".join(".".join(p[len(shared) :]) for p in paths)])


def _merge(graph: Graph, merged: dict[int, list[Node]]) -> None:
    gone = {id(n) for group in merged.values() for n in group}
    order: list[Node] = []
    replaced: dict[Value, Value] = {}
    for node in graph.nodes:
        if id(node) in merged:
            replaced |= _stacked(merged[id(node)], order)
        elif id(node) not in gone:
            order.append(node)
    graph.nodes = order
    graph.substitute(replaced)
    graph.sort()


def _stacked(group: list[Node], order: list[Node]) -> dict[Value, Value]:
    """Append the one product and its slices to ``order``; old results → slices."""
    origin = _joint_origin(group)

    def add(op: str, *operands: Value | None, **attrs: object) -> Value:
        order.append(make_node(op, list(operands), attrs, origin))
        return order[-1].result

    weight = add("concat", *(n.operands[1] for n in group), axis=0)
    bias = None
    if any(n.operands[2] is not None for n in group):
        zero = add("reshape", add("const", value=0.0), shape=(1,))
        widths = [n.result.type.shape[-1] for n in group]
        parts = [
            n.operands[2] or add("broadcast_to", zero, shape=(w,))
            for n, w in zip(group, widths, strict=True)
        ]
        bias = add("concat", *parts, axis=0)
    product = add("linear", group[0].operands[0], weight, bias)
    start = 0
    slices: dict[Value, Value] = {}
    for node in group:
        width = node.result.type.shape[-1]
        assert isinstance(width, int)
        slices[node.result] = add("slice", product, axis=-1, start=start, stop=start + width)
        start += width
    return slices
