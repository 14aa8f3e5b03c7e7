"""Lower what selects by index: embeddings and the matmuls of experts."""

from __future__ import annotations

from rusteeze.codegen.bodies import matrix, position_table
from rusteeze.codegen.cpu import embedding, experts
from rusteeze.codegen.cpu.lower_regions import activation
from rusteeze.codegen.cpu.lowering import Lowering, at
from rusteeze.codegen.cpu.tiles import TileLayout, tile_format
from rusteeze.codegen.statics import format_of
from rusteeze.ir import Node, make_node


def lower_embedding(ctx: Lowering, node: Node) -> None:
    users = ctx.uses.get(node.result, [])
    if users and all(u.op.name == "rope" for u in users) and position_table(node.result, ctx.static) is not None:
        return  # rope reads the table itself
    ids, table = node.inputs()
    view, out = ctx.view(ids), ctx.new(node.result)
    slot = ctx.rows_slot(node.result)
    layout = TileLayout(tile_format(format_of(table)), *matrix(table))
    key = f"{view.access.key()}|{out.access.key()}|{slot}"
    # a table that is also a matmul's weight (tied embeddings) is stored once, as tiles
    if layout.format.family == "dense" and table not in ctx.matmul_weights:
        ctx.call(
            f"embedding_rows_{layout.k}", key,
            lambda k, _isa: embedding.embedding_rows(k, view.access, layout.k, out.access, k.step(slot)),
            [at(view), at(ctx.view(table))], [at(out)], node, rowwise=True,
        )  # fmt: skip
        return
    ctx.call(
        f"embedding_{layout.format}_k{layout.k}", f"{key}|{layout}",
        lambda k, _isa: embedding.embedding_tiles(k, view.access, layout, out.access, k.step(slot)),
        [at(view), *ctx.weight_tiles(table, layout)], [at(out)], node, rowwise=True,
    )  # fmt: skip


def lower_expert_linear(ctx: Lowering, node: Node) -> None:
    x, idx, w, b = node.operands
    assert x is not None
    assert idx is not None
    assert w is not None
    if node.attrs["transposed"]:
        w = make_node("permute", [w], {"perm": (0, 2, 1)}, node.origin).result
        ctx.static.add(w)
    num_experts, n, width = (int(d) for d in w.type.shape)
    layout = TileLayout(tile_format(format_of(w)), n, width)
    kind, stride, reads = activation(ctx, x, node)
    index, out = ctx.view(idx), ctx.new(node.result)
    reads += [at(index), *ctx.weight_tiles(w, layout)]
    if b is not None:
        reads.append(at(ctx.view(b)))
    shape = experts.ExpertShape(
        layout, num_experts, kind, stride, x.type.rank == 3, index.access.shape[0], b is not None,
        ctx.rows_slot(node.result),
    )  # fmt: skip
    label = f"expert_linear_{layout.format}_{kind}_top{shape.top}_k{width}_n{n}"
    ctx.call(
        label, f"{shape}|{index.access.key()}|{out.access.key()}",
        lambda k, isa: experts.expert_linear(k, isa, shape, index.access, out.access), reads, [at(out)], node,
    )  # fmt: skip


