"""Regions around a matrix product: the pointwise work on its result while that is in registers."""

from __future__ import annotations

from collections.abc import Iterator

from rusteeze.ir.graph import Node, Value
from rusteeze.ir.rewrite import Refusal
from rusteeze.passes.outline_region import Region
from rusteeze.passes.region_growth import Growth, Surroundings, pointwise_objection

ANCHOR = "linear"
EQUATION = "pointwise(linear(x, w)) => fused linear"


def linear_regions(around: Surroundings) -> Iterator[Region | Refusal]:
    """A product, perhaps the two halves of its result, what is pointwise in that, a final quantize."""
    for node in around.graph.nodes:
        if node.op.name != "linear" or not around.is_free(node):
            continue
        growth = Growth(around, [node], frozenset())
        growth.run(_objection)
        if growth.stop is not None:
            yield Refusal(EQUATION, *growth.stop)
        if len(growth.nodes) > 1:
            around.claim(growth.nodes)
            yield Region(ANCHOR, around.in_order(growth.nodes), (growth.newest,), node)


def _objection(user: Node, growth: Growth) -> str:
    if user.op.name != "slice":
        return pointwise_objection(user, growth)
    linear = growth.nodes[0]
    if user.operands[0] is not linear.result:
        return "it cuts what was computed from the product"
    if not _is_half(user, linear.result):
        return "it takes something else than one half of the product"
    return ""


def _is_half(node: Node, whole: Value) -> bool:
    width, a = whole.type.shape[-1], node.attrs
    bounds = (a["start"], a["stop"])
    assert isinstance(width, int)
    halves = ((0, width // 2), (width // 2, width))
    return a["axis"] == -1 and a["step"] == 1 and width % 2 == 0 and bounds in halves
