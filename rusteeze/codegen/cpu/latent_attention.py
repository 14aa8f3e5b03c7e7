"""Paged causal attention of many query heads over one key head whose first elements are the values.

A vector's lanes are query rows: the heads of one token (or, where they are few, of several), so that a
word of a key is multiplied with all of them at once and the softmax needs no sum across lanes. As in
attention.py, every row goes through the keys in the same rounds of 64 with an online softmax: its
result does not depend on what else is in the tile or in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from rusteeze.artifact.contract import TILE_FIELDS
from rusteeze.codegen.access import Access
from rusteeze.codegen.cpu.activations import GROUP, RoundedRows
from rusteeze.codegen.cpu.attention import AttentionOutput
from rusteeze.codegen.cpu.attention_state import FLOOR, NEVER, ROUND
from rusteeze.codegen.cpu.emit import (
    LANES,
    STEP_TABLE_WIDTH,
    STEP_TILES,
    Buffer,
    Emitter,
    Expr,
    f32,
    fma,
    i32,
    maximum,
    minimum,
    select,
    splat,
)
from rusteeze.codegen.cpu.latent_cache import in_words, word_of, word_type
from rusteeze.codegen.cpu.latent_shape import PAGE, LatentShape
from rusteeze.codegen.cpu.rope import Heads, Rotation
from rusteeze.codegen.cpu.vector_math import LOG2E, exp2_falling

ROWS_TOGETHER = 8
"""Query rows whose results for a vector of values are in registers at the same time."""
CACHE_LINE = 64


@dataclass(frozen=True)
class Item:
    """One work item: up to 16 query rows of one sequence, one a lane. Lanes beyond ``used`` repeat the
    last token or head and are not written."""

    row: Buffer  # [16] of the step's tokens
    head: Buffer
    position: Expr  # vector
    used: Expr
    table: Expr  # index of the sequence's first entry in the block table
    first_position: Expr
    last_position: Expr


@dataclass(frozen=True)
class State:
    """The online softmax so far, on the stack."""

    queries: Buffer  # [words of a key][16] scaled, as words of the cache's type
    scores: Buffer  # [64][16]
    weights: Buffer  # [64][16], or [32][16] pairs of tokens
    top: Buffer  # [16] largest logit so far
    shrink: Buffer  # [16] what older sums are multiplied by
    total: Buffer  # [16] sum of the exponentials
    acc: Buffer  # [16][vectors of values][elements of a word][16]


def attend_latents(
    k: Emitter, shape: LatentShape, query: Access, rotation: Rotation | None, output: AttentionOutput
) -> None:
    """Arguments: query, [positions, cos, sin], tiles, block table, pages, output [T, H * DV] (or its
    rounded arrays)."""
    queries = Heads(k, query, rotation)
    tiles, tables, pages = k.pointer("int32"), k.pointer("int32"), k.pointer(word_type(shape))
    target: Buffer | RoundedRows
    if output.kind:
        target = RoundedRows.argument(k, output.kind, shape.heads * shape.value_width)
    else:
        target = k.pointer("float32")
    items = k.let(k.step(STEP_TILES) * i32(shape.chunks))
    table_width = k.step(STEP_TABLE_WIDTH)
    with k.loop(k.let(tirx.Div(items - k.tid + k.nth - i32(1), k.nth))) as n:
        item = _item(k, shape, tiles, k.let(n * k.nth + k.tid), table_width)
        state = _fresh_state(k, shape, queries, item)
        with k.loop(tirx.Div(item.last_position, i32(ROUND)) + i32(1)) as r:
            base = k.let(r * i32(ROUND))
            _score(k, shape, tables, pages, item, base, state)
            _weigh(k, shape, item, base, state)
            _add_values(k, shape, tables, pages, item, base, state)
        _finish(k, shape, item, state, target, output)


def _item(k: Emitter, shape: LatentShape, tiles: Buffer, number: Expr, table_width: Expr) -> Item:
    tile = k.let(tirx.Div(number, i32(shape.chunks)) * i32(TILE_FIELDS))
    chunk = k.let(tirx.Mod(number, i32(shape.chunks)) * i32(shape.heads_per_item))
    first, count, position, sequence = (k.let(tiles[tile + i32(j)]) for j in range(TILE_FIELDS))
    row, head, positions = (k.local(LANES, "int32", lanes=1) for _ in range(3))
    with k.loop(LANES) as i:
        token = k.let(minimum(tirx.Div(i, i32(shape.heads_per_item)), count - i32(1)))
        k.store(row, i, first + token)
        k.store(head, i, minimum(chunk + tirx.Mod(i, i32(shape.heads_per_item)), i32(shape.heads - 1)))
        k.store(positions, i, position + token)
    used = k.let(minimum(count * i32(shape.heads_per_item), i32(LANES)))
    return Item(
        row, head, k.let(positions.load(i32(0), LANES)), used, k.let(sequence * table_width), position,
        k.let(position + count - i32(1)),
    )  # fmt: skip


def _fresh_state(k: Emitter, shape: LatentShape, queries: Heads, item: Item) -> State:
    acc_vectors = LANES * shape.value_vectors * shape.per_word
    state = State(
        k.local(shape.key_words * LANES, word_type(shape), lanes=1), k.local(ROUND * LANES, lanes=1),
        k.local(ROUND * LANES // shape.per_word, word_type(shape), lanes=1),
        k.local(LANES, lanes=1), k.local(LANES, lanes=1), k.local(LANES, lanes=1),
        k.local(acc_vectors * LANES, lanes=1),
    )  # fmt: skip
    factor = f32(shape.scale * LOG2E)
    with k.loop(LANES) as i:
        row, head = k.let(item.row[i]), k.let(item.head[i])
        if queries.in_vectors:
            for c in range(0, shape.width, LANES):
                words = in_words(shape, k.let(queries.vector(row, head, c) * splat(factor, LANES)))
                k.store(state.queries, i32(c // shape.per_word * LANES) + i, words, stride=LANES)
        else:
            with k.loop(shape.key_words) as w:
                k.store(state.queries, w * i32(LANES) + i, word_of(k, shape, queries, row, head, w, factor))
    k.store(state.top, i32(0), splat(FLOOR, LANES))
    k.store(state.total, i32(0), splat(0.0, LANES))
    with k.loop(acc_vectors) as i:
        k.store(state.acc, i * i32(LANES), splat(0.0, LANES))
    return state


def _page(
    k: Emitter, shape: LatentShape, tables: Buffer, pages: Buffer, item: Item, number: Expr
) -> Buffer:
    """A sequence's page; behind its last one, that one."""
    last = tirx.Div(item.last_position, i32(PAGE))
    index = k.let(tables[item.table + minimum(number, last)])
    return k.offset(pages, index, shape.page_bytes, pages.dtype)


