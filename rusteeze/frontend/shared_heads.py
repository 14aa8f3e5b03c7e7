"""Grouped-query attention, recovered from models that repeat their key and value heads.

Falcon broadcasts each key head to its group of query heads before it rotates them. The cache would hold
every copy; but what is computed from copies head by head is a copy as well, so the same computation
on the single heads is enough.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rusteeze.ir import Graph, Node, Value

_HEADS = 1  # the axis of heads in [T, H, D]


def share_heads(graph: Graph) -> None:
    """Let every attention node whose key and value heads are repeated read each of them once."""
    for node in [n for n in graph.nodes if n.op.name == "attention"]:
        _, keys, values = node.operands[:3]
        assert keys is not None
        assert values is not None
        group = _repeats(keys, values)
        if group is None:
            continue
        single = _SingleHeads(graph, node, group)
        k, v = single.of(keys), single.of(values)
        if k is not None and v is not None:
            node.operands[1:3] = [k, v]
    graph.eliminate_dead_code()


def _repeats(*values: Value) -> int | None:
    """By how much heads are repeated in the closest broadcast behind ``values``."""
    todo = list(values)
    while todo:
        node = todo.pop(0).node
        if node is not None and node.op.name == "broadcast_to":
            return _group_of(node)
        if node is not None and node.op.name in ("reshape", "slice", "concat", "add", "mul"):
            todo += node.inputs()
    return None


def _group_of(node: Node) -> int | None:
    """G of a broadcast from [T, Hk, 1, D] to [T, Hk, G, D]; None for any other."""
    before, after = next(node.inputs()).type.shape, node.result.type.shape
    group = after[2] if len(after) == 4 else None
    is_repeat = isinstance(group, int) and before == (*after[:2], 1, after[3])
    return int(group) if is_repeat and group is not None else None


@dataclass
class _SingleHeads:
    """Computes, in front of ``reader``, one head of each ``group`` equal ones."""

    graph: Graph
    reader: Node
    group: int
    found: dict[Value, Value] = field(default_factory=dict)

    def of(self, value: Value) -> Value | None:
        """``value`` [T, Hk * group, D] with each head once; None if its heads are not seen to repeat."""
        if value not in self.found:
            single = self._compute(value)
            if single is None:
                return None
            self.found[value] = single
        return self.found[value]

    def _compute(self, value: Value) -> Value | None:
        node = value.node
        if node is None or value.type.rank != 3:
            return None
        if node.op.name == "reshape":
            return self._unrepeated(value)
        along_head = node.op.name in ("slice", "concat") and node.attrs["axis"] in (2, -1)
        if not along_head and "elementwise" not in node.op.traits:
            return None
        operands = [self._operand(v, value) for v in node.inputs()]
        if any(v is None for v in operands):
            return None
        return self._add(node, operands, node.attrs)

    def _operand(self, operand: Value, result: Value) -> Value | None:
        """Operands that are the same for all heads stay."""
        same = operand.type.rank < 2 or (operand.type.rank == 3 and operand.type.shape[_HEADS] == 1)
        return operand if same and operand.type.shape != result.type.shape else self.of(operand)

    def _unrepeated(self, value: Value) -> Value | None:
        assert value.node is not None
        (broadcast,) = value.node.inputs()
        if broadcast.node is None or broadcast.op != "broadcast_to":
            return None
        tokens, heads, width = value.type.shape
        if _group_of(broadcast.node) != self.group or broadcast.type.shape[3] != width:
            return None
        shape = (tokens, int(heads) // self.group, width)
        return self._add(value.node, list(broadcast.node.inputs()), {"shape": shape})

    def _add(self, like: Node, operands: list[Value | None], attrs: dict) -> Value:
        at = self.graph.nodes.index(self.reader)
        name = like.op.name
        return self.graph.insert(at, name, *operands, origin=like.origin, **attrs).result
