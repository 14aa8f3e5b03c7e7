"""Lower what selects by index: embeddings and the matmuls of experts."""

from __future__ import annotations

from rusteeze.artifact.cuda_contract import Count
from rusteeze.codegen.bodies import matrix, position_table
from rusteeze.codegen.gpu import elements
from rusteeze.codegen.gpu.elements import Place
from rusteeze.codegen.gpu.lower_linear import weight_parameters
from rusteeze.codegen.gpu.lower_shapes import contiguous
from rusteeze.codegen.gpu.lowering import CAPACITIES, Lowering, rows_of
from rusteeze.codegen.gpu.source import Options, Source, power_of_two, row_index, warps_for
from rusteeze.codegen.gpu.weights import TILE_ROWS, QuantShape
from rusteeze.codegen.statics import format_of
from rusteeze.ir import Node, make_node, print_node_line
from rusteeze.weights.formats import Format

EMBEDDING_BLOCK = 1024
EXPERT_ROWS, EXPERT_DEPTH = 64, 64
"""Weight rows of a program of an expert's product, and columns of one loop trip."""


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


def lower_expert_linear(ctx: Lowering, node: Node) -> None:
    """y[t, j] = W[idx[t, j]] @ x: a program per choice and run of weight rows."""
    x, idx, w, b = node.operands
    assert x is not None
    assert idx is not None
    assert w is not None
    if node.attrs["transposed"]:
        w = make_node("permute", [w], {"perm": (0, 2, 1)}, node.origin).result
        ctx.static.add(w)
    _, n, depth = (int(d) for d in w.type.shape)
    weight = format_of(w)
    source, index, out = contiguous(ctx, x, node), ctx.view(idx), ctx.new(node.result)
    top, space = index.access.shape[0], ctx.space(node.result)
    k = Source(f"expert_linear_{_name(weight)}_k{depth}_n{n}", Options(4), [print_node_line(node)])
    count = ctx.counts(k, space)
    k.view("x", source)
    chosen = k.view("idx", index)
    weight_parameters(ctx, k, w)
    bias = k.view("bias", ctx.view(b)) if b is not None else ""
    target = k.view("y", out)
    k.line("row = tl.program_id(0)")
    k.line("choice = tl.program_id(1)")
    with k.block(f"if row >= {count}:"):
        k.line("return")
    expert = elements.load(k, chosen, index.access, Place("row", ("choice",)))
    _at_expert(k, weight, (n, depth), expert)
    k.line(f"n = tl.program_id(2) * {EXPERT_ROWS} + tl.arange(0, {EXPERT_ROWS})")
    k.line(f"acc = tl.zeros(({EXPERT_ROWS}, {EXPERT_DEPTH}), tl.float32)")
    per_choice = f" + choice * {depth}" if len(source.access.shape) == 2 else ""
    with k.block(f"for k0 in range(0, {depth}, {EXPERT_DEPTH}):"):
        k.line(f"kk = k0 + tl.arange(0, {EXPERT_DEPTH})")
        k.line(f"real = (n < {n})[:, None] & (kk < {depth})[None, :]")
        value = weight_element(k, weight, "n[:, None]", "kk[None, :]", (n, depth), "real")
        at = f"row * {source.access.row}{per_choice} + kk"
        k.line(f"a = tl.load(x + {at}, mask=kk < {depth}, other=0).to(tl.float32)")
        k.line(f"acc += {value} * a[None, :]")
    k.line("result = tl.sum(acc, 1)")
    if bias:
        k.line(f"result += tl.load({bias} + {expert} * {n} + n, mask=n < {n}, other=0)")
    place = Place("row", ("choice", "n"), "", f"(n < {n})")
    elements.store(k, target, out.access, place, "result")
    grid = [rows_of(space), Count(times=top), Count(times=-(-n // EXPERT_ROWS))]
    ctx.call_one(node, k, grid, CAPACITIES[space])


def _at_expert(k: Source, weight: Format, shape: tuple[int, int], expert: str) -> None:
    """Move the weight's parameters to an expert."""
    if weight.family == "dense":
        k.line(f"w = w + {expert}.to(tl.int64) * {shape[0] * shape[1]}")
        return
    q = QuantShape(weight, *shape)
    k.line(f"w = w + {expert}.to(tl.int64) * {q.code_bytes}")
    k.line(f"scales = scales + {expert}.to(tl.int64) * {q.groups * q.padded_n}")
    if weight.family == "affine" and not weight.symmetric:
        k.line(f"minimums = minimums + {expert}.to(tl.int64) * {q.groups * q.padded_n}")


def _name(weight: Format) -> str:
    return str(weight).replace("-", "_")

