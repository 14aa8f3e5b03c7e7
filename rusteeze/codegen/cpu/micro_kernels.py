"""The innermost loops of a matmul: R rows times tiles of 16 columns, accumulated in registers.

For every element of the product the order of the sum is the same for every R and any number of tiles:
that makes a token's result independent of the batch, and of the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tvm import tirx

from rusteeze.codegen.cpu.activations import GROUP, HEADER, row_bytes
from rusteeze.codegen.cpu.code_planes import PIECE
from rusteeze.codegen.cpu.code_words import (
    INTEGER_TABLE_ZERO,
    ByteTable,
    FloatTable,
    ask_ahead,
    codes_of_inputs,
    pieces,
)
from rusteeze.codegen.cpu.emit import (
    Buffer,
    Emitter,
    Expr,
    bits_as,
    convert,
    fma,
    i32,
    splat,
)
from rusteeze.codegen.cpu.float8_kernel import multiply_float8
from rusteeze.codegen.cpu.tiles import TILE, TileLayout


@dataclass
class Activations:
    """A matmul's left operand. ``kind`` as in activations.py; from row to row it is ``stride`` elements of
    ``data`` and ``header_stride`` words of the header."""

    kind: str
    data: Buffer  # float32, or int32 words of int8 codes or of bf16 pairs
    stride: int
    header: Buffer | None = None
    header_int: Buffer | None = None
    header_stride: int = 0


def activations_argument(k: Emitter, kind: str, columns: int, stride: int) -> Activations:
    """The operand as the kernel's next argument(s): rounded rows of ``columns``, or float32 ones that are
    ``stride`` elements apart."""
    if kind == "f32":
        return Activations(kind, k.pointer("float32"), stride)
    words = k.pointer("int32")
    apart, *headers_apart = (size // 4 for size in row_bytes(kind, columns))
    if kind == "bf16":
        return Activations(kind, words, apart)
    header = k.pointer("float32")
    return Activations(kind, words, apart, header, k.offset(header, i32(0), 0, "int32"), *headers_apart)


def multiply(
    k: Emitter, x: Activations, tiles: list[Buffer], layout: TileLayout, numbers: list[Expr],
    starts: list[Expr], ahead: int, table: Buffer | None,
) -> Buffer:  # fmt: skip
    """Accumulators of 16 columns: for each tile one for each of the rows that begin at ``starts``
    (elements of x). ``numbers`` of the rows say where their group headers are; weights are asked for ``ahead`` bytes before use."""
    acc = k.local(len(tiles) * len(starts))
    _clear(k, acc, len(tiles) * len(starts))
    if layout.format.family == "float8":
        multiply_float8(k, x.kind, x.data, tiles, layout, starts, acc, ahead)
    elif x.kind == "q8":
        _multiply_q8(k, x, tiles, layout, numbers, starts, acc, ahead, table)
    elif x.kind == "bf16":
        _multiply_bf16(k, x, tiles, layout, starts, acc, ahead)
    elif layout.format.family == "dense":
        for j, tile in enumerate(tiles):
            _multiply_f32_dense(k, x, tile, layout, starts, acc, j * len(starts))
    else:
        _multiply_f32_codes(k, x, tiles, layout, starts, acc, ahead, table)
    return acc


def _clear(k: Emitter, sums: Buffer, count: int) -> None:
    for i in range(count):
        k.store(sums, i, splat(0.0, TILE))


def _accumulate(k: Emitter, acc: Buffer, i: int, a: Expr, b: Expr) -> None:
    k.store(acc, i, fma(a, b, acc[i]))


# ---- float32 activations: weights are turned into float32 in registers --------------------------
def _multiply_f32_codes(
    k: Emitter, x: Activations, tiles: list[Buffer], layout: TileLayout, rows: list[Expr], acc: Buffer,
    ahead: int, table: Buffer | None,
) -> None:  # fmt: skip
    """Tiles go on together: their sums do not wait for each other. Without minima the sums of a group's even
    inputs and of its odd ones, which do not wait for each other either, are multiplied with its scale once."""
    group, n = layout.format.group, len(rows)
    values = FloatTable(k, table) if table is not None else None
    chains = 1 if layout.has_minimum else 2
    sums = acc if layout.has_minimum else k.local(len(tiles) * n * chains)
    unrolled = math.gcd(group, GROUP)
    count = unrolled // PIECE
    with k.loop(layout.num_records) as r:
        record = k.let(r * i32(layout.record_bytes // 4))
        for sub in range(layout.record_groups):
            scales = [_scales(k, tile, layout, record, sub) for tile in tiles]
            if sums is not acc:
                _clear(k, sums, len(tiles) * n * chains)
            with k.loop(group // unrolled) as part:
                first = k.let(r * i32(layout.record_inputs) + part * i32(unrolled) + i32(sub * group))
                codes = [
                    codes_of_inputs(k, tile, layout, record, part, unrolled, sub * count, count)
                    for tile in tiles
                ]
                for tile in tiles:
                    at = part + i32(sub * (group // unrolled))
                    ask_ahead(k, tile, layout, record, at, layout.record_inputs // unrolled, ahead)
                for z, together in enumerate(zip(*codes, strict=True)):
                    column = k.let(first + i32(z))
                    for t, (code, (scale, low)) in enumerate(zip(together, scales, strict=True)):
                        value = k.let(_decode(code, layout, scale, low, values))
                        for i, row in enumerate(rows):
                            at_sum = (t * n + i) * chains + z % chains
                            _accumulate(k, sums, at_sum, splat(x.data[row + column], TILE), value)
            if sums is not acc:
                for t, (scale, _) in enumerate(scales):
                    for i in range(t * n, (t + 1) * n):
                        both = sums[chains * i] + sums[chains * i + 1]
                        _accumulate(k, acc, i, both, scale)


def _multiply_f32_dense(
    k: Emitter, x: Activations, tile: Buffer, layout: TileLayout, rows: list[Expr], acc: Buffer,
    at: int,
) -> None:  # fmt: skip
    """Into the accumulators from ``at`` on."""
    dtype = layout.format.dtype
    if dtype == "bf16":
        with k.loop(layout.k // 2) as pair:
            word = k.let(tile.load(pair * i32(TILE), TILE))
            low = k.let(bits_as(tirx.shift_left(word, splat(i32(16), TILE)), "float32"))
            high = k.let(bits_as(tirx.bitwise_and(word, splat(i32(-65536), TILE)), "float32"))
            for j, value in enumerate((low, high)):
                for i, row in enumerate(rows):
                    _accumulate(
                        k, acc, at + i, splat(x.data[row + pair * i32(2) + i32(j)], TILE), value
                    )
        if layout.k % 2:
            word = k.let(tile.load(i32(layout.k // 2 * TILE), TILE))
            value = k.let(bits_as(tirx.shift_left(word, splat(i32(16), TILE)), "float32"))
            for i, row in enumerate(rows):
                _accumulate(k, acc, at + i, splat(x.data[row + i32(layout.k - 1)], TILE), value)
        return
    values = k.offset(tile, i32(0), 0, "float32" if dtype == "f32" else "float16")
    with k.loop(layout.k) as column:
        value = k.let(convert(values.load(column * i32(TILE), TILE), "float32"))
        for i, row in enumerate(rows):
            _accumulate(k, acc, at + i, splat(x.data[row + column], TILE), value)


def _scales(
    k: Emitter, tile: Buffer, layout: TileLayout, record: Expr, sub: int
) -> tuple[Expr, Expr | None]:
    """Scale and minimum of 16 columns as float32 vectors, for group ``sub`` of a record; ``record`` counts
    32-bit words."""
    half = layout.format.dtype == "f16"
    view = k.offset(tile, i32(0), 0, "float16" if half else "float32")
    at = k.let(record * i32(2 if half else 1) + i32((layout.code_bytes + sub * layout.group_bytes) // (2 if half else 4)))
    scale = k.let(convert(view.load(at, TILE), "float32"))
    if not layout.has_minimum:
        return scale, None
    return scale, k.let(convert(view.load(at + i32(TILE), TILE), "float32"))


def _decode(
    code: Expr, layout: TileLayout, scale: Expr, low: Expr | None, table: FloatTable | None
) -> Expr:
    """The weights of some codes; without minima still to be multiplied with their scale."""
    if table is not None:
        return table[code]
    value = convert(code, "float32")
    return value - splat(float(layout.format.zero), TILE) if low is None else fma(value, scale, low)


# ---- int8 activations: integer dot products per group --------------------------------------------
def _dot4(acc: Expr, a: Expr, b: Expr) -> Expr:
    return tirx.call_pure_extern("int32x16", "rz_dot4", acc, a, b)


def _multiply_q8(
    k: Emitter, x: Activations, tiles: list[Buffer], layout: TileLayout, numbers: list[Expr],
    rows: list[Expr], acc: Buffer, ahead: int, table: Buffer | None,
) -> None:  # fmt: skip
    """Per 32 inputs: exact integer sums, then float32 with the scales of both sides."""
    assert x.header is not None
    assert x.header_int is not None
    f = layout.format
    n = len(rows)
    integers = ByteTable(k, table) if table is not None else None
    ints = k.local(len(tiles) * n, "int32")
    headers = [k.let(number * i32(x.header_stride)) for number in numbers]
    span = max(f.group, GROUP)
    with k.loop(layout.k // span) as s:
        for sub in range(span // f.group):
            groups = layout.record_groups
            number = k.let(s * i32(span // f.group // groups) + i32(sub // groups))
            record = k.let(number * i32(layout.record_bytes // 4))
            scales = [_scales(k, tile, layout, record, sub % groups) for tile in tiles]
            for part in range(max(1, f.group // GROUP)):
                width = min(f.group, GROUP)
                block = k.let(s * i32(span // GROUP) + i32(part))
                half = 0 if f.group >= GROUP else 1 + sub
                for i in range(n):
                    start = _start(x, layout, headers[i], block, half)
                    for j in range(len(tiles)):
                        k.store(ints, j * n + i, start)
                first = part * GROUP if f.group >= GROUP else sub * width
                column = k.let(s * i32(span // PIECE) + i32(first // PIECE))
                within = sub % groups * (width // PIECE)
                for j, tile in enumerate(tiles):
                    words = pieces(k, tile, layout, record, i32(part), GROUP, within, width // PIECE)
                    share = sub % groups if f.group < GROUP else part
                    ask_ahead(k, tile, layout, record, i32(share), layout.record_inputs // width, ahead)
                    _dots(k, x, words, integers, column, rows, ints, j * n)
                for i in range(n):
                    head = k.let(headers[i] + block * i32(HEADER))
                    factor = splat(x.header[head], TILE)
                    for j, (scale, low) in enumerate(scales):
                        product = convert(ints[j * n + i], "float32") * factor
                        _accumulate(k, acc, j * n + i, product, scale)
                        if low is not None:
                            total = splat(x.header[head + i32(1 + half)], TILE)
                            _accumulate(k, acc, j * n + i, low, total)


def _start(x: Activations, layout: TileLayout, header: Expr, block: Expr, half: int) -> Expr:
    """What the integer sum starts from: the zero point's share, -zero * sum of the activations."""
    assert x.header_int is not None
    zero = INTEGER_TABLE_ZERO if layout.format.family == "codebook" else layout.format.zero
    if not zero:
        return splat(i32(0), TILE)
    total = x.header_int[header + block * i32(HEADER) + i32(4 + half)]
    return splat(total * i32(-zero), TILE)


