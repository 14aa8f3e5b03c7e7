"""Kernels of fused regions: an anchor (matmul, norm, pointwise) around expressions from the IR.

A region's results are rows of float32 or int32, or int8 rows with group headers where the body ends in
``quantize``. Arguments, in this order: what the anchor reads, the other operands in body order, then
the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rusteeze.codegen.cpu.access import Access, Operand
from rusteeze.codegen.cpu.activations import GROUP, RoundedRows
from rusteeze.codegen.cpu.bodies import Env, evaluate, loader, needs_scalars
from rusteeze.codegen.cpu.emit import LANES, Emitter, Expr, i32
from rusteeze.codegen.cpu.isa import Isa
from rusteeze.codegen.cpu.matmul import Blocks, activations_argument, matmul
from rusteeze.codegen.cpu.norm import columns, mean_and_factor, normalised
from rusteeze.codegen.cpu.tiles import TILE, TileLayout
from rusteeze.ir import Graph, Node, Value


@dataclass(frozen=True)
class Result:
    """Where one output of a region goes: an access, or rounded rows of a kind and width."""

    access: Access | None
    kind: str = ""
    columns: int = 0

    def key(self) -> str:
        return self.access.key() if self.access else f"{self.kind}:{self.columns}"


@dataclass(frozen=True)
class Region:
    """A body and how its operands and results are addressed. ``rows_slot``: STEP_TOKENS or STEP_ROWS."""

    body: Graph
    operands: tuple[Access | None, ...]  # one per body input; None for what the anchor reads itself
    results: tuple[Result, ...]
    rows_slot: int


class _Writer:
    """Binds a region's operands and results to arguments; evaluates and stores chunks of 16 columns."""

    def __init__(self, k: Emitter, region: Region, shape: tuple[int, ...]) -> None:
        self.k, self.region = k, region
        self.operands: dict[Value, Operand] = {}
        for v, access in zip(region.body.inputs, region.operands, strict=True):
            if access is not None:
                self.operands[v] = Operand.argument(k, access.aligned_to(shape))
        self.targets: list[Operand | RoundedRows] = []
        for r in region.results:
            if r.access is None:
                self.targets.append(RoundedRows.argument(k, r.kind, r.columns))
            else:
                self.targets.append(Operand.argument(k, r.access.aligned_to(shape)))

    def store(self, row: Expr, position: Sequence[Expr | int], env: Env, output: int) -> None:
        target = self.targets[output]
        assert isinstance(target, Operand)
        target.store(self.k, row, position, env[self.region.body.outputs[output]])

    def quantize(self, row: Expr, group: Expr, pair: list[Env], output: int) -> None:
        target = self.targets[output]
        assert isinstance(target, RoundedRows)
        a, b = (env[quantized_value(self.region.body, output)] for env in pair)
        target.store_group(self.k, a, b, row, group)


def quantized_value(body: Graph, output: int) -> Value:
    """What the ``quantize`` behind an output rounds."""
    node = body.outputs[output].node
    assert node is not None
    assert node.op.name == "quantize"
    assert node.operands[0] is not None
    return node.operands[0]


def is_quantized(body: Graph, output: int) -> bool:
    return body.outputs[output].op == "quantize"


def pointwise_nodes(body: Graph, skip: Sequence[Node] = ()) -> list[Node]:
    return [n for n in body.nodes if n.op.name != "quantize" and n not in skip]


