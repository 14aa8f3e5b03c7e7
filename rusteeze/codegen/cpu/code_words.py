"""Reading packed codes in registers: whole bytes out of planes, and values out of tables.

A *piece* is a vector of 16 words, one an output, of four bytes each, one an input (code_planes.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from tvm import tirx

from rusteeze.codegen.cpu.code_planes import PIECE, VECTOR_BYTES, plane_bytes, planes_of
from rusteeze.codegen.cpu.emit import Buffer, Emitter, Expr, i32, splat
from rusteeze.codegen.cpu.tiles import TILE, TileLayout

INTEGER_TABLE_ZERO = 128
"""What is added to a table of int8 integers, so that its bytes are unsigned."""


def pieces(
    k: Emitter, tile: Buffer, layout: TileLayout, record: Expr, unit: Expr, unit_inputs: int,
    first: int, count: int, ahead: int = 0,
) -> Iterator[Expr]:  # fmt: skip
    """``count`` pieces of codes of a record that begins at word ``record``, from piece ``first`` of unit
    number ``unit`` on; a unit of inputs fills whole vectors of every plane, or is all there is.

    Weights are asked for ``ahead`` bytes before use."""
    bits = layout.code_bits
    loaded: dict[tuple[int, int], Expr] = {}

    def vector(start: int, width: int, index: int) -> Expr:
        if (width, index) not in loaded:
            step = unit_inputs // PIECE * width // 8
            at = k.let(record + unit * i32(step * TILE) + i32(start // 4 + index * TILE))
            loaded[width, index] = k.let(tile.load(at, TILE))
            if ahead:
                k.prefetch(tile, at, ahead)
        return loaded[width, index]

    for i in range(first, first + count):
        piece: Expr = None
        start = low = 0
        for width in planes_of(bits):
            index, q = divmod(i, 8 // width)
            field = _field(vector(start, width, index), width, q, low)
            piece = field if piece is None else tirx.bitwise_or(piece, field)
            start += plane_bytes(width, layout.record_inputs)
            low += width
        yield k.let(piece)


def _field(vector: Expr, width: int, q: int, low: int) -> Expr:
    """The fields of piece q of a plane's vector, moved to bit ``low`` of their bytes."""
    if width == 8:
        return vector
    shift = q * width - low
    if shift > 0:
        vector = tirx.shift_right(vector, splat(i32(shift), TILE))
    elif shift < 0:
        vector = tirx.shift_left(vector, splat(i32(-shift), TILE))
    mask = ((1 << width) - 1 << low) * 0x01010101
    return tirx.bitwise_and(vector, splat(i32(mask - (1 << 32) if mask >> 31 else mask), TILE))


def code_of(piece: Expr, layout: TileLayout, j: int) -> Expr:
    """Byte j of each word, as an integer."""
    if j:
        piece = tirx.shift_right(piece, splat(i32(8 * j), TILE))
    return tirx.bitwise_and(piece, splat(i32((1 << layout.code_bits) - 1), TILE))


class FloatTable:
    """A codebook's 16 values in a register."""

    def __init__(self, k: Emitter, table: Buffer) -> None:
        self.values = k.let(table.load(i32(0), TILE))

    def __getitem__(self, code: Expr) -> Expr:
        return tirx.call_pure_extern("float32x16", "rz_lookup_floats", self.values, code)


class ByteTable:
    """The same for integers, as bytes that are INTEGER_TABLE_ZERO more."""

    def __init__(self, k: Emitter, table: Buffer) -> None:
        floats = table.load(i32(0), TILE)
        self.bytes = k.let(tirx.call_pure_extern("int32x16", "rz_byte_table", floats))

    def __getitem__(self, piece: Expr) -> Expr:
        """The values of the four codes of each word."""
        return tirx.call_pure_extern("int32x16", "rz_lookup_bytes", self.bytes, piece)


assert VECTOR_BYTES == 4 * TILE
