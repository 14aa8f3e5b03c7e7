"""What a recorded call costs at least, read off the node that it computes and the memory it touches."""

from __future__ import annotations

import math

from rusteeze.artifact.contract import BLOCK_SIZE, Cost
from rusteeze.codegen.bodies import attention_of, matrix
from rusteeze.codegen.gpu.lowering import Lowering, PendingCall
from rusteeze.codegen.gpu.source import PageSet, Pointer
from rusteeze.codegen.views import Storage, inner_shape
from rusteeze.ir import Node


def call_cost(ctx: Lowering, call: PendingCall, scratch_bytes: int) -> Cost:
    """``scratch_bytes``: of one row of all buffers that the call touches."""
    node = call.node
    args = [a for a in call.choices[-1].launches[-1].args if isinstance(a, Pointer)]
    names = [a.target.name for a in args if isinstance(a.target, Storage) and a.target.kind == "weight"]
    pages = [a.target for a in args if isinstance(a.target, PageSet)]
    page_bytes = sum(
        ctx.pages[p.layer].key_bytes if p.kind == "key_pages" else ctx.pages[p.layer].value_bytes for p in pages
    ) // BLOCK_SIZE  # fmt: skip
    attention = attention_of(node) if len(call.choices) > 1 and pages else None
    gathered = node.op.name in ("embedding", "expert_linear")
    weight_bytes = sum(ctx.statics.nbytes(name) for name in names)
    return Cost(
        arithmetic="bf16" if any(v.op == "quantize" or ctx.view(v).access.dtype == "bf16" for v in _scratch(ctx, node)) else "f32",
        space=ctx.space(node.results[0]) or "T",
        row_flops=sum(_row_flops(n) for n in (node.body.nodes if node.body else [node])),
        row_bytes=scratch_bytes + (0 if attention else page_bytes),
        weight_bytes=0 if gathered else weight_bytes,
        gathered_row_bytes=_gathered_row_bytes(node, weight_bytes) if gathered else 0,
        gathered_bytes=weight_bytes if gathered else 0,
        pair_flops=_pair_flops(attention) if attention else 0,
        cached_bytes=page_bytes if attention else 0,
        window=int(attention.attrs["window"]) if attention else 0,  # type: ignore[call-overload]
    )  # fmt: skip


def _scratch(ctx: Lowering, node: Node) -> list:
    return [v for v in node.inputs() if v in ctx.env]


def _row_flops(node: Node) -> int:
    if node.op.name == "linear":
        assert node.operands[1] is not None
        return 2 * math.prod(matrix(node.operands[1]))
    if node.op.name == "block_linear":
        assert node.operands[1] is not None
        return 2 * math.prod(int(d) for d in node.operands[1].type.shape)
    if node.op.name == "expert_linear":
        idx, w = node.operands[1], node.operands[2]
        assert idx is not None
        assert w is not None
        return 2 * inner_shape(idx.type)[0] * math.prod(int(d) for d in w.type.shape[1:])
    if node.op.name == "attention":
        return 0
    return math.prod(d for d in node.results[0].type.shape[1:] if isinstance(d, int))


def _gathered_row_bytes(node: Node, table_bytes: int) -> int:
    """Of the rows of a table, or of the experts, that one row of the result needs."""
    table = node.operands[2 if node.op.name == "expert_linear" else 1]
    assert table is not None
    idx = node.operands[1]
    chosen = inner_shape(idx.type)[0] if node.op.name == "expert_linear" and idx is not None else 1
    return table_bytes * chosen // int(table.type.shape[0])


def _pair_flops(attention: Node) -> int:
    """Two products: with a key and with a value."""
    query, _, value, _ = attention.operands
    assert query is not None
    heads, width = inner_shape(query.type)
    value_width = inner_shape(value.type)[1] if value is not None else int(attention.attrs["value_width"])  # type: ignore[call-overload]
    return 2 * heads * (width + value_width)
