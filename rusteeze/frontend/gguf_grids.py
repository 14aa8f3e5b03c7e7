"""GGUF block types that store indices into tables of points: IQ1_S, IQ1_M, IQ2_*, IQ3_*.

The points have small integer coordinates, so with their signs they are exact eight-bit codes around
128. The tables are those of the gguf package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS

Array = np.ndarray  # `b` below is uint8 [M, bytes of a block]
ZERO = 128

GRID_GROUPS = {
    T.IQ1_S: 32, T.IQ1_M: 16, T.IQ2_XXS: 32, T.IQ2_XS: 16, T.IQ2_S: 16, T.IQ3_XXS: 32, T.IQ3_S: 32,
}  # fmt: skip
"""Elements per scale of each type."""


def decode_grid(blocks: Array, type: T) -> tuple[Array, Array]:
    """Codes uint8 [M, 256] with zero point 128, and scales f32 [M, 256 / group]."""
    values, scale = _DECODERS[type](blocks)
    codes = (values + ZERO).astype(np.uint8)
    return codes.reshape(len(blocks), 256), scale.astype(np.float32)


def _points(kind: Any) -> Array:
    """The table of a quantisation class of gguf as int16 [points, coordinates]."""
    kind.init_grid()
    return kind.grid.reshape(kind.grid_shape).astype(np.int16)


def _f16(bytes: Array) -> Array:
    return np.ascontiguousarray(bytes).view("<f2").astype(np.float32)


def _u16(bytes: Array) -> Array:
    return np.ascontiguousarray(bytes).view("<u2")


def _u32(bytes: Array) -> Array:
    return np.ascontiguousarray(bytes).view("<u4")


def _pick(values: Array, shifts: range, mask: int) -> Array:
    """Bit fields at those shifts of each value: [M, len * number of shifts]."""
    fields = values[..., None] >> np.array(shifts, values.dtype) & values.dtype.type(mask)
    return fields.reshape(len(values), -1)


def _signs(bits: Array) -> Array:
    """+1 or -1 for each bit of the bytes, lowest first: int16 [M, 8 * bytes]."""
    return 1 - 2 * np.unpackbits(bits, axis=1, bitorder="little").astype(np.int16)


def _seven_bit_signs(index: Array) -> Array:
    """Signs of eight values out of seven bits; the table adds the eighth, for even parity."""
    return _signs(np.frombuffer(IQ2_XXS.ksigns, np.uint8)[index])


def _points_of(kind: Any, index: Array) -> Array:
    return _points(kind)[index].reshape(len(index), 256)


def _four_bit_scale(d: Array, scales: Array) -> Array:
    return d * (np.float32(0.5) + _pick(scales, range(0, 8, 4), 15).astype(np.float32))


def _iq2_xxs(b: Array) -> tuple[Array, Array]:
    words = _u32(b[:, 2:]).reshape(len(b), 8, 2)
    index = np.ascontiguousarray(words[..., 0]).view(np.uint8)
    high = np.ascontiguousarray(words[..., 1])
    scale = _f16(b[:, :2]) * (np.float32(0.5) + (high >> 28).astype(np.float32)) * np.float32(0.25)
    return _points_of(IQ2_XXS, index) * _seven_bit_signs(_pick(high, range(0, 28, 7), 127)), scale


def _iq2_xs(b: Array) -> tuple[Array, Array]:
    words = _u16(b[:, 2:66])
    scale = _four_bit_scale(_f16(b[:, :2]), b[:, 66:]) * np.float32(0.25)
    return _points_of(IQ2_XS, words & 511) * _seven_bit_signs(words >> 9), scale


def _iq2_s(b: Array) -> tuple[Array, Array]:
    index = b[:, 2:34] | _pick(b[:, 66:74], range(0, 8, 2), 3).astype(np.uint16) << 8
    scale = _four_bit_scale(_f16(b[:, :2]), b[:, 74:]) * np.float32(0.25)
    return _points_of(IQ2_S, index) * _signs(b[:, 34:66]), scale


def _iq3_xxs(b: Array) -> tuple[Array, Array]:
    words = _u32(b[:, 66:])
    scale = _f16(b[:, :2]) * (np.float32(0.5) + (words >> 28).astype(np.float32)) * np.float32(0.5)
    return _points_of(IQ3_XXS, b[:, 2:66]) * _seven_bit_signs(_pick(words, range(0, 28, 7), 127)), scale


def _iq3_s(b: Array) -> tuple[Array, Array]:
    index = b[:, 2:66] | _pick(b[:, 66:74], range(8), 1).astype(np.uint16) << 8
    scale = _f16(b[:, :2]) * (1 + 2 * _pick(b[:, 106:], range(0, 8, 4), 15).astype(np.float32))
    return _points_of(IQ3_S, index) * _signs(b[:, 74:106]), scale


def _shifted(points: Array, negative: Array) -> Array:
    """Eight times (coordinate + 1/8 or - 1/8): integers again; the scale carries the eighth."""
    delta = 1 - 2 * negative.astype(np.int16)
    return 8 * points + np.repeat(delta, points.shape[1] // delta.shape[1], axis=1)


def _iq1_s(b: Array) -> tuple[Array, Array]:
    high = _u16(b[:, 34:])
    index = b[:, 2:34] | _pick(high, range(0, 12, 3), 7) << 8
    scale = _f16(b[:, :2]) * (2 * (high >> 12 & 7) + 1).astype(np.float32) * np.float32(0.125)
    return _shifted(_points_of(IQ1_S, index), high >> 15), scale


def _iq1_m(b: Array) -> tuple[Array, Array]:
    """The top nibbles of the four scale words together are the f16 scale of the block."""
    words, high = _u16(b[:, 48:]), _pick(b[:, 32:48], range(0, 8, 4), 15)
    d = (words >> 12 << np.array([0, 4, 8, 12], np.uint16)).sum(axis=1, dtype=np.uint16)
    index = b[:, :32] | (high & 7).astype(np.uint16) << 8
    small = (2 * _pick(words, range(0, 12, 3), 7) + 1).astype(np.float32)
    scale = d.view("<f2").astype(np.float32)[:, None] * small * np.float32(0.125)
    return _shifted(_points_of(IQ1_S, index), high >> 3), scale


_DECODERS: dict[T, Callable[[Array], tuple[Array, Array]]] = {
    T.IQ1_S: _iq1_s, T.IQ1_M: _iq1_m, T.IQ2_XXS: _iq2_xxs, T.IQ2_XS: _iq2_xs, T.IQ2_S: _iq2_s,
    T.IQ3_XXS: _iq3_xxs, T.IQ3_S: _iq3_s,
}  # fmt: skip
