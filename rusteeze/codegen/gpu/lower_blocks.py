"""Lower products with one weight per block of columns."""

from __future__ import annotations

from dataclasses import replace

from rusteeze.artifact.cuda_contract import Count
from rusteeze.codegen.gpu import elements
from rusteeze.codegen.gpu.elements import Place
from rusteeze.codegen.gpu.lower_linear import identifier, product_of, weight_parameters
from rusteeze.codegen.gpu.lower_shapes import contiguous
from rusteeze.codegen.gpu.lowering import CAPACITIES, Lowering, PendingChoice
from rusteeze.codegen.gpu.matmul import at_matrix, matmul
from rusteeze.codegen.gpu.schedule import tiles
from rusteeze.codegen.gpu.source import Options, Source
from rusteeze.codegen.statics import format_of
from rusteeze.ir import Node, print_node_line


def lower_block_linear(ctx: Lowering, node: Node) -> None:
    x, w = node.inputs()
    blocks = int(w.type.shape[0])
    view, out, space = contiguous(ctx, x, node), ctx.new(node.result), ctx.space(node.result)
    p = replace(product_of(node, view, w, 1), splits=1)
    choices = []
    for tile in tiles(p.exact, p.crowded):
        label = identifier(f"block_linear_{format_of(w)}_b{blocks}_k{p.k}_n{p.n}_m{tile.rows}")
        k = Source(label, Options(tile.num_warps, tile.num_stages), [print_node_line(node)])
        count = ctx.counts(k, space)
        k.view("x", view)
        weight_parameters(ctx, k, w)
        k.view("y", out)
        k.line("block = tl.program_id(2)")
        k.line(f"x = x + block * {p.k}")
        at_matrix(k, p, "block")

        def store(sums: list[str], k: Source = k) -> None:
            place = Place("m[None, :]", ("(block * N + n)[:, None]",), "live[None, :]", "(n < N)[:, None]")
            elements.store(k, "y", out.access, place, sums[0])

        matmul(k, p, tile, count, False, store)
        grid = [Count(times=-(-p.n // tile.weight_rows)), Count(CAPACITIES[space], tile.rows), Count(times=blocks)]
        choices.append(PendingChoice((ctx.launch(k, grid),), tile.up_to))
    ctx.call(node, choices, CAPACITIES[space])
