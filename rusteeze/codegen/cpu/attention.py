"""Paged causal attention.

Work is cut into *tiles* of up to ``query_tokens`` consecutive tokens of one sequence; a tile times a
group of query heads that share a key head is one work item. Prefill and decode are the same code with
another number of rows, and every row goes through the keys in the same rounds of 64 with the same
online softmax (Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022): its result does not depend
on what else is in the tile or in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from rusteeze.artifact.contract import TILE_FIELDS
from rusteeze.codegen.cpu.access import Access, Operand
from rusteeze.codegen.cpu.attention_shape import PAGE, AttentionShape
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
    ramp,
    reduce_add,
    reduce_max,
    select,
    splat,
)
from rusteeze.codegen.cpu.vector_math import LOG2E, bf16_bits, exp2, tanh

PAGES_PER_ROUND = 4
ROUND = PAGE * PAGES_PER_ROUND
MOST_REGISTERS = 24
NEVER = -1e30


@dataclass
class _Item:
    """One work item: its query rows (how many is static) and the pages that it reads.

    Arrays have an entry per query row; rows are looped over, not unrolled, wherever registers allow."""

    count: int
    query: Buffer  # element offset of the row's query
    output: Buffer  # element offset of the row's result
    head: Buffer
    position: Buffer
    last_position: Expr
    kv_head: Expr
    table: Expr  # index of the sequence's first entry in the block table
    first_round: Expr


@dataclass
class _Registers:
    """State of the online softmax on the stack (first-level cache), per query row."""

    scaled: Buffer  # [rows, D] queries, or pairs of them as words
    scores: Buffer  # [rows, 64]
    probabilities: Buffer  # [rows, 64], or pairs as words
    top: Buffer  # [rows] largest logit so far
    total: Buffer  # [rows] x 16 lanes: sum of the exponentials so far
    acc: Buffer  # [rows, DVp]


def attend(k: Emitter, shape: AttentionShape, query: Access, tile_tokens: int, out_row: int) -> None:
    """Arguments: query, [sinks], tiles, block table, key pages, value pages, output [T, H, DV].

    Tiles have at most ``tile_tokens`` tokens; rows of the output are ``out_row`` elements apart."""
    q = Operand.argument(k, query)
    sinks = k.pointer("float32") if shape.sinks else None
    tiles, tables = k.pointer("int32"), k.pointer("int32")
    word = "float32" if shape.cache == "f32" else "int32"
    keys, values = k.pointer(word), k.pointer(word)
    out = k.pointer("float32")
    per_tile = shape.kv_heads * shape.chunks
    items = k.let(k.step(STEP_TILES) * i32(per_tile))
    table_width = k.step(STEP_TABLE_WIDTH)
    mine = k.let(tirx.Div(items - k.tid + k.nth - i32(1), k.nth))
    with k.loop(mine) as n:
        number = k.let(n * k.nth + k.tid)
        tile = k.let(tirx.Div(number, i32(per_tile)) * i32(TILE_FIELDS))
        rest = k.let(tirx.Mod(number, i32(per_tile)))
        num_rows = k.let(tiles[tile + i32(1)])
        for tokens in sorted({1, tile_tokens}):
            fits = tirx.EQ(num_rows, i32(1)) if tokens == 1 else num_rows > i32(1)
            with k.when(fits):
                item = _locate(k, shape, q, tiles, tile, rest, table_width, tokens, out_row)
                state = _start(k, shape, q, item)
                _rounds(k, shape, tables, keys, values, item, state)
                _finish(k, shape, item, state, sinks, out)


def _locate(
    k: Emitter, shape: AttentionShape, q: Operand, tiles: Buffer, tile: Expr, rest: Expr,
    table_width: Expr, tokens: int, out_row: int,
) -> _Item:  # fmt: skip
    first, count = k.let(tiles[tile]), k.let(tiles[tile + i32(1)])
    position, sequence = k.let(tiles[tile + i32(2)]), k.let(tiles[tile + i32(3)])
    kv_head = k.let(tirx.Div(rest, i32(shape.chunks)))
    chunk = k.let(tirx.Mod(rest, i32(shape.chunks)) * i32(shape.heads_per_item))
    n = tokens * shape.heads_per_item
    query, output, head, positions = (k.local(n, "int32", lanes=1) for _ in range(4))
    with k.loop(tokens) as t, k.loop(shape.heads_per_item) as h:
        # rows beyond the tile repeat its last one and write the same numbers again
        offset = k.let(minimum(t, count - i32(1)))
        row = k.let(first + offset)
        at = k.let(kv_head * i32(shape.group) + minimum(chunk + h, i32(shape.group - 1)))
        i = k.let(t * i32(shape.heads_per_item) + h)
        k.store(query, i, q.access.index(row, (at, 0)))
        k.store(output, i, row * i32(out_row) + at * i32(shape.value_width))
        k.store(head, i, at)
        k.store(positions, i, position + offset)
    start = i32(0)
    if shape.window:
        start = k.let(maximum(position - i32(shape.window - 1), i32(0)))
    return _Item(
        n, query, output, head, positions, k.let(position + count - i32(1)), kv_head,
        k.let(sequence * table_width), k.let(tirx.Div(start, i32(ROUND))),
    )  # fmt: skip


def _start(k: Emitter, shape: AttentionShape, q: Operand, item: _Item) -> _Registers:
    """Empty sums, and the queries scaled (into base 2 unless a softcap comes between)."""
    n, width = item.count, shape.width
    factor = f32(shape.scale * (1.0 if shape.softcap else LOG2E))
    step = q.access.strides[-1]
    scaled = k.local(n * width, lanes=1)
    with k.loop(n) as i:
        base = k.let(item.query[i])
        with k.loop(width) as d:
            k.store(scaled, i * i32(width) + d, q.buffer[base + d * i32(step)] * factor)
    if shape.cache == "bf16":
        scaled = _paired(k, scaled, n * width // 2)
    state = _Registers(
        scaled, k.local(n * ROUND, lanes=1), k.local(n * ROUND, lanes=1), k.local(n, lanes=1),
        k.local(n * LANES, lanes=1), k.local(n * shape.padded_value_width, lanes=1),
    )  # fmt: skip
    zero = splat(0.0, LANES)
    with k.loop(n) as i:
        k.store(state.top, i, f32(NEVER))
        k.store(state.total, i * i32(LANES), zero)
    with k.loop(n * shape.padded_value_width // LANES) as i:
        k.store(state.acc, i * i32(LANES), zero)
    return state


def _paired(k: Emitter, floats: Buffer, count: int) -> Buffer:
    pairs = k.local(count, "int32", lanes=1)
    with k.loop(count) as p:
        low, high = bf16_bits(floats[p * i32(2)]), bf16_bits(floats[p * i32(2) + i32(1)])
        word = tirx.bitwise_or(convert(low, "int32"), tirx.shift_left(convert(high, "int32"), i32(16)))
        k.store(pairs, p, word)
    return pairs


def _rounds(
    k: Emitter, shape: AttentionShape, tables: Buffer, keys: Buffer, values: Buffer, item: _Item,
    state: _Registers,
) -> None:  # fmt: skip
    rounds = k.let(tirx.Div(item.last_position, i32(ROUND)) + i32(1) - item.first_round)
    with k.loop(rounds) as r:
        base = k.let((r + item.first_round) * i32(ROUND))
        _score(k, shape, tables, keys, item, base, state)
        with k.loop(item.count) as i:
            _softmax_row(k, shape, item, base, state, i)
        _add_values(k, shape, tables, values, item, base, state)


def _dot_bf16(acc: Expr, a: Expr, b: Expr) -> Expr:
    return tirx.call_pure_extern("float32x16", "rz_dot_bf16", acc, a, b)


def _multiply_add(shape: AttentionShape, acc: Expr, scalar: Expr, vector: Expr) -> Expr:
    """acc + scalar * vector, or the dot product of pairs."""
    if shape.cache == "bf16":
        return _dot_bf16(acc, splat(scalar, LANES), vector)
    return fma(splat(scalar, LANES), vector, acc)


def _score(
    k: Emitter, shape: AttentionShape, tables: Buffer, keys: Buffer, item: _Item, base: Expr,
    state: _Registers,
) -> None:  # fmt: skip
    """q . k for every row and the round's 64 keys. Pages behind the last one repeat it: their keys are
    masked later."""
    n = item.count
    steps = shape.width if shape.cache == "f32" else shape.width // 2
    together = PAGES_PER_ROUND if n * PAGES_PER_ROUND <= MOST_REGISTERS else 2
    last_page = k.let(tirx.Div(item.last_position, i32(PAGE)))
    with k.loop(PAGES_PER_ROUND // together) as part:
        first = k.let(part * i32(together))
        views = []
        for j in range(together):
            number = minimum(tirx.Div(base, i32(PAGE)) + first + i32(j), last_page)
            page = k.let(tables[item.table + number])
            views.append(k.offset(keys, page, shape.key_page_bytes, keys.dtype))
        regs = k.local(n * together)
        for i in range(n * together):
            k.store(regs, i, splat(0.0, LANES))
        with k.loop(steps) as d:
            at = k.let((item.kv_head * i32(steps) + d) * i32(PAGE))
            vectors = [k.let(view.load(at, LANES)) for view in views]
            for i in range(n):
                query = k.let(state.scaled[i32(i * steps) + d])
                for j, vector in enumerate(vectors):
                    r = i * together + j
                    k.store(regs, r, _multiply_add(shape, regs[r], query, vector))
        for i in range(n):
            for j in range(together):
                target = i32(i * ROUND) + (first + i32(j)) * i32(PAGE)
                k.store(state.scores, target, regs[i * together + j])


def _softmax_row(
    k: Emitter, shape: AttentionShape, item: _Item, base: Expr, state: _Registers, i: Expr
) -> None:
    """One row's share of a round: mask, new maximum, exponentials, rescaled sums."""
    position = k.let(item.position[i])
    logits, visible = [], []
    for u in range(PAGES_PER_ROUND):
        key = k.let(ramp(base + i32(u * PAGE), LANES))
        seen = key <= splat(position, LANES)
        if shape.window:
            seen = tirx.And(seen, key > splat(position - i32(shape.window), LANES))
        score = k.let(state.scores.load(i * i32(ROUND) + i32(u * PAGE), LANES))
        if shape.softcap:
            bent = tanh(k, score * splat(1 / shape.softcap, LANES))
            score = k.let(bent * splat(shape.softcap * LOG2E, LANES))
        logits.append(k.let(select(seen, score, splat(NEVER, LANES))))
        visible.append(seen)
    before = k.let(state.top[i])
    both = maximum(maximum(logits[0], logits[1]), maximum(logits[2], logits[3]))
    now = k.let(maximum(before, reduce_max(both)))
    shrink = k.let(exp2(k, splat(before - now, LANES)))
    parts = []
    for u in range(PAGES_PER_ROUND):
        p = exp2(k, logits[u] - splat(now, LANES))
        parts.append(k.let(select(visible[u], p, splat(0.0, LANES))))
        _park(k, shape, state.probabilities, i, u, parts[-1])
    total = k.let(state.total.load(i * i32(LANES), LANES))
    added = (parts[0] + parts[1]) + (parts[2] + parts[3])
    k.store(state.total, i * i32(LANES), fma(total, shrink, added))
    k.store(state.top, i, now)
    width = shape.padded_value_width
    for d in range(0, width, LANES):
        at = k.let(i * i32(width) + i32(d))
        k.store(state.acc, at, state.acc.load(at, LANES) * shrink)


