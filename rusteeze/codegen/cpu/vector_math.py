"""Pointwise IR ops as TIR expressions on one or sixteen lanes.

exp is a polynomial of our own (LLVM calls a scalar libm function per lane): 2^x = 2^n * 2^f with
n = round(x), |f| <= 1/2. Its error is 2e-7 of the result, besides that of rounding x * log2(e). The
functions that only rare models need (log, pow, sin, cos) are LLVM's, which call libm lane by lane.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx

from rusteeze.codegen.cpu.emit import (
    Emitter,
    Expr,
    bits_as,
    convert,
    dtype_of,
    f32,
    fma,
    i32,
    intrinsic,
    lanes_of,
    maximum,
    minimum,
    select,
    splat,
)

LARGEST = 2**31 - 1
LOG2E = math.log2(math.e)
# 2^f on [-1/2, 1/2]: smallest relative error (9e-8) with p(0) = 1, highest power first
EXP2 = (1.32647287e-3, 9.67151318e-3, 5.55073374e-2, 2.40222421e-1, 6.93146978e-1, 1.0)


def exp2(k: Emitter, x: Expr) -> Expr:
    """2^x for any finite x; results below 2^-126 become 0 or tiny, above 2^127 are clamped."""
    lanes = lanes_of(x)
    x = k.let(minimum(maximum(x, splat(-126.0, lanes)), splat(127.0, lanes)))
    return _exp2_clamped(k, x)


def _exp2_clamped(k: Emitter, x: Expr) -> Expr:
    lanes = lanes_of(x)
    n = k.let(intrinsic("nearbyint", x))
    f = k.let(x - n)
    p = splat(EXP2[0], lanes)
    for c in EXP2[1:]:
        p = k.let(fma(p, f, splat(c, lanes)))
    shift = splat(i32(23), lanes)
    scaled = bits_as(p, "int32") + tirx.shift_left(convert(n, "int32"), shift)
    return k.let(bits_as(scaled, "float32"))


def exp2_falling(k: Emitter, x: Expr) -> Expr:
    """2^x for x <= 0; exactly 0 from -127 down, NaN for NaN.

    At -127 the exponent's field is 0 and the polynomial exactly 1: all bits are 0."""
    lanes = lanes_of(x)
    x = k.let(maximum(splat(-127.0, lanes), x))
    return _exp2_clamped(k, x)


def exp(k: Emitter, x: Expr) -> Expr:
    return exp2(k, x * splat(LOG2E, lanes_of(x)))


def sigmoid(k: Emitter, x: Expr) -> Expr:
    one = splat(1.0, lanes_of(x))
    return k.let(one / (one + exp2(k, x * splat(-LOG2E, lanes_of(x)))))


def tanh(k: Emitter, x: Expr) -> Expr:
    """1 - 2/(e^2x + 1); near 0, where that cancels, x - x^3/3 + 2x^5/15 - 17x^7/315."""
    lanes = lanes_of(x)
    one = splat(1.0, lanes)
    far = one - splat(2.0, lanes) / (exp2(k, x * splat(2 * LOG2E, lanes)) + one)
    x2 = k.let(x * x)
    p = splat(-17 / 315, lanes)
    for c in (2 / 15, -1 / 3, 1.0):
        p = k.let(fma(p, x2, splat(c, lanes)))
    return k.let(select(intrinsic("fabs", x) < splat(0.25, lanes), p * x, far))


def gelu_tanh(k: Emitter, x: Expr) -> Expr:
    lanes = lanes_of(x)
    c = math.sqrt(2 / math.pi)
    inner = k.let(x * fma(x * x, splat(c * 0.044715, lanes), splat(c, lanes)))
    half = k.let(x * splat(0.5, lanes))
    return k.let(fma(half, tanh(k, inner), half))


# Abramowitz & Stegun 7.1.26: erf(x) = 1 - (a1 t + ... + a5 t^5) e^-x^2, |error| < 1.5e-7
ERF_P = 0.3275911
ERF_A = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def erf(k: Emitter, x: Expr) -> Expr:
    lanes = lanes_of(x)
    one = splat(1.0, lanes)
    a = k.let(intrinsic("fabs", x))
    t = k.let(one / fma(a, splat(ERF_P, lanes), one))
    p = splat(ERF_A[0], lanes)
    for c in ERF_A[1:]:
        p = k.let(fma(p, t, splat(c, lanes)))
    y = k.let(one - p * t * exp2(k, a * a * splat(-LOG2E, lanes)))
    return k.let(intrinsic("copysign", y, x))


def gelu(k: Emitter, x: Expr) -> Expr:
    lanes = lanes_of(x)
    half = k.let(x * splat(0.5, lanes))
    return k.let(fma(half, erf(k, x * splat(math.sqrt(0.5), lanes)), half))


def softcap(k: Emitter, x: Expr, cap: float) -> Expr:
    lanes = lanes_of(x)
    return k.let(tanh(k, x * splat(1 / cap, lanes)) * splat(cap, lanes))


def glu(k: Emitter, g: Expr, u: Expr, act: str) -> Expr:
    return k.let(OPS[act](k, g) * u)


def rsqrt(k: Emitter, x: Expr) -> Expr:
    return k.let(splat(1.0, lanes_of(x)) / intrinsic("sqrt", x))


