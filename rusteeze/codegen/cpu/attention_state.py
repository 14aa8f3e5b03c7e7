"""What a round of attention works on: a work item, its state on the stack, and the pages that it reads."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from rusteeze.codegen.cpu.attention_shape import PAGE, AttentionShape
from rusteeze.codegen.cpu.emit import LANES, Buffer, Emitter, Expr, i32, minimum, splat

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


@dataclass(frozen=True)
class QueryRounding:
    """Beside the codes of queries for an int8 cache (attention_int8.py), per query row."""

    offset: Buffer  # [rows, 2, groups] what the keys' bias adds to each half
    scale: Buffer  # [rows]


@dataclass
class Registers:
    """State of the online softmax on the stack (first-level cache), per query row."""

    scaled: Buffer  # [rows, D] queries, or pairs of them as words, or two rows of codes, four to a word
    rounding: QueryRounding | None
    scores: Buffer  # [rows, 64]
    probabilities: Buffer  # [rows, 64] as far as they are needed: floats, pairs, or two rows of codes
    weight_scale: Buffer  # [rows] of the codes of probabilities
    top: Buffer  # [rows] largest logit so far
    now: Buffer  # [rows] the same with this round
    shrink: Buffer  # [rows] what older sums are multiplied by
    total: Buffer  # [rows] x 16 lanes: sum of the exponentials so far
    acc: Buffer  # [rows, DVp]


def fresh_registers(
    k: Emitter, shape: AttentionShape, scaled: Buffer, rounding: QueryRounding | None, rows: int
) -> Registers:
    """Empty sums. What is kept per row is computed 16 rows at a time."""
    padded = -(-rows // LANES) * LANES
    state = Registers(
        scaled, rounding, k.local(rows * ROUND, lanes=1), k.local(rows * ROUND, lanes=1),
        k.local(padded, lanes=1),
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


def pages_of(
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


def prefetch_share(
    k: Emitter, pages: list[Buffer], span: Span, step: Expr | None, steps: int, head_bytes: int
) -> None:
    """Ask for one of ``steps`` equal shares of the head's part of some pages; without a step for what is
    left over by them."""
    lines = -(-head_bytes // CACHE_LINE)
    share = lines // steps
    head = span.kv_head * i32(head_bytes // 4)
    for page in pages:
        for line in range(share) if step is not None else range(share * steps, lines):
            at = i32(line) if step is None else step * i32(share) + i32(line)
            k.prefetch(page, k.let(head + at * i32(CACHE_LINE // 4)), 0)


def prefetch_keys(
    k: Emitter, shape: AttentionShape, tables: Buffer, keys: Buffer, span: Span, base: Expr
) -> None:
    """Ask for the head's keys of the round that begins at ``base``, if there is one."""
    with k.when(base <= span.last_position), k.loop(PAGES_PER_ROUND) as u:
        pages = pages_of(k, tables, keys, shape.key_page_bytes, span, base, u, 1)
        prefetch_share(k, pages, span, i32(0), 1, shape.key_head_bytes)


def column_parts(shape: AttentionShape, rows: int) -> list[tuple[range, int]]:
    """The vectors of a value row in equal parts that fit the registers, and what is left."""
    vectors = shape.padded_value_width // LANES
    width = max(1, min(vectors, MOST_REGISTERS // rows))
    whole = vectors // width
    parts = [(range(0, whole * width, width), width)]
    if vectors % width:
        parts.append((range(whole * width, vectors, vectors % width), vectors % width))
    return parts
