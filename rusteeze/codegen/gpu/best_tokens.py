"""The largest logit of each row, behind the last product: a program per row and part of its columns.

Of equal values the first counts; a NaN counts as infinity, so that a row's largest value tells whether all are
finite. The runtime takes the largest of the parts.
"""

from __future__ import annotations

from rusteeze.artifact.cuda_contract import Count
from rusteeze.codegen.gpu.lowering import Lowering, rows_of
from rusteeze.codegen.gpu.source import Options, Source, warps_for
from rusteeze.ir.graph import make_node

COLUMNS = 4096
"""Of one part."""


def lower_best_tokens(ctx: Lowering) -> None:
    """The last call of a plan: reads the logits and fills ``ctx.best``."""
    (logits,) = ctx.graph.outputs
    x, width = ctx.view(logits), int(logits.type.shape[1])
    parts = -(-width // COLUMNS)
    values, places = ctx.scratch("R", "f32", (parts,)), ctx.scratch("R", "i32", (parts,))
    ctx.best = values, places
    k = Source(f"best_tokens_{width}", Options(warps_for(COLUMNS)), [f"largest of each {COLUMNS} of {width} logits"])
    count = ctx.counts(k, "R")
    for name, view in (("x", x), ("values", values), ("places", places)):
        k.view(name, view)
    k.line("row = tl.program_id(0)")
    k.line("part = tl.program_id(1)")
    with k.block(f"if row >= {count}:"):
        k.line("return")
    k.line(f"column = part * {COLUMNS} + tl.arange(0, {COLUMNS})")
    k.line(f'logits = tl.load(x + row * {x.access.row} + column, mask=column < {width}, other=float("-inf"))')
    k.line('logits = tl.where(logits != logits, float("inf"), logits)')
    k.line("largest = tl.max(logits, 0)")
    k.line(f"first = tl.min(tl.where(logits == largest, column, {width - 1}), 0)")
    k.line(f"tl.store(values + row * {values.access.row} + part, largest)")
    k.line(f"tl.store(places + row * {places.access.row} + part, first)")
    node = make_node("topk", [logits], {"k": 1})
    ctx.call_one(node, k, [rows_of("R"), Count(times=parts)], "rows")
