"""Matrix product of activations with a packed weight: Y[M, N] = X[M, K] @ W[N, K].T.

A schedule (schedule.py) says how: rows are cut into blocks of the sizes of its row tiles; columns are
shared among the threads (rows, if there are too few columns). What happens to a finished block is the
epilogue's business: it is called per row with one or more vectors of 16 columns (a *block* is several
tiles, e.g. gate and up).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from rusteeze.codegen.cpu.activations import row_bytes
from rusteeze.codegen.cpu.emit import Buffer, Emitter, Expr, i32, minimum
from rusteeze.codegen.cpu.micro_kernels import Activations, multiply
from rusteeze.codegen.cpu.schedule import Schedule
from rusteeze.codegen.cpu.tiles import TILE, TileLayout


@dataclass(frozen=True)
class Epilogue:
    """What happens to a row of a finished block: functions of row, index of the block and vectors.

    ``compute`` gets one vector per tile and returns what is left for ``finish``, which runs once all rows
    have had their ``compute``. One long chain of work per row would leave the processor's window with
    two rows in it; with two shorter ones more rows overlap."""

    compute: Callable[[Expr, Expr, list[Expr]], list[Expr]]
    finish: Callable[[Expr, Expr, list[Expr]], None] | None = None


@dataclass(frozen=True)
class Blocks:
    """Which tiles a block is made of: ``tiles`` consecutive ones, and, when two matrices lie behind each
    other (gate, up), as many again from tile ``second`` on."""

    count: int
    tiles: int = 1
    second: int | None = None

    @property
    def width(self) -> int:
        return self.tiles * (1 if self.second is None else 2)

    def tile(self, block: Expr, j: int) -> Expr:
        base = j if j < self.tiles else (self.second or 0) + j - self.tiles
        return block * i32(self.tiles) + i32(base)


def matmul(
    k: Emitter, x: Activations, weight: Buffer, layout: TileLayout, rows: Expr, blocks: Blocks,
    epilogue: Epilogue, schedule: Schedule, table: Buffer | None = None,
    part: Callable[[Expr], Activations] | None = None,
) -> None:  # fmt: skip
    """Emit the product of the first ``rows`` rows of x with every block of the weight's tiles; ``part``
    says which columns of x a block is multiplied with, by default all."""

    def run(first_row: Expr, num_rows: Expr, first_block: Expr, num_blocks: Expr) -> None:
        with k.loop(num_blocks) as b:
            block = k.let(first_block + b)
            tiles = [
                k.offset(weight, blocks.tile(block, j), layout.tile_bytes, "int32")
                for j in range(blocks.width)
            ]
            columns = part(block) if part is not None else x
            done, left = first_row, num_rows
            for r in schedule.row_tiles:
                times = k.let(tirx.Div(left, i32(r)))
                with k.loop(times) as q:
                    row = k.let(done + q * i32(r))
                    _block(k, columns, tiles, layout, row, r, block, epilogue, schedule, table)
                done = k.let(done + times * i32(r))
                left = k.let(left - times * i32(r))

    if blocks.count < schedule.fewest_shared_blocks:
        first, num = k.share(rows)
        run(first, num, i32(0), i32(blocks.count))
        return
    first_block, num_blocks = k.share(i32(blocks.count))
    size = rows_per_pass(x, layout.k, schedule)
    with k.loop(tirx.Div(rows + i32(size - 1), i32(size))) as p:
        first = k.let(p * i32(size))
        run(first, k.let(minimum(rows - first, i32(size))), first_block, num_blocks)


def rows_per_pass(x: Activations, columns: int, schedule: Schedule) -> int:
    """As many rows as the bytes of a pass hold, in whole blocks of the row tiles."""
    size = 4 * columns if x.kind == "f32" else sum(row_bytes(x.kind, columns))
    multiple = schedule.row_multiple
    return max(schedule.pass_bytes // size // multiple, 1) * multiple


def _block(
    k: Emitter, x: Activations, tiles: list[Buffer], layout: TileLayout, row: Expr, num_rows: int,
    block: Expr, epilogue: Epilogue, schedule: Schedule, table: Buffer | None,
) -> None:  # fmt: skip
    numbers = [row + i32(i) for i in range(num_rows)]
    starts = [k.let(number * i32(x.stride)) for number in numbers]
    ahead, width = schedule.ahead(num_rows), len(tiles)
    if width == 1 and epilogue.finish is None:
        acc = multiply(k, x, tiles, layout, numbers, starts, ahead, table)
        for i in range(num_rows):
            epilogue.compute(k.let(row + i32(i)), block, [k.let(acc[i])])
        return
    # several tiles per block: park the products on the stack (first-level cache)
    parked = k.local(num_rows * width * TILE, lanes=1)
    together = schedule.together(num_rows, width)
    for first in range(0, width, together):
        acc = multiply(k, x, tiles[first : first + together], layout, numbers, starts, ahead, table)
        for j in range(together):
            for i in range(num_rows):
                target = i32((i * width + first + j) * TILE)
                k.store(parked, target, acc[j * num_rows + i])

    def vectors(at: Expr, count: int) -> list[Expr]:
        return [k.let(parked.load(at + i32(j * TILE), TILE)) for j in range(count)]

    kept = 0
    with k.loop(num_rows) as i:
        at = k.let(i * i32(width * TILE))
        results = epilogue.compute(k.let(row + i), block, vectors(at, width))
        kept = len(results)
        assert kept <= width, "more results than products"
        for j, result in enumerate(results):
            k.store(parked, at + i32(j * TILE), result)
    if epilogue.finish is not None:
        with k.loop(num_rows) as i:
            epilogue.finish(k.let(row + i), block, vectors(k.let(i * i32(width * TILE)), kept))
