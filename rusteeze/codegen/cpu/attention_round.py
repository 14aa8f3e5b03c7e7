"""One round of attention: 64 keys for all query rows of a work item.

Online softmax (Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022): the largest logit so far,
the sum of exponentials and the weighted sum of values are kept per row and rescaled when the largest
logit grows. A hidden key's weight is exactly 0, so that it leaves no trace whatever lies in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from rusteeze.codegen.cpu.attention_shape import PAGE, AttentionShape
from rusteeze.codegen.cpu.emit import (
    LANES,
    Buffer,
    Emitter,
    Expr,
    fma,
    i32,
    maximum,
    minimum,
    ramp,
    reduce_max,
    select,
    splat,
)
from rusteeze.codegen.cpu.vector_math import LOG2E, exp2_falling, tanh

PAGES_PER_ROUND = 4
ROUND = PAGE * PAGES_PER_ROUND
MOST_REGISTERS = 24
MOST_ROWS_AHEAD = 8
CACHE_LINE = 64
NEVER = -1e30
"""The logit of a hidden key."""
FLOOR = -1e29
"""The largest logit before any key was seen: far above NEVER, so that hidden keys weigh nothing."""


@dataclass(frozen=True)
class Span:
    """The part of a cache that a work item reads: one key head, from a round to the last position."""

    kv_head: Expr
    table: Expr  # index of the sequence's first entry in the block table
    first_position: Expr  # of the item's tokens
    last_position: Expr
    first_round: Expr


@dataclass(frozen=True)
class Item:
    """One work item: its query rows (how many is static) and what they read.

    Arrays have an entry per query row; rows are looped over, not unrolled, wherever registers allow."""

    span: Span
    count: int
    row: Buffer  # of the step's tokens
    head: Buffer
    position: Buffer


@dataclass
class Registers:
    """State of the online softmax on the stack (first-level cache), per query row."""

    scaled: Buffer  # [rows, D] queries, or pairs of them as words
    scores: Buffer  # [rows, 64]
    probabilities: Buffer  # [rows, 64], or pairs as words
    top: Buffer  # [rows] largest logit so far
    now: Buffer  # [rows] the same with this round
    shrink: Buffer  # [rows] what older sums are multiplied by
    total: Buffer  # [rows] x 16 lanes: sum of the exponentials so far
    acc: Buffer  # [rows, DVp]


def fresh_registers(k: Emitter, shape: AttentionShape, scaled: Buffer, rows: int) -> Registers:
    """Empty sums. What is kept per row is computed 16 rows at a time."""
    padded = -(-rows // LANES) * LANES
    state = Registers(
        scaled, k.local(rows * ROUND, lanes=1), k.local(rows * ROUND, lanes=1),
        k.local(padded, lanes=1), k.local(padded, lanes=1), k.local(padded, lanes=1),
        k.local(rows * LANES, lanes=1), k.local(rows * shape.padded_value_width, lanes=1),
    )  # fmt: skip
    with k.loop(padded // LANES) as i:
        for buffer in (state.top, state.now):
            k.store(buffer, i * i32(LANES), splat(FLOOR, LANES))
    for buffer, size in ((state.total, LANES), (state.acc, shape.padded_value_width)):
        with k.loop(rows * size // LANES) as i:
            k.store(buffer, i * i32(LANES), splat(0.0, LANES))
    return state


def attend_round(
    k: Emitter, shape: AttentionShape, tables: Buffer, keys: Buffer, values: Buffer, item: Item,
    base: Expr, state: Registers,
) -> None:  # fmt: skip
    """The keys from ``base`` on."""
    _score(k, shape, tables, keys, values, item, base, state)
    partly = base + i32(ROUND - 1) > item.span.first_position
    if shape.window:
        partly = tirx.any(partly, base <= item.span.last_position - i32(shape.window))
    hides = k.let(partly)
    for hidden in (False, True):
        with k.when(hides if hidden else tirx.Not(hides)), k.loop(item.count) as i:
            _largest(k, shape, item, base, state, i, hidden)
    for first in range(0, item.count, LANES):
        now = k.let(state.now.load(i32(first), LANES))
        shrink = exp2_falling(k, state.top.load(i32(first), LANES) - now)
        k.store(state.shrink, i32(first), shrink)
        k.store(state.top, i32(first), now)
    with k.loop(item.count) as i:
        _weigh(k, shape, state, i)
    _add_values(k, shape, tables, keys, values, item, base, state)


def _dot_bf16(acc: Expr, a: Expr, b: Expr) -> Expr:
    return tirx.call_pure_extern("float32x16", "rz_dot_bf16", acc, a, b)


def _multiply_add(shape: AttentionShape, acc: Expr, scalar: Expr, vector: Expr) -> Expr:
    """acc + scalar * vector, or the dot product of pairs."""
    if shape.cache == "bf16":
        return _dot_bf16(acc, splat(scalar, LANES), vector)
    return fma(splat(scalar, LANES), vector, acc)


def _pages(
    k: Emitter, tables: Buffer, pool: Buffer, page_bytes: int, span: Span, base: Expr, first: Expr,
    count: int,
) -> list[Buffer]:  # fmt: skip
    """Pages ``first`` … of the round that begins at ``base``; behind a sequence's last page, that one."""
    last_page = k.let(tirx.Div(span.last_position, i32(PAGE)))
    views = []
    for j in range(count):
        number = minimum(tirx.Div(base, i32(PAGE)) + first + i32(j), last_page)
        views.append(k.offset(pool, k.let(tables[span.table + number]), page_bytes, pool.dtype))
    return views


