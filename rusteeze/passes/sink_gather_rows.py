"""Select the wanted rows as early as possible, so that what follows runs on those rows only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rusteeze.ir.graph import Graph, Node, Value, make_node
from rusteeze.ir.op import AttrValue
from rusteeze.ir.rewrite import Firing
from rusteeze.ir.types import ROWS, TOKENS
from rusteeze.passes.pass_base import Pass, PassResult

EQUATION = "gather_rows(op(x), rows) => op(gather_rows(x, rows))"
TOKENWISE = {"rms_norm", "layer_norm", "quantize", "glu", "softcap", "gather_columns"}
PRODUCTS = {"linear", "block_linear", "expert_linear"}
ALONG_AXIS = {"slice", "concat", "softmax", "cumsum", "topk", "sum", "mean", "max", "min"}


@dataclass(frozen=True)
class SinkGatherRows(Pass):
    """Before: ``gather_rows`` selects rows of hidden states. After: everything between the last
    attention and the logits that only serves those rows runs on R rows instead of T.

    ``products``: move it above matrix products as well; without it only norms and pointwise ops."""

    products: bool = True
    name: ClassVar[str] = "sink-gather-rows"

    def run(self, graph: Graph) -> PassResult:
        rows = {n.operands[1] for n in graph.nodes if n.op.name == "gather_rows"}
        firings: list[Firing] = []
        for r in rows:
            assert r is not None
            moved = self._movable(graph, r)
            firings += [Firing(EQUATION, n.origin) for n in moved]
            if moved:
                _move(graph, r, moved)
        return PassResult(tuple(firings))

    def _movable(self, graph: Graph, rows: Value) -> list[Node]:
        """Nodes all of whose users want the same rows only, in order."""
        uses = graph.uses()
        wanted: set[int] = set()
        outputs = set(graph.outputs)
        for node in reversed(graph.nodes):
            if not self._works_by_token(node) or not outputs.isdisjoint(node.results):
                continue
            users = [u for r in node.results for u in uses.get(r, ())]
            if users and all(id(u) in wanted or _selects(u, rows) for u in users):
                wanted.add(id(node))
        return [n for n in graph.nodes if id(n) in wanted]

    def _works_by_token(self, node: Node) -> bool:
        """Does row t of the result depend on row t of the operands alone?"""
        if any(r.type.shape[:1] != (TOKENS,) for r in node.results) or node.body is not None:
            return False
        op = node.op.name
        if op in PRODUCTS:
            return self.products
        if op in ALONG_AXIS:
            return _axis(node) != 0
        if op in ("reshape", "broadcast_to"):
            return next(node.inputs()).type.shape[:1] == (TOKENS,)
        if op == "permute":
            return node.attrs["perm"][0] == 0  # type: ignore[index]
        if op == "rope":
            return True
        return "elementwise" in node.op.traits or op in TOKENWISE


def _selects(node: Node, rows: Value) -> bool:
    return node.op.name == "gather_rows" and node.operands[1] is rows


def _axis(node: Node) -> int:
    axis, x = node.attrs["axis"], node.operands[0]
    assert isinstance(axis, int)
    assert x is not None
    return axis % x.type.rank


def _move(graph: Graph, rows: Value, moved: list[Node]) -> None:
    """Rebuild the moved nodes on gathered operands."""
    gathered: dict[Value, Value] = {}
    replaced: dict[Value, Value] = {}
    order: list[Node] = []

    def gather(v: Value | None) -> Value | None:
        if v is None or v.type.shape[:1] != (TOKENS,):
            return v
        if v not in gathered:
            node = make_node("gather_rows", [v, rows], {}, v.node.origin if v.node else "")
            order.append(node)
            gathered[v] = node.result
        return gathered[v]

    chosen = {id(n) for n in moved}
    for node in graph.nodes:
        if id(node) in chosen:
            operands = [gather(v) for v in node.operands]
            clone = make_node(node.op.name, operands, _on_rows(node.attrs), node.origin)
            order.append(clone)
            gathered.update(zip(node.results, clone.results, strict=True))
        elif _selects(node, rows) and node.operands[0] in gathered:
            replaced[node.result] = gathered[node.operands[0]]
        else:
            order.append(node)
    graph.nodes = order
    graph.substitute(replaced)


def _on_rows(attrs: dict[str, AttrValue]) -> dict[str, AttrValue]:
    return {
        k: tuple(ROWS if d == TOKENS else d for d in v) if isinstance(v, tuple) else v
        for k, v in attrs.items()
    }
