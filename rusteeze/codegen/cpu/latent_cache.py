"""Writing rows into the pages of attention whose values are part of its keys (latent_shape.py)."""

from __future__ import annotations

from tvm import tirx

from rusteeze.codegen.access import Access
from rusteeze.codegen.cpu.emit import LANES, STEP_TOKENS, Emitter, Expr, convert, i32
from rusteeze.codegen.cpu.latent_shape import PAGE, LatentShape
from rusteeze.codegen.cpu.rope import Heads, Rotation
from rusteeze.codegen.cpu.vector_math import bf16_bits


def write_latents(k: Emitter, shape: LatentShape, key: Access, rotation: Rotation | None) -> None:
    """Arguments: key [T, 1, D], [positions, cos, sin], slot_mapping, pages. Rows are shared."""
    source = Heads(k, key, rotation)
    slots = k.pointer("int32")
    pages = k.pointer(word_type(shape))
    first, count = k.share(k.step(STEP_TOKENS))
    with k.loop(count) as n:
        row = k.let(first + n)
        slot = k.let(slots[row])
        page = k.offset(pages, k.let(tirx.Div(slot, i32(PAGE))), shape.page_bytes, pages.dtype)
        at = k.let(tirx.Mod(slot, i32(PAGE)) * i32(shape.row_words))
        if source.in_vectors:
            for c in range(0, shape.width, LANES):
                words = in_words(shape, source.vector(row, i32(0), c))
                k.store(page, at + i32(c // shape.per_word), words)
        else:
            with k.loop(shape.key_words) as w:
                k.store(page, at + w, word_of(k, shape, source, row, i32(0), w))


def word_type(shape: LatentShape) -> str:
    return "float32" if shape.cache == "f32" else "int32"


def in_words(shape: LatentShape, x: Expr) -> Expr:
    """16 elements as 16 or 8 words."""
    if shape.cache == "f32":
        return x
    return tirx.call_pure_extern("int32x8", "rz_pack_bf16", x)


def word_of(
    k: Emitter, shape: LatentShape, source: Heads, row: Expr, head: Expr, word: Expr, factor: Expr | None = None
) -> Expr:
    """One word of a head, times a number."""
    elements = [
        source.element(row, head, k.let(word * i32(shape.per_word) + i32(j)))
        for j in range(shape.per_word)
    ]
    if factor is not None:
        elements = [k.let(x * factor) for x in elements]
    if shape.cache == "f32":
        return elements[0]
    low, high = (convert(bf16_bits(x), "int32") for x in elements)
    return k.let(tirx.bitwise_or(low, tirx.shift_left(high, i32(16))))
