"""Looking values up in registers, in LLVM IR: codebooks of 16 values, and float8 numbers.

    rz_lookup_floats  table float32[16], codes 0 .. 15 as int32[16] → their values
    rz_byte_table     int8 integers as float32[16] → their bytes + 128, four copies of 16
    rz_lookup_bytes   such a table, codes of 64 bytes (0 .. 15) → 64 bytes
    rz_float8_first   a piece of float8 codes (float8_tiles.py) → bf16 pairs of inputs (0, 1)
    rz_float8_second  → those of inputs (2, 3)
"""

from __future__ import annotations

import numpy as np

from rusteeze.weights.e4m3 import E4M3

_KIND = "alwaysinline nounwind memory(none)"


def _lanes(*numbers: int) -> str:
    return ", ".join(f"i32 {n}" for n in numbers)


BYTE_TABLE = f"""
define linkonce_odr <16 x i32> @rz_byte_table(<16 x float> %t) {_KIND} {{
  %i = fptosi <16 x float> %t to <16 x i32>
  %u = add <16 x i32> %i, splat (i32 128)
  %b = trunc <16 x i32> %u to <16 x i8>
  %four = shufflevector <16 x i8> %b, <16 x i8> poison, <64 x i32> <{_lanes(*range(16), *range(16), *range(16), *range(16))}>
  %out = bitcast <64 x i8> %four to <16 x i32>
  ret <16 x i32> %out
}}
"""


def _lookup_bytes(declaration: str, call: str, parts: int) -> str:
    """A lookup in parts of 64 / parts bytes, each with its own copies of the table."""
    size = 64 // parts
    body = ["%t8 = bitcast <16 x i32> %t to <64 x i8>", "%c8 = bitcast <16 x i32> %c to <64 x i8>"]
    for p in range(parts):
        index = _lanes(*range(p * size, (p + 1) * size))
        for v in "tc":
            body.append(f"%{v}p{p} = shufflevector <64 x i8> %{v}8, <64 x i8> poison, <{size} x i32> <{index}>")
        body.append(f"%r{p} = {call.format(t=f'%tp{p}', c=f'%cp{p}')}")
    names, width = [f"%r{p}" for p in range(parts)], size
    while len(names) > 1:
        index, joined = _lanes(*range(2 * width)), []
        for i in range(0, len(names), 2):
            joined.append(f"{names[i]}j")
            pair = f"<{width} x i8> {names[i]}, <{width} x i8> {names[i + 1]}"
            body.append(f"{joined[-1]} = shufflevector {pair}, <{2 * width} x i32> <{index}>")
        names, width = joined, 2 * width
    body += [f"%out = bitcast <64 x i8> {names[0]} to <16 x i32>", "ret <16 x i32> %out"]
    text = "\n  ".join(body)
    return f"""
declare {declaration}
define linkonce_odr <16 x i32> @rz_lookup_bytes(<16 x i32> %t, <16 x i32> %c) {_KIND} {{
  {text}
}}
"""


_EIGHT = (_lanes(*range(8)), _lanes(*range(8, 16)))
AVX512_TABLES = (
    BYTE_TABLE
    + _lookup_bytes(
        "<64 x i8> @llvm.x86.avx512.pshuf.b.512(<64 x i8>, <64 x i8>)",
        "call <64 x i8> @llvm.x86.avx512.pshuf.b.512(<64 x i8> {t}, <64 x i8> {c})", 1,
    )
    + f"""
declare <16 x float> @llvm.x86.avx512.permvar.sf.512(<16 x float>, <16 x i32>)
define linkonce_odr <16 x float> @rz_lookup_floats(<16 x float> %t, <16 x i32> %c) {_KIND} {{
  %out = call <16 x float> @llvm.x86.avx512.permvar.sf.512(<16 x float> %t, <16 x i32> %c)
  ret <16 x float> %out
}}
"""
)  # fmt: skip
AVX2_TABLES = (
    BYTE_TABLE
    + _lookup_bytes(
        "<32 x i8> @llvm.x86.avx2.pshuf.b(<32 x i8>, <32 x i8>)",
        "call <32 x i8> @llvm.x86.avx2.pshuf.b(<32 x i8> {t}, <32 x i8> {c})", 2,
    )
    + f"""
declare <8 x float> @llvm.x86.avx2.permps(<8 x float>, <8 x i32>)
define linkonce_odr <16 x float> @rz_lookup_floats(<16 x float> %t, <16 x i32> %c) {_KIND} {{
  %tl = shufflevector <16 x float> %t, <16 x float> poison, <8 x i32> <{_EIGHT[0]}>
  %th = shufflevector <16 x float> %t, <16 x float> poison, <8 x i32> <{_EIGHT[1]}>
  %cl = shufflevector <16 x i32> %c, <16 x i32> poison, <8 x i32> <{_EIGHT[0]}>
  %ch = shufflevector <16 x i32> %c, <16 x i32> poison, <8 x i32> <{_EIGHT[1]}>
  %ll = call <8 x float> @llvm.x86.avx2.permps(<8 x float> %tl, <8 x i32> %cl)
  %lh = call <8 x float> @llvm.x86.avx2.permps(<8 x float> %th, <8 x i32> %cl)
  %hl = call <8 x float> @llvm.x86.avx2.permps(<8 x float> %tl, <8 x i32> %ch)
  %hh = call <8 x float> @llvm.x86.avx2.permps(<8 x float> %th, <8 x i32> %ch)
  %lu = icmp ugt <8 x i32> %cl, splat (i32 7)
  %hu = icmp ugt <8 x i32> %ch, splat (i32 7)
  %l = select <8 x i1> %lu, <8 x float> %lh, <8 x float> %ll
  %h = select <8 x i1> %hu, <8 x float> %hh, <8 x float> %hl
  %out = shufflevector <8 x float> %l, <8 x float> %h, <16 x i32> <{_lanes(*range(16))}>
  ret <16 x float> %out
}}
"""
)  # fmt: skip


