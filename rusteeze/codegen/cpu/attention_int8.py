"""Attention over an int8 cache, in whole numbers.

Keys and values have eight bits, values a scale per token and head, keys one for each group of dims. What they are multiplied by is rounded
much finer, so that it adds no error of its own: queries to codes of 14 bits and a sign, a round's weights
(probability times the value's scale) to 16 bits. Both are split into two halves of a byte, each half is a
row of an int8 dot product, and the sums are exact whatever their order.
"""

from __future__ import annotations

from tvm import tirx

from rusteeze.codegen.cpu.attention_shape import PAGE, AttentionShape
from rusteeze.codegen.cpu.attention_state import (
    MOST_REGISTERS,
    MOST_ROWS_AHEAD,
    PAGES_PER_ROUND,
    ROUND,
    Item,
    QueryRounding,
    Registers,
    Span,
    pages_of,
    prefetch_share,
)
from rusteeze.codegen.cpu.codes import as_words, shared_scale, to_codes
from rusteeze.codegen.cpu.emit import (
    LANES,
    Buffer,
    Emitter,
    Expr,
    bits_as,
    convert,
    fma,
    i32,
    minimum,
    reduce_add_int,
    select,
    splat,
)
from rusteeze.codegen.cpu.rope import Heads

HALVES = 2
CACHE_LEVELS = 127
KEY_BIAS = 128
"""Added to the codes of keys, which the dot product wants unsigned."""
QUERY_BITS = 7
"""Of a query's lower half, which is signed; a sum over 1024 dims stays below 2^31."""
QUERY_LEVELS = 127 << QUERY_BITS
WEIGHT_LEVELS = 255 << 8


def _dot4(acc: Expr, unsigned: Expr, signed: Expr) -> Expr:
    return tirx.call_pure_extern("int32x16", "rz_dot4", acc, unsigned, signed)


