"""How weights lie in the artifact for GPU kernels.

    rows      plain float32 or int32, row-major: whatever is no matrix of a product
    matrix    a dense matrix [..., N, K] in its own element type, row-major, as it was
    codes     codes of quantised matrices in tiles of 64 rows: [..., tile][block of K][row][bytes of a
              block], so that a program streams whole tiles. A block is ``QuantShape.block`` columns; of
              four-bit codes byte j holds columns j (low) and j + block / 2 (high).
    scales, minimums   float32 [..., K / group, N], a row per group
    table     the 16 values of a codebook, float32

Columns beyond K have code = zero and scale 0; rows beyond N likewise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rusteeze.codegen.statics import as_array, format_of, leaf_names, load_static
from rusteeze.errors import UserError
from rusteeze.ir import Value
from rusteeze.weights import Affine, Codebook, Dense, Float8, Weight
from rusteeze.weights.e4m3 import NAN_CODE
from rusteeze.weights.formats import DENSE_DTYPES, Format

Load = Callable[[str], Weight]
Layout = Literal["rows", "matrix", "codes", "scales", "minimums", "table"]
PADDING = 64
TILE_ROWS = 64
MOST_HALF = 64
LEAST_HALF = 16
"""Columns that one product of a quantised kernel takes: within a group, at least what tensor cores take."""
TABLE_SIZE = 16


@dataclass(frozen=True)
class QuantShape:
    """A quantised matrix [N, K] as its kernels see it."""

    format: Format
    n: int
    k: int

    @property
    def step(self) -> int:
        """Columns of one product: the largest power of two within a group, at most MOST_HALF. ValueError
        when groups are too odd for tensor cores."""
        step = math.gcd(self.format.group, MOST_HALF)
        if step < LEAST_HALF:
            raise ValueError(f"groups of {self.format.group} columns have no GPU kernel")
        return step

    @property
    def code_bits(self) -> int:
        """Bits of a stored code; codes of other sizes are widened."""
        return 4 if self.format.bits <= 4 else 8

    @property
    def block(self) -> int:
        """Columns of one block of codes: one or two products."""
        return self.step * (8 // self.code_bits)

    @property
    def block_bytes(self) -> int:
        return self.step

    @property
    def blocks(self) -> int:
        return -(-self.k // self.block)

    @property
    def groups(self) -> int:
        """Groups of scales, those of padding included."""
        return -(-self.blocks * self.block // self.format.group)

    @property
    def tiles(self) -> int:
        return -(-self.n // TILE_ROWS)

    @property
    def padded_n(self) -> int:
        return self.tiles * TILE_ROWS

    @property
    def code_bytes(self) -> int:
        return self.tiles * self.blocks * TILE_ROWS * self.block_bytes


@dataclass
class GpuStatics:
    """The weights a plan refers to, by name, in order of first use."""

    entries: dict[str, tuple[Value, Layout]] = field(default_factory=dict)
    _names: dict[tuple[Value, Layout], str] = field(default_factory=dict)

    def name(self, value: Value, layout: Layout) -> str:
        key = (value, layout)
        if key not in self._names:
            base = "+".join(leaf_names(value))[:160] or "static"
            name = f"{base}.{layout}"
            if name in self.entries:
                name = f"{base}.{len(self.entries)}.{layout}"
            self.entries[name] = key
            self._names[key] = name
        return self._names[key]

    def nbytes(self, name: str) -> int:
        """Size of an entry's data, known without loading it."""
        value, layout = self.entries[name]
        shape = [int(d) for d in value.type.shape]
        if layout == "rows":
            size = 4 * math.prod(shape)
        elif layout == "matrix":
            size = math.prod(shape) * np.dtype(DENSE_DTYPES[format_of(value).dtype]).itemsize
        elif layout == "table":
            size = 4 * TABLE_SIZE
        else:
            quant = QuantShape(format_of(value), shape[-2], shape[-1])
            one = quant.code_bytes if layout == "codes" else 4 * quant.groups * quant.padded_n
            size = one * math.prod(shape[:-2])
        return -(-size // PADDING) * PADDING

    def data(self, name: str, load: Load) -> np.ndarray:
        """Bytes of an entry: uint8 [nbytes(name)]."""
        value, layout = self.entries[name]
        raw = _laid_out(load_static(value, load), layout).reshape(-1).view(np.uint8)
        missing = -raw.nbytes % PADDING
        return np.concatenate([raw, np.zeros(missing, np.uint8)]) if missing else raw


def _laid_out(weight: Weight, layout: Layout) -> np.ndarray:
    if layout == "rows":
        return np.ascontiguousarray(as_array(weight))
    if layout == "matrix":
        assert isinstance(weight, Dense)
        return np.ascontiguousarray(weight.values)
    assert isinstance(weight, Affine | Codebook | Float8)
    if layout == "table":
        assert isinstance(weight, Codebook)
        return np.ascontiguousarray(weight.table)
    shape = QuantShape(weight.layout, *weight.shape[-2:])
    parts = [weight] if len(weight.shape) == 2 else [weight.expert(e) for e in range(weight.shape[0])]
    return np.stack([_part(p, shape, layout) for p in parts])


def _part(weight: Affine | Codebook | Float8, shape: QuantShape, layout: Layout) -> np.ndarray:
    """Codes or scales of one [N, K]."""
    if layout == "codes":
        if isinstance(weight, Float8) and (weight.codes & 127 == NAN_CODE).any():
            raise UserError("a weight of float8 holds NaN")
        return _pack_codes(weight.codes, weight.layout.zero, shape)
    values = weight.scale if layout == "scales" else weight.minimum  # type: ignore[union-attr]
    padded = np.zeros((shape.groups, shape.padded_n), np.float32)
    padded[: values.shape[1], : shape.n] = values.T
    return padded


def _pack_codes(codes: np.ndarray, zero: int, shape: QuantShape) -> np.ndarray:
    """uint8 [tile, block of K, row, bytes of a block]"""
    padded = np.full((shape.padded_n, shape.blocks * shape.block), zero, np.uint8)
    padded[: shape.n, : shape.k] = codes
    tiled = padded.reshape(shape.tiles, TILE_ROWS, shape.blocks, shape.block).transpose(0, 2, 1, 3)
    if shape.code_bits == 4:
        tiled = tiled[..., : shape.step] | (tiled[..., shape.step :] << 4)
    return np.ascontiguousarray(tiled)
