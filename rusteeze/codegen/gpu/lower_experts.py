"""Lower products with the matrices of experts that tokens have chosen.

    y[t, j] = W[idx[t, j]] @ x[t]   (or x[t, j])

Pairs of token and choice are sorted by expert, once for all products with the same choice. A program takes up to
so many pairs of one expert, so that an expert's weights are read once for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rusteeze.artifact.cuda_contract import Capacity, Count
from rusteeze.codegen.gpu import elements
from rusteeze.codegen.gpu.elements import Place
from rusteeze.codegen.gpu.lower_linear import identifier, product_of, weight_parameters
from rusteeze.codegen.gpu.lower_shapes import contiguous
from rusteeze.codegen.gpu.lowering import CAPACITIES, Lowering, PendingChoice, SortedPairs
from rusteeze.codegen.gpu.matmul import Product, at_matrix, sums_over_k
from rusteeze.codegen.gpu.schedule import SPLIT_ROWS, Tile, tiles
from rusteeze.codegen.gpu.source import Options, Source, power_of_two
from rusteeze.codegen.statics import format_of
from rusteeze.codegen.views import View
from rusteeze.ir import Node, Value, make_node, print_node_line

SCAN = 1024
"""Pairs of one loop trip of sorting."""
MANY = 64
"""Pairs of a program where experts have many."""


@dataclass(frozen=True)
class _Experts:
    """One product as its kernels see it: x [T, K] or, ``by_choice``, [T, top, K]."""

    node: Node
    weight: Value
    bias: View | None
    source: View
    out: View
    product: Product
    pairs: SortedPairs

    @property
    def by_choice(self) -> bool:
        return len(self.source.access.shape) == 2


def lower_expert_linear(ctx: Lowering, node: Node) -> None:
    x, idx, w, b = node.operands
    assert x is not None
    assert idx is not None
    assert w is not None
    if node.attrs["transposed"]:
        w = make_node("permute", [w], {"perm": (0, 2, 1)}, node.origin).result
        ctx.static.add(w)
    source, by = contiguous(ctx, x, node), CAPACITIES[ctx.space(node.result)]
    pairs = _sorted(ctx, idx, int(w.type.shape[0]), node)
    product = product_of(node, source, w, 1)
    experts = _Experts(
        node, w, ctx.view(b) if b is not None else None, source, ctx.new(node.result),
        replace(product, splits=1, x_stride=1), pairs,
    )  # fmt: skip
    small, *_, large = (t for t in tiles(product.exact, product.crowded) if t.rows <= MANY)
    choices = []
    for tile, up_to, rows in _sizes(pairs, small, large, by):
        grid = [Count(times=-(-product.n // tile.weight_rows)), rows]
        choices.append(PendingChoice((ctx.launch(_kernel(ctx, experts, tile), grid),), up_to))
    ctx.call(node, choices, by)


def _sizes(pairs: SortedPairs, small: Tile, large: Tile, by: Capacity) -> list[tuple[Tile, int, Count]]:
    """Tiles, up to which capacity they are taken, and how many there are at most: as many as pairs, or as whole
    ones and one of each expert that is not whole."""
    few = pairs.experts // pairs.top
    several = min(SPLIT_ROWS, few * small.rows)
    found = [(small, few, Count(by, times=pairs.top))] if few else []
    if several > few:
        found.append((small, several, Count(by, small.rows, pairs.top, plus=pairs.experts)))
    return [*found, (large, 0, Count(by, large.rows, pairs.top, plus=pairs.experts))]


# ---- sorting ----------------------------------------------------------------------------------------
def _sorted(ctx: Lowering, idx: Value, experts: int, node: Node) -> SortedPairs:
    """The pairs of a choice in the order of their experts, of equal ones in their own; how many each has."""
    if idx in ctx.pairs:
        return ctx.pairs[idx]
    index, space = ctx.view(idx), ctx.space(idx)
    top = index.access.shape[0]
    order, counts = ctx.scratch(space, "i32", (top,)), ctx.scratch(space, "i32", (experts,))
    k = Source(f"sort_pairs_{experts}x{top}", Options(4), ["pairs of token and choice by expert: a program an expert"])
    count = ctx.counts(k, space)
    chosen = k.view("idx", index)
    k.view("order", order)
    k.view("counts", counts)
    k.line("expert = tl.program_id(0)")
    k.line(f"pairs = {count} * {top}")
    k.line("before = expert * 0")
    k.line("found = expert * 0")
    with k.block(f"for start in range(0, pairs, {SCAN}):"):
        _chosen(k, index, chosen, top, experts)
        k.line("before += tl.sum((chosen < expert).to(tl.int32), 0)")
    with k.block(f"for start in range(0, pairs, {SCAN}):"):
        _chosen(k, index, chosen, top, experts)
        k.line("same = (chosen == expert).to(tl.int32)")
        k.line("place = before + found + tl.cumsum(same, 0) - 1")
        k.line("tl.store(order + place, pair, mask=same != 0)")
        k.line("found += tl.sum(same, 0)")
    k.line("tl.store(counts + expert, found)")
    ctx.call_one(idx.node or node, k, [Count(times=experts)], CAPACITIES[space])
    ctx.pairs[idx] = SortedPairs(order, counts, experts, top)
    return ctx.pairs[idx]


def _chosen(k: Source, index: View, name: str, top: int, experts: int) -> None:
    """Experts of a run of pairs; ``experts`` behind the last."""
    a = index.access
    k.line(f"pair = start + tl.arange(0, {SCAN})")
    at = elements.offset(a, f"(pair // {top})", (f"(pair % {top})",))
    k.line(f"chosen = tl.load({name} + {at}, mask=pair < pairs, other={experts})")


# ---- products ---------------------------------------------------------------------------------------
def _kernel(ctx: Lowering, e: _Experts, tile: Tile) -> Source:
    """A program per run of weight rows and run of an expert's pairs."""
    p, pairs = e.product, e.pairs
    label = identifier(f"experts_{format_of(e.weight)}_k{p.k}_n{p.n}_m{tile.rows}")
    k = Source(label, Options(tile.num_warps, tile.num_stages), [print_node_line(e.node)])
    k.view("order", pairs.order)
    k.view("counts", pairs.counts)
    k.view("x", e.source)
    weight_parameters(ctx, k, e.weight)
    bias = k.view("bias", e.bias) if e.bias is not None else ""
    target = k.view("y", e.out)
    k.constants(N=p.n, K=p.k, BN=tile.weight_rows, BM=tile.rows)
    _which_pairs(k, pairs)
    k.line("n = tl.program_id(0) * BN + tl.arange(0, BN)")
    k.line("wn = tl.minimum(n, N - 1)  # rows beyond the last are not stored")
    k.line(f"row = pair // {pairs.top}")
    per_choice = f" + pair % {pairs.top} * K" if e.by_choice else ""
    k.line(f"m = row * {e.source.access.row}{per_choice}  # where the pair's x begins")
    at_matrix(k, p, "expert")
    (sums,) = sums_over_k(k, p, tile)
    if bias:
        k.line(f"{sums} += tl.load({bias} + expert * N + wn)[:, None]")
    place = Place("row[None, :]", (f"(pair % {pairs.top})[None, :]", "n[:, None]"), "live[None, :]", "(n < N)[:, None]")
    elements.store(k, target, e.out.access, place, sums)
    return k


def _which_pairs(k: Source, pairs: SortedPairs) -> None:
    """expert, and of its pairs those of this program, pair [BM], and which of them are real."""
    wide = power_of_two(pairs.experts)
    k.line("tile = tl.program_id(1)")
    k.line(f"each = tl.arange(0, {wide})")
    k.line(f"size = tl.load(counts + each, mask=each < {pairs.experts}, other=0)")
    k.line("runs = (size + BM - 1) // BM")
    k.line("expert = tl.sum((tl.cumsum(runs, 0) <= tile).to(tl.int32), 0)")
    with k.block(f"if expert >= {pairs.experts}:"):
        k.line("return")
    k.line("first = (tile - tl.sum(tl.where(each < expert, runs, 0), 0)) * BM")
    k.line("begin = tl.sum(tl.where(each < expert, size, 0), 0) + first")
    k.line("live = first + tl.arange(0, BM) < tl.sum(tl.where(each == expert, size, 0), 0)")
    k.line("pair = tl.load(order + begin + tl.arange(0, BM), mask=live, other=0)")
