"""Compute pointwise arithmetic on scalar constants once, while compiling."""

from __future__ import annotations

import numpy as np

from rusteeze.ir.graph import Graph, Node, make_node
from rusteeze.ir.interp import evaluate
from rusteeze.ir.rewrite import Firing


def fold_constants(graph: Graph) -> list[Firing]:
    """Scalar expressions over ``const`` nodes become ``const`` nodes, in place."""
    firings: list[Firing] = []
    for i, node in enumerate(graph.nodes):
        if not _is_constant_expression(node):
            continue
        folded = _folded(node)
        if folded is None:
            continue
        folded.results = node.results
        folded.results[0].node = folded
        graph.nodes[i] = folded
        firings.append(Firing(f"{node.op.name}(constants) => const", node.origin))
    return firings


def _is_constant_expression(node: Node) -> bool:
    return (
        "elementwise" in node.op.traits
        and bool(node.operands)
        and all(v.op == "const" for v in node.inputs())
    )


def _folded(node: Node) -> Node | None:
    operands = [evaluate(v.node, [])[0] for v in node.inputs() if v.node]
    with np.errstate(all="ignore"):
        value = float(evaluate(node, operands)[0])
    if not np.isfinite(value):
        return None  # such a constant has no text form
    dtype = node.result.type.dtype.value
    return make_node("const", [], {"value": value, "dtype": dtype}, node.origin)