def _lookup_one_by_one() -> str:
    body = []
    previous = "poison"
    for i in range(16):
        body += [
            f"%c{i} = extractelement <16 x i32> %c, i32 {i}",
            f"%v{i} = extractelement <16 x float> %t, i32 %c{i}",
            f"%r{i} = insertelement <16 x float> {previous}, float %v{i}, i32 {i}",
        ]
        previous = f"%r{i}"
    text = "\n  ".join([*body, f"ret <16 x float> {previous}"])
    return f"""
define linkonce_odr <16 x float> @rz_lookup_floats(<16 x float> %t, <16 x i32> %c) {_KIND} {{
  {text}
}}
"""


NEON_TABLES = (
    BYTE_TABLE
    + _lookup_bytes(
        "<16 x i8> @llvm.aarch64.neon.tbl1.v16i8(<16 x i8>, <16 x i8>)",
        "call <16 x i8> @llvm.aarch64.neon.tbl1.v16i8(<16 x i8> {t}, <16 x i8> {c})", 4,
    )
    + _lookup_one_by_one()
)  # fmt: skip

# ---- float8 --------------------------------------------------------------------------------------
_HALVES = (("first", 0), ("second", 8))


def _portable_half(name: str, start: int) -> str:
    """By integer arithmetic on 16 bits: exponents move from bias 7 to 127; the eight magnitudes below the
    smallest exponent are 0, 1, 2 and 3, 4 to 7 units of 2^-9, normalised by three cases."""
    index = _lanes(*(q * 16 + start + i for q in range(4) for i in range(8)))
    return f"""
define linkonce_odr <16 x i32> @rz_float8_{name}(<16 x i32> %c) {_KIND} {{
  %c8 = bitcast <16 x i32> %c to <64 x i8>
  %h8 = shufflevector <64 x i8> %c8, <64 x i8> poison, <32 x i32> <{index}>
  %x = zext <32 x i8> %h8 to <32 x i16>
  %s = and <32 x i16> %x, splat (i16 128)
  %sign = shl <32 x i16> %s, splat (i16 8)
  %m = and <32 x i16> %x, splat (i16 127)
  %m4 = shl <32 x i16> %m, splat (i16 4)
  %m5 = shl <32 x i16> %m, splat (i16 5)
  %m6 = shl <32 x i16> %m, splat (i16 6)
  %normal = add <32 x i16> %m4, splat (i16 {120 << 7})
  %four = add <32 x i16> %m5, splat (i16 {(120 << 7) - (4 << 5)})
  %two = add <32 x i16> %m6, splat (i16 {(119 << 7) - (2 << 6)})
  %one = mul <32 x i16> %m, splat (i16 {118 << 7})
  %is2 = icmp sgt <32 x i16> %m, splat (i16 1)
  %is4 = icmp sgt <32 x i16> %m, splat (i16 3)
  %is8 = icmp sgt <32 x i16> %m, splat (i16 7)
  %a = select <32 x i1> %is2, <32 x i16> %two, <32 x i16> %one
  %b = select <32 x i1> %is4, <32 x i16> %four, <32 x i16> %a
  %d = select <32 x i1> %is8, <32 x i16> %normal, <32 x i16> %b
  %r = or <32 x i16> %d, %sign
  %out = bitcast <32 x i16> %r to <16 x i32>
  ret <16 x i32> %out
}}
"""


PORTABLE_FLOAT8 = "".join(_portable_half(*half) for half in _HALVES)


def _bytes(values: np.ndarray) -> str:
    return "<" + ", ".join(f"i8 {int(v)}" for v in values) + ">"


def _table_half(name: str, start: int) -> str:
    """By two lookups of 128 bytes: the low and the high byte of each magnitude."""
    bits = (E4M3[:128].view(np.uint32) >> 16).astype(np.uint16)
    low, high = (bits & 255).astype(np.uint8).view(np.int8), (bits >> 8).astype(np.uint8).view(np.int8)
    index = _lanes(*(q * 16 + start + i + side for q in range(4) for i in range(8) for side in (0, 64)))
    permute = "call <64 x i8> @llvm.x86.avx512.vpermi2var.qi.512"
    return f"""
define linkonce_odr <16 x i32> @rz_float8_{name}(<16 x i32> %c) {_KIND} {{
  %c8 = bitcast <16 x i32> %c to <64 x i8>
  %low = {permute}(<64 x i8> {_bytes(low[:64])}, <64 x i8> %c8, <64 x i8> {_bytes(low[64:])})
  %magnitude = {permute}(<64 x i8> {_bytes(high[:64])}, <64 x i8> %c8, <64 x i8> {_bytes(high[64:])})
  %sign = and <64 x i8> %c8, splat (i8 -128)
  %high = or <64 x i8> %magnitude, %sign
  %r = shufflevector <64 x i8> %low, <64 x i8> %high, <64 x i32> <{index}>
  %out = bitcast <64 x i8> %r to <16 x i32>
  ret <16 x i32> %out
}}
"""


AVX512_FLOAT8 = "declare <64 x i8> @llvm.x86.avx512.vpermi2var.qi.512(<64 x i8>, <64 x i8>, <64 x i8>)\n" + "".join(
    _table_half(*half) for half in _HALVES
)
