"""Lower products with weights, and the regions around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rusteeze.artifact.cuda_contract import Count
from rusteeze.codegen.bodies import as_body, halves_of, matrix, outer_operands
from rusteeze.codegen.gpu.elements import Place
from rusteeze.codegen.gpu.expressions import Env
from rusteeze.codegen.gpu.lower_shapes import contiguous
from rusteeze.codegen.gpu.lowering import CAPACITIES, Lowering, LoweringError, PendingChoice
from rusteeze.codegen.gpu.matmul import Product, matmul
from rusteeze.codegen.gpu.norm_inputs import (
    FUSED_ROWS,
    bind_rows,
    leave_sums,
    store_sums,
    write_rows,
)
from rusteeze.codegen.gpu.regions import BoundRegion, about, label_of, region_views
from rusteeze.codegen.gpu.schedule import SPLIT_ROWS, Tile, splits, tiles
from rusteeze.codegen.gpu.source import (
    COUNTER_BYTES,
    Options,
    Pointer,
    Source,
    Workspace,
    pointer_to,
)
from rusteeze.codegen.gpu.weights import QuantShape
from rusteeze.codegen.statics import format_of
from rusteeze.codegen.views import View
from rusteeze.ir import Graph, Node, Value, print_node_line
from rusteeze.weights.formats import Format

"""Front of the workspace: a counter for every tile whose sums are split."""
DENSE_TYPES = ("f32", "bf16", "f16")


def lower_linear(ctx: Lowering, node: Node) -> None:
    body = as_body(node)
    (linear,) = (n for n in body.nodes if n.op.name == "linear")
    bound = dict(zip(body.inputs, outer_operands(node), strict=True))
    x, w = bound[linear.operands[0]], bound[linear.operands[1]]  # type: ignore[index]
    if x.type.rank != 2:
        raise LoweringError(f"a product of {x.type} has no kernel: {print_node_line(node)}")
    view, rows = contiguous(ctx, x, node), ctx.normed.get(x)
    halves = halves_of(body, linear)
    product = product_of(node, view, w, 2 if halves else 1)
    space = ctx.space(node.results[0])
    region = _Region(ctx, node, body, linear, halves, w)
    choices = []
    for tile in tiles(product.exact, product.crowded):
        split = 0 < tile.up_to <= SPLIT_ROWS
        seen, source, before = product, view, []
        if rows is not None and 0 < tile.up_to <= FUSED_ROWS:
            seen, source = replace(product, rows=rows, x_stride=rows.source.access.row), rows.source
        elif rows is not None:
            before = [write_rows(ctx, rows, x)]
        k = region.source(seen, source, tile, split)
        grid = [Count(times=-(-product.n // tile.weight_rows)), Count(CAPACITIES[space], tile.rows)]
        grid += [Count(times=product.splits if split else 1)]
        choices.append(PendingChoice((*before, ctx.launch(k, grid)), tile.up_to))
        if split and product.splits > 1:
            _reserve(ctx, product, tile)
    ctx.call(node, choices, CAPACITIES[space])


def product_of(node: Node, x: View, w: Value, halves: int) -> Product:
    """``w``: a matrix [N, K] or a stack of them."""
    n, k = (int(d) for d in w.type.shape[-2:])
    weight = format_of(w)
    dtype = x.access.dtype if x.access.dtype == "bf16" else "f32"
    quant = None
    if weight.family == "dense":
        if weight.dtype not in DENSE_TYPES:
            raise LoweringError(f"weights of {weight} have no GPU kernel: {print_node_line(node)}")
        if dtype == "bf16" and weight.dtype != "bf16":
            raise LoweringError(f"{weight} weights with bf16 activations: {print_node_line(node)}")
        depth = max(t.depth for t in tiles(dtype != "bf16", halves > 1))
    else:
        _require_kernel(weight, w)
        quant = QuantShape(weight, n, k)
        depth = quant.block
    count = splits(n // halves, k, depth)
    return Product(n // halves, k, x.access.row, dtype, halves, count, weight.dtype, quant)


def _reserve(ctx: Lowering, p: Product, tile: Tile) -> None:
    columns, rows = -(-p.n // tile.weight_rows), -(-tile.up_to // tile.rows)
    if 4 * columns * rows > COUNTER_BYTES:
        raise LoweringError(f"{columns} x {rows} tiles need more counters")
    ctx.reserve(COUNTER_BYTES + 4 * columns * rows * p.splits * p.halves * tile.weight_rows * tile.rows)


class _Region:
    """A product's kernels: one text for each tile."""

    def __init__(
        self, ctx: Lowering, node: Node, body: Graph, linear: Node, halves: Sequence[Node] | None, w: Value
    ) -> None:
        self.ctx, self.node, self.linear, self.halves = ctx, node, linear, halves
        self.w, self.body = w, body
        columns = matrix(w)[0] // (2 if halves else 1)
        self.views = region_views(ctx, node, body, (columns,), linear.operands[:2])
        self.sums = {i: s for i, r in enumerate(node.results) if (s := leave_sums(ctx, r)) is not None}
        parts = list(halves or [linear])
        self.parts = parts
        self.pointwise = [n for n in self.body.nodes if n is not linear and n not in parts]

    def source(self, p: Product, x: View, tile: Tile, split: bool) -> Source:
        weight, norm = format_of(self.w), "norm_" if p.rows is not None else ""
        label = f"linear_{norm}{label_of(self.body, self.linear)}_{weight}_k{p.k}_n{p.n * p.halves}_m{tile.rows}"
        k = Source(identifier(label), Options(tile.num_warps, tile.num_stages), self._header(p, tile))
        count = self.ctx.counts(k, self.ctx.space(self.node.results[0]))
        k.pointer("x", x.access.dtype, pointer_to(x))
        if p.rows is not None:
            bind_rows(k, p.rows)
        weight_parameters(self.ctx, k, self.w)
        if split and p.splits > 1:
            k.pointer("counters", "i32", Pointer(Workspace(0)))
            k.pointer("workspace", "f32", Pointer(Workspace(COUNTER_BYTES)))
        bound = BoundRegion(k, self.views)
        left = {i: k.view(f"sums{i}", view) for i, view in self.sums.items()}
        matmul(k, p, tile, count, split, lambda sums: self._epilogue(k, p, bound, sums, tile, left))
        return k

    def _epilogue(
        self, k: Source, p: Product, bound: BoundRegion, sums: list[str], tile: Tile, left: Mapping[int, str]
    ) -> None:
        columns = "(n < N)[:, None]" if p.n % tile.weight_rows else ""
        block = "n[:, None]" if p.n == 1 else ""  # whose stride is 0
        place = Place("m[None, :]", ("n[:, None]",), "live[None, :]", columns, block)
        env: Env = {}
        bias = self.linear.operands[2]
        for i, (part, value) in enumerate(zip(self.parts, sums, strict=True)):
            if bias is not None:
                at = Place("", (f"(n[:, None] + {i * p.n})",), "", columns)
                value = k.let(f"{value} + {bound.load(bias, at)}")
            env[part.result] = value
        bound.evaluate(self.pointwise, env, place)
        bound.store(env, place)
        for i, name in left.items():
            store_sums(k, env[self.body.outputs[i]], self.sums[i], name)

    def _header(self, p: Product, tile: Tile) -> list[str]:
        flops = 2 * p.n * p.halves * p.k
        read = sum(self.ctx.statics.nbytes(name) for name in weight_names(self.ctx, self.w))
        return [
            *about(self.node, self.body), "",
            f"flops per row {flops}, weight bytes {read}; {p.splits} runs over K, {tile}",
        ]  # fmt: skip