def _park(k: Emitter, shape: AttentionShape, probabilities: Buffer, i: Expr, u: int, p: Expr) -> None:
    if shape.cache == "f32":
        k.store(probabilities, i * i32(ROUND) + i32(u * PAGE), p)
        return
    # 16 bf16 in the space of 8 floats: read back as 32-bit pairs
    words = tirx.call_pure_extern("int32x8", "rz_pack_bf16", p)
    at = i * i32(ROUND // 2) + i32(u * PAGE // 2)
    k.store(probabilities, at, tirx.reinterpret("float32x8", words))


def _add_values(
    k: Emitter, shape: AttentionShape, tables: Buffer, values: Buffer, item: _Item, base: Expr,
    state: _Registers,
) -> None:  # fmt: skip
    """acc += p @ V over the round's written tokens (pairs of tokens for bf16), page by page."""
    pairs = shape.cache == "bf16"
    steps = PAGE // 2 if pairs else PAGE
    valid = k.let(minimum(item.last_position + i32(1) - base, i32(ROUND)))
    with k.loop(tirx.Div(valid + i32(PAGE - 1), i32(PAGE))) as u:
        page = k.let(tables[item.table + tirx.Div(base, i32(PAGE)) + u])
        view = k.offset(values, page, shape.value_page_bytes, values.dtype)
        tokens = k.let(minimum(valid - u * i32(PAGE), i32(PAGE)))
        count = k.let(tirx.Div(tokens + i32(1), i32(2))) if pairs else tokens
        first = k.let(u * i32(steps))
        for parts, width in _column_parts(shape, item.count):
            with k.loop(len(parts)) as part:
                column = k.let(part * i32(width * LANES) + i32(parts.start * LANES))
                _add_columns(k, shape, view, item, state, column, width, first, count)


def _column_parts(shape: AttentionShape, rows: int) -> list[tuple[range, int]]:
    """The vectors of a value row in equal parts that fit the registers, and what is left."""
    vectors = shape.padded_value_width // LANES
    width = max(1, min(vectors, MOST_REGISTERS // rows))
    whole = vectors // width
    parts = [(range(0, whole * width, width), width)]
    if vectors % width:
        parts.append((range(whole * width, vectors, vectors % width), vectors % width))
    return parts


def _add_columns(
    k: Emitter, shape: AttentionShape, view: Buffer, item: _Item, state: _Registers, column: Expr,
    vectors: int, first: Expr, count: Expr,
) -> None:  # fmt: skip
    pairs = shape.cache == "bf16"
    n, width = item.count, shape.padded_value_width
    steps, per_row = (PAGE // 2, ROUND // 2) if pairs else (PAGE, ROUND)
    regs = k.local(n * vectors)
    for i in range(n):
        for j in range(vectors):
            k.store(regs, i * vectors + j, state.acc.load(column + i32(i * width + j * LANES), LANES))
    with k.loop(count) as t:
        at = k.let((item.kv_head * i32(steps) + t) * i32(width) + column)
        loaded = [k.let(view.load(at + i32(j * LANES), LANES)) for j in range(vectors)]
        for i in range(n):
            p = state.probabilities[i32(i * per_row) + first + t]
            p = k.let(tirx.reinterpret("int32", p) if pairs else p)
            for j, vector in enumerate(loaded):
                r = i * vectors + j
                k.store(regs, r, _multiply_add(shape, regs[r], p, vector))
    for i in range(n):
        for j in range(vectors):
            k.store(state.acc, column + i32(i * width + j * LANES), regs[i * vectors + j])


def _finish(
    k: Emitter, shape: AttentionShape, item: _Item, state: _Registers, sinks: Buffer | None, out: Buffer
) -> None:
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
        base = k.let(item.output[i])
        whole = width // LANES * LANES
        for d in range(0, whole, LANES):
            value = state.acc.load(i * i32(padded) + i32(d), LANES) * splat(inverse, LANES)
            k.store(out, base + i32(d), value)
        with k.loop(width - whole) as d:
            value = state.acc[i * i32(padded) + i32(whole) + d] * inverse
            k.store(out, base + i32(whole) + d, value)