def _multiply_add(shape: LatentShape, acc: Expr, scalar: Expr, vector: Expr) -> Expr:
    """acc + scalar * vector, or the dot product of pairs."""
    if shape.cache == "bf16":
        return tirx.call_pure_extern("float32x16", "rz_dot_bf16", acc, splat(scalar, LANES), vector)
    return fma(splat(scalar, LANES), vector, acc)


def _score(
    k: Emitter, shape: LatentShape, tables: Buffer, pages: Buffer, item: Item, base: Expr, state: State
) -> None:
    """k . q for the round's 64 keys and all rows. Pages behind the last one repeat it: their keys are
    hidden later. The next page is asked for on the way."""
    lines = -(-shape.page_bytes // CACHE_LINE // shape.key_words)
    with k.loop(ROUND // PAGE) as u:
        number = k.let(tirx.Div(base, i32(PAGE)) + u)
        page = _page(k, shape, tables, pages, item, number)
        following = _page(k, shape, tables, pages, item, number + i32(1))
        regs = k.local(PAGE)
        for t in range(PAGE):
            k.store(regs, t, splat(0.0, LANES))
        with k.loop(shape.key_words) as w:
            query = k.let(state.queries.load(w * i32(LANES), LANES))
            for line in range(lines):
                at = k.let((w * i32(lines) + i32(line)) * i32(CACHE_LINE // 4))
                k.prefetch(following, at, 0)
            for t in range(PAGE):
                key = k.let(page[i32(t * shape.row_words) + w])
                k.store(regs, t, _multiply_add(shape, regs[t], key, query))
        for t in range(PAGE):
            k.store(state.scores, (u * i32(PAGE) + i32(t)) * i32(LANES), regs[t])


def _weigh(k: Emitter, shape: LatentShape, item: Item, base: Expr, state: State) -> None:
    """The round's exponentials, their sum and the largest logit. Hidden keys weigh exactly 0."""
    with k.when(base + i32(ROUND - 1) > item.first_position), k.loop(ROUND) as t:
        seen = splat(base + t, LANES) <= item.position
        score = state.scores.load(t * i32(LANES), LANES)
        k.store(state.scores, t * i32(LANES), select(seen, score, splat(NEVER, LANES)))
    most, sums = k.local(1), k.local(1)
    old = k.let(state.top.load(i32(0), LANES))
    k.store(most, 0, old)
    with k.loop(ROUND) as t:
        k.store(most, 0, maximum(most[0], state.scores.load(t * i32(LANES), LANES)))
    now = k.let(most[0])
    shrink = exp2_falling(k, old - now)
    k.store(state.shrink, i32(0), shrink)
    k.store(state.top, i32(0), now)
    k.store(sums, 0, splat(0.0, LANES))
    with k.loop(ROUND // shape.per_word) as p:
        parts = []
        for j in range(shape.per_word):
            at = (p * i32(shape.per_word) + i32(j)) * i32(LANES)
            parts.append(exp2_falling(k, state.scores.load(at, LANES) - now))
            k.store(sums, 0, sums[0] + parts[-1])
        k.store(state.weights, p * i32(LANES), parts[0] if len(parts) == 1 else _pairs(*parts))
    total = state.total.load(i32(0), LANES)
    k.store(state.total, i32(0), fma(total, shrink, sums[0]))


def _pairs(first: Expr, second: Expr) -> Expr:
    low, high = (tirx.call_pure_extern("int32x16", "rz_to_bf16", p) for p in (first, second))
    return tirx.bitwise_or(low, tirx.shift_left(high, splat(i32(16), LANES)))


def _add_values(
    k: Emitter, shape: LatentShape, tables: Buffer, pages: Buffer, item: Item, base: Expr, state: State
) -> None:
    """acc = acc * shrink + p @ V over the round's written tokens, a vector of words at a time."""
    valid = k.let(minimum(item.last_position + i32(1) - base, i32(ROUND)))
    num_pages = k.let(tirx.Div(valid + i32(PAGE - 1), i32(PAGE)))
    row_blocks = k.let(tirx.Div(item.used + i32(ROWS_TOGETHER - 1), i32(ROWS_TOGETHER)))
    row_size = shape.value_vectors * shape.per_word * LANES
    with k.loop(shape.value_vectors) as c, k.loop(row_blocks) as block:
        first_row = k.let(block * i32(ROWS_TOGETHER))
        at = k.let(first_row * i32(row_size) + c * i32(shape.per_word * LANES))
        regs = k.local(ROWS_TOGETHER * shape.per_word)
        for i in range(ROWS_TOGETHER):
            shrink = splat(k.let(state.shrink[first_row + i32(i)]), LANES)
            for j in range(shape.per_word):
                old = state.acc.load(at + i32(i * row_size + j * LANES), LANES)
                k.store(regs, i * shape.per_word + j, old * shrink)
        with k.loop(num_pages) as u:
            page = _page(k, shape, tables, pages, item, k.let(tirx.Div(base, i32(PAGE)) + u))
            tokens = k.let(minimum(valid - u * i32(PAGE), i32(PAGE)))
            with k.loop(tirx.Div(tokens + i32(shape.per_word - 1), i32(shape.per_word))) as t:
                values = _values(k, shape, page, t, tokens, c)
                step = k.let(u * i32(PAGE // shape.per_word) + t)
                for i in range(ROWS_TOGETHER):
                    weight = k.let(state.weights[step * i32(LANES) + first_row + i32(i)])
                    for j, vector in enumerate(values):
                        r = i * shape.per_word + j
                        k.store(regs, r, _multiply_add(shape, regs[r], weight, vector))
        for i in range(ROWS_TOGETHER):
            for j in range(shape.per_word):
                k.store(state.acc, at + i32(i * row_size + j * LANES), regs[i * shape.per_word + j])


def _values(
    k: Emitter, shape: LatentShape, page: Buffer, t: Expr, tokens: Expr, c: Expr
) -> list[Expr]:
    """A vector of a token's values; or of a pair of tokens, words that hold an element of both: first
    the even elements, then the odd ones. A last token without partner has itself, whose weight is 0."""
    column = k.let(c * i32(LANES))
    if shape.cache == "f32":
        return [k.let(page.load(t * i32(shape.row_words) + column, LANES))]
    first = k.let(t * i32(2))
    second = k.let(minimum(first + i32(1), tokens - i32(1)))
    a, b = (k.let(page.load(i * i32(shape.row_words) + column, LANES)) for i in (first, second))
    sixteen, low, high = (splat(i32(n), LANES) for n in (16, 0xFFFF, -0x10000))
    # the shift keeps the sign, which the mask takes away
    odd = tirx.bitwise_and(tirx.shift_right(a, sixteen), low)
    return [
        k.let(tirx.bitwise_or(tirx.bitwise_and(a, low), tirx.shift_left(b, sixteen))),
        k.let(tirx.bitwise_or(odd, tirx.bitwise_and(b, high))),
    ]


def _finish(
    k: Emitter, shape: LatentShape, item: Item, state: State, target: Buffer | RoundedRows,
    output: AttentionOutput,
) -> None:  # fmt: skip
    """Divide by the sums and write. Heads are whole groups of rounding where results are rounded."""
    width = shape.value_width
    row_size = shape.value_vectors * shape.per_word * LANES
    with k.loop(item.used) as i:
        inverse = splat(k.let(f32(1) / state.total[i]), LANES)
        row, head = k.let(item.row[i]), k.let(item.head[i])
        start = k.let(row * i32(output.row) + head * i32(width))
        for first in range(0, width, GROUP):
            at = k.let(i * i32(row_size) + i32(first))
            vectors = range(0, min(GROUP, row_size - first), LANES)
            pair = [k.let(state.acc.load(at + i32(j), LANES) * inverse) for j in vectors]
            if shape.cache == "bf16":
                pair = _in_order(k, *pair)
            if isinstance(target, RoundedRows):
                target.store_group(k, *pair, row, head * i32(width // GROUP) + i32(first // GROUP))
                continue
            for j, vector in enumerate(pair):
                _store(k, target, start + i32(first + j * LANES), vector, width - first - j * LANES)


def _in_order(k: Emitter, even: Expr, odd: Expr) -> list[Expr]:
    """Elements 0, 2, 4, … and 1, 3, 5, … of 32 as two vectors of consecutive ones."""
    order = [i32(n // 2 + (LANES if n % 2 else 0)) for n in range(2 * LANES)]
    return [k.let(tirx.Shuffle([even, odd], order[j : j + LANES])) for j in (0, LANES)]


def _store(k: Emitter, target: Buffer, at: Expr, vector: Expr, count: int) -> None:
    """The first ``count`` elements of a vector, which may be all, some or none."""
    if count >= LANES:
        k.store(target, at, vector)
    elif count > 0:
        base = k.let(at)
        parked = k.local(LANES, lanes=1)
        k.store(parked, i32(0), vector)
        with k.loop(count) as d:
            k.store(target, base + d, parked[d])
