"""Where the producer of a product's input could divide its channels by factors, without changing the model.

A norm can in its weight; a product in its rows, seen through what treats channels alike: the second factor
of a GLU, reshapes, and attention, whose results are mixtures of values channel by channel (those that share a
value head share its factors). Only if nothing else reads the input, and all numbers are stored one to one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from rusteeze.ir import Node, Value
from rusteeze.quantize.find_sites import GraphSite, bias_of, weight_of

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class GraphFold:
    """What changes when a site's input is divided by factors f32 [K]. ``tie`` int64 [K]: the channel of the
    producer that each channel comes from.

    ``norms`` (parameter, offset) become (w + offset) / factors - offset; ``biases`` are divided; the rows of
    the matrices ``rows`` are divided; the columns of the plain matrices ``columns`` are multiplied."""

    tie: Tensor
    norms: list[tuple[str, float]] = field(default_factory=list)
    biases: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)

    def of_producer(self, factors: Tensor) -> Tensor:
        """The factor of each channel of the producer."""
        found = torch.ones(int(self.tie.max()) + 1)
        found[self.tie] = factors
        return found


def find_fold(
    site: GraphSite, uses: dict[Value, list[Node]], is_plain: Callable[[str], bool]
) -> GraphFold | None:  # fmt: skip
    """The fold of a site, if it has one. ``is_plain`` says whether a parameter is stored as it is."""
    if not site.alone or any(n.op.name != "linear" or not _is_own(weight_of(n), uses) for n in site.beside):
        return None
    found = _producer(site.input, uses)
    if found is None:
        return None
    found.columns.extend(weight_of(n).name for n in site.beside)
    touched = [*(name for name, _ in found.norms), *found.biases, *found.columns, *found.rows]
    return found if all(map(is_plain, touched)) else None


def _producer(x: Value, uses: dict[Value, list[Node]]) -> GraphFold | None:
    node = x.node
    if node is None:
        return None
    name = node.op.name
    if name in ("rms_norm", "layer_norm"):
        return _norm(node, uses)
    if name == "linear":
        return _product(node, uses)
    sole = _sole_source(node)
    if sole is None or len(uses[sole]) > 1:
        return None
    inner = _producer(sole, uses)
    if name == "attention" and inner is not None:
        return _through_attention(node, sole, inner)
    return inner if inner is not None and not inner.norms else None


def _sole_source(node: Node) -> Value | None:
    """The operand whose channels the result scales with."""
    if node.op.name in ("glu", "mul") and node.operands[1] is not None:
        scaled = node.operands[1]
        same = node.operands[0] is not None and node.operands[0].type == scaled.type
        return scaled if same and node.operands[0] is not scaled else None
    if node.op.name == "attention":
        return node.operands[2]
    if node.op.name in ("relu", "reshape"):
        return node.operands[0]
    return None


def _norm(node: Node, uses: dict[Value, list[Node]]) -> GraphFold | None:
    _, weight, *rest = node.operands
    if weight is None or not _is_own(weight, uses) or weight.type.rank != 1:
        return None
    biases = [b for b in rest if b is not None]
    if not all(_is_own(b, uses) for b in biases):
        return None
    offset = float(node.attrs.get("offset", 0.0))
    width = int(weight.type.shape[0])
    return GraphFold(torch.arange(width), [(weight.name, offset)], [b.name for b in biases])


def _product(node: Node, uses: dict[Value, list[Node]]) -> GraphFold | None:
    weight, bias = weight_of(node), bias_of(node)
    if not _is_own(weight, uses) or (bias is not None and not _is_own(bias, uses)):
        return None
    rows = int(weight.type.shape[0])
    return GraphFold(torch.arange(rows), biases=[bias.name] if bias else [], rows=[weight.name])


def _through_attention(node: Node, values: Value, inner: GraphFold) -> GraphFold | None:
    """Query heads read the values of their group: v [T, Hk, Dv] becomes [T, H, Dv]."""
    heads, width = int(node.result.type.shape[1]), int(node.result.type.shape[2])
    shared = int(values.type.shape[1])
    channels = torch.arange(shared * width).reshape(shared, width)
    spread = channels.repeat_interleave(heads // shared, 0).reshape(-1)
    if len(inner.tie) != shared * width or inner.norms:
        return None
    return GraphFold(inner.tie[spread], biases=inner.biases, rows=inner.rows)


def _is_own(value: Value, uses: dict[Value, list[Node]]) -> bool:
    return value.is_weight and len(uses[value]) == 1
