"""Paged causal attention and the writing of its cache.

Work is cut into *tiles* of up to ``query_tokens`` consecutive tokens of one sequence; a tile times a
group of query heads that share a key head is one work item. Prefill and decode are the same code with
another number of rows, and every row goes through the keys in the same rounds of 64 with the same
online softmax (Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022): its result does not depend
on what else is in the tile or in the batch.

Cache pages hold 16 tokens of one layer. float32: K page [heads][D][16], V page [heads][16][DVp].
bf16: K page [heads][D/2][16] of pairs of dims, V page [heads][8][DVp] of pairs of tokens, as 32-bit
words, so that a bf16 dot product reads both without conversion. DVp is DV rounded up to 16.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from rusteeze.codegen.cpu.access import Access, Operand
from rusteeze.codegen.cpu.emit import (
    LANES,
    STEP_TABLE_WIDTH,
    STEP_TILES,
    STEP_TOKENS,
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
from rusteeze.codegen.cpu.rope import Rotation, rotated
from rusteeze.codegen.cpu.vector_math import LOG2E, exp2, tanh

PAGE = 16
PAGES_PER_ROUND = 4
ROUND = PAGE * PAGES_PER_ROUND
MOST_ROWS = 12
NEVER = -1e30
TILE_FIELDS = 4  # first row, number of rows, first position, sequence


@dataclass(frozen=True)
class AttentionShape:
    """Static facts of one attention op. ``cache`` is "f32" or "bf16"."""

    heads: int
    kv_heads: int
    width: int  # D
    value_width: int  # DV
    scale: float
    window: int
    softcap: float
    sinks: bool
    cache: str

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def chunks(self) -> int:
        """Work items per key head."""
        return -(-self.group // MOST_ROWS)

    @property
    def heads_per_item(self) -> int:
        return -(-self.group // self.chunks)

    @property
    def query_tokens(self) -> int:
        return max(1, MOST_ROWS // self.heads_per_item)

    @property
    def padded_value_width(self) -> int:
        return -(-self.value_width // LANES) * LANES

    @property
    def element_bytes(self) -> int:
        return 4 if self.cache == "f32" else 2

    @property
    def key_page_bytes(self) -> int:
        return self.kv_heads * self.width * PAGE * self.element_bytes

    @property
    def value_page_bytes(self) -> int:
        return self.kv_heads * self.padded_value_width * PAGE * self.element_bytes

    def label(self) -> str:
        extra = (f"_w{self.window}" if self.window else "") + ("_cap" if self.softcap else "")
        extra += "_sink" if self.sinks else ""
        return f"h{self.heads}x{self.kv_heads}_d{self.width}x{self.value_width}_{self.cache}{extra}"


# ---- writing --------------------------------------------------------------------------------------
def write_cache(
    k: Emitter, shape: AttentionShape, key: Access, value: Access, rotation: Rotation | None
) -> None:
    """Arguments: key, [cos, sin], value, slot_mapping, key pages, value pages. Rows are shared."""
    source = rotated(k, key, rotation)
    values = Operand.argument(k, value)
    slots = k.pointer("int32")
    word = "float32" if shape.cache == "f32" else "uint16"
    keys, vals = k.pointer(word), k.pointer(word)
    tokens = k.step(STEP_TOKENS)
    first, count = k.share(tokens)
    with k.loop(count) as n:
        row = k.let(first + n)
        slot = k.let(slots[row])
        page, at = k.let(tirx.Div(slot, i32(PAGE))), k.let(tirx.Mod(slot, i32(PAGE)))
        key_page = k.offset(keys, page, shape.key_page_bytes, word)
        value_page = k.offset(vals, page, shape.value_page_bytes, word)
        with k.loop(shape.kv_heads) as head:
            if shape.cache == "f32":
                _write_f32(k, shape, source, values, row, head, at, key_page, value_page)
            else:
                _write_bf16(k, shape, source, values, row, head, at, key_page, value_page)
        if shape.cache == "bf16":
            _clear_partner(k, shape, slots, row, slot, at, tokens, value_page)


def _write_f32(k, shape, source, values, row, head, at, key_page, value_page) -> None:  # type: ignore[no-untyped-def]
    with k.loop(shape.width) as d:
        k.store(key_page, (head * i32(shape.width) + d) * i32(PAGE) + at, source(row, head, d))
    with k.loop(shape.value_width) as d:
        index = (head * i32(PAGE) + at) * i32(shape.padded_value_width) + d
        k.store(value_page, index, values.load(k, row, (head, d)))


def _bf16(x: Expr) -> Expr:
    """Round to nearest even, as the hardware does for finite numbers; 16 bits."""
    u = tirx.reinterpret("uint32", x)
    odd = tirx.bitwise_and(tirx.shift_right(u, _u32(16)), _u32(1))
    return tirx.Cast("uint16", tirx.shift_right(u + odd + _u32(0x7FFF), _u32(16)))


def _u32(value: int) -> Expr:
    return tirx.const(value, "uint32")


def _write_bf16(k, shape, source, values, row, head, at, key_page, value_page) -> None:  # type: ignore[no-untyped-def]
    with k.loop(shape.width) as d:
        pair = (head * i32(shape.width // 2) + tirx.Div(d, i32(2))) * i32(PAGE) + at
        k.store(key_page, pair * i32(2) + tirx.Mod(d, i32(2)), _bf16(source(row, head, d)))
    with k.loop(shape.value_width) as d:
        pair = (head * i32(PAGE // 2) + tirx.Div(at, i32(2))) * i32(shape.padded_value_width) + d
        k.store(value_page, pair * i32(2) + tirx.Mod(at, i32(2)), _bf16(values.load(k, row, (head, d))))


def _clear_partner(k, shape, slots, row, slot, at, tokens, value_page) -> None:  # type: ignore[no-untyped-def]
    """A pair of tokens is read as a whole: an even token without successor gets a zero beside it, as
    its own weight there is 0 but 0 * NaN would not be."""
    following = k.let(minimum(row + i32(1), tokens - i32(1)))
    alone = tirx.any(following == row, slots[following] != slot + i32(1))
    with k.when(tirx.all(tirx.EQ(tirx.Mod(at, i32(2)), i32(0)), alone)), k.loop(shape.kv_heads) as head:
        base = k.let((head * i32(PAGE // 2) + tirx.Div(at, i32(2))) * i32(shape.padded_value_width))
        with k.loop(shape.value_width) as d:
            zero = tirx.const(0, "uint16")
            k.store(value_page, (base + d) * i32(2) + i32(1), zero)


# ---- reading --------------------------------------------------------------------------------------
@dataclass
class _Item:
    """One work item: where its rows are and which pages it reads."""

    rows: list[Expr]  # row of each query row
    heads: list[Expr]
    positions: list[Expr]
    last_position: Expr
    kv_head: Expr
    table: Expr  # index of the sequence's first entry in the block table
    first_round: Expr


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
        item = k.let(n * k.nth + k.tid)
        tile = k.let(tirx.Div(item, i32(per_tile)) * i32(TILE_FIELDS))
        rest = k.let(tirx.Mod(item, i32(per_tile)))
        num_rows = k.let(tiles[tile + i32(1)])
        for tokens in sorted({1, tile_tokens}):
            one = tirx.EQ(num_rows, i32(1)) if tokens == 1 else num_rows > i32(1)
            with k.when(one):
                where = _locate(k, shape, tiles, tile, rest, table_width, tokens)
                _attend_item(k, shape, q, sinks, tables, keys, values, out, out_row, where)


def _locate(
    k: Emitter, shape: AttentionShape, tiles: Buffer, tile: Expr, rest: Expr, table_width: Expr,
    tokens: int,
) -> _Item:  # fmt: skip
    first, count = k.let(tiles[tile]), k.let(tiles[tile + i32(1)])
    position, sequence = k.let(tiles[tile + i32(2)]), k.let(tiles[tile + i32(3)])
    kv_head = k.let(tirx.Div(rest, i32(shape.chunks)))
    chunk = k.let(tirx.Mod(rest, i32(shape.chunks)) * i32(shape.heads_per_item))
    rows, heads, positions = [], [], []
    for t in range(tokens):
        # rows beyond the tile repeat its last one and write the same numbers again
        offset = k.let(minimum(i32(t), count - i32(1)))
        for h in range(shape.heads_per_item):
            rows.append(k.let(first + offset))
            positions.append(k.let(position + offset))
            heads.append(
                k.let(kv_head * i32(shape.group) + minimum(chunk + i32(h), i32(shape.group - 1)))
            )
    start = i32(0)
    if shape.window:
        start = k.let(maximum(position - i32(shape.window - 1), i32(0)))
    return _Item(
        rows, heads, positions, k.let(position + count - i32(1)), kv_head,
        k.let(sequence * table_width), k.let(tirx.Div(start, i32(ROUND))),
    )  # fmt: skip


def _attend_item(  # type: ignore[no-untyped-def]
    k: Emitter, shape: AttentionShape, q: Operand, sinks, tables, keys, values, out, out_row: int, item: _Item
) -> None:
    n = len(item.rows)
    vectors = shape.padded_value_width // LANES
    scaled = _load_queries(k, shape, q, item)
    acc = k.local(n * vectors * LANES, lanes=1)
    top, total = k.local(n, lanes=1), k.local(n)
    probabilities = k.local(n * ROUND, lanes=1)
    for i in range(n):
        k.store(top, i, f32(NEVER))
        k.store(total, i, splat(0.0, LANES))
        for d in range(vectors):
            k.store(acc, i32((i * vectors + d) * LANES), splat(0.0, LANES))
    rounds = k.let(tirx.Div(item.last_position, i32(ROUND)) + i32(1) - item.first_round)
    with k.loop(rounds) as r:
        base = k.let((r + item.first_round) * i32(ROUND))
        last_page = k.let(tirx.Div(item.last_position, i32(PAGE)))
        pages = [
            k.let(tables[item.table + minimum(tirx.Div(base, i32(PAGE)) + i32(u), last_page)])
            for u in range(PAGES_PER_ROUND)
        ]
        scores = _scores(k, shape, scaled, keys, pages, item)
        _softmax_round(k, shape, scores, item, base, top, total, acc, probabilities)
        _add_values(k, shape, probabilities, values, tables, item, base, acc)
    _finish(k, shape, item, sinks, top, total, acc, out, out_row)


def _load_queries(k: Emitter, shape: AttentionShape, q: Operand, item: _Item) -> Buffer:
    """Query rows on the stack, scaled (into base 2 unless a softcap comes between)."""
    factor = shape.scale * (1.0 if shape.softcap else LOG2E)
    n = len(item.rows)
    floats = k.local(n * shape.width, lanes=1)
    for i in range(n):
        with k.loop(shape.width) as d:
            value = q.load(k, item.rows[i], (item.heads[i], d)) * f32(factor)
            k.store(floats, i32(i * shape.width) + d, value)
    if shape.cache == "f32":
        return floats
    pairs = k.local(n * shape.width // 2, "int32", lanes=1)
    with k.loop(n * shape.width // 2) as p:
        low = _bf16(floats[p * i32(2)])
        high = _bf16(floats[p * i32(2) + i32(1)])
        word = tirx.bitwise_or(convert(low, "int32"), tirx.shift_left(convert(high, "int32"), i32(16)))
        k.store(pairs, p, word)
    return pairs


def _dot_bf16(acc: Expr, a: Expr, b: Expr) -> Expr:
    return tirx.call_pure_extern("float32x16", "rz_dot_bf16", acc, a, b)


def _scores(  # type: ignore[no-untyped-def]
    k: Emitter, shape: AttentionShape, scaled: Buffer, keys, pages: list[Expr], item: _Item
) -> Buffer:
    """q . k for every row and the round's 64 keys: [rows * 4] vectors."""
    n = len(item.rows)
    steps = shape.width if shape.cache == "f32" else shape.width // 2
    word = "float32" if shape.cache == "f32" else "int32"
    scores = k.local(n * PAGES_PER_ROUND)
    together = 4 if n <= 6 else 2
    for first in range(0, PAGES_PER_ROUND, together):
        part = range(first, first + together)
        views = {u: k.offset(keys, pages[u], shape.key_page_bytes, word) for u in part}
        regs = k.local(n * together)
        for i in range(n * together):
            k.store(regs, i, splat(0.0, LANES))
        with k.loop(steps) as d:
            for j, u in enumerate(part):
                at = (item.kv_head * i32(steps) + d) * i32(PAGE)
                vector = k.let(views[u].load(at, LANES))
                for i in range(n):
                    query = splat(scaled[i32(i * steps) + d], LANES)
                    a = regs[i * together + j]
                    value = fma(query, vector, a) if shape.cache == "f32" else _dot_bf16(a, query, vector)
                    k.store(regs, i * together + j, value)
        for i in range(n):
            for j, u in enumerate(part):
                k.store(scores, i * PAGES_PER_ROUND + u, regs[i * together + j])
    return scores


