"""Writing keys and values into cache pages (layout: attention_shape.py), rotating keys on the way."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from rusteeze.codegen.access import Access
from rusteeze.codegen.cpu.attention_shape import PAGE, AttentionShape
from rusteeze.codegen.cpu.emit import LANES, STEP_TOKENS, Buffer, Emitter, Expr, i32, minimum
from rusteeze.codegen.cpu.rope import Heads, Rotation
from rusteeze.codegen.cpu.vector_math import bf16_bits


def write_cache(
    k: Emitter, shape: AttentionShape, key: Access, value: Access, rotation: Rotation | None
) -> None:
    """Arguments: key, [positions, cos, sin], value, slot_mapping, key pages, value pages. Rows are
    shared."""
    keys_in, values_in = Heads(k, key, rotation), Heads(k, value, None)
    slots = k.pointer("int32")
    word = "float32" if shape.cache == "f32" else "uint16"
    keys, values = k.pointer(word), k.pointer(word)
    tokens = k.step(STEP_TOKENS)
    first, count = k.share(tokens)
    with k.loop(count) as n:
        row = k.let(first + n)
        slot = k.let(slots[row])
        page, at = k.let(tirx.Div(slot, i32(PAGE))), k.let(tirx.Mod(slot, i32(PAGE)))
        key_page = k.offset(keys, page, shape.key_page_bytes, word)
        value_page = k.offset(values, page, shape.value_page_bytes, word)
        with k.loop(shape.kv_heads) as head:
            _write_key(k, shape, keys_in, row, head, at, key_page)
            _write_value(k, shape, values_in, row, head, at, value_page)
        if shape.cache == "bf16":
            _clear_partner(k, shape, slots, row, slot, at, tokens, value_page)


def _write_key(
    k: Emitter, shape: AttentionShape, source: Heads, row: Expr, head: Expr, at: Expr, page: Buffer
) -> None:
    """A column of the page: element d of token ``at``."""
    if shape.cache == "f32":

        def put(d: Expr | int, value: Expr) -> None:
            k.store(page, (head * i32(shape.width) + d) * i32(PAGE) + at, value, stride=PAGE)
    else:

        def put(d: Expr | int, value: Expr) -> None:
            # pairs (2p, 2p+1) share a word
            words = bf16_bits(value)
            base = k.let(head * i32(shape.width // 2) * i32(2 * PAGE) + at * i32(2))
            if isinstance(d, int):
                k.store_lanes(page, [base + i32((d + j) // 2 * 2 * PAGE + (d + j) % 2) for j in range(LANES)], words)
            else:
                k.store(page, base + tirx.Div(d, i32(2)) * i32(2 * PAGE) + tirx.Mod(d, i32(2)), words)

    _each_element(k, source, shape.width, row, head, put)


def _write_value(
    k: Emitter, shape: AttentionShape, source: Heads, row: Expr, head: Expr, at: Expr, page: Buffer
) -> None:
    """A row of the page (f32), or every other half word of a row of pairs (bf16)."""
    width = shape.padded_value_width

    def put(d: Expr | int, value: Expr) -> None:
        if shape.cache == "f32":
            k.store(page, (head * i32(PAGE) + at) * i32(width) + d, value)
            return
        pair = (head * i32(PAGE // 2) + tirx.Div(at, i32(2))) * i32(width) + d
        k.store(page, pair * i32(2) + tirx.Mod(at, i32(2)), bf16_bits(value), stride=2)

    _each_element(k, source, shape.value_width, row, head, put)


def _each_element(
    k: Emitter, source: Heads, width: int, row: Expr, head: Expr, put: Callable[[Expr | int, Expr], None]
) -> None:
    """put(first element, one or 16 values) over a head."""
    if source.in_vectors:
        for c in range(0, width, LANES):
            put(c, source.vector(row, head, c))
    else:
        with k.loop(width) as d:
            put(d, source.element(row, head, d))


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
