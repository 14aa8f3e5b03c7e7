"""Row lookup: token embeddings (plain or packed like a matmul weight) and tables by position."""

from __future__ import annotations

from tvm import tirx

from rusteeze.codegen.access import Access
from rusteeze.codegen.cpu.access import Operand
from rusteeze.codegen.cpu.emit import Buffer, Emitter, Expr, convert, f32, i32
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
    with k.loop(layout.num_groups) as g:
        record = k.let(g * i32(layout.record_bytes))
        at = k.let(tirx.Div(record + i32(layout.code_bytes), i32(size)) + lane)
        scale = k.let(convert(scales[at], "float32"))
        low = k.let(convert(scales[at + i32(TILE)], "float32")) if layout.has_minimum else f32(0)
        with k.loop(f.group) as j:
            code = _code(k, tile, layout, record, lane, j)
            if table is not None:
                value = table[code] * scale
            elif layout.has_minimum:
                value = convert(code, "float32") * scale + low
            else:
                value = convert(code - i32(f.zero), "float32") * scale
            target.store(k, row, (g * i32(f.group) + j,), value)


def _code(k: Emitter, tile: Buffer, layout: TileLayout, record: Expr, lane: Expr, j: Expr) -> Expr:
    per_word = 8 if layout.code_bits == 4 else 4
    word = tirx.Div(j, i32(per_word)) * i32(4 * TILE) + lane * i32(4) + tirx.Mod(j, i32(4))
    byte = convert(tile[record + word], "int32")
    if layout.code_bits == 8:
        return k.let(byte)
    high = tirx.Mod(tirx.Div(j, i32(4)), i32(2))
    return k.let(tirx.bitwise_and(tirx.shift_right(byte, high * i32(4)), i32(15)))