def _softmax_round(  # type: ignore[no-untyped-def]
    k: Emitter, shape: AttentionShape, scores: Buffer, item: _Item, base: Expr, top: Buffer,
    total: Buffer, acc: Buffer, probabilities: Buffer,
) -> None:  # fmt: skip
    vectors = shape.padded_value_width // LANES
    for i, position in enumerate(item.positions):
        logits, visible = [], []
        for u in range(PAGES_PER_ROUND):
            key = k.let(ramp(base + i32(u * PAGE), LANES))
            seen = key <= splat(position, LANES)
            if shape.window:
                seen = tirx.And(seen, key > splat(position - i32(shape.window), LANES))
            score = k.let(scores[i * PAGES_PER_ROUND + u])
            if shape.softcap:
                bent = tanh(k, score * splat(1 / shape.softcap, LANES))
                score = k.let(bent * splat(shape.softcap * LOG2E, LANES))
            logits.append(k.let(select(seen, score, splat(NEVER, LANES))))
            visible.append(seen)
        before = k.let(top[i])
        both = maximum(maximum(logits[0], logits[1]), maximum(logits[2], logits[3]))
        now = k.let(maximum(before, reduce_max(both)))
        shrink = k.let(exp2(k, splat(before - now, LANES)))
        parts = []
        for u in range(PAGES_PER_ROUND):
            p = exp2(k, logits[u] - splat(now, LANES))
            p = k.let(select(visible[u], p, splat(0.0, LANES)))
            _park(k, shape, probabilities, i, u, p)
            parts.append(p)
        added = (parts[0] + parts[1]) + (parts[2] + parts[3])
        k.store(total, i, fma(k.let(total[i]), shrink, added))
        k.store(top, i, now)
        for d in range(vectors):
            at = i32((i * vectors + d) * LANES)
            k.store(acc, at, acc.load(at, LANES) * shrink)


