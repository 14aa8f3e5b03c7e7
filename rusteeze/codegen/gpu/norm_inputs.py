"""Root-mean-square norms that the product behind them applies while it loads its rows.

The product before leaves, beside its result, the sum of squares of every 64 columns of a row. A row's scale is
made of these few numbers: by each program of the product behind when there are few rows, by a kernel
of a program per row when there are many. All sums are pairwise, so every choice gives the same bits.
"""

from __future__ import annotations

from rusteeze.codegen.bodies import as_body, outer_operands
from rusteeze.codegen.gpu.lowering import Lowering, NormedRows, PendingLaunch, rows_of
from rusteeze.codegen.gpu.pairwise import pairwise
from rusteeze.codegen.gpu.source import (
    Options,
    Source,
    literal,
    pointer_to,
    power_of_two,
    warps_for,
)
from rusteeze.codegen.views import View
from rusteeze.ir import Node, Value

GROUP = 64
"""Columns of one sum of squares: the weight rows of the smallest tile of a product."""
FUSED_ROWS = 32
"""Up to how many rows the product applies the norm itself; beyond, its programs would repeat too much of it."""


def norm_behind(ctx: Lowering, value: Value) -> Node | None:
    """The norm that wants sums of squares of a product's result, if there is one."""
    return next((n for n in ctx.uses.get(value, ()) if _applied_by_reader(ctx, n)), None)


