"""Matrix product of activations with a packed weight: Y[M, N] = X[M, K] @ W[N, K].T.

The micro-kernel holds R rows x 16 columns of accumulators in registers. For every element of Y the
order of the sum is the same for every R and M: that makes a token's result independent of the batch.

Rows are cut into blocks of the sizes ``isa.row_tiles``; columns are shared among the threads (rows, if
there are too few columns). What happens to a finished block is the epilogue's business: it is called
per row with one or more vectors of 16 columns (a *block* is several tiles, e.g. gate and up).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from rusteeze.codegen.cpu.activations import GROUP, HEADER
from rusteeze.codegen.cpu.emit import (
    Buffer,
    Emitter,
    Expr,
    bits_as,
    convert,
    fma,
    i32,
    minimum,
    splat,
)
from rusteeze.codegen.cpu.tiles import TILE, TileLayout

# activations of one pass over the weights: they stay in the second-level cache
PASS_BYTES = 448 << 10
ROW_MULTIPLE = 24
# how far ahead weights are asked for: with several rows, with one
PREFETCH_BYTES = 5760
PREFETCH_BYTES_ONE_ROW = 2880
# with fewer blocks than this the threads share rows instead
FEWEST_SHARED_BLOCKS = 4

Epilogue = Callable[[Expr, Expr, list[Expr]], list[Expr]]
"""(row, index of the block, one vector per tile of the block) → vectors that ``Finish`` gets"""

Finish = Callable[[Expr, Expr, list[Expr]], None]
"""What is done with a row of a block once all rows have had their epilogue. One long chain of work per
row would leave the processor's window with two rows in it; two shorter ones let more overlap."""


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


@dataclass
class Activations:
    """A matmul's left operand. ``kind`` as in activations.py; ``stride`` counts elements per row."""

    kind: str
    data: Buffer  # float32, or int32 words of int8 codes or of bf16 pairs
    stride: int
    header: Buffer | None = None
    header_int: Buffer | None = None
    groups: int = 0


