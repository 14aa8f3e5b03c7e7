"""Weights of float8 numbers (e4m3) with scales. They stay float8 where runs of columns share a scale; else they
become float32, which holds a product with any bf16 scale without losing a bit and rounds once with others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rusteeze.frontend.quantised_parts import Parts
from rusteeze.frontend.stored_weight import StoredWeight
from rusteeze.weights import Dense, Float8, Format, Weight
from rusteeze.weights.e4m3 import E4M3, NAN_CODE

Array = np.ndarray
_POWERS = ("F8_E8M0", "U8")  # element types of scales that are powers of two: exponent + 127
_LARGEST_POWER = 110
_SMALLEST_GROUP, _GROUP_MULTIPLE = 8, 4
_ELEMENTS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Float8Weight:
    """Codes [..., N, K] and scales [..., N / rows, K / columns], rounded up: blocks of that size share one."""

    parts: Parts
    codes: str
    scale: str
    rows: int
    columns: int

    def stored(self) -> StoredWeight:
        return self.parts.weight(self.shape, lambda: self.format, self.load, self.codes, self.scale)

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.parts.shape(self.codes)
        if len(shape) not in (2, 3) or self.parts.dtype(self.codes) != "F8_E4M3":
            self.parts.refuse(
                f"{self.parts.stem}{self.codes} is {self.parts.dtype(self.codes)} {list(shape)}",
                "supported are matrices of F8_E4M3, and stacks of them",
            )
        return shape

    def scales(self) -> Array:
        *stack, n, k = self.shape
        shape = (*stack, -(-n // self.rows), -(-k // self.columns))
        found = self.parts.shape(self.scale)
        # one scale for a row, or for a whole matrix, may be stored without axes of size 1
        if [d for d in found if d != 1] != [d for d in shape if d != 1]:
            self.parts.refuse(
                f"{self.parts.stem}{self.scale} has the shape {list(found)}, {list(shape)} would fit"
            )
        return read_scales(self.parts, self.scale).reshape(shape)

    @property
    def group(self) -> int:
        """Columns that share a scale everywhere, a divisor of all; 0 if they are too few to stay float8."""
        k = self.shape[-1]
        group = math.gcd(k, min(self.columns, k))
        return group if group >= _SMALLEST_GROUP and group % _GROUP_MULTIPLE == 0 else 0

    @property
    def format(self) -> str:
        """A matter of shapes, so that experts agree."""
        return str(Format("float8", "f32", 8, self.group)) if self.group else "f32"

    def load(self) -> Weight:
        scales = self.scales()
        codes = self.parts.read(self.codes, ["F8_E4M3"])
        if not self.group:
            return Dense(self._numbers(codes, scales), "f32")
        *_, n, k = codes.shape
        self._refuse_nan(codes)
        columns = np.arange(0, k, self.group) // min(self.columns, k)
        of_rows = scales[..., np.arange(n) // self.rows, :]
        return Float8(self.group, codes, np.ascontiguousarray(of_rows[..., columns]))

    def _refuse_nan(self, codes: Array) -> None:
        for part in codes.reshape(-1, codes.shape[-1]):
            if (part & NAN_CODE == NAN_CODE).any():
                self.parts.refuse(f"{self.parts.stem}{self.codes} holds a NaN")

    def _numbers(self, codes: Array, scales: Array) -> Array:
        """Plain float32."""
        self._refuse_nan(codes)
        *_, n, k = codes.shape
        out = np.empty(codes.shape, np.float32)
        matrices, of = codes.reshape(-1, n, k), scales.reshape(-1, *scales.shape[-2:])
        for matrix, scale, target in zip(matrices, of, out.reshape(matrices.shape), strict=True):
            self._decode(matrix, scale, target)
        return out

    def _decode(self, codes: Array, scales: Array, out: Array) -> None:
        """One matrix, some rows at a time."""
        n, k = codes.shape
        step = max(1, _ELEMENTS_AT_ONCE // k)
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            of_rows = scales[np.arange(rows.start, rows.stop) // self.rows]
            out[rows] = E4M3[codes[rows]] * np.repeat(of_rows, min(self.columns, k), axis=1)[:, :k]


def read_scales(parts: Parts, suffix: str) -> Array:
    """Scales as float32: numbers, or exponents of powers of two (e8m0)."""
    if parts.dtype(suffix) not in _POWERS:
        return parts.scales(suffix).astype(np.float32)
    exponents = parts.read(suffix, _POWERS).astype(np.int32) - 127
    if (np.abs(exponents) > _LARGEST_POWER).any():
        parts.refuse(f"{parts.stem}{suffix} holds a scale beyond 2**{_LARGEST_POWER}")
    return np.ldexp(np.float32(1), exponents)
