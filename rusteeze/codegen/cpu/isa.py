"""Instruction sets: what LLVM is told, and the few operations whose best form differs between them.

Kernels are written once for 16-lane vectors. Where a target has a special instruction, or where TIR
would change the meaning (it folds (x + c) - c on floats), a kernel calls one of the functions below,
which are imported as LLVM IR and inlined. Adding an instruction set means adding one entry here.

    rz_dot4   acc[16] += sum of 4 products, unsigned 8-bit a[16][4] times signed 8-bit b[16][4]
    rz_dot_bf16   acc[16] += a[16][2] . b[16][2], bf16 pairs held as 32-bit words
    rz_to_bf16    float32[16] → 16 bf16 bit patterns in the low halves of 32-bit words
    rz_pack_bf16  float32[16] → 16 bf16 as 8 words
    rz_quantize32, rz_round16, rz_magnitude16, rz_largest16   rounding, in rounding_text.py
    rz_lookup_*, rz_float8_*   values of codes, in table_text.py
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from rusteeze.codegen.cpu.rounding_text import ROUNDING
from rusteeze.codegen.cpu.table_text import (
    AVX2_TABLES,
    AVX512_FLOAT8,
    AVX512_TABLES,
    NEON_TABLES,
    PORTABLE_FLOAT8,
)


@dataclass(frozen=True)
class Isa:
    """A target variant. ``requires`` are /proc/cpuinfo flags; the first variant whose flags are all
    there is loaded. ``row_tiles`` are the row counts of the matmul micro-kernels, largest first."""

    name: str
    machine: str
    target: tuple[tuple[str, object], ...]
    requires: frozenset[str]
    support: str
    row_tiles: tuple[int, ...]

    def target_dict(self) -> dict[str, object]:
        return {"kind": "llvm", **{k: list(v) if isinstance(v, tuple) else v for k, v in self.target}}


COMMON = """
define linkonce_odr ptr @rz_argument(ptr %args, i32 %i) alwaysinline nounwind memory(argmem: read) {
  %slot = getelementptr ptr, ptr %args, i32 %i
  %value = load ptr, ptr %slot, align 8
  ret ptr %value
}
define linkonce_odr ptr @rz_offset(ptr %base, i32 %i, i64 %stride) alwaysinline nounwind memory(none) {
  %wide = sext i32 %i to i64
  %bytes = mul i64 %wide, %stride
  %out = getelementptr i8, ptr %base, i64 %bytes
  ret ptr %out
}
define linkonce_odr i32 @rz_step(ptr %step, i32 %i) alwaysinline nounwind memory(argmem: read) {
  %slot = getelementptr i64, ptr %step, i32 %i
  %wide = load i64, ptr %slot, align 8
  %out = trunc i64 %wide to i32
  ret i32 %out
}
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
define linkonce_odr i32 @rz_prefetch(ptr %p, i32 %ahead) alwaysinline nounwind {
  %q = getelementptr i8, ptr %p, i32 %ahead
  call void @llvm.prefetch.p0(ptr %q, i32 0, i32 3, i32 1)
  ret i32 0
}
define linkonce_odr float @rz_sum16(<16 x float> %x) alwaysinline nounwind memory(none) {
  %h = shufflevector <16 x float> %x, <16 x float> poison, <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %l = shufflevector <16 x float> %x, <16 x float> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %a = fadd <8 x float> %l, %h
  %ah = shufflevector <8 x float> %a, <8 x float> poison, <4 x i32> <i32 4, i32 5, i32 6, i32 7>
  %al = shufflevector <8 x float> %a, <8 x float> poison, <4 x i32> <i32 0, i32 1, i32 2, i32 3>
  %b = fadd <4 x float> %al, %ah
  %bh = shufflevector <4 x float> %b, <4 x float> poison, <2 x i32> <i32 2, i32 3>
  %bl = shufflevector <4 x float> %b, <4 x float> poison, <2 x i32> <i32 0, i32 1>
  %c = fadd <2 x float> %bl, %bh
  %c0 = extractelement <2 x float> %c, i32 0
  %c1 = extractelement <2 x float> %c, i32 1
  %d = fadd float %c0, %c1
  ret float %d
}
define linkonce_odr float @rz_max16(<16 x float> %x) alwaysinline nounwind memory(none) {
  %h = shufflevector <16 x float> %x, <16 x float> poison, <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %l = shufflevector <16 x float> %x, <16 x float> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %ac = fcmp ogt <8 x float> %l, %h
  %a = select <8 x i1> %ac, <8 x float> %l, <8 x float> %h
  %ah = shufflevector <8 x float> %a, <8 x float> poison, <4 x i32> <i32 4, i32 5, i32 6, i32 7>
  %al = shufflevector <8 x float> %a, <8 x float> poison, <4 x i32> <i32 0, i32 1, i32 2, i32 3>
  %bc = fcmp ogt <4 x float> %al, %ah
  %b = select <4 x i1> %bc, <4 x float> %al, <4 x float> %ah
  %bh = shufflevector <4 x float> %b, <4 x float> poison, <2 x i32> <i32 2, i32 3>
  %bl = shufflevector <4 x float> %b, <4 x float> poison, <2 x i32> <i32 0, i32 1>
  %cc = fcmp ogt <2 x float> %bl, %bh
  %c = select <2 x i1> %cc, <2 x float> %bl, <2 x float> %bh
  %c0 = extractelement <2 x float> %c, i32 0
  %c1 = extractelement <2 x float> %c, i32 1
  %dc = fcmp ogt float %c0, %c1
  %d = select i1 %dc, float %c0, float %c1
  ret float %d
}
"""

# round to nearest even by integer arithmetic; what the hardware instruction does for finite numbers
PORTABLE_TO_BF16 = """
define linkonce_odr <16 x i32> @rz_to_bf16(<16 x float> %x) alwaysinline nounwind memory(none) {
  %u = bitcast <16 x float> %x to <16 x i32>
  %s = lshr <16 x i32> %u, splat (i32 16)
  %odd = and <16 x i32> %s, splat (i32 1)
  %bias = add <16 x i32> %odd, splat (i32 32767)
  %r = add <16 x i32> %u, %bias
  %out = lshr <16 x i32> %r, splat (i32 16)
  ret <16 x i32> %out
}
define linkonce_odr <8 x i32> @rz_pack_bf16(<16 x float> %x) alwaysinline nounwind memory(none) {
  %w = call <16 x i32> @rz_to_bf16(<16 x float> %x)
  %h = trunc <16 x i32> %w to <16 x i16>
  %out = bitcast <16 x i16> %h to <8 x i32>
  ret <8 x i32> %out
}
"""
# The odd element first, then the even one: the order of vdpbf16ps.
PORTABLE_DOT_BF16 = """
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
define linkonce_odr <16 x float> @rz_dot_bf16(<16 x float> %c, <16 x i32> %a, <16 x i32> %b) alwaysinline nounwind memory(none) {
  %ah = and <16 x i32> %a, splat (i32 -65536)
  %bh = and <16 x i32> %b, splat (i32 -65536)
  %al = shl <16 x i32> %a, splat (i32 16)
  %bl = shl <16 x i32> %b, splat (i32 16)
  %ahf = bitcast <16 x i32> %ah to <16 x float>
  %bhf = bitcast <16 x i32> %bh to <16 x float>
  %alf = bitcast <16 x i32> %al to <16 x float>
  %blf = bitcast <16 x i32> %bl to <16 x float>
  %t = call <16 x float> @llvm.fma.v16f32(<16 x float> %ahf, <16 x float> %bhf, <16 x float> %c)
  %r = call <16 x float> @llvm.fma.v16f32(<16 x float> %alf, <16 x float> %blf, <16 x float> %t)
  ret <16 x float> %r
}
"""

AVX512 = """
declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <64 x i8>, <64 x i8>)
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float>)
define linkonce_odr <16 x i32> @rz_dot4(<16 x i32> %acc, <16 x i32> %a, <16 x i32> %b) alwaysinline nounwind memory(none) {
  %a8 = bitcast <16 x i32> %a to <64 x i8>
  %b8 = bitcast <16 x i32> %b to <64 x i8>
  %r = call <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32> %acc, <64 x i8> %a8, <64 x i8> %b8)
  ret <16 x i32> %r
}
define linkonce_odr <16 x float> @rz_dot_bf16(<16 x float> %c, <16 x i32> %a, <16 x i32> %b) alwaysinline nounwind memory(none) {
  %a2 = bitcast <16 x i32> %a to <32 x bfloat>
  %b2 = bitcast <16 x i32> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %c, <32 x bfloat> %a2, <32 x bfloat> %b2)
  ret <16 x float> %r
}
define linkonce_odr <16 x i32> @rz_to_bf16(<16 x float> %x) alwaysinline nounwind memory(none) {
  %a = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %x)
  %b = bitcast <16 x bfloat> %a to <16 x i16>
  %c = zext <16 x i16> %b to <16 x i32>
  ret <16 x i32> %c
}
define linkonce_odr <8 x i32> @rz_pack_bf16(<16 x float> %x) alwaysinline nounwind memory(none) {
  %a = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %x)
  %b = bitcast <16 x bfloat> %a to <8 x i32>
  ret <8 x i32> %b
}
"""


def _dot4_by_halves() -> str:
    """AVX2: vpmaddubsw saturates at 16 bits once a > 128, so a is split into its low 7 bits and the
    eighth: a = lo + 128*hi with lo <= 127, both products then stay below 2^15."""
    body = []
    for part, lanes in (("l", range(8)), ("h", range(8, 16))):
        index = ", ".join(f"i32 {i}" for i in lanes)
        for v in "ab":
            body += [
                f"%{v}{part} = shufflevector <16 x i32> %{v}, <16 x i32> poison, <8 x i32> <{index}>",
                f"%{v}{part}8 = bitcast <8 x i32> %{v}{part} to <32 x i8>",
            ]
        body += [
            f"%lo{part} = and <32 x i8> %a{part}8, splat (i8 127)",
            f"%up{part} = lshr <32 x i8> %a{part}8, splat (i8 7)",
            f"%p{part} = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %lo{part}, <32 x i8> %b{part}8)",
            f"%q{part} = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %up{part}, <32 x i8> %b{part}8)",
            f"%pd{part} = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %p{part}, <16 x i16> splat (i16 1))",
            f"%qd{part} = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %q{part}, <16 x i16> splat (i16 128))",
            f"%s{part} = add <8 x i32> %pd{part}, %qd{part}",
        ]
    full = ", ".join(f"i32 {i}" for i in range(16))
    body += [
        f"%sum = shufflevector <8 x i32> %sl, <8 x i32> %sh, <16 x i32> <{full}>",
        "%r = add <16 x i32> %acc, %sum",
        "ret <16 x i32> %r",
    ]
    return _dot4_function(
        "declare <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8>, <32 x i8>)\n"
        "declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)\n",
        body,
    )


def _dot4_by_sdot() -> str:
    """NEON has no mixed-sign dot product before i8mm: a - 128 is signed, and the 128 is put back as
    128 * sum(b), itself a dot product with ones."""
    body = [f"%x{v} = bitcast <16 x i32> %{v} to <64 x i8>" for v in "ab"]
    body.append("%sa = xor <64 x i8> %xa, splat (i8 -128)")
    for q in range(4):
        bytes_ = ", ".join(f"i32 {i}" for i in range(16 * q, 16 * q + 16))
        words = ", ".join(f"i32 {i}" for i in range(4 * q, 4 * q + 4))
        body += [
            f"%a{q} = shufflevector <64 x i8> %sa, <64 x i8> poison, <16 x i32> <{bytes_}>",
            f"%b{q} = shufflevector <64 x i8> %xb, <64 x i8> poison, <16 x i32> <{bytes_}>",
            f"%c{q} = shufflevector <16 x i32> %acc, <16 x i32> poison, <4 x i32> <{words}>",
            f"%d{q} = call <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32> %c{q}, <16 x i8> %a{q}, <16 x i8> %b{q})",
            f"%o{q} = call <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32> zeroinitializer, <16 x i8> splat (i8 1), <16 x i8> %b{q})",
            f"%m{q} = shl <4 x i32> %o{q}, splat (i32 7)",
            f"%r{q} = add <4 x i32> %d{q}, %m{q}",
        ]
    eight = ", ".join(f"i32 {i}" for i in range(8))
    full = ", ".join(f"i32 {i}" for i in range(16))
    body += [
        f"%r01 = shufflevector <4 x i32> %r0, <4 x i32> %r1, <8 x i32> <{eight}>",
        f"%r23 = shufflevector <4 x i32> %r2, <4 x i32> %r3, <8 x i32> <{eight}>",
        f"%r = shufflevector <8 x i32> %r01, <8 x i32> %r23, <16 x i32> <{full}>",
        "ret <16 x i32> %r",
    ]
    return _dot4_function(
        "declare <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)\n",
        body,
    )


def _dot4_function(declarations: str, body: list[str]) -> str:
    return (
        declarations
        + "define linkonce_odr <16 x i32> @rz_dot4(<16 x i32> %acc, <16 x i32> %a, <16 x i32> %b) "
        + "alwaysinline nounwind memory(none) {\n"
        + textwrap.indent("\n".join(body), "  ")
        + "\n}\n"
    )


V4 = Isa(
    name="avx512-vnni-bf16",
    machine="x86_64",
    target=(
        ("mcpu", "x86-64-v4"),
        ("mattr", ("+avx512vnni", "+avx512bf16", "+avx512vbmi")),
    ),
    requires=frozenset(
        ["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512vbmi", "fma", "f16c"]
    ),
    support=COMMON + ROUNDING + AVX512 + AVX512_TABLES + AVX512_FLOAT8,
    row_tiles=(12, 8, 4, 1),
)
V3 = Isa(
    name="avx2",
    machine="x86_64",
    target=(("mcpu", "x86-64-v3"),),
    requires=frozenset(["avx2", "fma", "f16c"]),
    support=COMMON + ROUNDING + _dot4_by_halves() + PORTABLE_TO_BF16 + PORTABLE_DOT_BF16
    + AVX2_TABLES + PORTABLE_FLOAT8,
    row_tiles=(4, 1),
)
NEON = Isa(
    name="neon-dotprod",
    machine="aarch64",
    target=(("mtriple", "aarch64-linux-gnu"), ("mcpu", "neoverse-n1")),
    requires=frozenset(["asimd", "asimddp", "fphp"]),
    support=COMMON + ROUNDING + _dot4_by_sdot() + PORTABLE_TO_BF16 + PORTABLE_DOT_BF16
    + NEON_TABLES + PORTABLE_FLOAT8,
    row_tiles=(4, 1),
)
ALL = (V4, V3, NEON)
