"""Rounding 32 floats to an int8 group, in LLVM IR: all sums and the header in vectors.

    rz_quantize32(float32[16] a, float32[16] b, codes, header)
        writes 32 int8 codes and the 8 words of a header (both laid out in activations.py)

    rz_round16(float32[16]) → int32[16]           the nearest whole numbers, even ones of two
    rz_magnitude16(float32[16], ...[16]) → float32[16]   the larger magnitude of each lane
    rz_largest16(float32[16]) → float32           the largest magnitude

The largest magnitude is found on the bit patterns as integers, where NaN is above everything: a NaN
becomes the scale and so reaches the result instead of vanishing in the codes.
"""

from __future__ import annotations


def _lanes(*numbers: int) -> str:
    return ", ".join(f"i32 {n}" for n in numbers)


ROUNDING = f"""
declare <16 x i32> @llvm.umax.v16i32(<16 x i32>, <16 x i32>)
declare i32 @llvm.vector.reduce.umax.v16i32(<16 x i32>)
declare <16 x i32> @llvm.lrint.v16i32.v16f32(<16 x float>)
define linkonce_odr <16 x i32> @rz_round16(<16 x float> %x) alwaysinline nounwind memory(none) {{
  %r = call <16 x i32> @llvm.lrint.v16i32.v16f32(<16 x float> %x)
  ret <16 x i32> %r
}}
define linkonce_odr <16 x float> @rz_magnitude16(<16 x float> %a, <16 x float> %b) alwaysinline nounwind memory(none) {{
  %ua = bitcast <16 x float> %a to <16 x i32>
  %ub = bitcast <16 x float> %b to <16 x i32>
  %ma = and <16 x i32> %ua, splat (i32 2147483647)
  %mb = and <16 x i32> %ub, splat (i32 2147483647)
  %m = call <16 x i32> @llvm.umax.v16i32(<16 x i32> %ma, <16 x i32> %mb)
  %r = bitcast <16 x i32> %m to <16 x float>
  ret <16 x float> %r
}}
define linkonce_odr float @rz_largest16(<16 x float> %x) alwaysinline nounwind memory(none) {{
  %u = bitcast <16 x float> %x to <16 x i32>
  %m = and <16 x i32> %u, splat (i32 2147483647)
  %top = call i32 @llvm.vector.reduce.umax.v16i32(<16 x i32> %m)
  %r = bitcast i32 %top to float
  ret float %r
}}
define linkonce_odr i32 @rz_quantize32(<16 x float> %a, <16 x float> %b, ptr %codes, ptr %header) alwaysinline nounwind {{
  %ua = bitcast <16 x float> %a to <16 x i32>
  %ub = bitcast <16 x float> %b to <16 x i32>
  %ma = and <16 x i32> %ua, splat (i32 2147483647)
  %mb = and <16 x i32> %ub, splat (i32 2147483647)
  %m = call <16 x i32> @llvm.umax.v16i32(<16 x i32> %ma, <16 x i32> %mb)
  %top_bits = call i32 @llvm.vector.reduce.umax.v16i32(<16 x i32> %m)
  %top = bitcast i32 %top_bits to float
  %some = fcmp ogt float %top, 0.0
  %ratio = fdiv float 127.0, %top
  %inverse = select i1 %some, float %ratio, float 0.0
  %scale = fmul float %top, 0x3F80204080000000
  %i0 = insertelement <16 x float> poison, float %inverse, i64 0
  %iv = shufflevector <16 x float> %i0, <16 x float> poison, <16 x i32> zeroinitializer
  %xa = fmul <16 x float> %a, %iv
  %xb = fmul <16 x float> %b, %iv
  %ca = call <16 x i32> @llvm.lrint.v16i32.v16f32(<16 x float> %xa)
  %cb = call <16 x i32> @llvm.lrint.v16i32.v16f32(<16 x float> %xb)
  %ba = trunc <16 x i32> %ca to <16 x i8>
  %bb = trunc <16 x i32> %cb to <16 x i8>
  %second = getelementptr i8, ptr %codes, i64 16
  store <16 x i8> %ba, ptr %codes, align 1
  store <16 x i8> %bb, ptr %second, align 1
  %al = shufflevector <16 x i32> %ca, <16 x i32> poison, <8 x i32> <{_lanes(*range(8))}>
  %ah = shufflevector <16 x i32> %ca, <16 x i32> poison, <8 x i32> <{_lanes(*range(8, 16))}>
  %bl = shufflevector <16 x i32> %cb, <16 x i32> poison, <8 x i32> <{_lanes(*range(8))}>
  %bh = shufflevector <16 x i32> %cb, <16 x i32> poison, <8 x i32> <{_lanes(*range(8, 16))}>
  %a8 = add <8 x i32> %al, %ah
  %b8 = add <8 x i32> %bl, %bh
  %u = shufflevector <8 x i32> %a8, <8 x i32> %b8, <8 x i32> <{_lanes(0, 1, 2, 3, 8, 9, 10, 11)}>
  %v = shufflevector <8 x i32> %a8, <8 x i32> %b8, <8 x i32> <{_lanes(4, 5, 6, 7, 12, 13, 14, 15)}>
  %w4 = add <8 x i32> %u, %v
  %w4s = shufflevector <8 x i32> %w4, <8 x i32> poison, <8 x i32> <{_lanes(2, 3, 0, 1, 6, 7, 4, 5)}>
  %w2 = add <8 x i32> %w4, %w4s
  %w2s = shufflevector <8 x i32> %w2, <8 x i32> poison, <8 x i32> <{_lanes(1, 0, 3, 2, 5, 4, 7, 6)}>
  %halves = add <8 x i32> %w2, %w2s
  %swapped = shufflevector <8 x i32> %halves, <8 x i32> poison, <8 x i32> <{_lanes(4, 5, 6, 7, 0, 1, 2, 3)}>
  %whole = add <8 x i32> %halves, %swapped
  %sums = shufflevector <8 x i32> %whole, <8 x i32> %halves, <8 x i32> <{_lanes(0, 0, 8, 12, 0, 8, 12, 0)}>
  %f = sitofp <8 x i32> %sums to <8 x float>
  %s0 = insertelement <8 x float> poison, float %scale, i64 0
  %sv = shufflevector <8 x float> %s0, <8 x float> poison, <8 x i32> zeroinitializer
  %scaled = fmul <8 x float> %f, %sv
  %h = insertelement <8 x float> %scaled, float %scale, i64 0
  %hi = bitcast <8 x float> %h to <8 x i32>
  %out = shufflevector <8 x i32> %hi, <8 x i32> %sums, <8 x i32> <{_lanes(0, 1, 2, 3, 12, 13, 14, 15)}>
  store <8 x i32> %out, ptr %header, align 4
  ret i32 0
}}
"""