def leave_sums(ctx: Lowering, value: Value) -> View | None:
    """Room for the sums of squares of a product's result, which its epilogue fills; None when nobody wants them."""
    if norm_behind(ctx, value) is None:
        return None
    width = int(value.type.shape[-1])
    sums = ctx.sums[value] = ctx.scratch(ctx.space(value), "f32", (-(-width // GROUP),))
    return sums


def defer_norm(ctx: Lowering, node: Node) -> bool:
    """Leave a norm to the products that read it, if they can apply it."""
    if not _applied_by_reader(ctx, node):
        return False
    norm, source, weight = _operands(node)
    assert source is not None
    written = ctx.new(node.results[0])
    ctx.normed[node.results[0]] = NormedRows(
        ctx.view(source), ctx.sums[source], ctx.view(weight) if weight is not None else None,
        float(norm.attrs["eps"]), float(norm.attrs.get("offset", 0.0)), written,  # type: ignore[arg-type]
    )  # fmt: skip
    return True


def _operands(node: Node) -> tuple[Node, Value | None, Value | None]:
    """The first node of a region, which is a norm if all is well, and what its input and weight are outside."""
    body = as_body(node)
    bound: dict[Value | None, Value] = dict(zip(body.inputs, outer_operands(node), strict=True))
    norm = next(n for n in body.nodes if n.op.name != "const")
    source, weight = (*norm.operands, None)[:2]
    return norm, bound.get(source), bound.get(weight)


def _applied_by_reader(ctx: Lowering, node: Node) -> bool:
    """A norm and nothing else, perhaps rounded, of what a product made, read by products as their rows alone."""
    names = [n.op.name for n in as_body(node).nodes if n.op.name != "const"]
    if names not in (["rms_norm"], ["rms_norm", "quantize"]) or node.results[0] in ctx.graph.outputs:
        return False
    norm, source, weight = _operands(node)
    if source is None or source.type.rank != 2 or not _is_product(source.node):
        return False
    if norm.operands[1] is not None and weight not in ctx.static:
        return False
    users = ctx.uses.get(node.results[0], ())
    return bool(users) and all(_reads_as_rows(u, node.results[0]) for u in users)


def _is_product(node: Node | None) -> bool:
    return node is not None and (node.op.name == "linear" or node.attrs.get("anchor") == "linear")


def _reads_as_rows(user: Node, value: Value) -> bool:
    """Whether a product reads a value as its rows, and as nothing else."""
    if not _is_product(user):
        return False
    body = as_body(user)
    mine = {i for i, outer in zip(body.inputs, outer_operands(user), strict=True) if outer is value}
    return all(
        n.op.name == "linear" and not mine.intersection(n.operands[1:])
        for n in body.nodes if mine.intersection(n.operands)
    )  # fmt: skip


# ---- kernels ----------------------------------------------------------------------------------------
def store_sums(k: Source, value: str, sums: View, name: str) -> None:
    """Sums of squares of a result [BN, BM] of a product's tile; its names as matmul makes them."""
    k.line(f"groups: tl.constexpr = BN // {GROUP}")
    # a select between product and sum, so that no compiler joins them to one rounding
    squares = k.let(f"tl.where((n < N)[:, None] & live[None, :], {value} * {value}, 0.0)")
    total = pairwise(k, k.let(f"tl.reshape({squares}, (groups, {GROUP}, BM))"), ("groups", GROUP, "BM"))
    k.line("group = tile_n * groups + tl.arange(0, groups)")
    count, row = sums.access.shape[0], sums.access.row
    k.line(
        f"tl.store({name} + m[None, :] * {row} + group[:, None], {total},"
        f" mask=live[None, :] & (group < {count})[:, None])"
    )


def row_scales(k: Source, rows: NormedRows, name: str, row: str, num_rows: str | int, mask: str) -> str:
    """1 / sqrt(mean of squares + eps) of a block of rows [num_rows]."""
    count = rows.sums.access.shape[0]
    wide = power_of_two(count)
    at = k.let(f"tl.arange(0, {wide})")
    masks = [f"({mask})[:, None]"] if mask else []
    masks += [f"({at} < {count})[None, :]"] if wide != count else []
    masked = f", mask={' & '.join(masks)}, other=0" if masks else ""
    parts = k.let(f"tl.load({name} + ({row})[:, None] * {rows.sums.access.row} + {at}[None, :]{masked})")
    total = k.let(f"tl.reshape({pairwise(k, parts, (num_rows, wide, 1))}, ({num_rows},))")
    return k.let(f"1.0 / tl.sqrt({total} * {literal(1.0 / rows.width)} + {literal(rows.eps)})")


def normed(rows: NormedRows, value: str, scale: str, gain: str) -> str:
    """The expression of normed elements; ``gain``: the weight's elements, "" without one."""
    if not gain:
        return f"{value} * {scale}"
    return f"{value} * {scale} * ({gain} + {literal(rows.offset)})" if rows.offset else f"{value} * {scale} * {gain}"


def bind_rows(k: Source, rows: NormedRows) -> None:
    """Parameters sums and, where there is a weight, gains."""
    k.view("sums", rows.sums)
    if rows.weight is not None:
        k.view("gains", rows.weight)


def write_rows(ctx: Lowering, rows: NormedRows, value: Value) -> PendingLaunch:
    """The kernel of a program per row."""
    width, target = rows.width, rows.written.access
    block = power_of_two(width)
    k = Source(f"norm_of_sums_{width}", Options(warps_for(block)), [f"rms norm of {width} columns from sums of squares"])
    space = ctx.space(value)
    count = ctx.counts(k, space)
    k.view("x", rows.source)
    bind_rows(k, rows)
    k.pointer("y", target.dtype, pointer_to(rows.written))
    k.line("row = tl.program_id(0)")
    with k.block(f"if row >= {count}:"):
        k.line("return")
    scale = row_scales(k, rows, "sums", "row + tl.arange(0, 1)", 1, "")
    column = k.let(f"tl.arange(0, {block})")
    mask = f", mask={column} < {width}, other=0" if block != width else ""
    x = k.let(f"tl.load(x + row * {rows.source.access.row} + {column}{mask})")
    gain = k.let(f"tl.load(gains + {column}{mask})") if rows.weight is not None else ""
    y = k.let(normed(rows, x, scale, gain))
    to = {"bf16": "tl.bfloat16", "f32": "tl.float32"}[target.dtype]
    masked = f", mask={column} < {width}" if block != width else ""
    k.line(f"tl.store(y + row * {target.row} + {column}, {y}.to({to}){masked})")
    return ctx.launch(k, [rows_of(space)])
