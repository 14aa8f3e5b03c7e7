"""Recognise rotary position embeddings by what they compute, whatever their spelling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from rusteeze.ir.graph import Graph, Node, Value, make_node, producers
from rusteeze.ir.probe import signature
from rusteeze.ir.rewrite import Firing, Refusal
from rusteeze.ir.types import TOKENS
from rusteeze.passes.pass_base import Pass, PassResult
from rusteeze.passes.rope_hypotheses import LAYOUTS, Rotation, layouts_of, recognise

EQUATION = "rotation by execution => rope(x, cos, sin)"
# A rotation reads its input through these only, so the common source of what it reads is its input.
MOVES = ("reshape", "slice", "permute", "concat", "neg", "broadcast_to", "cast")
BARRIERS = ("linear", "block_linear", "expert_linear", "attention", "rope")
MAX_CONE = 64  # nodes; the longest known spelling has about twenty


@dataclass(frozen=True)
class RaiseRope(Pass):
    """Before: rotary tables are looked up by ``embedding``; slices of slices are still apart, so that
    what was rotated is a value of its own. After: each rotation of a value [T, H, D] is one ``rope``
    whose cos and sin are lookups [T, width/2] that all layers share.

    ``tables`` holds the contents of tables by weight name. A table that is not there is taken to have the
    layout that makes the rotation work out."""

    tables: Mapping[str, np.ndarray] = field(
        default_factory=dict, compare=False, repr=False, metadata={"option": False}
    )
    name: ClassVar[str] = "raise-rope"

    def run(self, graph: Graph) -> PassResult:
        return _Search(graph, self.tables).run()


class _Search:
    """One run of the pass. Goes from the outputs up and skips what a found rotation has covered."""

    def __init__(self, graph: Graph, tables: Mapping[str, np.ndarray]) -> None:
        self.graph, self.tables = graph, tables
        self.lookups = _table_lookups(graph)
        self.rotary = _depending_on(graph, self.lookups)
        self.position = {id(n): i for i, n in enumerate(graph.nodes)}
        self.verdicts: dict[object, Rotation | None] = {}
        self.angles: dict[tuple[Value, str], Value] = {}
        self.firings: list[Firing] = []
        self.refusals: dict[int, tuple[Refusal, list[Node]]] = {}

    def run(self) -> PassResult:
        covered: set[int] = set()
        replaced: dict[Value, Value] = {}
        for node in list(reversed(self.graph.nodes)):
            if id(node) in covered or not self._is_candidate(node):
                continue
            cone = producers([node.result], self._is_outside)
            rope = self._raised(node, cone)
            if isinstance(rope, str):
                self.refusals[id(node)] = Refusal(EQUATION, node, rope), cone
            elif rope is not None:
                replaced[node.result] = rope
                covered.update(map(id, cone))
                self.firings.append(Firing(EQUATION, node.origin))
        self.graph.substitute(replaced)
        self.graph.sort()
        self.graph.eliminate_dead_code()
        return PassResult(tuple(self.firings), self._standing_refusals(covered))

    def _standing_refusals(self, covered: set[int]) -> tuple[Refusal, ...]:
        """Without the places of which a part was raised after all."""
        return tuple(r for r, cone in self.refusals.values() if covered.isdisjoint(map(id, cone)))

    def _is_outside(self, v: Value) -> bool:
        return v not in self.rotary or v in self.lookups

    def _is_candidate(self, node: Node) -> bool:
        value = node.results[0]
        return (
            value in self.rotary
            and value not in self.lookups
            and len(node.results) == 1
            and value.type.rank == 3
            and value.type.shape[0] == TOKENS
            and value.type.dtype.is_float
        )

    def _raised(self, node: Node, cone: list[Node]) -> Value | str | None:
        """The rope in place of ``node``; a reason if it nearly was one; None if it is something else."""
        read = [v for n in cone for v in n.inputs() if self._is_outside(v) and v.op != "const"]
        tables = sorted({v for v in read if v in self.lookups}, key=self._place)
        sources = {v for v in read if v not in self.lookups}
        if len(tables) != 2 or not sources or len(cone) > MAX_CONE:
            return None
        if tables[0].type != tables[1].type:
            return "the two tables differ in type"
        for x in self._inputs_of(sources, node.result):
            if not self._closed(node.result, {x, *tables}):
                continue
            rotation = self._recognised(node.result, x, (tables[0], tables[1]))
            if rotation is not None:
                return self._rope(node, x, tables, rotation)
        return "no rotation of a common input reproduces it" if len(cone) > 3 else None

    def _place(self, v: Value) -> int:
        return self.position[id(v.node)] if v.node else -1

    def _inputs_of(self, sources: set[Value], result: Value) -> list[Value]:
        """What all sources were moved from, furthest first, if it is the result's size."""
        common = set.intersection(*(_moved_from(v) for v in sources))
        same_size = (v for v in common if _row_size(v) == _row_size(result))
        return sorted(same_size, key=self._place)

    def _closed(self, result: Value, bound: set[Value]) -> bool:
        """Is ``result`` computed from the bound values and constants alone?"""
        inner = producers(
            [result], lambda v: v in bound or (self._is_outside(v) and v.op not in MOVES)
        )
        read = {v for n in inner for v in n.inputs()} - {r for n in inner for r in n.results}
        return all(v in bound or v.op == "const" for v in read)

    def _recognised(self, result: Value, x: Value, tables: tuple[Value, Value]) -> Rotation | None:
        layouts = tuple(k for k in LAYOUTS if all(k in self._layouts(t) for t in tables))
        key = (signature(result, [x, *tables]), layouts)
        if key not in self.verdicts:
            self.verdicts[key] = recognise(result, x, tables, layouts)
        return self.verdicts[key]

    def _layouts(self, lookup: Value) -> tuple[str, ...]:
        table = lookup.node.operands[1] if lookup.node else None
        if table is None or table.name not in self.tables:
            return LAYOUTS
        return layouts_of(self.tables[table.name])

    def _rope(self, node: Node, x: Value, tables: list[Value], r: Rotation) -> Value:
        cos, sin = (self._angles_of(t, r.layout) for t in (tables[::-1] if r.swapped else tables))
        attrs = {"style": r.style, "width": r.width, "at_end": r.at_end}
        if x.type != node.result.type:
            x = self._add("reshape", [x], {"shape": node.result.type.shape}, node.origin)
        return self._add("rope", [x, cos, sin], attrs, node.origin)

    def _angles_of(self, lookup: Value, layout: str) -> Value:
        """The lookup in the table with one column per pair; made once."""
        if layout == "angles":
            return lookup
        if (lookup, layout) not in self.angles:
            assert lookup.node is not None
            ids, table = lookup.node.operands
            assert table is not None
            width = table.type.shape[-1]
            assert isinstance(width, int)
            columns = (width // 2, 1) if layout == "halves" else (width, 2)
            attrs = {"axis": -1, "start": 0, "stop": columns[0], "step": columns[1]}
            half = self._add("slice", [table], attrs, lookup.node.origin)
            self.angles[lookup, layout] = self._add(
                "embedding", [ids, half], {}, lookup.node.origin
            )
        return self.angles[lookup, layout]

    def _add(self, op: str, operands: list[Value | None], attrs: dict, origin: str) -> Value:
        node = make_node(op, operands, attrs, origin)
        self.graph.nodes.append(node)
        return node.result


def _table_lookups(graph: Graph) -> set[Value]:
    """Lookups that come in families: several tables of one type, read at the same positions."""
    static = graph.static_values()
    families: dict[object, list[Value]] = {}
    for node in graph.nodes:
        if node.op.name == "embedding" and node.operands[1] in static:
            ids, table = node.inputs()
            families.setdefault((ids, table.type), []).append(node.result)
    return {v for family in families.values() if len(family) > 1 for v in family}


def _depending_on(graph: Graph, roots: set[Value]) -> set[Value]:
    """The roots and what is computed from them short of the next matrix product or attention."""
    found = set(roots)
    for node in graph.nodes:
        if node.op.name not in BARRIERS and any(v in found for v in node.inputs()):
            found.update(node.results)
    return found


def _row_size(v: Value) -> tuple[object, ...]:
    """Element type and number of elements per token; unlike all others if there are no tokens."""
    if v.type.shape[:1] != (TOKENS,):
        return ()
    return v.type.dtype, math.prod(d for d in v.type.shape if isinstance(d, int))


def _moved_from(value: Value) -> set[Value]:
    """``value`` and everything that it is a mere rearrangement of."""
    found: set[Value] = set()
    todo = [value]
    while todo:
        v = todo.pop()
        if v not in found:
            found.add(v)
            if v.node is not None and v.op in MOVES:
                todo += v.node.inputs()
    return found
