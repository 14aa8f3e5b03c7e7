"""Random weights in any format, scaled so that products of unit activations are about one."""

from __future__ import annotations

import numpy as np

from rusteeze.weights import Affine, Codebook, Dense, Float8, Weight, parse_format
from rusteeze.weights.e4m3 import NAN_CODE
from rusteeze.weights.formats import SCALE_DTYPES


def draw_weight(format: str, shape: tuple[int, ...], rng: np.random.Generator) -> Weight:
    """A weight of that format and shape [..., N, K]."""
    f = parse_format(format)
    if f.family == "dense":
        values = rng.standard_normal(shape, np.float32) / np.sqrt(shape[-1])
        return Dense(values.astype(np.float32), "f32").converted(f.dtype)
    groups = (*shape[:-1], shape[-1] // f.group)
    codes = rng.integers(0, 1 << f.bits, shape, np.uint8)
    size = 1 / (np.sqrt(shape[-1]) * (1 << f.bits))
    scale = (rng.uniform(0.5, 2, groups) * size).astype(SCALE_DTYPES[f.dtype])
    if f.family == "codebook":
        table = np.sort(rng.standard_normal(16) * 8).astype(np.float32)
        if f.integral:
            table = np.array([-128, 127, *rng.integers(-128, 128, 14)], np.float32)
            scale /= 8
        return Codebook(f.group, codes, table, scale)
    if f.family == "float8":
        codes[codes & 127 == NAN_CODE] = 0
        return Float8(f.group, codes, scale * 4)
    if f.symmetric:
        return Affine(f.bits, f.group, codes, scale, zero=f.zero)
    minimum = -(scale * np.float32((1 << f.bits) / 2)).astype(scale.dtype)
    return Affine(f.bits, f.group, codes, scale, minimum)