def _dots(
    k: Emitter, x: Activations, words: Iterator[Expr], table: ByteTable | None, column: Expr,
    rows: list[Expr], ints: Buffer, at_int: int,
) -> None:  # fmt: skip
    """Dot products of pieces of weights with the words of x from ``column`` on."""
    for z, word in enumerate(words):
        codes = word if table is None else k.let(table[word])
        for i, at_row in enumerate(rows):
            b = splat(x.data[at_row + column + i32(z)], TILE)
            k.store(ints, at_int + i, _dot4(ints[at_int + i], codes, b))


# ---- bf16 activations and weights ------------------------------------------------------------------
def _multiply_bf16(
    k: Emitter, x: Activations, tiles: list[Buffer], layout: TileLayout, rows: list[Expr], acc: Buffer,
    ahead: int,
) -> None:  # fmt: skip
    with k.loop((layout.k + 1) // 2) as pair:
        words = [k.let(tile.load(pair * i32(TILE), TILE)) for tile in tiles]
        if ahead:
            for tile in tiles:
                k.prefetch(tile, pair * i32(TILE), ahead)
        for i, at in enumerate(rows):
            b = splat(x.data[at + pair], TILE)
            for j, word in enumerate(words):
                a = j * len(rows) + i
                k.store(acc, a, tirx.call_pure_extern("float32x16", "rz_dot_bf16", acc[a], word, b))
