"""Row lookup: token embeddings (plain or packed like a matmul weight) and tables by position."""

from __future__ import annotations

from tvm import tirx

from rusteeze.codegen.access import Access
from rusteeze.codegen.cpu.access import Operand
from rusteeze.codegen.cpu.code_planes import PIECE, VECTOR_BYTES, plane_bytes, planes_of
from rusteeze.codegen.cpu.emit import Buffer, Emitter, Expr, bits_as, convert, f32, i32, select
from rusteeze.codegen.cpu.tiles import TILE, TileLayout


def embedding_rows(k: Emitter, ids: Access, width: int, out: Access, rows: Expr) -> None:
    """Arguments: ids, table float32 [P, width], output."""
    index, table = Operand.argument(k, ids), k.pointer("float32")
    target = Operand.argument(k, out)
    first, count = k.share(rows)
    with k.loop(count) as n:
        row = k.let(first + n)
        source = k.offset(table, k.let(index.load(k, row, ())), 4 * width, "float32")
        with k.loop(width) as d:
            target.store(k, row, (d,), source[d])


def embedding_tiles(k: Emitter, ids: Access, layout: TileLayout, out: Access, rows: Expr) -> None:
    """Arguments: ids, packed table, [codebook], output. Decodes one row element by element."""
    index, tiles = Operand.argument(k, ids), k.pointer("uint8")
    table = k.pointer("float32") if layout.format.family == "codebook" else None
    target = Operand.argument(k, out)
    first, count = k.share(rows)
    with k.loop(count) as n:
        row = k.let(first + n)
        token = k.let(index.load(k, row, ()))
        tile = k.offset(tiles, tirx.Div(token, i32(TILE)), layout.tile_bytes, "uint8")
        lane = k.let(tirx.Mod(token, i32(TILE)))
        if layout.format.family == "dense":
            with k.loop(layout.k) as column:
                target.store(k, row, (column,), _dense_element(k, tile, layout, column, lane))
        else:
            _decode_row(k, tile, layout, lane, table, target, row)


def _dense_element(k: Emitter, tile: Buffer, layout: TileLayout, column: Expr, lane: Expr) -> Expr:
    dtype = layout.format.dtype
    if dtype == "bf16":
        words = k.offset(tile, i32(0), 0, "uint16")
        pair = tirx.Div(column, i32(2)) * i32(TILE) + lane
        bits = convert(words[pair * i32(2) + tirx.Mod(column, i32(2))], "uint32")
        return tirx.reinterpret("float32", tirx.shift_left(bits, tirx.const(16, "uint32")))
    values = k.offset(tile, i32(0), 0, "float32" if dtype == "f32" else "float16")
    return convert(values[column * i32(TILE) + lane], "float32")


def _decode_row(
    k: Emitter, tile: Buffer, layout: TileLayout, lane: Expr, table: Buffer | None, target: Operand, row: Expr
) -> None:
    f = layout.format
    size = 2 if f.dtype == "f16" else 4
    scales = k.offset(tile, i32(0), 0, "float16" if f.dtype == "f16" else "float32")
    with k.loop(layout.num_records) as r:
        record = k.let(r * i32(layout.record_bytes))
        with k.loop(layout.record_inputs) as j:
            group = tirx.Div(j, i32(f.group)) * i32(layout.group_bytes // size)
            at = k.let(tirx.Div(record + i32(layout.code_bytes), i32(size)) + lane + group)
            scale = k.let(convert(scales[at], "float32"))
            low = k.let(convert(scales[at + i32(TILE)], "float32")) if layout.has_minimum else f32(0)
            if f.family == "float8":
                value = _float8_number(k, tile, record, lane, j) * scale
            else:
                value = _number(_code(k, tile, layout, record, lane, j), layout, scale, low, table)
            target.store(k, row, (r * i32(layout.record_inputs) + j,), value)


def _number(code: Expr, layout: TileLayout, scale: Expr, low: Expr, table: Buffer | None) -> Expr:
    if table is not None:
        return table[code] * scale
    if layout.has_minimum:
        return convert(code, "float32") * scale + low
    return convert(code - i32(layout.format.zero), "float32") * scale


def _code(k: Emitter, tile: Buffer, layout: TileLayout, record: Expr, lane: Expr, j: Expr) -> Expr:
    """The code of input j of a record: the fields of its planes (code_planes.py)."""
    code: Expr = i32(0)
    start = low = 0
    for width in planes_of(layout.code_bits):
        per_vector = PIECE * 8 // width
        vector = tirx.Div(j, i32(per_vector)) * i32(VECTOR_BYTES)
        at = k.let(record + i32(start) + vector + lane * i32(PIECE) + tirx.Mod(j, i32(PIECE)))
        q = k.let(tirx.Div(tirx.Mod(j, i32(per_vector)), i32(PIECE)))
        field = tirx.bitwise_and(
            tirx.shift_right(convert(tile[at], "int32"), q * i32(width)), i32((1 << width) - 1)
        )
        code = tirx.bitwise_or(code, tirx.shift_left(field, i32(low)))
        start += plane_bytes(width, layout.record_inputs)
        low += width
    return k.let(code)


def _float8_number(k: Emitter, tile: Buffer, record: Expr, lane: Expr, j: Expr) -> Expr:
    """The number of input j of a record (float8_tiles.py): subnormal ones are units of 2^-9."""
    quad = tirx.Div(lane, i32(4)) * i32(16) + tirx.Mod(lane, i32(4)) * i32(2)
    pair = tirx.Div(tirx.Mod(j, i32(PIECE)), i32(2)) * i32(8) + tirx.Mod(j, i32(2))
    at = k.let(record + tirx.Div(j, i32(PIECE)) * i32(VECTOR_BYTES) + quad + pair)
    code = k.let(convert(tile[at], "int32"))
    magnitude = k.let(tirx.bitwise_and(code, i32(127)))
    normal = bits_as(tirx.shift_left(magnitude, i32(20)) + i32(120 << 23), "float32")
    value = k.let(select(magnitude > i32(7), normal, convert(magnitude, "float32") * f32(2.0**-9)))
    return select(code > i32(127), f32(0) - value, value)
