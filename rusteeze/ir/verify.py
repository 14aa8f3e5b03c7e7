"""Is a graph well formed? Derived from the op declarations; errors point at a line of the text form."""

from __future__ import annotations

from rusteeze.ir.graph import Graph, Node, Value, infer_types
from rusteeze.ir.text import print_node_line


class VerifyError(Exception):
    """A graph that no pass may produce."""


def verify(graph: Graph) -> None:
    """Check definition before use, operands, attributes and result types of every node.

    Raises VerifyError with the offending line."""
    known: set[Value] = set(graph.inputs) | set(graph.weights.values())
    for node in graph.nodes:
        try:
            _verify_node(node, known)
        except (TypeError, ValueError) as e:
            raise VerifyError(f"{e}\n  in: {print_node_line(node)}") from None
        known.update(node.results)
    for v in graph.outputs:
        if v not in known:
            raise VerifyError(f"output {v!r} is not defined in graph {graph.name}")


def _verify_node(node: Node, known: set[Value]) -> None:
    for v in node.inputs():
        if v not in known:
            raise TypeError(f"operand {v!r} is used before it is defined")
    node.op.check_arity(node.operands)
    node.op.complete_attrs(node.attrs)
    if node.body is not None:
        bound = [v.type for v in node.inputs()]
        if bound != [v.type for v in node.body.inputs]:
            raise TypeError("operands do not match the inputs of the body")
        verify(node.body)
    wanted = infer_types(node)
    got = tuple(r.type for r in node.results)
    if wanted != got:
        raise TypeError(f"result types {[*map(str, got)]} should be {[*map(str, wanted)]}")
    for i, r in enumerate(node.results):
        if r.node is not node or r.index != i:
            raise TypeError(f"result {i} belongs to another node")