def round_queries(
    k: Emitter, shape: AttentionShape, queries: Heads, item: Item, factor: Expr
) -> tuple[Buffer, QueryRounding]:
    """Words [rows, 2, D/4] of queries times ``factor``: code = upper * 128 + lower."""
    n, groups = item.count, shape.key_groups
    padded = -(-shape.width // LANES) * LANES
    words = k.local(n * HALVES * padded // 4, "int32", lanes=1)
    padded_rows = -(-n // LANES) * LANES
    rounding = QueryRounding(k.local(n * HALVES * groups, "int32", lanes=1), k.local(padded_rows, lanes=1))
    x = k.local(padded, lanes=1)
    with k.loop(n) as i:
        load_head(k, x, queries, k.let(item.row[i]), k.let(item.head[i]), shape.width, factor)
        parts = [k.let(x.load(i32(c), LANES)) for c in range(0, padded, LANES)]
        scale, inverse = shared_scale(k, parts, QUERY_LEVELS)
        k.store(rounding.scale, i, scale)
        sums = {(h, g): splat(i32(0), LANES) for h in range(HALVES) for g in range(groups)}
        for c, part in enumerate(parts):
            codes = to_codes(k, part, inverse)
            half = splat(i32(1 << (QUERY_BITS - 1)), LANES)
            upper = k.let(tirx.shift_right(codes + half, splat(i32(QUERY_BITS), LANES)))
            lower = k.let(codes - tirx.shift_left(upper, splat(i32(QUERY_BITS), LANES)))
            for h, number in enumerate((upper, lower)):
                group = c * groups // len(parts)
                sums[h, group] = k.let(sums[h, group] + number)
                at = (i * i32(HALVES) + i32(h)) * i32(padded // 4) + i32(c * LANES // 4)
                k.store(words, at, as_words(k, number))
        for (h, g), numbers in sums.items():
            bias = reduce_add_int(numbers) * i32(-KEY_BIAS)
            k.store(rounding.offset, (i * i32(HALVES) + i32(h)) * i32(groups) + i32(g), bias)
    return words, rounding


def load_head(
    k: Emitter, target: Buffer, source: Heads, row: Expr, head: Expr, width: int, factor: Expr | None
) -> None:
    """A head's elements, times ``factor``, and zeros up to a whole vector."""
    if source.in_vectors:
        for c in range(0, width, LANES):
            x = source.vector(row, head, c)
            k.store(target, i32(c), x if factor is None else x * splat(factor, LANES))
        return
    if width % LANES:
        k.store(target, i32(width // LANES * LANES), splat(0.0, LANES))
    with k.loop(width) as d:
        x = source.element(row, head, d)
        k.store(target, d, x if factor is None else x * factor)


def score(
    k: Emitter, shape: AttentionShape, tables: Buffer, keys: Buffer, values: Buffer, item: Item,
    base: Expr, state: Registers,
) -> None:  # fmt: skip
    """q . k for every row and the round's 64 keys, group by group; attention_round.py has it for other
    caches."""
    assert state.rounding is not None
    n, steps, groups = item.count, shape.key_steps, shape.key_groups
    padded = -(-shape.width // LANES) * LANES // 4
    together = next(t for t in (PAGES_PER_ROUND, 2, 1) if n * HALVES * t <= MOST_REGISTERS or t == 1)
    head = k.let(item.span.kv_head * i32(shape.key_head_bytes // 4))
    with k.loop(PAGES_PER_ROUND // together) as part:
        first = k.let(part * i32(together))
        views = pages_of(k, tables, keys, shape.key_page_bytes, item.span, base, first, together)
        ahead = []
        if n <= MOST_ROWS_AHEAD:
            ahead = pages_of(k, tables, values, shape.value_page_bytes, item.span, base, first, together)
        prefetch_share(k, ahead, item.span, None, steps, shape.value_head_bytes)
        regs = k.local(n * HALVES * together, "int32")
        with k.loop(groups) as g:
            for r in range(n * HALVES):
                offset = splat(k.let(state.rounding.offset[i32(r * groups) + g]), LANES)
                for j in range(together):
                    k.store(regs, r * together + j, offset)
            with k.loop(steps // groups) as s:
                d = k.let(g * i32(steps // groups) + s)
                at = k.let(head + (d + i32(groups)) * i32(PAGE))
                vectors = [k.let(view.load(at, LANES)) for view in views]
                prefetch_share(k, ahead, item.span, d, steps, shape.value_head_bytes)
                for r in range(n * HALVES):
                    query = splat(k.let(state.scaled[i32(r * padded) + d]), LANES)
                    for j, vector in enumerate(vectors):
                        k.store(regs, r * together + j, _dot4(regs[r * together + j], vector, query))
            place = k.let(head + g * i32(PAGE))
            scales = [k.let(bits_as(view.load(place, LANES), "float32")) for view in views]
            for i in range(n):
                scale = splat(k.let(state.rounding.scale[i32(i)]), LANES)
                for j in range(together):
                    upper, lower = (regs[(i * HALVES + h) * together + j] for h in range(HALVES))
                    total = convert(_joined(upper, lower, QUERY_BITS), "float32")
                    target = k.let(i32(i * ROUND) + (first + i32(j)) * i32(PAGE))
                    before = select(g > i32(0), state.scores.load(target, LANES), splat(0.0, LANES))
                    k.store(state.scores, target, fma(total, k.let(scales[j] * scale), before))


def _joined(upper: Expr, lower: Expr, bits: int) -> Expr:
    return tirx.shift_left(upper, splat(i32(bits), LANES)) + lower


def value_scales(
    k: Emitter, shape: AttentionShape, tables: Buffer, values: Buffer, span: Span, base: Expr
) -> list[Expr]:
    """The scales of the round's values, a vector for each page."""
    head = k.let(span.kv_head * i32(shape.value_head_bytes // 4))
    views = pages_of(k, tables, values, shape.value_page_bytes, span, base, i32(0), PAGES_PER_ROUND)
    return [k.let(bits_as(view.load(head, LANES), "float32")) for view in views]


def park(k: Emitter, state: Registers, i: Expr, parts: list[Expr], scales: list[Expr]) -> None:
    """A row's probabilities times the scales of their values, as codes. Where nothing was written the
    scale may be NaN: what weighs nothing stays 0. A NaN among probabilities reaches the result through their
    sum."""
    zero = splat(0.0, LANES)
    weights = [
        k.let(select(p > zero, p * scale, zero)) for p, scale in zip(parts, scales, strict=True)
    ]
    scale, inverse = shared_scale(k, weights, WEIGHT_LEVELS)
    k.store(state.weight_scale, i, scale)
    words = ROUND // 4
    for u, weight in enumerate(weights):
        codes = to_codes(k, weight, inverse)
        for h, half in enumerate((tirx.shift_right(codes, splat(i32(8), LANES)), codes)):
            at = (i * i32(HALVES) + i32(h)) * i32(words) + i32(u * PAGE // 4)
            k.store(state.probabilities, at, tirx.reinterpret("float32x4", as_words(k, half)))


def add_columns(
    k: Emitter, shape: AttentionShape, tables: Buffer, values: Buffer, item: Item, state: Registers,
    first_page: Expr, pages: Expr, valid: Expr, column: Expr, vectors: int,
) -> None:  # fmt: skip
    """acc = acc * shrink + w @ V for some vectors of a value row."""
    n, width = item.count, shape.padded_value_width
    words = ROUND // 4
    regs = k.local(n * HALVES * vectors, "int32")
    for r in range(n * HALVES * vectors):
        k.store(regs, r, splat(i32(0), LANES))
    start = k.let(item.span.kv_head * i32(shape.value_head_bytes // 4) + i32(shape.value_groups * PAGE) + column)
    with k.loop(pages) as u:
        page = k.let(tables[first_page + u])
        view = k.offset(values, page, shape.value_page_bytes, values.dtype)
        tokens = k.let(minimum(valid - u * i32(PAGE), i32(PAGE)))
        first = k.let(u * i32(shape.value_steps))
        with k.loop(tirx.Div(tokens + i32(3), i32(4))) as t:
            at = k.let(start + t * i32(width))
            loaded = [k.let(view.load(at + i32(j * LANES), LANES)) for j in range(vectors)]
            for r in range(n * HALVES):
                bits = tirx.reinterpret("int32", state.probabilities[i32(r * words) + first + t])
                weight = splat(k.let(bits), LANES)
                for j, vector in enumerate(loaded):
                    k.store(regs, r * vectors + j, _dot4(regs[r * vectors + j], weight, vector))
    for i in range(n):
        shrink = splat(k.let(state.shrink[i]), LANES)
        scale = splat(k.let(state.weight_scale[i]), LANES)
        for j in range(vectors):
            upper, lower = (regs[(i * HALVES + h) * vectors + j] for h in range(HALVES))
            at = k.let(column + i32(i * width + j * LANES))
            old = k.let(state.acc.load(at, LANES) * shrink)
            k.store(state.acc, at, fma(convert(_joined(upper, lower, 8), "float32"), scale, old))
