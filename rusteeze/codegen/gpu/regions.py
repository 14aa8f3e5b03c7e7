"""Kernels of a program per row: norms and pointwise regions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rusteeze.artifact.cuda_contract import Count
from rusteeze.codegen.bodies import as_body, outer_operands
from rusteeze.codegen.gpu import elements
from rusteeze.codegen.gpu.elements import Place
from rusteeze.codegen.gpu.expressions import Env, evaluate, supports
from rusteeze.codegen.gpu.lowering import CAPACITIES, Lowering, LoweringError, rows_of
from rusteeze.codegen.gpu.norm_inputs import defer_norm
from rusteeze.codegen.gpu.source import Options, Source, literal, power_of_two, warps_for
from rusteeze.codegen.views import View, inner_shape
from rusteeze.ir import Graph, Node, Value, print_node_line
from rusteeze.ir.text import print_graph

NORMS = ("rms_norm", "layer_norm")
BLOCK = 1024
"""Elements of one program of a pointwise kernel."""


@dataclass(frozen=True)
class RegionViews:
    """Where the operands and results of a region lie, as seen from its inner axes."""

    node: Node
    body: Graph
    inputs: dict[Value, View]
    outputs: tuple[View, ...]


def region_views(
    ctx: Lowering, node: Node, body: Graph, shape: tuple[int, ...], skip: Sequence[Value | None] = ()
) -> RegionViews:
    """Makes the results. ``body``: as_body(node); ``shape``: inner axes of the results; ``skip``: body inputs
    that the anchor reads itself."""
    inputs = {}
    for inner, outer in zip(body.inputs, outer_operands(node), strict=True):
        if inner not in skip:
            view = ctx.operand(outer, node.results[0])
            inputs[inner] = view.moved(view.access.aligned_to(shape))
    results = [ctx.new(r) for r in node.results]
    return RegionViews(node, body, inputs, tuple(v.moved(v.access.aligned_to(shape)) for v in results))


class BoundRegion:
    """A region whose operands and results are parameters of a kernel."""

    def __init__(self, k: Source, views: RegionViews) -> None:
        self.k, self.node, self.body = k, views.node, views.body
        self._inputs = {v: (k.view(f"x{i}", view), view) for i, (v, view) in enumerate(views.inputs.items())}
        self._outputs = [(k.view(f"y{i}", view), view) for i, view in enumerate(views.outputs)]

    def load(self, value: Value, place: Place) -> str:
        pointer, view = self._inputs[value]
        return elements.load(self.k, pointer, view.access, place)

    def evaluate(self, nodes: Sequence[Node], env: Env, place: Place) -> None:
        for node in nodes:
            if not supports(node):
                raise LoweringError(f"no GPU kernel for {print_node_line(node)} ({self.node.origin})")
        evaluate(self.k, nodes, env, lambda v: self.load(v, place))

    def store(self, env: Env, place: Place) -> None:
        """Write every output, which env holds."""
        for (pointer, view), value in zip(self._outputs, self.body.outputs, strict=True):
            elements.store(self.k, pointer, view.access, place, env[value])


def about(node: Node, body: Graph) -> list[str]:
    """Header of a region's kernel: what it computes."""
    lines = print_graph(body).splitlines() if node.body is not None else [print_node_line(body.nodes[-1])]
    return [line.split("  #")[0] for line in lines if not line.lstrip().startswith("@")]


def label_of(body: Graph, skip: Node | None = None) -> str:
    names = [n.op.name for n in body.nodes if n is not skip and n.op.name not in ("const", "slice")]
    return "_".join(names)[:80] or "store"


def row_kernel(
    ctx: Lowering, node: Node, label: str, header: list[str], options: Options,
    grid: Sequence[Count], write: Callable[[Source], None],
) -> None:  # fmt: skip
    """A call of a kernel whose first grid axis counts rows: programs beyond the last row do nothing."""
    k = Source(label, options, header)
    space = ctx.space(node.results[0])
    count = ctx.counts(k, space)
    k.line("row = tl.program_id(0)")
    with k.block(f"if row >= {count}:"):
        k.line("return")
    write(k)
    ctx.call_one(node, k, [rows_of(space), *grid], CAPACITIES[space])


