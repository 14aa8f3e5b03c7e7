"""Lower products with one weight per block of columns."""

from __future__ import annotations

from rusteeze.codegen.cpu.block_linear import BlockShape, block_linear
from rusteeze.codegen.cpu.lower_regions import activation
from rusteeze.codegen.cpu.lowering import Lowering, at
from rusteeze.codegen.cpu.tiles import TileLayout, tile_format
from rusteeze.codegen.statics import format_of
from rusteeze.ir import Node


def lower_block_linear(ctx: Lowering, node: Node) -> None:
    x, w = node.inputs()
    blocks, n, width = (int(d) for d in w.type.shape)
    layout = TileLayout(tile_format(format_of(w)), n, width)
    kind, stride, reads = activation(ctx, x, node)
    out = ctx.new(node.result)
    shape = BlockShape(layout, blocks, kind, stride, ctx.rows_slot(node.result))
    ctx.call(
        f"block_linear_{layout.format}_{kind}_b{blocks}_k{width}_n{n}", f"{shape}|{out.access.key()}",
        lambda k, isa: block_linear(k, isa, shape, out.access),
        [*reads, *ctx.weight_tiles(w, layout)], [at(out)], node,
    )  # fmt: skip