def clamp(k: Emitter, x: Expr, min: float, max: float) -> Expr:
    return k.let(minimum(maximum(x, _like(x, min)), _like(x, max)))


def absolute(k: Emitter, x: Expr) -> Expr:
    return k.let(intrinsic("fabs", x) if _is_float(x) else maximum(x, -x))


def _is_float(x: Expr) -> bool:
    return dtype_of(x).startswith("float")


def _like(x: Expr, value: float) -> Expr:
    """A number in every lane, as float32 or as the nearest int32, whatever x is."""
    scalar = f32(value) if _is_float(x) else i32(round(min(max(value, -LARGEST), LARGEST)))
    return splat(scalar, lanes_of(x))


def _libm(name: str) -> Callable[..., Expr]:
    return lambda k, *xs: k.let(intrinsic(name, *xs))


def _remainder(k: Emitter, a: Expr, b: Expr) -> Expr:
    """With the sign of b."""
    r = k.let(tirx.Mod(a, b))  # with the sign of a
    zero = _like(r, 0)
    other = tirx.Or(tirx.And(r < zero, b > zero), tirx.And(r > zero, b < zero))
    return k.let(select(other, r + b, r))


def _softplus(k: Emitter, x: Expr) -> Expr:
    """max(x, 0) + log(1 + t), t = e^-|x|; the error of rounding 1 + t = u is undone by t / (u - 1)."""
    lanes = lanes_of(x)
    one = splat(1.0, lanes)
    t = k.let(exp(k, -intrinsic("fabs", x)))
    u = k.let(one + t)
    log1p = select(tirx.EQ(u, one), t, intrinsic("log", u) * (t / (u - one)))
    return k.let(maximum(x, splat(0.0, lanes)) + log1p)


def cast(k: Emitter, x: Expr, dtype: str) -> Expr:
    """Between f32, i32 and bool (held as int32 0/1 in registers)."""
    if dtype == "bool":
        return _truth(k, x)
    return k.let(convert(x, {"f32": "float32", "i32": "int32"}[dtype]))


def full_like(k: Emitter, x: Expr, value: float, dtype: str) -> Expr:
    scalar = f32(value) if dtype == "f32" else i32(int(value))
    return splat(scalar, lanes_of(x))


def _bool(k: Emitter, condition: Expr) -> Expr:
    lanes = lanes_of(condition)
    return k.let(select(condition, splat(i32(1), lanes), splat(i32(0), lanes)))


def _truth(k: Emitter, x: Expr) -> Expr:
    return _bool(k, tirx.NE(x, _like(x, 0)))


def _comparison(compare: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr]:
    return lambda k, a, b: _bool(k, compare(a, b))


def _where(k: Emitter, c: Expr, a: Expr, b: Expr) -> Expr:
    return k.let(select(tirx.NE(c, _like(c, 0)), a, b))


OPS: dict[str, Callable[..., Any]] = {
    "neg": lambda k, x: k.let(-x),
    "abs": absolute,
    "exp": exp,
    "sqrt": lambda k, x: k.let(intrinsic("sqrt", x)),
    "rsqrt": rsqrt,
    "reciprocal": lambda k, x: k.let(splat(1.0, lanes_of(x)) / x),
    "tanh": tanh,
    "erf": erf,
    "sigmoid": sigmoid,
    "silu": lambda k, x: k.let(x * sigmoid(k, x)),
    "relu": lambda k, x: k.let(maximum(x, _like(x, 0))),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "log": _libm("log"),
    "sin": _libm("sin"),
    "cos": _libm("cos"),
    "pow": _libm("pow"),
    "softplus": _softplus,
    "add": lambda k, a, b: k.let(a + b),
    "sub": lambda k, a, b: k.let(a - b),
    "mul": lambda k, a, b: k.let(a * b),
    "div": lambda k, a, b: k.let(a / b),
    "minimum": lambda k, a, b: k.let(minimum(a, b)),
    "maximum": lambda k, a, b: k.let(maximum(a, b)),
    "remainder": _remainder,
    "clamp": clamp,
    "softcap": softcap,
    "glu": glu,
    "cast": cast,
    "full_like": full_like,
    "where": _where,
    "lt": _comparison(lambda a, b: a < b),
    "le": _comparison(lambda a, b: a <= b),
    "gt": _comparison(lambda a, b: a > b),
    "ge": _comparison(lambda a, b: a >= b),
    "eq": _comparison(tirx.EQ),
    "ne": _comparison(tirx.NE),
    "logical_and": lambda k, a, b: k.let(_truth(k, a) * _truth(k, b)),
    "logical_or": lambda k, a, b: k.let(maximum(_truth(k, a), _truth(k, b))),
    "logical_not": lambda k, x: _bool(k, tirx.EQ(x, _like(x, 0))),
}


def bf16_bits(x: Expr) -> Expr:
    """Round to nearest even, as the hardware does for finite numbers; 16 bits per lane."""
    u = bits_as(x, "uint32")
    lanes = lanes_of(x)
    odd = tirx.bitwise_and(tirx.shift_right(u, _u32(16, lanes)), _u32(1, lanes))
    return convert(tirx.shift_right(u + odd + _u32(0x7FFF, lanes), _u32(16, lanes)), "uint16")


def _u32(value: int, lanes: int) -> Expr:
    return splat(tirx.const(value, "uint32"), lanes)
