"""Weights of float8 numbers (e4m3) with scales, decoded into plain numbers: kernels know no float8 yet.

float8 times a power of two fits into bf16, and times any bf16 scale into float32, without losing a bit;
other scales round once, as in every float32 computation with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rusteeze.frontend.quantised_parts import Parts
from rusteeze.frontend.stored_weight import StoredWeight
from rusteeze.weights import Dense

Array = np.ndarray
_NAN = 0x7F
_POWERS = ("F8_E8M0", "U8")  # element types of scales that are powers of two: exponent + 127
_LARGEST_POWER = 110  # so that every product is an ordinary bf16 number
_ELEMENTS_AT_ONCE = 1 << 24


def _e4m3_values() -> Array:
    """float32 of all 256 codes: sign, four bits of exponent (bias 7), three of mantissa; no infinities."""
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    significand = np.where(exponent == 0, mantissa, mantissa + 8).astype(np.float32)
    positive = np.ldexp(significand, np.maximum(exponent, 1) - 10)
    positive[_NAN] = np.nan
    return np.concatenate([positive, -positive]).astype(np.float32)


E4M3 = _e4m3_values()


@dataclass(frozen=True)
class Float8Weight:
    """Codes [..., N, K] and scales [..., N / rows, K / columns], rounded up: blocks of that size share one."""

    parts: Parts
    codes: str
    scale: str
    rows: int
    columns: int

    def stored(self) -> StoredWeight:
        return self.parts.weight(self.shape, lambda: self.dtype, self.load, self.codes, self.scale)

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
    def dtype(self) -> str:
        """What all numbers of the weight fit into; a matter of types, so that experts agree."""
        return "bf16" if self.parts.dtype(self.scale) in _POWERS else "f32"

    def load(self) -> Dense:
        scales = self.scales()
        codes = self.parts.read(self.codes, ["F8_E4M3"])
        dtype = self.dtype
        out = np.empty(codes.shape, np.uint16 if dtype == "bf16" else np.float32)
        matrices = codes.reshape(-1, *codes.shape[-2:])
        for matrix, scale, target in zip(
            matrices, scales.reshape(-1, *scales.shape[-2:]), out.reshape(matrices.shape), strict=True
        ):
            self._decode(matrix, scale, target, dtype)
        return Dense(out, dtype)

    def _decode(self, codes: Array, scales: Array, out: Array, dtype: str) -> None:
        """One matrix, some rows at a time."""
        n, k = codes.shape
        step = max(1, _ELEMENTS_AT_ONCE // k)
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            of_rows = scales[np.arange(rows.start, rows.stop) // self.rows]
            values = E4M3[codes[rows]]
            if np.isnan(values).any():
                self.parts.refuse(f"{self.parts.stem}{self.codes} holds a NaN")
            values *= np.repeat(of_rows, min(self.columns, k), axis=1)[:, :k]
            out[rows] = Dense(values, "f32").converted(dtype).values


def read_scales(parts: Parts, suffix: str) -> Array:
    """Scales as float32: numbers, or exponents of powers of two (e8m0)."""
    if parts.dtype(suffix) not in _POWERS:
        return parts.scales(suffix).astype(np.float32)
    exponents = parts.read(suffix, _POWERS).astype(np.int32) - 127
    if (np.abs(exponents) > _LARGEST_POWER).any():
        parts.refuse(f"{parts.stem}{suffix} holds a scale beyond 2**{_LARGEST_POWER}")
    return np.ldexp(np.float32(1), exponents)
