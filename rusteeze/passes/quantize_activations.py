"""Round activations in front of products: to int8 groups for integer weights, to bf16 for bf16 and float8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rusteeze.ir.graph import Graph, Node, Value, make_node
from rusteeze.ir.rewrite import Firing, Refusal
from rusteeze.ir.storage import is_quantized, rounding_for, stored_format
from rusteeze.passes.pass_base import Pass, PassResult

EQUATION = "linear(x, w) => linear(quantize(x), w)"
WEIGHT_OPERAND = {"linear": 1, "block_linear": 1, "expert_linear": 2}


@dataclass(frozen=True)
class QuantizeActivations(Pass):
    """Before: weights have their storage formats. After: the input of every product that may be rounded
    has gone through ``quantize``, once per input and kind. This changes results, by the rounding that
    the kernels do.

    ``group``: elements that share a scale; inputs that it does not divide stay as they are. ``int8``,
    ``bf16``: which roundings to use. ``codes``: "bf16" where codes are multiplied by bf16 activations."""

    group: int = 32
    int8: bool = True
    bf16: bool = True
    codes: str = "int8"
    name: ClassVar[str] = "quantize-activations"

    def run(self, graph: Graph) -> PassResult:
        rounded: dict[tuple[Value, str], Value] = {}
        order: list[Node] = []
        firings: list[Firing] = []
        refusals: list[Refusal] = []
        for node in graph.nodes:
            kind = self._rounding(node)
            reason = self._reason_against(node, kind)
            if reason:
                refusals.append(Refusal(EQUATION, node, reason))
            elif reason is None and kind:
                x = next(node.inputs())
                if (x, kind) not in rounded:
                    attrs = {"to": kind, "group": self.group}
                    order.append(make_node("quantize", [x], attrs, node.origin))
                    rounded[x, kind] = order[-1].result
                node.operands[0] = rounded[x, kind]
                firings.append(Firing(EQUATION, node.origin))
            order.append(node)
        graph.nodes = order
        return PassResult(tuple(firings), tuple(refusals))

    def _rounding(self, node: Node) -> str | None:
        if node.op.name not in WEIGHT_OPERAND:
            return None
        stored = stored_format(_weight(node))
        return "bf16" if self.codes == "bf16" and is_quantized(stored) else rounding_for(stored)

    def _reason_against(self, node: Node, kind: str | None) -> str | None:
        """Why not; "" for nodes that are no candidates; None if all is well."""
        if node.op.name not in WEIGHT_OPERAND:
            return ""
        x = node.operands[0]
        assert x is not None
        if x.op == "quantize":
            return ""
        if kind is None or not {"int8": self.int8, "bf16": self.bf16}[kind]:
            return f"activations are not rounded {'to ' + kind if kind else 'for such a weight'}"
        # a group lies in one block
        width = _weight(node).type.shape[-1] if node.op.name == "block_linear" else x.type.shape[-1]
        if not isinstance(width, int) or width % self.group:
            return f"{width} elements are no multiple of {self.group}"
        if x.type.rank != 2 and (node.op.name != "expert_linear" or x.type.rank != 3):
            return "only rows of one axis are rounded, and those of experts"
        return None


def _weight(node: Node) -> Value:
    weight = node.operands[WEIGHT_OPERAND[node.op.name]]
    assert weight is not None
    return weight
