"""Device functions that generated kernels call, in the subset that Triton's interpreter runs too."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """Near 0, where 1 - 2/(e^2x + 1) cancels, x - x^3/3 + 2x^5/15 - 17x^7/315."""
    y = tl.minimum(tl.maximum(x, -15.0), 15.0)
    far = 1.0 - 2.0 / (tl.exp(2.0 * y) + 1.0)
    s = x * x
    near = x * (1.0 + s * (-1.0 / 3.0 + s * (2.0 / 15.0 - s * (17.0 / 315.0))))
    return tl.where(tl.abs(x) < 0.25, near, far)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def power(a, b):
    """a ** b; a negative a wants a whole b."""
    size = tl.exp2(b * tl.log2(tl.abs(a)))
    odd = (b - 2.0 * tl.floor(b * 0.5)) == 1.0
    return tl.where((a < 0.0) & odd, -size, size)


@triton.jit
def e4m3(code):
    """The number of a float8 code (int32) in float32: its bits, 120 exponents too low, as those of a float32."""
    bits = ((code & 127) << 20) | ((code & 128) << 24)
    return bits.to(tl.float32, bitcast=True) * 1.329227995784916e36


@triton.jit
def merge(top, total, acc, other_top, other_total, other_acc):
    """Join two parts of a softmax: largest logits (base 2), sums [R] and weighted values [R, D]."""
    new = tl.maximum(top, other_top)
    base = tl.where(new == -float("inf"), 0.0, new)
    a = tl.exp2(top - base)
    b = tl.exp2(other_top - base)
    return new, total * a + other_total * b, acc * a[:, None] + other_acc * b[:, None]
