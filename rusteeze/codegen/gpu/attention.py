"""Paged attention: prefill chunks and decode steps in one family of kernels (FlashAttention, FlashDecoding).

A program takes the query rows of one tile for one key head: its tokens times the heads of the group, so
that keys and values are read once for all of them. Keys come in blocks at fixed positions; every SPLIT
keys are one part of the softmax, and parts are joined in order. So a token's sums are made in the same
order whether its parts are computed by one program after the other (many tokens) or by programs of
their own (few tokens), the last of which to arrive joins what all left in the workspace.
"""

from __future__ import annotations

from dataclasses import dataclass

from rusteeze.codegen.access import Access
from rusteeze.codegen.gpu.attention_shape import PAGE, SPLIT, AttentionShape
from rusteeze.codegen.gpu.elements import STORED
from rusteeze.codegen.gpu.rope import BoundHeads
from rusteeze.codegen.gpu.source import Source, literal, power_of_two

LOG2E = 1.4426950408889634
LEAST_COLUMNS = 16
"""Of an operand of tl.dot."""


@dataclass(frozen=True)
class AttentionKernel:
    """``separate``: a program for each part; ``most_parts``: of the longest sequence; ``out``: [H, DV]."""

    shape: AttentionShape
    query_tokens: int
    separate: bool
    most_parts: int
    out: Access

    @property
    def part_floats(self) -> int:
        """What one part of one head leaves in the workspace: its sums, its top and its total."""
        return self.shape.value_width + 2


def attend(k: Source, a: AttentionKernel, queries: BoundHeads) -> None:
    """The kernel's body. Parameters: count (read into ``num_tiles``), queries, [sinks], tiles, block_tables,
    key_pages, [value_pages], table_stride, out, [counters, workspace]."""
    s = a.shape
    dp, vp = power_of_two(s.key_columns), power_of_two(s.value_width)
    k.constants(ROWS=s.rows(a.query_tokens), GROUP=s.group, D=dp, DV=vp, BLOCK=s.block)
    k.line("tile = tl.program_id(0)")
    k.line("kv_head = tl.program_id(1)")
    with k.block("if tile >= num_tiles:"):
        k.line("return")
    for i, name in enumerate(("first_row", "tile_tokens", "first_position", "sequence")):
        k.line(f"{name} = tl.load(tiles + tile * 4 + {i})")
    k.line("context = first_position + tile_tokens")
    _parts(k, a)
    k.line("r = tl.arange(0, ROWS)")
    k.line("live = r < tile_tokens * GROUP")
    k.line("row = first_row + r // GROUP")
    k.line("head = kv_head * GROUP + r % GROUP")
    k.line("position = first_position + r // GROUP")
    k.line("d = tl.arange(0, D)")
    k.line("dv = tl.arange(0, DV)")
    columns = f"(d < {s.key_columns})[None, :]" if dp != s.key_columns else ""
    q = queries.load("row[:, None]", "head[:, None]", "d[None, :]", "live[:, None]", columns)
    k.line(f"q = {q}.to({STORED[s.cache]})")
    if s.more_columns:
        k.line(f"e = tl.arange(0, {max(LEAST_COLUMNS, power_of_two(s.more_columns))})")
        rest = queries.load(
            "row[:, None]", "head[:, None]", f"(e + {s.key_columns})[None, :]", "live[:, None]", f"(e < {s.more_columns})[None, :]"
        )
        k.line(f"q_rest = {rest}.to({STORED[s.cache]})")
    k.line('top = tl.full((ROWS,), float("-inf"), tl.float32)')
    k.line("total = tl.zeros((ROWS,), tl.float32)")
    k.line("acc = tl.zeros((ROWS, DV), tl.float32)")
    if a.separate:
        k.line("part = tl.program_id(2)")
        _part(k, a)
        k.line("top = part_top")
        k.line("total = part_total")
        k.line("acc = part_acc")
        _join(k, a)
    else:
        with k.block("for part in range(first_part, last_part):"):
            _part(k, a)
            k.line("top, total, acc = fn.merge(top, total, acc, part_top, part_total, part_acc)")
    _finish(k, a)


def _parts(k: Source, a: AttentionKernel) -> None:
    """Which parts of the softmax the tile sees: those with a key that its first token's window reaches."""
    window = a.shape.window
    first = f"tl.maximum(first_position - {window - 1}, 0)" if window else "0"
    k.line(f"first_key = {first}")
    k.line(f"first_part = first_key // {SPLIT}")
    k.line(f"last_part = (context + {SPLIT - 1}) // {SPLIT}")
    if a.separate:
        with k.block("if (tl.program_id(2) < first_part) | (tl.program_id(2) >= last_part):"):
            k.line("return")


