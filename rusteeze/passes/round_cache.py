"""Let the caches of attention hold bf16 or int8 instead of float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rusteeze.ir.graph import Graph
from rusteeze.ir.ops.attention import CACHES
from rusteeze.ir.rewrite import Firing, Refusal
from rusteeze.passes.pass_base import Pass, PassResult

EQUATION = "attention(q, k, v) => attention(q, k, v) {cache}"


@dataclass(frozen=True)
class RoundCache(Pass):
    """Before: caches hold float32. After: every attention keeps its keys and values as ``to`` says, unless its
    heads do not suit; a cache of latents takes bf16 instead of int8. This changes results, by the rounding of what is written. ValueError for an unknown
    ``to``."""

    to: str = "bf16"
    name: ClassVar[str] = "round-cache"

    def __post_init__(self) -> None:
        if self.to not in CACHES:
            raise ValueError(f"there is no cache of {self.to!r}, only {', '.join(CACHES)}")

    def run(self, graph: Graph) -> PassResult:
        firings: list[Firing] = []
        refusals: list[Refusal] = []
        for node in graph.nodes:
            if node.op.name != "attention":
                continue
            width = next(node.inputs()).type.shape[2]
            latents = node.operands[2] is None
            to = "bf16" if latents and self.to == "int8" else self.to
            if to == "bf16" and int(width) % 2:
                refusals.append(Refusal(EQUATION, node, f"bf16 is kept in pairs, {width} is odd"))
                continue
            if to != self.to:
                refusals.append(Refusal(EQUATION, node, "latents are not kept as int8, but as bf16"))
            node.attrs["cache"] = to
            firings.append(Firing(EQUATION, node.origin))
        return PassResult(tuple(firings), tuple(refusals))
