"""One round of attention: 64 keys for all query rows of a work item.

Online softmax (Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022): the largest logit so far,
the sum of exponentials and the weighted sum of values are kept per row and rescaled when the largest
logit grows. A hidden key's weight is exactly 0, so that it leaves no trace whatever lies in the cache.
"""

from __future__ import annotations

from tvm import tirx

from rusteeze.codegen.cpu import attention_int8
from rusteeze.codegen.cpu.attention_shape import PAGE, AttentionShape
from rusteeze.codegen.cpu.attention_state import (
    MOST_REGISTERS,
    MOST_ROWS_AHEAD,
    NEVER,
    PAGES_PER_ROUND,
    ROUND,
    Item,
    Registers,
    column_parts,
    pages_of,
    prefetch_keys,
    prefetch_share,
)
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


def attend_round(
    k: Emitter, shape: AttentionShape, tables: Buffer, keys: Buffer, values: Buffer, item: Item,
    base: Expr, state: Registers,
) -> None:  # fmt: skip
    """The keys from ``base`` on."""
    score = attention_int8.score if shape.cache == "int8" else _score
    score(k, shape, tables, keys, values, item, base, state)
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
    scales = []
    if shape.cache == "int8":
        scales = attention_int8.value_scales(k, shape, tables, values, item.span, base)
    with k.loop(item.count) as i:
        _weigh(k, shape, state, i, scales)
    _add_values(k, shape, tables, keys, values, item, base, state)


def _dot_bf16(acc: Expr, a: Expr, b: Expr) -> Expr:
    return tirx.call_pure_extern("float32x16", "rz_dot_bf16", acc, a, b)


def _multiply_add(shape: AttentionShape, acc: Expr, scalar: Expr, vector: Expr) -> Expr:
    """acc + scalar * vector, or the dot product of pairs."""
    if shape.cache == "bf16":
        return _dot_bf16(acc, splat(scalar, LANES), vector)
    return fma(splat(scalar, LANES), vector, acc)


def _score(
    k: Emitter, shape: AttentionShape, tables: Buffer, keys: Buffer, values: Buffer, item: Item,
    base: Expr, state: Registers,
) -> None:  # fmt: skip
    """q . k for every row and the round's 64 keys. Pages behind the last one repeat it: their keys are
    hidden later."""
    n = item.count
    steps = shape.key_steps
    together = PAGES_PER_ROUND if n * PAGES_PER_ROUND <= MOST_REGISTERS else 2
    with k.loop(PAGES_PER_ROUND // together) as part:
        first = k.let(part * i32(together))
        views = pages_of(k, tables, keys, shape.key_page_bytes, item.span, base, first, together)
        ahead = []
        if n <= MOST_ROWS_AHEAD:
            # a decoding row is done with a page sooner than the next one arrives from memory
            ahead = pages_of(k, tables, values, shape.value_page_bytes, item.span, base, first, together)
        regs = k.local(n * together)
        for i in range(n * together):
            k.store(regs, i, splat(0.0, LANES))
        prefetch_share(k, ahead, item.span, None, steps, shape.value_head_bytes)
        with k.loop(steps) as d:
            at = k.let((item.span.kv_head * i32(steps) + d) * i32(PAGE))
            vectors = [k.let(view.load(at, LANES)) for view in views]
            prefetch_share(k, ahead, item.span, d, steps, shape.value_head_bytes)
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


def _weigh(k: Emitter, shape: AttentionShape, state: Registers, i: Expr, scales: list[Expr]) -> None:
    """A row's exponentials, and their sum so far. ``scales``: of an int8 cache's values."""
    now = k.let(state.now[i])
    parts = []
    for u in range(PAGES_PER_ROUND):
        logit = state.scores.load(i * i32(ROUND) + i32(u * PAGE), LANES)
        parts.append(exp2_falling(k, logit - splat(now, LANES)))
        if shape.cache != "int8":
            _park(k, shape, state.probabilities, i, u, parts[-1])
    if shape.cache == "int8":
        attention_int8.park(k, state, i, parts, scales)
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
    """acc = acc * shrink + p @ V over the round's written tokens (pairs of tokens for bf16, four for int8)."""
    valid = k.let(minimum(item.span.last_position + i32(1) - base, i32(ROUND)))
    pages = k.let(tirx.Div(valid + i32(PAGE - 1), i32(PAGE)))
    first_page = k.let(item.span.table + tirx.Div(base, i32(PAGE)))
    if item.count <= MOST_ROWS_AHEAD:
        prefetch_keys(k, shape, tables, keys, item.span, base + i32(ROUND))
    int8 = shape.cache == "int8"
    add_columns = attention_int8.add_columns if int8 else _add_columns
    for parts, width in column_parts(shape, item.count * (attention_int8.HALVES if int8 else 1)):
        with k.loop(len(parts)) as part:
            column = k.let(part * i32(width * LANES) + i32(parts.start * LANES))
            add_columns(
                k, shape, tables, values, item, state, first_page, pages, valid, column, width
            )  # fmt: skip


def _add_columns(
    k: Emitter, shape: AttentionShape, tables: Buffer, values: Buffer, item: Item, state: Registers,
    first_page: Expr, pages: Expr, valid: Expr, column: Expr, vectors: int,
) -> None:  # fmt: skip
    pairs = shape.cache == "bf16"
    n, width = item.count, shape.padded_value_width
    steps = shape.value_steps
    per_row = steps * PAGES_PER_ROUND
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