# ---- matmul ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LinearAnchor:
    """The matmul of a region: which nodes it consists of and how its operands are stored."""

    linear: Node
    halves: tuple[Node, Node] | None  # the slices [0, N/2) and [N/2, N) of its result (gate, up)
    layout: TileLayout
    activation: str
    x_stride: int

    @property
    def columns(self) -> int:
        """Columns of the result, or of each half."""
        return self.layout.n // (2 if self.halves else 1)

    @property
    def parts(self) -> list[Node]:
        """The nodes whose results the matmul gives: its own, or the halves."""
        return list(self.halves) if self.halves else [self.linear]

    def blocks(self, tiles_per_block: int) -> Blocks:
        num_tiles = -(-self.columns // TILE)
        return Blocks(num_tiles // tiles_per_block, tiles_per_block, num_tiles if self.halves else None)


def linear_region(k: Emitter, isa: Isa, region: Region, anchor: LinearAnchor) -> None:
    x = activations_argument(k, anchor.activation, anchor.layout.k, anchor.x_stride)
    weight = k.pointer("int32")
    table = k.pointer("float32") if anchor.layout.format.family == "codebook" else None
    writer = _Writer(k, region, (anchor.columns,))
    nodes = pointwise_nodes(region.body, [anchor.linear, *anchor.parts])
    outputs = range(len(region.results))
    rounded = [o for o in outputs if is_quantized(region.body, o)]
    plain = [o for o in outputs if o not in rounded]
    per_block = GROUP // TILE if rounded else 1

    def epilogue(row: Expr, block: Expr, vectors: list[Expr]) -> None:
        envs = []
        for c in range(per_block):
            column = k.let((block * i32(per_block) + i32(c)) * i32(TILE))
            products = vectors[c::per_block]
            env = _products(k, anchor, writer, row, column, products)
            evaluate(k, nodes, env, LANES, loader(k, writer.operands, row, (column,), LANES))
            for o in plain:
                writer.store(row, (column,), env, o)
            envs.append(env)
        for o in rounded:
            writer.quantize(row, block, envs, o)

    rows = k.step(region.rows_slot)
    matmul(k, x, weight, anchor.layout, rows, anchor.blocks(per_block), epilogue, isa.row_tiles, table)


def _products(
    k: Emitter, anchor: LinearAnchor, writer: _Writer, row: Expr, column: Expr, products: list[Expr]
) -> Env:
    """The matmul's results at 16 columns, with its bias."""
    bias = anchor.linear.operands[2]
    env: Env = {}
    for i, (node, product) in enumerate(zip(anchor.parts, products, strict=True)):
        if bias is not None:
            at = k.let(column + i32(i * anchor.columns))
            product = k.let(product + writer.operands[bias].load(k, row, (at,), LANES))
        env[node.result] = product
    return env


# ---- normalisation --------------------------------------------------------------------------------
def norm_region(k: Emitter, region: Region, norm: Node, shape: tuple[int, ...]) -> None:
    """``shape``: inner axes; the last one is normalised, the others are rows of their own."""
    writer = _Writer(k, region, shape)
    body = region.body
    before, after = _around(body, norm)
    source = norm.operands[0]
    assert source is not None
    width = shape[-1]
    centred = norm.op.name == "layer_norm"
    eps = float(norm.attrs["eps"])  # type: ignore[arg-type]
    offset = float(norm.attrs.get("offset", 0.0))  # type: ignore[arg-type]
    weight, bias = norm.operands[1], (norm.operands[2] if centred else None)
    stash = k.local(width, lanes=1) if before else None
    early = [o for o, v in enumerate(body.outputs) if v in {n.result for n in before}]

    def one(row: Expr, outer: list[Expr]) -> None:
        def given(column: Expr, lanes: int) -> Expr:
            if stash is not None:
                return k.let(stash.load(column, lanes))
            return writer.operands[source].load(k, row, (*outer, column), lanes)

        def prologue(column: Expr, lanes: int) -> None:
            env: Env = {}
            evaluate(k, before, env, lanes, loader(k, writer.operands, row, (*outer, column), lanes))
            assert stash is not None
            k.store(stash, column, env[source])
            for o in early:
                writer.store(row, (*outer, column), env, o)

        if stash is not None:
            columns(k, width, prologue)
        mean, factor = mean_and_factor(k, given, width, eps, centred)

        def finish(column: Expr, lanes: int) -> Env:
            load = loader(k, writer.operands, row, (*outer, column), lanes)
            x = given(column, lanes)
            w = load(weight) if weight is not None else None
            b = load(bias) if bias is not None else None
            env: Env = {norm.result: normalised(k, x, mean, factor, lanes, w, b, offset)}
            if stash is not None:
                env[source] = x
            evaluate(k, after, env, lanes, load)
            return env

        _finish_row(k, writer, width, row, outer, finish, [o for o in range(len(body.outputs)) if o not in early])

    first, count = k.share(k.step(region.rows_slot))
    with k.loop(count) as n:
        row = k.let(first + n)
        if len(shape) == 1:
            one(row, [])
        else:
            with k.loop(shape[0]) as head:
                one(row, [head])


def _finish_row(k, writer, width, row, outer, finish, outputs) -> None:  # type: ignore[no-untyped-def]
    body = writer.region.body
    quantized = [o for o in outputs if is_quantized(body, o)]
    plain = [o for o in outputs if not is_quantized(body, o)]

    def store(column: Expr, lanes: int) -> Env:
        env = finish(column, lanes)
        for o in plain:
            writer.store(row, (*outer, column), env, o)
        return env

    if not quantized:
        columns(k, width, lambda column, lanes: (store(column, lanes), None)[1])
        return
    with k.loop(width // GROUP) as g:
        pair = [store(k.let(g * i32(GROUP) + i32(LANES * c)), LANES) for c in range(2)]
        for o in quantized:
            writer.quantize(row, g, pair, o)


def _around(body: Graph, norm: Node) -> tuple[list[Node], list[Node]]:
    """Pointwise nodes that the norm needs, and the others."""
    needed: set[Value] = {v for v in norm.operands[:1] if v is not None}
    before: list[Node] = []
    for node in reversed(body.nodes[: body.nodes.index(norm)]):
        if any(r in needed for r in node.results):
            before.insert(0, node)
            needed.update(node.inputs())
    rest = [n for n in pointwise_nodes(body, [norm]) if n not in before]
    return [n for n in before if n.op.name != "const"], rest


# ---- pointwise ------------------------------------------------------------------------------------
def pointwise_region(k: Emitter, region: Region, shape: tuple[int, ...]) -> None:
    """``shape``: inner axes of the results."""
    full = shape or (1,)
    writer = _Writer(k, region, full)
    body = region.body
    nodes = pointwise_nodes(body)
    one_lane = needs_scalars(nodes) or not _vectors_possible(region)

    def compute(row: Expr, position: list[Expr], lanes: int) -> Env:
        env: Env = {}
        evaluate(k, nodes, env, lanes, loader(k, writer.operands, row, position, lanes))
        for v in body.outputs:
            if v.node is None or (v.op == "quantize" and quantized_value(body, body.outputs.index(v)).node is None):
                source = v if v.node is None else v.node.operands[0]
                assert source is not None
                env[source] = writer.operands[source].load(k, row, position, lanes)
        return env

    first, count = k.share(k.step(region.rows_slot))
    with k.loop(count) as n:
        row = k.let(first + n)
        _positions(k, full[:-1], [], lambda outer: _finish_row(
            k, writer, full[-1], row, outer,
            lambda column, lanes: compute(row, [*outer, column], lanes), list(range(len(body.outputs))),
        ) if not one_lane else _scalars(k, writer, full[-1], row, outer, compute))  # fmt: skip


def _scalars(k, writer, width, row, outer, compute) -> None:  # type: ignore[no-untyped-def]
    with k.loop(width) as column:
        env = compute(row, [*outer, column], 1)
        for o in range(len(writer.region.body.outputs)):
            writer.store(row, (*outer, column), env, o)


def _positions(k, shape, done, body) -> None:  # type: ignore[no-untyped-def]
    if not shape:
        body(done)
        return
    with k.loop(shape[0]) as i:
        _positions(k, shape[1:], [*done, i], body)


def _vectors_possible(region: Region) -> bool:
    """16 lanes at once need unit stride on the results' last axis."""
    accesses = [r.access for r in region.results if r.access is not None]
    return all(not a.strides or a.strides[-1] == 1 for a in accesses)
