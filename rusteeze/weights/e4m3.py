"""The numbers of float8 (e4m3): sign, four bits of exponent (bias 7), three of mantissa; no infinities."""

from __future__ import annotations

import numpy as np

NAN_CODE = 0x7F  # with either sign


def _values() -> np.ndarray:
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    significand = np.where(exponent == 0, mantissa, mantissa + 8).astype(np.float32)
    positive = np.ldexp(significand, np.maximum(exponent, 1) - 10)
    positive[NAN_CODE] = np.nan
    return np.concatenate([positive, -positive]).astype(np.float32)


E4M3 = _values()
"""float32 of all 256 codes; each is also a bf16 number."""
