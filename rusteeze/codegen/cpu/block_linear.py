"""Products with one weight per block of columns: each head's own."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from rusteeze.codegen.access import Access
from rusteeze.codegen.cpu.access import Operand
from rusteeze.codegen.cpu.activations import GROUP, HEADER
from rusteeze.codegen.cpu.emit import LANES, Emitter, Expr, i32, minimum
from rusteeze.codegen.cpu.isa import Isa
from rusteeze.codegen.cpu.matmul import Blocks, Epilogue, matmul
from rusteeze.codegen.cpu.micro_kernels import Activations, activations_argument
from rusteeze.codegen.cpu.schedule import fallback
from rusteeze.codegen.cpu.tiles import TILE, TileLayout


@dataclass(frozen=True)
class BlockShape:
    """``layout``: of one block's weight. ``x_stride``: elements from token to token. ``rows_slot``:
    STEP_TOKENS or STEP_ROWS."""

    layout: TileLayout
    blocks: int
    activation: str
    x_stride: int
    rows_slot: int


def block_linear(k: Emitter, isa: Isa, shape: BlockShape, out: Access) -> None:
    """y[t, b] = W[b] @ x[t, b]. Arguments: x, weight, [table], y [T, blocks * N].

    Tiles of all blocks are shared among the threads."""
    layout = shape.layout
    x = activations_argument(k, shape.activation, shape.blocks * layout.k, shape.x_stride)
    weight = k.pointer("int32")
    table = k.pointer("float32") if layout.format.family == "codebook" else None
    target = Operand.argument(k, out)

    def part(tile: Expr) -> Activations:
        return _columns_of(k, x, k.let(tirx.Div(tile, i32(layout.num_tiles))), layout.k)

    def store(row: Expr, tile: Expr, vectors: list[Expr]) -> list[Expr]:
        (vector,) = vectors
        block, number = tirx.Div(tile, i32(layout.num_tiles)), tirx.Mod(tile, i32(layout.num_tiles))
        first = k.let(number * i32(TILE))
        column = k.let(block * i32(layout.n) + first)
        if layout.n % LANES == 0:
            target.store(k, row, (column,), vector)
            return []
        parked = k.local(TILE, lanes=1)
        k.store(parked, i32(0), vector)
        with k.loop(minimum(i32(layout.n) - first, i32(TILE))) as lane:
            target.store(k, row, (column + lane,), parked[lane])
        return []

    tiles = Blocks(shape.blocks * layout.num_tiles)
    schedule = fallback(isa, shape.activation, str(layout.format))
    matmul(k, x, weight, layout, k.step(shape.rows_slot), tiles, Epilogue(store), schedule, table, part)


def _columns_of(k: Emitter, x: Activations, block: Expr, columns: int) -> Activations:
    """The block's columns of every row."""
    element_bytes = {"f32": 4, "bf16": 2, "q8": 1}[x.kind]
    data = k.offset(x.data, block, columns * element_bytes, x.data.dtype)
    if x.header is None:
        return Activations(x.kind, data, x.stride)
    header = k.offset(x.header, block, columns // GROUP * HEADER * 4, "float32")
    return Activations(x.kind, data, x.stride, header, k.offset(header, i32(0), 0, "int32"), x.header_stride)
