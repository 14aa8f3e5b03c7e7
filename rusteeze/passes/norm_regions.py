"""Regions around a normalisation: what prepares its input and what is done with its result, row by row."""

from __future__ import annotations

from collections.abc import Iterator

from rusteeze.ir.graph import Node, Value
from rusteeze.ir.rewrite import Refusal
from rusteeze.passes.outline_region import Region
from rusteeze.passes.region_growth import Growth, Surroundings, pointwise_objection

ANCHOR = "norm"
NORMS = ("rms_norm", "layer_norm")
EQUATION = "pointwise(norm(pointwise(x))) => fused norm"


def norm_regions(around: Surroundings) -> Iterator[Region | Refusal]:
    """A norm of rows [T, N] with the pointwise expression that it normalises, whose value may also be
    used elsewhere (a residual sum is), and with what is pointwise in its result, up to a quantize."""
    for node in around.graph.nodes:
        if node.op.name not in NORMS or not around.is_free(node) or node.result.type.rank != 2:
            continue
        before = _prologue(around, node)
        exposed = _exposed(around, node, before)
        growth = Growth(around, [*before, node], exposed)
        growth.run(pointwise_objection)
        if growth.stop is not None:
            yield Refusal(EQUATION, *growth.stop)
        nodes, outputs = growth.nodes, [*exposed, growth.newest]
        rounded = _quantize_beside(around, growth)
        if rounded is not None:
            nodes, outputs = [*nodes, rounded], [*outputs, rounded.result]
        if len(nodes) > 1:
            around.claim(nodes)
            yield Region(ANCHOR, around.in_order(nodes), tuple(outputs), node)


def _quantize_beside(around: Surroundings, growth: Growth) -> Node | None:
    """A quantize of the result that could not join because others use the unrounded result too."""
    users = around.uses.get(growth.newest, ())
    return next((u for u in users if u.op.name == "quantize" and around.is_free(u)), None)


def _prologue(around: Surroundings, norm: Node) -> list[Node]:
    """The pointwise nodes that compute the input of the norm, and nothing else but that input."""
    source = norm.operands[0]
    assert source is not None
    if not _may_join(around, source.node, source):
        return []
    assert source.node is not None
    inside = {id(norm), id(source.node)}
    nodes = [source.node]
    for node in nodes:
        for v in node.inputs():
            if _may_join(around, v.node, source) and _is_private(around, v, inside):
                assert v.node is not None
                if id(v.node) not in inside:
                    inside.add(id(v.node))
                    nodes.append(v.node)
    return list(around.in_order(nodes))


def _may_join(around: Surroundings, node: Node | None, like: Value) -> bool:
    return (
        node is not None
        and "elementwise" in node.op.traits
        and around.is_free(node)
        and node.result.type == like.type
    )


def _is_private(around: Surroundings, v: Value, inside: set[int]) -> bool:
    return v not in around.outputs and all(id(u) in inside for u in around.uses.get(v, ()))


def _exposed(around: Surroundings, norm: Node, before: list[Node]) -> frozenset[Value]:
    """The input of the norm if the region computes it and others use it too."""
    source = norm.operands[0]
    if not before or source is None or _is_private(around, source, {id(norm)}):
        return frozenset()
    return frozenset({source})
