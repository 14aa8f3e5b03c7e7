"""Rounding vectors to whole numbers that share a scale, in registers."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from rusteeze.codegen.cpu.emit import LANES, Emitter, Expr, f32, select, splat

LEAST = 1e-30
"""Magnitudes below count as zero: their inverse would overflow."""


def shared_scale(k: Emitter, vectors: Sequence[Expr], levels: int) -> tuple[Expr, Expr]:
    """(scale, inverse): x ≈ scale * round(x * inverse) with codes up to ``levels``. A NaN becomes the scale."""
    top = vectors[0]
    for x in vectors[1:]:
        top = k.let(tirx.call_pure_extern("float32x16", "rz_magnitude16", top, x))
    largest = k.let(tirx.call_pure_extern("float32", "rz_largest16", top))
    inverse = k.let(select(largest > f32(LEAST), f32(levels) / largest, f32(0)))
    return k.let(largest * f32(1 / levels)), inverse


def to_codes(k: Emitter, x: Expr, inverse: Expr) -> Expr:
    """int32 codes of 16 numbers."""
    return k.let(tirx.call_pure_extern("int32x16", "rz_round16", x * splat(inverse, LANES)))


def as_words(k: Emitter, codes: Expr) -> Expr:
    """The low bytes of 16 codes, as four words."""
    return k.let(tirx.reinterpret("int32x4", tirx.Cast("int8x16", codes)))