def lower_pointwise(ctx: Lowering, node: Node) -> None:
    body = as_body(node)
    shape = inner_shape(node.results[0].type)
    count = math.prod(shape)
    block = min(BLOCK, power_of_two(count))
    views = region_views(ctx, node, body, shape)

    def write(k: Source) -> None:
        bound = BoundRegion(k, views)
        flat = k.let(f"tl.program_id(1) * {block} + tl.arange(0, {block})")
        mask = k.let(f"{flat} < {count}")
        place = Place("row", tuple(elements.unflattened(k, flat, shape)), "", mask, flat)
        env: Env = {}
        bound.evaluate(body.nodes, env, place)
        bound.store(env, place)

    label = f"{label_of(body)}_{'x'.join(map(str, shape)) or '1'}"
    grid = [Count(times=-(-count // block))]
    row_kernel(ctx, node, label, about(node, body), Options(warps_for(block)), grid, write)


def lower_norm(ctx: Lowering, node: Node) -> None:
    if defer_norm(ctx, node):
        return
    body = as_body(node)
    (norm,) = (n for n in body.nodes if n.op.name in NORMS)
    shape = inner_shape(norm.result.type)
    width, outer = shape[-1], math.prod(shape[:-1])
    block = power_of_two(width)
    before = _before(body, norm)
    after = [n for n in body.nodes if n not in before and n is not norm]
    views = region_views(ctx, node, body, shape)

    def write(k: Source) -> None:
        bound = BoundRegion(k, views)
        outer_place = elements.unflattened(k, "tl.program_id(1)", shape[:-1])
        column = k.let(f"tl.arange(0, {block})")
        mask = k.let(f"{column} < {width}")
        place = Place("row", (*outer_place, column), "", mask)
        env: Env = {}
        bound.evaluate(before, env, place)
        env[norm.result] = _normalised(k, bound, norm, env, place, width)
        bound.evaluate(after, env, place)
        bound.store(env, place)

    label = f"{label_of(body)}_{'x'.join(map(str, shape))}"
    row_kernel(ctx, node, label, about(node, body), Options(warps_for(block)), [Count(times=outer)], write)


def _before(body: Graph, norm: Node) -> list[Node]:
    """The pointwise nodes that the norm's input needs."""
    needed = {v for v in norm.operands[:1] if v is not None}
    before: list[Node] = []
    for node in reversed(body.nodes):
        if node is not norm and any(r in needed for r in node.results):
            before.insert(0, node)
            needed.update(node.inputs())
    return before


def _normalised(
    k: Source, bound: BoundRegion, norm: Node, env: Env, place: Place, width: int
) -> str:
    """(x - mean) / sqrt(mean of squares + eps) * (weight + offset) + bias"""
    source, weight = norm.operands[0], norm.operands[1]
    bias = norm.operands[2] if len(norm.operands) > 2 else None
    assert source is not None
    if source not in env:
        env[source] = bound.load(source, place)
    x = env[source]
    mask = place.column_mask
    if norm.op.name == "layer_norm":
        mean = k.let(f"tl.sum(tl.where({mask}, {x}, 0.0), 0) / {float(width)}")
        x = k.let(f"{x} - {mean}")
    squares = k.let(f"tl.sum(tl.where({mask}, {x} * {x}, 0.0), 0)")
    y = k.let(f"{x} / tl.sqrt({squares} / {float(width)} + {literal(norm.attrs['eps'])})")
    if weight is not None:
        w = bound.load(weight, place)
        offset = float(norm.attrs.get("offset", 0.0))  # type: ignore[arg-type]
        y = k.let(f"{y} * ({w} + {offset})" if offset else f"{y} * {w}")
    return y if bias is None else k.let(f"{y} + {bound.load(bias, place)}")
