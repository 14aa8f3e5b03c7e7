"""Paged causal attention.

Work is cut into *tiles* of up to ``query_tokens`` consecutive tokens of one sequence; a tile times a
group of query heads that share a key head is one work item. Prefill and decode are the same code with
another number of rows, and every row goes through the keys in the same rounds of 64 with the same
online softmax (attention_round.py): its result does not depend on what else is in the tile or in the
batch. Queries may be rotated and results rounded on the way, so that neither is a pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from rusteeze.artifact.contract import TILE_FIELDS
from rusteeze.codegen.access import Access
from rusteeze.codegen.cpu.activations import GROUP, RoundedRows
from rusteeze.codegen.cpu.attention_round import (
    ROUND,
    Item,
    Registers,
    Span,
    attend_round,
    fresh_registers,
)
from rusteeze.codegen.cpu.attention_shape import AttentionShape
from rusteeze.codegen.cpu.emit import (
    LANES,
    STEP_TABLE_WIDTH,
    STEP_TILES,
    Buffer,
    Emitter,
    Expr,
    convert,
    f32,
    fma,
    i32,
    maximum,
    minimum,
    reduce_add,
    splat,
)
from rusteeze.codegen.cpu.rope import Heads, Rotation
from rusteeze.codegen.cpu.vector_math import LOG2E, bf16_bits, exp2


@dataclass(frozen=True)
class AttentionOutput:
    """Where results go: float32 rows that are ``row`` elements apart, or rounded rows of a ``kind``."""

    row: int
    kind: str = ""


def attend(
    k: Emitter, shape: AttentionShape, query: Access, rotation: Rotation | None, tile_tokens: int,
    output: AttentionOutput,
) -> None:  # fmt: skip
    """Arguments: query, [positions, cos, sin], [sinks], tiles, block table, key pages, value pages,
    output [T, H * DV] (or its rounded arrays). Tiles have at most ``tile_tokens`` tokens."""
    queries = Heads(k, query, rotation)
    sinks = k.pointer("float32") if shape.sinks else None
    tiles, tables = k.pointer("int32"), k.pointer("int32")
    word = "float32" if shape.cache == "f32" else "int32"
    keys, values = k.pointer(word), k.pointer(word)
    target: Buffer | RoundedRows
    if output.kind:
        target = RoundedRows.argument(k, output.kind, shape.heads * shape.value_width)
    else:
        target = k.pointer("float32")
    per_tile = shape.kv_heads * shape.chunks
    items = k.let(k.step(STEP_TILES) * i32(per_tile))
    table_width = k.step(STEP_TABLE_WIDTH)
    mine = k.let(tirx.Div(items - k.tid + k.nth - i32(1), k.nth))
    with k.loop(mine) as n:
        number = k.let(n * k.nth + k.tid)
        num_rows = k.let(tiles[tirx.Div(number, i32(per_tile)) * i32(TILE_FIELDS) + i32(1)])
        for tokens in sorted({1, tile_tokens}):
            fits = tirx.EQ(num_rows, i32(1)) if tokens == 1 else num_rows > i32(1)
            with k.when(fits):
                item = _item(k, shape, tiles, number, table_width, tokens)
                state = fresh_registers(k, shape, _scaled_queries(k, shape, queries, item), item.count)
                first, last = item.span.first_round, item.span.last_position
                with k.loop(tirx.Div(last, i32(ROUND)) + i32(1) - first) as r:
                    base = k.let((r + first) * i32(ROUND))
                    attend_round(k, shape, tables, keys, values, item, base, state)
                _finish(k, shape, item, state, sinks, target, output)


def _span(k: Emitter, shape: AttentionShape, tiles: Buffer, number: Expr, table_width: Expr) -> Span:
    """What item ``number`` reads."""
    per_tile = shape.kv_heads * shape.chunks
    tile = k.let(tirx.Div(number, i32(per_tile)) * i32(TILE_FIELDS))
    kv_head = k.let(tirx.Div(tirx.Mod(number, i32(per_tile)), i32(shape.chunks)))
    count, position = k.let(tiles[tile + i32(1)]), k.let(tiles[tile + i32(2)])
    start = i32(0)
    if shape.window:
        start = k.let(maximum(position - i32(shape.window - 1), i32(0)))
    return Span(
        kv_head, k.let(tiles[tile + i32(3)] * table_width), position, k.let(position + count - i32(1)),
        k.let(tirx.Div(start, i32(ROUND))),
    )  # fmt: skip


def _item(
    k: Emitter, shape: AttentionShape, tiles: Buffer, number: Expr, table_width: Expr, tokens: int
) -> Item:
    span = _span(k, shape, tiles, number, table_width)
    per_tile = shape.kv_heads * shape.chunks
    tile = k.let(tirx.Div(number, i32(per_tile)) * i32(TILE_FIELDS))
    first, last = k.let(tiles[tile]), k.let(span.last_position - span.first_position)
    chunk = k.let(tirx.Mod(number, i32(shape.chunks)) * i32(shape.heads_per_item))
    n = tokens * shape.heads_per_item
    row, head, position = (k.local(n, "int32", lanes=1) for _ in range(3))
    with k.loop(tokens) as t, k.loop(shape.heads_per_item) as h:
        # rows beyond the tile repeat its last one and write the same numbers again
        offset = k.let(minimum(t, last))
        i = k.let(t * i32(shape.heads_per_item) + h)
        k.store(row, i, first + offset)
        at = span.kv_head * i32(shape.group) + minimum(chunk + h, i32(shape.group - 1))
        k.store(head, i, at)
        k.store(position, i, span.first_position + offset)
    return Item(span, n, row, head, position)


def _scaled_queries(k: Emitter, shape: AttentionShape, queries: Heads, item: Item) -> Buffer:
    """[rows, D] queries times the scale (into base 2 unless a softcap comes between), as pairs of bf16
    where the cache is."""
    width = shape.width
    factor = f32(shape.scale * (1.0 if shape.softcap else LOG2E))
    pairs = shape.cache == "bf16"
    if pairs and queries.in_vectors:
        words = k.local(item.count * width // 2, "int32", lanes=1)
        with k.loop(item.count) as i:
            row, head = k.let(item.row[i]), k.let(item.head[i])
            for c in range(0, width, LANES):
                x = k.let(queries.vector(row, head, c) * splat(factor, LANES))
                packed = tirx.call_pure_extern("int32x8", "rz_pack_bf16", x)
                k.store(words, i * i32(width // 2) + i32(c // 2), packed)
        return words
    scaled = k.local(item.count * width, lanes=1)
    with k.loop(item.count) as i:
        row, head = k.let(item.row[i]), k.let(item.head[i])
        with k.loop(width) as d:
            k.store(scaled, i * i32(width) + d, queries.element(row, head, d) * factor)
    return _paired(k, scaled, item.count * width // 2) if pairs else scaled


def _paired(k: Emitter, floats: Buffer, count: int) -> Buffer:
    pairs = k.local(count, "int32", lanes=1)
    with k.loop(count) as p:
        low, high = bf16_bits(floats[p * i32(2)]), bf16_bits(floats[p * i32(2) + i32(1)])
        word = tirx.bitwise_or(convert(low, "int32"), tirx.shift_left(convert(high, "int32"), i32(16)))
        k.store(pairs, p, word)
    return pairs


def _finish(
    k: Emitter, shape: AttentionShape, item: Item, state: Registers, sinks: Buffer | None,
    target: Buffer | RoundedRows, output: AttentionOutput,
) -> None:  # fmt: skip
    """Divide by the sums and write. Heads are whole groups of rounding where results are rounded."""
    width, padded = shape.value_width, shape.padded_value_width
    with k.loop(item.count) as i:
        denominator = k.let(reduce_add(k.let(state.total.load(i * i32(LANES), LANES))))
        factor = f32(1)
        if sinks is not None:
            sink = k.let(sinks[item.head[i]] * f32(LOG2E))
            top = k.let(state.top[i])
            now = k.let(maximum(top, sink))
            factor = k.let(exp2(k, top - now))
            denominator = k.let(fma(denominator, factor, exp2(k, sink - now)))
        inverse = k.let(factor / denominator)
        row, head = k.let(item.row[i]), k.let(item.head[i])

        def values(d: Expr | int, lanes: int, i: Expr = i, inverse: Expr = inverse) -> Expr:
            at = i * i32(padded) + (i32(d) if isinstance(d, int) else d)
            return k.let(state.acc.load(at, lanes) * splat(inverse, lanes))

        if isinstance(target, RoundedRows):
            for d in range(0, width, GROUP):
                group = head * i32(width // GROUP) + i32(d // GROUP)
                target.store_group(k, values(d, LANES), values(d + LANES, LANES), row, group)
        else:
            _store(k, target, row * i32(output.row) + head * i32(width), width, values)


def _store(
    k: Emitter, target: Buffer, start: Expr, width: int, values: Callable[[Expr | int, int], Expr]
) -> None:
    base = k.let(start)
    whole = width // LANES * LANES
    for d in range(0, whole, LANES):
        k.store(target, base + i32(d), values(d, LANES))
    with k.loop(width - whole) as d:
        k.store(target, base + i32(whole) + d, values(i32(whole) + d, 1))
