"""What a recorded call costs at least, read off the node that it computes and the memory it touches."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rusteeze.artifact.contract import BLOCK_SIZE, Cost
from rusteeze.codegen.bodies import attention_of, matrix
from rusteeze.codegen.cpu.lowering import Lowering, PageSet, PendingCall
from rusteeze.codegen.cpu.vector_math import OPS as ELEMENTWISE
from rusteeze.codegen.views import RoundedView, Storage, inner_shape
from rusteeze.ir import Node

# operations for each element of the result
_PER_ELEMENT = {**dict.fromkeys(ELEMENTWISE, 1), "rms_norm": 4, "layer_norm": 6, "rope": 3}


def call_cost(ctx: Lowering, call: PendingCall) -> Cost:
    node = call.node
    pages_read = _page_bytes(ctx, call.reads)
    fixed, gathered_row, gathered = _weight_bytes(ctx, call)
    attention = attention_of(node) if pages_read else None
    return Cost(
        arithmetic=_arithmetic(ctx, node),
        space=ctx.space(node.results[0]) or "T",
        row_flops=sum(_row_flops(n) for n in _nodes(node)),
        row_bytes=_scratch_bytes(call) + _page_bytes(ctx, call.writes),
        weight_bytes=fixed, gathered_row_bytes=gathered_row, gathered_bytes=gathered,
        pair_flops=_pair_flops(attention) if attention else 0,
        cached_bytes=pages_read,
        window=int(attention.attrs["window"]) if attention else 0,  # type: ignore[call-overload]
    )  # fmt: skip


def _nodes(node: Node) -> Iterator[Node]:
    """A node, or those of its body when it is a region."""
    yield from [node] if node.body is None else node.body.nodes


def _row_flops(node: Node) -> int:
    if node.op.name == "linear":
        assert node.operands[1] is not None
        return 2 * math.prod(matrix(node.operands[1]))
    if node.op.name == "block_linear":
        assert node.operands[1] is not None
        return 2 * math.prod(inner_shape(node.operands[1].type))
    if node.op.name == "expert_linear":
        _, idx, _, _ = node.operands
        _, n, k = _expert_shape(node)
        assert idx is not None
        return 2 * n * k * inner_shape(idx.type)[0]
    elements = math.prod(d for d in node.results[0].type.shape[1:] if isinstance(d, int))
    return _PER_ELEMENT.get(node.op.name, 0) * elements


def _expert_shape(node: Node) -> tuple[int, int, int]:
    """(experts, N, K), in either order of N and K."""
    w = node.operands[2]
    assert w is not None
    e, n, k = (int(d) for d in w.type.shape)
    return e, n, k


def _pair_flops(attention: Node) -> int:
    """Two products: with a key and with a value."""
    query = attention.operands[0]
    assert query is not None
    heads, width = inner_shape(query.type)
    return 2 * heads * (width + inner_shape(attention.result.type)[1])


def _arithmetic(ctx: Lowering, node: Node) -> str:
    """What a matmul's activations are rounded to; attention follows its cache."""
    for value in node.inputs():
        view = ctx.env.get(value)
        if isinstance(view, RoundedView):
            return {"q8": "int8"}.get(view.kind, view.kind)
    return ctx.options.cache_dtype if attention_of(node) else "f32"


def _scratch_bytes(call: PendingCall) -> int:
    """Of one row: every buffer once, whole."""
    buffers = {p.target for p in call.args if isinstance(p.target, Storage)}
    return sum(b.row_bytes for b in buffers if b.kind == "buffer")


def _page_bytes(ctx: Lowering, memory: frozenset[Storage | PageSet]) -> int:
    """Of one token in these pages."""
    total = 0
    for m in memory:
        if isinstance(m, PageSet):
            pages = ctx.pages[m.layer]
            total += pages.key_bytes if m.kind == "key_pages" else pages.value_bytes
    return total // BLOCK_SIZE


def _weight_bytes(ctx: Lowering, call: PendingCall) -> tuple[int, int, int]:
    """(read once a step, read for each row, size of what the rows read from)."""
    fixed = row = table = 0
    names = {p.target.name for p in call.args if isinstance(p.target, Storage) and p.target.kind == "weight"}
    for name in names:
        value, layout = ctx.statics.entries[name]
        size = ctx.statics.nbytes(name)
        share = 0 if layout == "table" else _rows_of_table(call.node, len(value.type.shape))
        if share:
            table += size
            row += size * share // int(value.type.shape[0])
        else:
            fixed += size
    return fixed, row, table


def _rows_of_table(node: Node, rank: int) -> int:
    """How many rows of a static operand a row of the result needs; 0 when it needs all of it."""
    if node.op.name == "expert_linear":
        idx = node.operands[1]
        assert idx is not None
        return inner_shape(idx.type)[0]
    by_position = any(n.op.name in ("embedding", "rope", "attention") for n in _nodes(node)) and rank == 2
    return 1 if by_position else 0
