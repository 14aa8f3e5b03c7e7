"""Fuse nodes into regions that one kernel computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from rusteeze.ir.graph import Graph
from rusteeze.ir.rewrite import Firing, Refusal
from rusteeze.passes.attention_regions import attention_regions
from rusteeze.passes.linear_regions import linear_regions
from rusteeze.passes.norm_regions import norm_regions
from rusteeze.passes.outline_region import Region, outline_regions
from rusteeze.passes.pass_base import Pass, PassResult
from rusteeze.passes.pointwise_regions import pointwise_regions
from rusteeze.passes.region_growth import Surroundings

Finder = Callable[[Surroundings], Iterator[Region | Refusal]]
FINDERS: dict[str, Finder] = {
    "attention": attention_regions,
    "linear": linear_regions,
    "norm": norm_regions,
    "pointwise": pointwise_regions,
}


@dataclass(frozen=True)
class Fuse(Pass):
    """Before: canonical. After: regions around one kind of anchor are ``fused`` nodes with bodies; a
    region of a single node stays as it is. Static operands are operands of the fused node, scalar
    constants move into the body.

    ``anchor``: attention, linear, norm or pointwise. ValueError for any other."""

    anchor: str
    name: ClassVar[str] = "fuse"

    def __post_init__(self) -> None:
        if self.anchor not in FINDERS:
            raise ValueError(f"no anchor {self.anchor!r}; there are {', '.join(FINDERS)}")

    def run(self, graph: Graph) -> PassResult:
        graph.eliminate_dead_code()  # a dead user would keep its operand out of a region
        found = list(FINDERS[self.anchor](Surroundings(graph)))
        regions = [f for f in found if isinstance(f, Region)]
        outline_regions(graph, regions)
        firings = (Firing(_equation(r), r.main.origin) for r in regions)
        return PassResult(tuple(firings), tuple(f for f in found if isinstance(f, Refusal)))


def _equation(region: Region) -> str:
    names = ", ".join(n.op.name for n in region.nodes)
    return f"{names} => fused {region.anchor}"
