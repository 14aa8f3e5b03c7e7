"""Lower fused regions and the single nodes that are regions of one: matmul, norm, pointwise."""

from __future__ import annotations

from collections.abc import Callable

from rusteeze.codegen.access import Access
from rusteeze.codegen.bodies import as_body, body_key, halves_of, matrix, outer_operands
from rusteeze.codegen.cpu.emit import Emitter
from rusteeze.codegen.cpu.linear_region import LinearAnchor, linear_region
from rusteeze.codegen.cpu.lower_attention import lower_attention
from rusteeze.codegen.cpu.lower_shapes import contiguous
from rusteeze.codegen.cpu.lowering import (
    Lowering,
    LoweringError,
    Pointer,
    Tunable,
    at,
    rounding_of,
    without_row_axis,
)
from rusteeze.codegen.cpu.norm_region import norm_region
from rusteeze.codegen.cpu.pointwise_region import pointwise_region
from rusteeze.codegen.cpu.region import Region, Result
from rusteeze.codegen.cpu.schedule import MatmulKey
from rusteeze.codegen.cpu.tiles import TileLayout, tile_format
from rusteeze.codegen.statics import format_of
from rusteeze.codegen.views import RoundedView, inner_shape
from rusteeze.ir import Graph, Node, Value, print_node_line

EmitRegion = Callable[[Emitter, Region], None]


def activation(ctx: Lowering, x: Value, node: Node) -> tuple[str, int, list[Pointer]]:
    """A matmul's left operand: its kind (activations.py), elements per row, arguments."""
    rounded = None if x in ctx.static else ctx.env[x]
    if isinstance(rounded, RoundedView):
        return rounded.kind, rounded.columns, [Pointer(s) for s in rounded.storages]
    view = contiguous(ctx, x, node)
    return "f32", view.access.row, [at(view)]


def lower_linear(ctx: Lowering, node: Node) -> None:
    body = as_body(node)
    (linear,) = (n for n in body.nodes if n.op.name == "linear")
    bound = dict(zip(body.inputs, outer_operands(node), strict=True))
    x, w = bound[linear.operands[0]], bound[linear.operands[1]]  # type: ignore[index]
    if x.type.rank != 2:
        raise LoweringError(f"a product of {x.type} has no kernel: {print_node_line(node)}")
    halves = halves_of(body, linear)
    layout = TileLayout(tile_format(format_of(w)), *matrix(w))
    kind, stride, reads = activation(ctx, x, node)
    reads += ctx.weight_tiles(w, layout, halves is not None)
    others = {v for n in body.nodes if n is not linear for v in n.inputs()} | {linear.operands[2]}
    views = [
        without_row_axis(ctx.view(outer), node.results[0]) if inner in others else None
        for inner, outer in bound.items()
    ]
    reads += [at(v) for v in views if v is not None]
    results, writes = _results(ctx, node, body)
    region = Region(
        body, tuple(v.access if v else None for v in views), results, ctx.rows_slot(node.results[0])
    )
    anchor = LinearAnchor(linear, halves, layout, kind, stride)
    epilogue = _label(body, linear)
    label = f"linear_{epilogue}_{layout.format}_{kind}_k{layout.k}_n{layout.n}"
    tunable = Tunable(
        MatmulKey(str(layout.format), kind, layout.k, layout.n, epilogue),
        lambda k, schedule: linear_region(k, region, anchor, schedule),
    )
    ctx.call_tunable(label, f"{stride}|{_key(region)}", tunable, reads, writes, node)


def lower_norm(ctx: Lowering, node: Node) -> None:
    body = as_body(node)
    (norm,) = (n for n in body.nodes if n.op.name in ("rms_norm", "layer_norm"))
    shape = inner_shape(norm.result.type)
    if len(shape) > 2:
        raise LoweringError(f"a norm over more than [T, H, D] has no kernel: {print_node_line(node)}")
    _call_region(ctx, node, body, shape, lambda k, r: norm_region(k, r, norm, shape))


def lower_pointwise(ctx: Lowering, node: Node) -> None:
    shape = inner_shape(node.results[0].type)
    _call_region(ctx, node, as_body(node), shape, lambda k, r: pointwise_region(k, r, shape))


def lower_fused(ctx: Lowering, node: Node) -> None:
    anchors = {
        "linear": lower_linear, "norm": lower_norm, "pointwise": lower_pointwise,
        "attention": lower_attention,
    }  # fmt: skip
    anchors[str(node.attrs["anchor"])](ctx, node)


def _call_region(
    ctx: Lowering, node: Node, body: Graph, shape: tuple[int, ...], emit: EmitRegion
) -> None:
    views = [without_row_axis(ctx.view(v), node.results[0]) for v in outer_operands(node)]
    results, writes = _results(ctx, node, body)
    accesses = tuple(v.access for v in views)
    region = Region(body, accesses, results, ctx.rows_slot(node.results[0]))
    label = f"{_label(body, None)}_{'x'.join(map(str, shape)) or '1'}"
    reads = [at(v) for v in views]
    ctx.call(label, _key(region), lambda k, _isa: emit(k, region), reads, writes, node, rowwise=True)


def _results(ctx: Lowering, node: Node, body: Graph) -> tuple[tuple[Result, ...], list[Pointer]]:
    results: list[Result] = []
    pointers: list[Pointer] = []
    for outer, inner in zip(node.results, body.outputs, strict=True):
        if inner.op == "quantize":
            rounded = ctx.new_rounded(outer, rounding_of(inner))
            results.append(Result(None, rounded.kind, rounded.columns))
            pointers += [Pointer(s) for s in rounded.storages]
        else:
            view = ctx.new(outer)
            results.append(Result(view.access))
            pointers.append(at(view))
    return tuple(results), pointers


def _label(body: Graph, skip: Node | None) -> str:
    names = [n.op.name for n in body.nodes if n is not skip and n.op.name not in ("const", "slice")]
    return "_".join(names) or "store"


def _key(region: Region) -> str:
    parts: list[str] = [a.key() if isinstance(a, Access) else "-" for a in region.operands]
    parts += [r.key() for r in region.results]
    return f"{body_key(region.body)}|{'|'.join(parts)}|{region.rows_slot}"