def _park(k: Emitter, shape: AttentionShape, probabilities: Buffer, i: int, u: int, p: Expr) -> None:
    if shape.cache == "f32":
        k.store(probabilities, i32(i * ROUND + u * PAGE), p)
        return
    # 16 bf16 in the space of 8 floats: read back as 32-bit pairs
    words = tirx.call_pure_extern("int32x8", "rz_pack_bf16", p)
    k.store(probabilities, i32(i * ROUND // 2 + u * PAGE // 2), tirx.reinterpret("float32x8", words))


def _add_values(  # type: ignore[no-untyped-def]
    k: Emitter, shape: AttentionShape, probabilities: Buffer, values, tables, item: _Item,
    base: Expr, acc: Buffer,
) -> None:  # fmt: skip
    """acc += p @ V over the round's valid tokens (pairs of tokens for bf16), page by page."""
    n = len(item.rows)
    bf16 = shape.cache == "bf16"
    width = shape.padded_value_width
    vectors = width // LANES
    together = max(1, min(vectors, 24 // n))
    valid = k.let(minimum(item.last_position + i32(1) - base, i32(ROUND)))
    steps = PAGE // 2 if bf16 else PAGE
    per_row = ROUND // 2 if bf16 else ROUND
    with k.loop(tirx.Div(valid + i32(PAGE - 1), i32(PAGE))) as u:
        page = k.let(tables[item.table + tirx.Div(base, i32(PAGE)) + u])
        view = k.offset(values, page, shape.value_page_bytes, "int32" if bf16 else "float32")
        tokens = k.let(minimum(valid - u * i32(PAGE), i32(PAGE)))
        count = k.let(tirx.Div(tokens + i32(1), i32(2))) if bf16 else tokens
        for first in range(0, vectors, together):
            part = range(first, min(vectors, first + together))
            regs = k.local(n * len(part))
            for i in range(n):
                for j, d in enumerate(part):
                    at = i32((i * vectors + d) * LANES)
                    k.store(regs, i * len(part) + j, acc.load(at, LANES))
            with k.loop(count) as t:
                for j, d in enumerate(part):
                    at = (item.kv_head * i32(steps) + t) * i32(width) + i32(d * LANES)
                    vector = k.let(view.load(at, LANES))
                    for i in range(n):
                        p = probabilities[i32(i * per_row) + u * i32(steps) + t]
                        r = regs[i * len(part) + j]
                        if bf16:
                            pair = splat(tirx.reinterpret("int32", p), LANES)
                            k.store(regs, i * len(part) + j, _dot_bf16(r, pair, vector))
                        else:
                            k.store(regs, i * len(part) + j, fma(splat(p, LANES), vector, r))
            for i in range(n):
                for j, d in enumerate(part):
                    k.store(acc, i32((i * vectors + d) * LANES), regs[i * len(part) + j])


def _finish(  # type: ignore[no-untyped-def]
    k: Emitter, shape: AttentionShape, item: _Item, sinks, top: Buffer, total: Buffer, acc: Buffer,
    out: Buffer, out_row: int,
) -> None:  # fmt: skip
    width, vectors = shape.value_width, shape.padded_value_width // LANES
    for i in range(len(item.rows)):
        denominator = k.let(reduce_add(k.let(total[i])))
        factor = f32(1)
        if sinks is not None:
            sink = k.let(sinks[item.heads[i]] * f32(LOG2E))
            now = k.let(maximum(top[i], sink))
            factor = k.let(exp2(k, top[i] - now))
            denominator = k.let(fma(denominator, factor, exp2(k, sink - now)))
        inverse = k.let(factor / denominator)
        base = k.let(item.rows[i] * i32(out_row) + item.heads[i] * i32(width))
        for d in range(width // LANES):
            at = i32((i * vectors + d) * LANES)
            k.store(out, base + i32(d * LANES), acc.load(at, LANES) * splat(inverse, LANES))
        done = width // LANES * LANES
        if done < width:
            with k.loop(width - done) as d:
                value = acc[i32(i * vectors * LANES + done) + d] * inverse
                k.store(out, base + i32(done) + d, value)
