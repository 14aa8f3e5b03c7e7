"""Lower the ops that run as plain loops over a token's elements."""

from __future__ import annotations

from typing import Any

from rusteeze.codegen.cpu import rowwise
from rusteeze.codegen.cpu.access import Operand
from rusteeze.codegen.cpu.emit import Emitter
from rusteeze.codegen.cpu.isa import Isa
from rusteeze.codegen.cpu.lowering import Lowering, at, without_row_axis
from rusteeze.codegen.views import View
from rusteeze.ir import Node, Value


def lower_rowwise(ctx: Lowering, node: Node) -> None:
    ins = [without_row_axis(ctx.view(v), node.results[0]) for v in node.inputs()]
    outs = [ctx.new(r) for r in node.results]
    call_rowwise(ctx, node.op.name, dict(node.attrs), ins, outs, node.results[0], node)


def call_rowwise(
    ctx: Lowering, op: str, attrs: dict[str, Any], ins: list[View], outs: list[View], rows_of: Value,
    node: Node,
) -> None:  # fmt: skip
    """``rows_of``: a value with as many rows as the results."""
    slot = ctx.rows_slot(rows_of)
    read, written = [v.access for v in ins], [v.access for v in outs]

    def emit(k: Emitter, _isa: Isa) -> None:
        operands = [Operand.argument(k, a) for a in read]
        results = [Operand.argument(k, a) for a in written]
        rowwise.rowwise(k, op, operands, results, attrs, k.step(slot))

    shape = "x".join(map(str, written[0].shape)) or "1"
    key = f"{attrs}|{slot}|{'|'.join(a.key() for a in read + written)}"
    reads, writes = [at(v) for v in ins], [at(v) for v in outs]
    ctx.call(f"{op}_{shape}", key, emit, reads, writes, node, rowwise=True)
