"""Round activations to int8 groups in front of products with integer weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rusteeze.ir.graph import Graph, Node, Value, make_node
from rusteeze.ir.rewrite import Firing, Refusal
from rusteeze.ir.storage import is_quantized, stored_format
from rusteeze.passes.pass_base import Pass, PassResult

EQUATION = "linear(x, w) => linear(quantize(x), w)"


@dataclass(frozen=True)
class QuantizeActivations(Pass):
    """Before: weights have their storage formats. After: the input of every product with a weight of
    integer or codebook codes has gone through ``quantize``, once per input. This changes results, by
    the rounding that the kernels do.

    ``group``: elements that share a scale; inputs that it does not divide stay as they are."""

    group: int = 32
    name: ClassVar[str] = "quantize-activations"

    def run(self, graph: Graph) -> PassResult:
        rounded: dict[Value, Value] = {}
        order: list[Node] = []
        firings: list[Firing] = []
        refusals: list[Refusal] = []
        for node in graph.nodes:
            reason = self._reason_against(node)
            if reason:
                refusals.append(Refusal(EQUATION, node, reason))
            elif reason is None:
                x = next(node.inputs())
                if x not in rounded:
                    order.append(make_node("quantize", [x], {"group": self.group}, node.origin))
                    rounded[x] = order[-1].result
                node.operands[0] = rounded[x]
                firings.append(Firing(EQUATION, node.origin))
            order.append(node)
        graph.nodes = order
        return PassResult(tuple(firings), tuple(refusals))

    def _reason_against(self, node: Node) -> str | None:
        """Why not; "" for nodes that are no candidates; None if all is well."""
        if node.op.name not in ("linear", "expert_linear"):
            return ""
        x, weight = node.operands[0], node.operands[1 if node.op.name == "linear" else 2]
        assert x is not None
        assert weight is not None
        if x.op == "quantize":
            return ""
        if not is_quantized(stored_format(weight)):
            return f"the weight is stored as {stored_format(weight)}"
        width = x.type.shape[-1]
        if not isinstance(width, int) or width % self.group:
            return f"{width} elements are no multiple of {self.group}"
        return None
