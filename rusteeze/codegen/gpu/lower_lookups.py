"""Lower what selects rows by index: embeddings."""

from __future__ import annotations

from rusteeze.artifact.cuda_contract import Count
from rusteeze.codegen.bodies import matrix, position_table
from rusteeze.codegen.gpu import elements
from rusteeze.codegen.gpu.elements import Place
from rusteeze.codegen.gpu.lower_linear import weight_parameters
from rusteeze.codegen.gpu.lowering import CAPACITIES, Lowering, rows_of
from rusteeze.codegen.gpu.source import Options, Source, power_of_two, row_index, warps_for
from rusteeze.codegen.gpu.weights import TILE_ROWS, QuantShape
from rusteeze.codegen.statics import format_of
from rusteeze.ir import Node, print_node_line
from rusteeze.weights.formats import Format

EMBEDDING_BLOCK = 1024


def weight_element(k: Source, weight: Format, n: str, column: str, shape: tuple[int, int], mask: str) -> str:
    """w[n, column] in float32, of any family; parameters as weight_parameters makes them. ``n`` and ``column``
    are expressions that broadcast."""
    n = row_index(n, shape[0] * shape[1])
    if weight.family == "dense":
        return k.let(f"tl.load(w + {n} * {shape[1]} + {column}, mask={mask}, other=0).to(tl.float32)")
    q = QuantShape(weight, *shape)
    k.line(f"inside = {column} % {q.block}")
    tile = f"(({n} // {TILE_ROWS}) * {q.blocks} + {column} // {q.block}) * {TILE_ROWS * q.block_bytes}"
    at = f"{tile} + ({n} % {TILE_ROWS}) * {q.block_bytes} + inside % {q.step}"
    k.line(f"code = tl.load(w + {at}, mask={mask}, other=0).to(tl.int32)")
    if q.code_bits == 4:
        k.line(f"code = (code >> (inside // {q.step} * 4)) & 15")
    k.line(f"group = {column} // {weight.group} * {q.padded_n} + {n}")
    k.line(f"scale = tl.load(scales + group, mask={mask}, other=0)")
    if weight.family == "float8":
        return k.let("fn.e4m3(code) * scale")
    if weight.family == "codebook":
        return k.let("tl.load(table + code) * scale")
    if weight.symmetric:
        return k.let(f"(code.to(tl.float32) - {float(weight.zero)}) * scale")
    return k.let(f"code.to(tl.float32) * scale + tl.load(minimums + group, mask={mask}, other=0)")


def lower_embedding(ctx: Lowering, node: Node) -> None:
    users = ctx.uses.get(node.result, [])
    if users and all(u.op.name == "rope" for u in users) and position_table(node.result, ctx.static) is not None:
        return  # rope reads the table itself
    ids, table = node.inputs()
    view, out = ctx.view(ids), ctx.new(node.result)
    weight, shape = format_of(table), matrix(table)
    space = ctx.space(node.result)
    block = min(EMBEDDING_BLOCK, power_of_two(shape[1]))
    k = Source(f"embedding_{_name(weight)}_k{shape[1]}", Options(warps_for(block)), [print_node_line(node)])
    count = ctx.counts(k, space)
    index = k.view("ids", view)
    weight_parameters(ctx, k, table)
    target = k.view("y", out)
    k.line("row = tl.program_id(0)")
    with k.block(f"if row >= {count}:"):
        k.line("return")
    number = elements.load(k, index, view.access, Place("row", ()))
    k.line(f"column = tl.program_id(1) * {block} + tl.arange(0, {block})")
    k.line(f"real = column < {shape[1]}")
    value = weight_element(k, weight, number, "column", shape, "real")
    elements.store(k, target, out.access, Place("row", ("column",), "", "real"), value)
    ctx.call_one(node, k, [rows_of(space), Count(times=-(-shape[1] // block))], CAPACITIES[space])


def _name(weight: Format) -> str:
    return str(weight).replace("-", "_")