def _part(k: Source, a: AttentionKernel) -> None:
    """part_top, part_total, part_acc of the keys of ``part``."""
    s = a.shape
    k.line('part_top = tl.full((ROWS,), float("-inf"), tl.float32)')
    k.line("part_total = tl.zeros((ROWS,), tl.float32)")
    k.line("part_acc = tl.zeros((ROWS, DV), tl.float32)")
    k.line(f"start = tl.maximum(part * {SPLIT}, first_key // BLOCK * BLOCK)")
    k.line(f"end = tl.minimum(part * {SPLIT} + {SPLIT}, context)")
    with k.block("for block in range(start, end, BLOCK):"):
        k.line("key = block + tl.arange(0, BLOCK)")
        k.line("there = key < context")
        k.line(f"page = tl.load(block_tables + sequence * table_stride + key // {PAGE}, mask=there, other=0)")
        own = "" if s.latent else f" * {s.kv_heads} + kv_head"
        k.line(f"slot = (page.to(tl.int64){own}) * {PAGE} + key % {PAGE}")
        wide = f" & (d < {s.key_columns})[:, None]" if power_of_two(s.key_columns) != s.key_columns else ""
        k.line(f"keys = tl.load(key_pages + slot[None, :] * {s.width} + d[:, None], mask=there[None, :]{wide}, other=0)")
        if s.more_columns:
            at = f"slot[None, :] * {s.width} + {s.key_columns} + e[:, None]"
            k.line(f"rest = tl.load(key_pages + {at}, mask=there[None, :] & (e < {s.more_columns})[:, None], other=0)")
        _values(k, s)
        _logits(k, s)
        k.line("new_top = tl.maximum(part_top, tl.max(logits, 1))")
        k.line('base = tl.where(new_top == float("-inf"), 0.0, new_top)')
        k.line("p = tl.exp2(logits - base[:, None])")
        k.line("alpha = tl.exp2(part_top - base)")
        k.line("part_total = part_total * alpha + tl.sum(p, 1)")
        k.line(f"part_acc = {_dot(s, f'p.to({STORED[s.cache]})', 'values', 'part_acc * alpha[:, None]')}")
        k.line("part_top = new_top")


def _values(k: Source, s: AttentionShape) -> None:
    if s.latent:
        k.line("values = tl.trans(keys)")
        return
    wide = f" & (dv < {s.value_width})[None, :]" if power_of_two(s.value_width) != s.value_width else ""
    at = f"slot[:, None] * {s.value_width} + dv[None, :]"
    k.line(f"values = tl.load(value_pages + {at}, mask=there[:, None]{wide}, other=0)")


def _logits(k: Source, s: AttentionShape) -> None:
    """Base-2 logits of a block of keys; -inf where a token does not see a key."""
    product = _dot(s, "q", "keys")
    if s.more_columns:
        product = _dot(s, "q_rest", "rest", product)
    k.line(f"logits = {product} * {literal(s.scale if s.softcap else s.scale * LOG2E)}")
    if s.softcap:
        k.line(f"logits = fn.tanh(logits * {literal(1 / s.softcap)}) * {literal(s.softcap * LOG2E)}")
    k.line("seen = live[:, None] & (key[None, :] <= position[:, None])")
    if s.window:
        k.line(f"seen = seen & (key[None, :] > position[:, None] - {s.window})")
    k.line('logits = tl.where(seen, logits, float("-inf"))')


def _dot(s: AttentionShape, a: str, b: str, acc: str = "") -> str:
    more = f", {acc}" if acc else ""
    precision = ', input_precision="ieee"' if s.cache == "f32" else ""
    return f"tl.dot({a}, {b}{more}{precision})"


def _join(k: Source, a: AttentionKernel) -> None:
    """Unless there is one part only: leave it in the workspace; the last program to come joins all."""
    s = a.shape
    k.line(f"kept = (row * {s.heads} + head) * {a.most_parts}")
    k.line(f"wide = live[:, None] & (dv < {s.value_width})[None, :]")
    with k.block("if last_part - first_part > 1:"):
        k.line(f"at = (kept + part) * {a.part_floats}")
        k.line("tl.store(workspace + at[:, None] + dv[None, :], acc, mask=wide)")
        k.line(f"tl.store(workspace + at + {s.value_width}, top, mask=live)")
        k.line(f"tl.store(workspace + at + {s.value_width + 1}, total, mask=live)")
        k.line("tl.debug_barrier()  # all of the program's stores come before its arrival")
        k.line(f'arrived = tl.atomic_add(counters + tile * {s.kv_heads} + kv_head, 1, sem="acq_rel")')
        k.line("is_last = arrived == last_part - first_part - 1")
        k.line("live = r < tl.where(is_last, tile_tokens * GROUP, 0)")
        with k.block("if is_last:"):
            k.line(f"tl.store(counters + tile * {s.kv_heads} + kv_head, 0)")
            k.line('top = tl.full((ROWS,), float("-inf"), tl.float32)')
            k.line("total = tl.zeros((ROWS,), tl.float32)")
            k.line("acc = tl.zeros((ROWS, DV), tl.float32)")
            with k.block("for other in range(first_part, last_part):"):
                k.line(f"at = (kept + other) * {a.part_floats}")
                cg = 'other=0, cache_modifier=".cg"'
                k.line(f"part_acc = tl.load(workspace + at[:, None] + dv[None, :], mask=wide, {cg})")
                k.line(f"part_top = tl.load(workspace + at + {s.value_width}, mask=live, {cg})")
                k.line(f"part_total = tl.load(workspace + at + {s.value_width + 1}, mask=live, {cg})")
                k.line("top, total, acc = fn.merge(top, total, acc, part_top, part_total, part_acc)")


def _finish(k: Source, a: AttentionKernel) -> None:
    s = a.shape
    if s.sinks:
        k.line(f"sink = tl.load(sinks + head, mask=live, other=0) * {LOG2E}")
        k.line('top, total, acc = fn.merge(top, total, acc, sink, tl.full((ROWS,), 1.0, tl.float32), acc * 0.0)')
    k.line("result = acc / tl.where(live, total, 1.0)[:, None]")
    head, element = a.out.strides
    k.line(f"target = out + row[:, None] * {a.out.row} + head[:, None] * {head} + dv[None, :] * {element}")
    k.line(
        f"tl.store(target, result.to({STORED[a.out.dtype]}), mask=live[:, None] & (dv < {s.value_width})[None, :])"
    )
