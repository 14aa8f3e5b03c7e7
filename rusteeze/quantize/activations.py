"""What a graph computes on all windows of a text, as far as some point of it, stretch by stretch.

Within a stretch windows come one after the other, so that only what later stretches need is kept for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from rusteeze.ir import Graph, Node, Value
from rusteeze.quantize.torch_ops import evaluate

Tensor = torch.Tensor
Load = Callable[[str], Tensor]


class Activations:
    """``nodes`` in the order in which they will be computed."""

    def __init__(self, graph: Graph, nodes: Sequence[Node], windows: Sequence[Tensor]) -> None:
        self.nodes = nodes
        self.done = 0
        self.last_use = {v: i for i, node in enumerate(nodes) for v in node.inputs()}
        self.values = [dict(zip(graph.inputs, _inputs(ids), strict=True)) for ids in windows]

    def advance(self, to: int, load: Load) -> None:
        """Compute the nodes before ``nodes[to]``; ``load`` gives weights."""
        stretch = self.nodes[self.done : to]
        weights = {v: load(v.name) for node in stretch for v in node.inputs() if v.is_weight}
        for values in self.values:
            self._compute(stretch, values, weights)
        self.done = max(to, self.done)

    def rows(self, value: Value) -> Iterator[Tensor]:
        """A computed value of each window."""
        return (values[value] for values in self.values)

    def _compute(self, stretch: Sequence[Node], values: dict[Value, Tensor], weights: dict[Value, Tensor]) -> None:
        for node in stretch:
            operands = [None if v is None else weights[v] if v.is_weight else values[v] for v in node.operands]
            values.update(zip(node.results, evaluate(node, operands), strict=True))
        end = self.done + len(stretch)
        for value in [v for v in values if self.last_use.get(v, -1) < end]:
            del values[value]


def _inputs(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One whole sequence, of which every row is wanted."""
    count = torch.arange(len(ids), dtype=torch.int32)
    return ids, count, count
