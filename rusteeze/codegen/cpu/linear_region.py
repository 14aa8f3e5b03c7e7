"""A matmul with what is pointwise in its result: bias, activation, gate and up, residual, rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rusteeze.codegen.cpu.activations import GROUP
from rusteeze.codegen.cpu.bodies import Env
from rusteeze.codegen.cpu.emit import LANES, Emitter, Expr, i32
from rusteeze.codegen.cpu.matmul import Blocks, Epilogue, matmul
from rusteeze.codegen.cpu.micro_kernels import activations_argument
from rusteeze.codegen.cpu.region import BoundRegion, Region, RegionRow
from rusteeze.codegen.cpu.schedule import Schedule
from rusteeze.codegen.cpu.tiles import TILE, TileLayout
from rusteeze.ir import Node


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

    @property
    def num_tiles(self) -> int:
        """Tiles of the result, or of each half."""
        return -(-self.columns // TILE)

    def blocks(self, tiles_per_block: int) -> Blocks:
        num_tiles = self.num_tiles
        return Blocks(num_tiles // tiles_per_block, tiles_per_block, num_tiles if self.halves else None)


def linear_region(k: Emitter, region: Region, anchor: LinearAnchor, schedule: Schedule) -> None:
    """Arguments: x, weight, [codebook], operands, results. Columns are shared among the threads."""
    x = activations_argument(k, anchor.activation, anchor.layout.k, anchor.x_stride)
    weight = k.pointer("int32")
    table = k.pointer("float32") if anchor.layout.format.family == "codebook" else None
    bound = BoundRegion(k, region, (anchor.columns,))
    nodes = region.pointwise([anchor.linear, *anchor.parts])
    outputs = range(len(region.results))
    rounded = [o for o in outputs if region.rounded(o)]
    plain = [o for o in outputs if o not in rounded]
    per_block = GROUP // TILE if rounded else math.gcd(schedule.block_tiles, anchor.num_tiles)

    def compute(row: Expr, block: Expr, vectors: list[Expr]) -> list[Expr]:
        """Everything but rounding; the vectors that are to be rounded, by output and column."""
        here = bound.row(row)
        envs: list[Env] = []
        for c in range(per_block):
            column = k.let((block * i32(per_block) + i32(c)) * i32(TILE))
            env = _products(here, anchor, column, vectors[c::per_block])
            here.evaluate(nodes, env, column, LANES)
            here.store(plain, column, env)
            envs.append(env)
        return [env[region.computed(o)] for o in rounded for env in envs]

    def finish(row: Expr, block: Expr, vectors: list[Expr]) -> None:
        for n, o in enumerate(rounded):
            bound.store_group(o, row, block, vectors[n * per_block : (n + 1) * per_block])

    rows = k.step(region.rows_slot)
    epilogue = Epilogue(compute, finish if rounded else None)
    matmul(k, x, weight, anchor.layout, rows, anchor.blocks(per_block), epilogue, schedule, table)


def _products(here: RegionRow, anchor: LinearAnchor, column: Expr, products: list[Expr]) -> Env:
    """The matmul's results at 16 columns, with its bias."""
    k = here.bound.k
    bias = anchor.linear.operands[2]
    env: Env = {}
    for i, (node, product) in enumerate(zip(anchor.parts, products, strict=True)):
        if bias is not None:
            at = k.let(column + i32(i * anchor.columns))
            product = k.let(product + here.load(bias, at, LANES))
        env[node.result] = product
    return env
