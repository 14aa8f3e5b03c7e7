"""Keep each key and value head once in the cache, where a model repeats it for a group of queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rusteeze.ir.graph import Graph
from rusteeze.ir.op import AttrValue
from rusteeze.ir.rewrite import Guard, Match, Rule, rewrite
from rusteeze.passes.pass_base import Pass, PassResult

# Heads [T, H, 1, D] that are spread to [T, H, G, D] and flattened to [T, H*G, D].
_ATTRS = "{layer=?l, scale=?s, window=?w, softcap=?c, cache=?t}"


def _repeats_heads(*names: str) -> dict[str, Guard]:
    def holds(match: Match) -> bool:
        return all(_is_one_per_group(match.values[n].type.shape) for n in names)

    return {"it is not a group of queries for which heads are repeated": holds}


def _is_one_per_group(shape: tuple[int | str, ...]) -> bool:
    return len(shape) == 4 and shape[2] == 1


def _heads(match: Match, name: str) -> AttrValue:
    t, h, _, d = match.values[name].type.shape
    return t, h, d


def _attention(sinks: str) -> Rule:
    return Rule(
        f"attention(q, reshape(broadcast_to(k)), reshape(broadcast_to(v)), {sinks}) {_ATTRS}"
        f" => attention(q, reshape(k) {{shape=?ks}}, reshape(v) {{shape=?vs}}, {sinks}) {_ATTRS}",
        where=_repeats_heads("k", "v"),
        let={"ks": lambda m: _heads(m, "k"), "vs": lambda m: _heads(m, "v")},
    )


RULES = [
    Rule(
        "rope(reshape(broadcast_to(x) {shape=?wide}), c, s) {style=?y, width=?w, at_end=?e}"
        " => reshape(broadcast_to(reshape(rope(reshape(x) {shape=?heads}, c, s)"
        " {style=?y, width=?w, at_end=?e}) {shape=?narrow}) {shape=?wide}) {shape=?flat}",
        where=_repeats_heads("x"),
        let={
            "heads": lambda m: _heads(m, "x"),
            "narrow": lambda m: m.values["x"].type.shape,
            "flat": lambda m: m.root.result.type.shape,
        },
    ),
    _attention("_"),
    _attention("sinks"),
]


@dataclass(frozen=True)
class ShareKeyHeads(Pass):
    """Before: canonical, rotations raised. After: keys and values that were repeated for the queries of a
    group go to ``attention`` once per group; it knows how to share them."""

    name: ClassVar[str] = "share-key-heads"

    def run(self, graph: Graph) -> PassResult:
        return PassResult.of(rewrite(graph, RULES))