def weight_parameters(ctx: Lowering, k: Source, w: Value) -> None:
    """A matrix as parameters: w, and of quantised ones scales, minimums, table."""
    weight = format_of(w)
    if weight.family == "dense":
        k.pointer("w", weight.dtype, ctx.weight(w, "matrix"))
        return
    _require_kernel(weight, w)
    k.pointer("w", "u8", ctx.weight(w, "codes"))
    k.pointer("scales", "f32", ctx.weight(w, "scales"))
    if weight.family == "codebook":
        k.pointer("table", "f32", ctx.weight(w, "table"))
    elif weight.family == "affine" and not weight.symmetric:
        k.pointer("minimums", "f32", ctx.weight(w, "minimums"))


def _require_kernel(weight: Format, w: Value) -> None:
    if weight.transposed:
        raise LoweringError(f"weights of {weight} have no GPU kernel: {w!r}")


def weight_names(ctx: Lowering, w: Value) -> list[str]:
    """Names of a matrix's parts in the artifact."""
    weight = format_of(w)
    if weight.family == "dense":
        return [ctx.statics.name(w, "matrix")]
    names = [ctx.statics.name(w, "codes"), ctx.statics.name(w, "scales")]
    if weight.family == "codebook":
        return [*names, ctx.statics.name(w, "table")]
    return names if weight.symmetric or weight.family == "float8" else [*names, ctx.statics.name(w, "minimums")]


def identifier(label: str) -> str:
    """A label as part of a kernel's name."""
    return "".join(c if c.isalnum() else "_" for c in label)

