"""Regions around attention: its result is rounded where it is divided by the softmax's sums."""

from __future__ import annotations

from collections.abc import Iterator

from rusteeze.ir.graph import Node
from rusteeze.ir.rewrite import Refusal
from rusteeze.passes.outline_region import Region
from rusteeze.passes.region_growth import Surroundings

ANCHOR = "attention"
EQUATION = "quantize(reshape(attention(q, k, v))) => fused attention"


def attention_regions(around: Surroundings) -> Iterator[Region | Refusal]:
    """An attention [T, H, D] whose only reader lays its heads side by side and only rounds them. Heads
    must be whole groups of the rounding: they are computed apart."""
    for node in around.graph.nodes:
        if node.op.name != "attention":
            continue
        reshape = _only_user(around, node)
        rounded = _only_user(around, reshape) if reshape is not None else None
        if reshape is None or rounded is None or rounded.op.name != "quantize":
            continue
        reason = _objection(node, reshape, rounded)
        if reason:
            yield Refusal(EQUATION, node, reason)
        else:
            nodes = (node, reshape, rounded)
            around.claim(nodes)
            yield Region(ANCHOR, nodes, (rounded.result,), node)


def _only_user(around: Surroundings, node: Node) -> Node | None:
    users = around.uses.get(node.result, [])
    return users[0] if len(users) == 1 and node.result not in around.outputs else None


def _objection(attention: Node, reshape: Node, rounded: Node) -> str:
    width, group = attention.result.type.shape[2], rounded.attrs["group"]
    if reshape.op.name != "reshape" or reshape.result.type.rank != 2:
        return f"{reshape.op.name} comes between"
    if width % group:  # type: ignore[operator]
        return f"heads of {width} elements are no whole groups of {group}"
    return ""
