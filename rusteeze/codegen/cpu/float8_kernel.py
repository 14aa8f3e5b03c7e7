"""The innermost loop of a product with float8 weights: widened to bf16 in registers, which loses nothing.

Sums of a group are multiplied with its scale once. With bf16 activations pairs go into dot products; float32
activations are multiplied with the same numbers as float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx

from rusteeze.codegen.cpu.emit import Buffer, Emitter, Expr, bits_as, fma, i32, splat
from rusteeze.codegen.cpu.float8_tiles import PIECE
from rusteeze.codegen.cpu.tiles import TILE, TileLayout

_UNROLLED = 4  # pieces

Add = Callable[[int, Expr, Expr], None]  # accumulator, first input of a pair, pairs of 16 outputs


def multiply_float8(
    k: Emitter, kind: str, x: Buffer, tiles: list[Buffer], layout: TileLayout, rows: list[Expr], acc: Buffer,
    ahead: int,
) -> None:  # fmt: skip
    """``rows``: where rows of x begin, in elements of it (float32, or words of bf16 pairs)."""
    group, n = layout.format.group, len(rows)
    sums = k.local(len(tiles) * n)
    unrolled = math.gcd(group // PIECE, _UNROLLED)
    with k.loop(layout.num_groups) as g:
        for i in range(len(tiles) * n):
            k.store(sums, i, splat(0.0, TILE))
        record = k.let(g * i32(layout.record_bytes // 4))
        with k.loop(group // PIECE // unrolled) as some:
            for u in range(unrolled):
                piece = k.let(some * i32(unrolled) + i32(u))
                at = k.let(record + piece * i32(TILE))
                pairs = [_pairs(k, tile, at, ahead) for tile in tiles]
                first = k.let(g * i32(group) + piece * i32(PIECE))
                for half in range(2):
                    _add(k, kind, x, rows, sums, k.let(first + i32(2 * half)), [p[half] for p in pairs])
        for j, tile in enumerate(tiles):
            scale = k.let(bits_as(tile.load(record + i32(layout.code_bytes // 4), TILE), "float32"))
            for i in range(j * n, (j + 1) * n):
                k.store(acc, i, fma(sums[i], scale, acc[i]))


def _pairs(k: Emitter, tile: Buffer, at: Expr, ahead: int) -> list[Expr]:
    """A piece as bf16 pairs: those of its inputs (0, 1), then those of (2, 3)."""
    codes = k.let(tile.load(at, TILE))
    if ahead:
        k.prefetch(tile, at, ahead)
    names = ("rz_float8_first", "rz_float8_second")
    return [k.let(tirx.call_pure_extern("int32x16", name, codes)) for name in names]


def _add(
    k: Emitter, kind: str, x: Buffer, rows: list[Expr], sums: Buffer, column: Expr, pairs: list[Expr]
) -> None:  # fmt: skip
    """The products of inputs column and column + 1 with the pairs of each tile."""
    if kind == "bf16":
        word = k.let(tirx.Div(column, i32(2)))
        for i, row in enumerate(rows):
            b = splat(x[row + word], TILE)
            for j, pair in enumerate(pairs):
                a = j * len(rows) + i
                k.store(sums, a, tirx.call_pure_extern("float32x16", "rz_dot_bf16", sums[a], pair, b))
        return
    for j, pair in enumerate(pairs):
        low = k.let(bits_as(tirx.shift_left(pair, splat(i32(16), TILE)), "float32"))
        high = k.let(bits_as(tirx.bitwise_and(pair, splat(i32(-65536), TILE)), "float32"))
        for c, value in enumerate((low, high)):
            for i, row in enumerate(rows):
                a = j * len(rows) + i
                k.store(sums, a, fma(splat(x[row + column + i32(c)], TILE), value, sums[a]))