def _prefetch_share(
    k: Emitter, pages: list[Buffer], span: Span, step: Expr, steps: int, head_bytes: int
) -> None:
    """Ask for one of ``steps`` equal shares of the head's part of some pages."""
    lines = -(-head_bytes // CACHE_LINE // steps)
    for page in pages:
        for line in range(lines):
            word = span.kv_head * i32(head_bytes // 4) + (step * i32(lines) + i32(line)) * i32(CACHE_LINE // 4)
            k.prefetch(page, k.let(word), 0)


def _score(
    k: Emitter, shape: AttentionShape, tables: Buffer, keys: Buffer, values: Buffer, item: Item,
    base: Expr, state: Registers,
) -> None:  # fmt: skip
    """q . k for every row and the round's 64 keys. Pages behind the last one repeat it: their keys are
    hidden later."""
    n = item.count
    steps = shape.width if shape.cache == "f32" else shape.width // 2
    together = PAGES_PER_ROUND if n * PAGES_PER_ROUND <= MOST_REGISTERS else 2
    with k.loop(PAGES_PER_ROUND // together) as part:
        first = k.let(part * i32(together))
        views = _pages(k, tables, keys, shape.key_page_bytes, item.span, base, first, together)
        ahead = []
        if n <= MOST_ROWS_AHEAD:
            # a decoding row is done with a page sooner than the next one arrives from memory
            ahead = _pages(k, tables, values, shape.value_page_bytes, item.span, base, first, together)
        regs = k.local(n * together)
        for i in range(n * together):
            k.store(regs, i, splat(0.0, LANES))
        with k.loop(steps) as d:
            at = k.let((item.span.kv_head * i32(steps) + d) * i32(PAGE))
            vectors = [k.let(view.load(at, LANES)) for view in views]
            if ahead:
                _prefetch_share(k, ahead, item.span, d, steps, shape.value_head_bytes)
            for i in range(n):
                query = k.let(state.scaled[i32(i * steps) + d])
                for j, vector in enumerate(vectors):
                    r = i * together + j
                    k.store(regs, r, _multiply_add(shape, regs[r], query, vector))
        for i in range(n):
            for j in range(together):
                target = i32(i * ROUND) + (first + i32(j)) * i32(PAGE)
                k.store(state.scores, target, regs[i * together + j])


def _largest(
    k: Emitter, shape: AttentionShape, item: Item, base: Expr, state: Registers, i: Expr, hidden: bool
) -> None:
    """A row's logits (softcap, hidden keys) and the largest of all so far."""
    logits = []
    for u in range(PAGES_PER_ROUND):
        at = k.let(i * i32(ROUND) + i32(u * PAGE))
        score = k.let(state.scores.load(at, LANES))
        if shape.softcap:
            bent = tanh(k, score * splat(1 / shape.softcap, LANES))
            score = k.let(bent * splat(shape.softcap * LOG2E, LANES))
        if hidden:
            key, position = k.let(ramp(base + i32(u * PAGE), LANES)), k.let(item.position[i])
            seen = key <= splat(position, LANES)
            if shape.window:
                seen = tirx.And(seen, key > splat(position - i32(shape.window), LANES))
            score = k.let(select(seen, score, splat(NEVER, LANES)))
        if shape.softcap or hidden:
            k.store(state.scores, at, score)
        logits.append(score)
    both = maximum(maximum(logits[0], logits[1]), maximum(logits[2], logits[3]))
    k.store(state.now, i, maximum(state.top[i], reduce_max(k.let(both))))


def _weigh(k: Emitter, shape: AttentionShape, state: Registers, i: Expr) -> None:
    """A row's exponentials, and their sum so far."""
    now = k.let(state.now[i])
    parts = []
    for u in range(PAGES_PER_ROUND):
        logit = state.scores.load(i * i32(ROUND) + i32(u * PAGE), LANES)
        parts.append(exp2_falling(k, logit - splat(now, LANES)))
        _park(k, shape, state.probabilities, i, u, parts[-1])
    total = k.let(state.total.load(i * i32(LANES), LANES))
    added = (parts[0] + parts[1]) + (parts[2] + parts[3])
    k.store(state.total, i * i32(LANES), fma(total, splat(state.shrink[i], LANES), added))


def _park(k: Emitter, shape: AttentionShape, probabilities: Buffer, i: Expr, u: int, p: Expr) -> None:
    if shape.cache == "f32":
        k.store(probabilities, i * i32(ROUND) + i32(u * PAGE), p)
        return
    # 16 bf16 in the space of 8 floats: read back as 32-bit pairs
    words = tirx.call_pure_extern("int32x8", "rz_pack_bf16", p)
    at = i * i32(ROUND // 2) + i32(u * PAGE // 2)
    k.store(probabilities, at, tirx.reinterpret("float32x8", words))


def _add_values(
    k: Emitter, shape: AttentionShape, tables: Buffer, keys: Buffer, values: Buffer, item: Item,
    base: Expr, state: Registers,
) -> None:  # fmt: skip
    """acc = acc * shrink + p @ V over the round's written tokens (pairs of tokens for bf16)."""
    valid = k.let(minimum(item.span.last_position + i32(1) - base, i32(ROUND)))
    pages = k.let(tirx.Div(valid + i32(PAGE - 1), i32(PAGE)))
    first_page = k.let(item.span.table + tirx.Div(base, i32(PAGE)))
    if item.count <= MOST_ROWS_AHEAD:
        _prefetch_keys(k, shape, tables, keys, item.span, base + i32(ROUND))
    for parts, width in _column_parts(shape, item.count):
        with k.loop(len(parts)) as part:
            column = k.let(part * i32(width * LANES) + i32(parts.start * LANES))
            _add_columns(
                k, shape, tables, values, item, state, first_page, pages, valid, column, width
            )  # fmt: skip


def _prefetch_keys(
    k: Emitter, shape: AttentionShape, tables: Buffer, keys: Buffer, span: Span, base: Expr
) -> None:
    """Ask for the head's keys of the round that begins at ``base``, if there is one."""
    with k.when(base <= span.last_position), k.loop(PAGES_PER_ROUND) as u:
        pages = _pages(k, tables, keys, shape.key_page_bytes, span, base, u, 1)
        _prefetch_share(k, pages, span, i32(0), 1, shape.key_head_bytes)


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
    k: Emitter, shape: AttentionShape, tables: Buffer, values: Buffer, item: Item, state: Registers,
    first_page: Expr, pages: Expr, valid: Expr, column: Expr, vectors: int,
) -> None:  # fmt: skip
    pairs = shape.cache == "bf16"
    n, width = item.count, shape.padded_value_width
    steps, per_row = (PAGE // 2, ROUND // 2) if pairs else (PAGE, ROUND)
    regs = k.local(n * vectors)
    for i in range(n):
        shrink = splat(k.let(state.shrink[i]), LANES)
        for j in range(vectors):
            old = state.acc.load(column + i32(i * width + j * LANES), LANES)
            k.store(regs, i * vectors + j, old * shrink)
    with k.loop(pages) as u:
        page = k.let(tables[first_page + u])
        view = k.offset(values, page, shape.value_page_bytes, values.dtype)
        tokens = k.let(minimum(valid - u * i32(PAGE), i32(PAGE)))
        count = k.let(tirx.Div(tokens + i32(1), i32(2))) if pairs else tokens
        first = k.let(u * i32(steps))
        with k.loop(count) as t:
            at = k.let((item.span.kv_head * i32(steps) + t) * i32(width) + column)
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
