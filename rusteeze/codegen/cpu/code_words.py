"""Reading packed codes in registers: whole bytes out of planes, and values out of tables.

A *piece* is a vector of 16 words, one an output, of four bytes each, one an input (code_planes.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from tvm import tirx

from rusteeze.codegen.cpu.activations import CACHE_LINE
from rusteeze.codegen.cpu.code_planes import PIECE, VECTOR_BYTES, plane_bytes, planes_of
from rusteeze.codegen.cpu.emit import Buffer, Emitter, Expr, i32, splat
from rusteeze.codegen.cpu.tiles import TILE, TileLayout

INTEGER_TABLE_ZERO = 128
"""What is added to a table of int8 integers, so that its bytes are unsigned."""


def pieces(
    k: Emitter, tile: Buffer, layout: TileLayout, record: Expr, unit: Expr, unit_inputs: int,
    first: int, count: int,
) -> Iterator[Expr]:  # fmt: skip
    """``count`` pieces of codes of a record that begins at word ``record``, from piece ``first`` of unit
    number ``unit`` on; a unit of inputs fills whole vectors of every plane, or is all there is."""
    bits = layout.code_bits
    loaded: dict[tuple[int, int], Expr] = {}

    def vector(start: int, width: int, index: int) -> Expr:
        if (width, index) not in loaded:
            step = unit_inputs // PIECE * width // 8
            at = k.let(record + unit * i32(step * TILE) + i32(start // 4 + index * TILE))
            loaded[width, index] = k.let(tile.load(at, TILE))
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


def ask_ahead(
    k: Emitter, tile: Buffer, layout: TileLayout, record: Expr, part: Expr, parts: int, ahead: int
) -> None:
    """Ask for what lies ``ahead`` bytes behind one of equal ``parts`` of a record, scales included."""
    share = layout.record_bytes // parts
    if ahead:
        at = k.let(record + part * i32(share // 4))
        for line in range(0, share, CACHE_LINE):
            k.prefetch(tile, at, ahead + line)


def _field(vector: Expr, width: int, q: int, low: int, octets: int = PIECE) -> Expr:
    """The fields of piece q of a plane's vector, moved to bit ``low`` of their bytes; those of the lowest
    ``octets`` bytes of each word."""
    if width == 8 and octets == PIECE:
        return vector
    shift = q * width - low
    if shift > 0:
        vector = tirx.shift_right(vector, splat(i32(shift), TILE))
    elif shift < 0:
        vector = tirx.shift_left(vector, splat(i32(-shift), TILE))
    mask = ((1 << width) - 1 << low) * (0x01010101 & (1 << 8 * octets) - 1)
    return tirx.bitwise_and(vector, splat(i32(mask - (1 << 32) if mask >> 31 else mask), TILE))


def codes_of_inputs(
    k: Emitter, tile: Buffer, layout: TileLayout, record: Expr, unit: Expr, unit_inputs: int,
    first: int, count: int,
) -> Iterator[Expr]:  # fmt: skip
    """The codes of one input after the other, as integers; arguments as of ``pieces``.

    Codes in a single plane are read from as many bytes further as their byte of a word: what stands above is
    masked anyway, and a load takes the place of a shift, of which lookups leave fewer. The last ones reach into
    the scales behind the codes."""
    width = layout.code_bits
    if planes_of(width) != (width,):
        for piece in pieces(k, tile, layout, record, unit, unit_inputs, first, count):
            yield from (code_of(piece, layout, j) for j in range(PIECE))
        return
    octets = k.offset(tile, record, 4, "int8")
    step = unit_inputs * width * TILE // 8
    loaded: dict[tuple[int, int], Expr] = {}
    for i in range(first, first + count):
        index, q = divmod(i, 8 // width)
        for j in range(PIECE):
            if (index, j) not in loaded:
                at = unit * i32(step) + i32(index * VECTOR_BYTES + j)
                word = octets.load(at, VECTOR_BYTES)
                loaded[index, j] = k.let(tirx.reinterpret("int32x16", word))
            yield _field(loaded[index, j], width, q, 0, 1)


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