def activations_argument(k: Emitter, kind: str, columns: int, stride: int) -> Activations:
    """The operand as the kernel's next argument(s)."""
    if kind == "f32":
        return Activations(kind, k.pointer("float32"), stride)
    words = k.pointer("int32")
    if kind == "bf16":
        return Activations(kind, words, stride // 2)
    header = k.pointer("float32")
    ints = k.offset(header, i32(0), 0, "int32")
    return Activations(kind, words, columns // 4, header, ints, columns // GROUP)


def matmul(
    k: Emitter, x: Activations, weight: Buffer, layout: TileLayout, rows: Expr, blocks: Blocks,
    epilogue: Epilogue, row_tiles: tuple[int, ...], table: Buffer | None = None,
    finish: Finish | None = None,
) -> None:  # fmt: skip
    """Emit the product of the first ``rows`` rows of x with every block of the weight's tiles."""

    def run(first_row: Expr, num_rows: Expr, first_block: Expr, num_blocks: Expr) -> None:
        with k.loop(num_blocks) as b:
            block = k.let(first_block + b)
            tiles = [
                k.offset(weight, blocks.tile(block, j), layout.tile_bytes, "int32")
                for j in range(blocks.width)
            ]
            done, left = first_row, num_rows
            for r in row_tiles:
                times = k.let(tirx.Div(left, i32(r)))
                with k.loop(times) as q:
                    _block(k, x, tiles, layout, k.let(done + q * i32(r)), r, block, epilogue, table, finish)
                done = k.let(done + times * i32(r))
                left = k.let(left - times * i32(r))

    if blocks.count < FEWEST_SHARED_BLOCKS:
        first, num = k.share(rows)
        run(first, num, i32(0), i32(blocks.count))
        return
    first_block, num_blocks = k.share(i32(blocks.count))
    size = rows_per_pass(x, layout.k)
    with k.loop(tirx.Div(rows + i32(size - 1), i32(size))) as p:
        first = k.let(p * i32(size))
        run(first, k.let(minimum(rows - first, i32(size))), first_block, num_blocks)


def rows_per_pass(x: Activations, columns: int) -> int:
    """As many rows as PASS_BYTES hold, in whole blocks of the usual row tiles."""
    row_bytes = {"f32": 4 * columns, "bf16": 2 * columns}.get(x.kind, columns + 4 * HEADER * x.groups)
    return max(PASS_BYTES // row_bytes // ROW_MULTIPLE, 1) * ROW_MULTIPLE


def _block(
    k: Emitter, x: Activations, tiles: list[Buffer], layout: TileLayout, row: Expr, num_rows: int,
    block: Expr, epilogue: Epilogue, table: Buffer | None, finish: Finish | None,
) -> None:  # fmt: skip
    if len(tiles) == 1 and finish is None:
        acc = multiply(k, x, tiles[0], layout, row, num_rows, table)
        for i in range(num_rows):
            epilogue(k.let(row + i32(i)), block, [k.let(acc[i])])
        return
    # several tiles per block: park the products on the stack (first-level cache)
    width = len(tiles)
    parked = k.local(num_rows * width * TILE, lanes=1)
    for j, tile in enumerate(tiles):
        acc = multiply(k, x, tile, layout, row, num_rows, table)
        for i in range(num_rows):
            k.store(parked, i32((i * width + j) * TILE), acc[i])

    def vectors(at: Expr, count: int) -> list[Expr]:
        return [k.let(parked.load(at + i32(j * TILE), TILE)) for j in range(count)]

    kept = 0
    with k.loop(num_rows) as i:
        at = k.let(i * i32(width * TILE))
        results = epilogue(k.let(row + i), block, vectors(at, width))
        kept = len(results)
        assert kept <= width, "more results than products"
        for j, result in enumerate(results):
            k.store(parked, at + i32(j * TILE), result)
    if finish is not None:
        with k.loop(num_rows) as i:
            finish(k.let(row + i), block, vectors(k.let(i * i32(width * TILE)), kept))


def multiply(
    k: Emitter, x: Activations, tile: Buffer, layout: TileLayout, row: Expr, num_rows: int,
    table: Buffer | None,
) -> Buffer:  # fmt: skip
    """R x 16 accumulators of one tile, for ``num_rows`` rows from ``row`` on."""
    starts = [k.let((row + i32(i)) * i32(x.stride)) for i in range(num_rows)]
    return multiply_at(k, x, tile, layout, row, starts, table)


def multiply_at(
    k: Emitter, x: Activations, tile: Buffer, layout: TileLayout, row: Expr, starts: list[Expr],
    table: Buffer | None,
) -> Buffer:  # fmt: skip
    """The same for rows that begin at ``starts`` (elements of x); ``row`` counts group headers."""
    acc = k.local(len(starts))
    for i in range(len(starts)):
        k.store(acc, i, splat(0.0, TILE))
    if x.kind == "q8":
        _multiply_q8(k, x, tile, layout, row, starts, acc)
    elif x.kind == "bf16":
        _multiply_bf16(k, x, tile, layout, starts, acc)
    else:
        _multiply_f32(k, x, tile, layout, starts, acc, table)
    return acc


def _accumulate(k: Emitter, acc: Buffer, i: int, a: Expr, b: Expr) -> None:
    k.store(acc, i, fma(a, b, acc[i]))


# ---- float32 activations: weights are turned into float32 in registers --------------------------
def _multiply_f32(
    k: Emitter, x: Activations, tile: Buffer, layout: TileLayout, rows: list[Expr], acc: Buffer,
    table: Buffer | None,
) -> None:  # fmt: skip
    if layout.format.family == "dense":
        _multiply_f32_dense(k, x, tile, layout, rows, acc)
        return
    group = layout.format.group
    with k.loop(layout.num_groups) as g:
        record = k.let(g * i32(layout.record_bytes // 4))
        scale, low = _scales(k, tile, layout, record)
        per_word = 8 if layout.code_bits == 4 else 4
        unrolled = math.gcd(group, GROUP)
        with k.loop(group // unrolled) as part:
            first = k.let(g * i32(group) + part * i32(unrolled))
            words = k.let(record + part * i32(unrolled // per_word * TILE))
            for z in range(unrolled // per_word):
                word = k.let(tile.load(words + i32(z * TILE), TILE))
                for j in range(per_word):
                    shift = (8 * (j % 4) + 4 * (j // 4)) if per_word == 8 else 8 * j
                    code = _bits(word, shift, layout.code_bits)
                    value = k.let(_decode(code, layout, scale, low, table))
                    column = k.let(first + i32(z * per_word + j))
                    for i, at in enumerate(rows):
                        _accumulate(k, acc, i, splat(x.data[at + column], TILE), value)


def _multiply_f32_dense(
    k: Emitter, x: Activations, tile: Buffer, layout: TileLayout, rows: list[Expr], acc: Buffer
) -> None:
    dtype = layout.format.dtype
    if dtype == "bf16":
        with k.loop(layout.k // 2) as pair:
            word = k.let(tile.load(pair * i32(TILE), TILE))
            low = k.let(bits_as(tirx.shift_left(word, splat(i32(16), TILE)), "float32"))
            high = k.let(bits_as(tirx.bitwise_and(word, splat(i32(-65536), TILE)), "float32"))
            for j, value in enumerate((low, high)):
                for i, at in enumerate(rows):
                    _accumulate(
                        k, acc, i, splat(x.data[at + pair * i32(2) + i32(j)], TILE), value
                    )
        if layout.k % 2:
            word = k.let(tile.load(i32(layout.k // 2 * TILE), TILE))
            value = k.let(bits_as(tirx.shift_left(word, splat(i32(16), TILE)), "float32"))
            for i, at in enumerate(rows):
                _accumulate(k, acc, i, splat(x.data[at + i32(layout.k - 1)], TILE), value)
        return
    values = k.offset(tile, i32(0), 0, "float32" if dtype == "f32" else "float16")
    with k.loop(layout.k) as column:
        value = k.let(convert(values.load(column * i32(TILE), TILE), "float32"))
        for i, at in enumerate(rows):
            _accumulate(k, acc, i, splat(x.data[at + column], TILE), value)


def _scales(
    k: Emitter, tile: Buffer, layout: TileLayout, record: Expr
) -> tuple[Expr, Expr | None]:
    """Scale and minimum of 16 columns as float32 vectors; ``record`` counts 32-bit words."""
    half = layout.format.dtype == "f16"
    view = k.offset(tile, i32(0), 0, "float16" if half else "float32")
    at = k.let(record * i32(2 if half else 1) + i32(layout.code_bytes // (2 if half else 4)))
    scale = k.let(convert(view.load(at, TILE), "float32"))
    if not layout.has_minimum:
        return scale, None
    return scale, k.let(convert(view.load(at + i32(TILE), TILE), "float32"))


def _bits(word: Expr, shift: int, width: int) -> Expr:
    if shift:
        word = tirx.shift_right(word, splat(i32(shift), TILE))
    return tirx.bitwise_and(word, splat(i32((1 << width) - 1), TILE))


def _decode(
    code: Expr, layout: TileLayout, scale: Expr, low: Expr | None, table: Buffer | None
) -> Expr:
    if layout.format.family == "codebook":
        assert table is not None
        return tirx.BufferLoad(table.buffer, [code]) * scale
    value = convert(code, "float32")
    if low is not None:
        return fma(value, scale, low)
    return (value - splat(float(layout.format.zero), TILE)) * scale


# ---- int8 activations: integer dot products per group --------------------------------------------
def _dot4(acc: Expr, a: Expr, b: Expr) -> Expr:
    return tirx.call_pure_extern("int32x16", "rz_dot4", acc, a, b)


def _multiply_q8(
    k: Emitter, x: Activations, tile: Buffer, layout: TileLayout, row: Expr, rows: list[Expr],
    acc: Buffer,
) -> None:  # fmt: skip
    """Per 32 inputs: exact integer sums, then float32 with the scales of both sides."""
    assert x.header is not None
    assert x.header_int is not None
    f = layout.format
    n = len(rows)
    ints = k.local(n, "int32")
    headers = [k.let((row + i32(i)) * i32(x.groups * HEADER)) for i in range(n)]
    ahead = PREFETCH_BYTES if n > 1 else PREFETCH_BYTES_ONE_ROW
    span = max(f.group, GROUP)
    with k.loop(layout.k // span) as s:
        for sub in range(span // f.group):
            g = k.let(s * i32(span // f.group) + i32(sub))
            record = k.let(g * i32(layout.record_bytes // 4))
            scale, low = _scales(k, tile, layout, record)
            for part in range(max(1, f.group // GROUP)):
                width = min(f.group, GROUP)
                block = k.let(s * i32(span // GROUP) + i32(part))
                half = 0 if f.group >= GROUP else 1 + sub
                for i in range(n):
                    k.store(ints, i, _start(x, layout, headers[i], block, half))
                first = part * GROUP if f.group >= GROUP else sub * width
                _dots(k, x, tile, layout, record, part, width, s, span, first, rows, ints, ahead)
                for i in range(n):
                    head = k.let(headers[i] + block * i32(HEADER))
                    product = convert(ints[i], "float32") * splat(x.header[head], TILE)
                    _accumulate(k, acc, i, product, scale)
                    if low is not None:
                        total = splat(x.header[head + i32(1 + half)], TILE)
                        _accumulate(k, acc, i, low, total)


def _start(x: Activations, layout: TileLayout, header: Expr, block: Expr, half: int) -> Expr:
    """What the integer sum starts from: the zero point's share, -zero * sum of the activations."""
    assert x.header_int is not None
    zero = layout.format.zero if not layout.has_minimum else 0
    if not zero:
        return splat(i32(0), TILE)
    total = x.header_int[header + block * i32(HEADER) + i32(4 + half)]
    return splat(total * i32(-zero), TILE)


def _dots(
    k: Emitter, x: Activations, tile: Buffer, layout: TileLayout, record: Expr, part: int,
    width: int, s: Expr, span: int, first: int, rows: list[Expr], ints: Buffer, ahead: int,
) -> None:  # fmt: skip
    per_word = 8 if layout.code_bits == 4 else 4
    words = width // per_word
    column = k.let(s * i32(span // 4) + i32(first // 4))
    nibbles = splat(i32(0x0F0F0F0F), TILE)
    for z in range(words):
        at = k.let(record + i32((part * words + z) * TILE))
        word = k.let(tile.load(at, TILE))
        k.prefetch(tile, at, ahead)
        if per_word == 8:
            low = k.let(tirx.bitwise_and(word, nibbles))
            high = k.let(tirx.bitwise_and(tirx.shift_right(word, splat(i32(4), TILE)), nibbles))
            pieces = [(low, 2 * z), (high, 2 * z + 1)]
        else:
            pieces = [(word, z)]
        for i, at_row in enumerate(rows):
            for codes, offset in pieces:
                b = splat(x.data[at_row + column + i32(offset)], TILE)
                k.store(ints, i, _dot4(ints[i], codes, b))


# ---- bf16 activations and weights ------------------------------------------------------------------
def _multiply_bf16(
    k: Emitter, x: Activations, tile: Buffer, layout: TileLayout, rows: list[Expr], acc: Buffer
) -> None:
    with k.loop((layout.k + 1) // 2) as pair:
        word = k.let(tile.load(pair * i32(TILE), TILE))
        if len(rows) > 1:
            # with one row the hardware's own prefetching does as well (measured)
            k.prefetch(tile, pair * i32(TILE), PREFETCH_BYTES)
        for i, at in enumerate(rows):
            b = splat(x.data[at + pair], TILE)
            k.store(acc, i, tirx.call_pure_extern("float32x16", "rz_dot_bf16", acc[i], word, b))
