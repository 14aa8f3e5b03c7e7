"""How weight matrices lie in memory for the kernels: tiles of 16 outputs, in the order of reading.

A matrix W[N, K] becomes ceil(N/16) tiles; missing rows are zeros. Within a tile, for each group of
``group`` inputs one *record*: the codes, then 16 scales, then (if any) 16 minima. Codes of 4 bits:
word z of lane n holds inputs 8z..8z+3 in its low nibbles, 8z+4..8z+7 in its high nibbles; codes of 8
bits: word z of lane n holds inputs 4z..4z+3. Codes of other widths are widened to the next of these
two, which changes no value. Dense tiles hold element (k, n) at 16k + n; bf16 goes in pairs of inputs
(k, k+1) per lane, so that a dot product of pairs reads whole words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rusteeze.weights.families import Affine, Codebook, Dense, Weight
from rusteeze.weights.formats import Format, dense_format

Array = np.ndarray
TILE = 16


@dataclass(frozen=True)
class TileLayout:
    """Sizes in bytes of a packed W[N, K] (or of one expert of W[E, N, K])."""

    format: Format
    n: int
    k: int

    @property
    def num_tiles(self) -> int:
        return -(-self.n // TILE)

    @property
    def code_bits(self) -> int:
        return 4 if self.format.bits <= 4 else 8

    @property
    def num_groups(self) -> int:
        return self.k // self.format.group

    @property
    def code_bytes(self) -> int:
        return TILE * self.format.group * self.code_bits // 8

    @property
    def scale_bytes(self) -> int:
        return TILE * (2 if self.format.dtype == "f16" else 4)

    @property
    def has_minimum(self) -> bool:
        return self.format.family == "affine" and not self.format.symmetric

    @property
    def record_bytes(self) -> int:
        return self.code_bytes + self.scale_bytes * (2 if self.has_minimum else 1)

    @property
    def tile_bytes(self) -> int:
        if self.format.family == "dense":
            k = self.k + self.k % 2 if self.format.dtype == "bf16" else self.k
            return k * TILE * (4 if self.format.dtype == "f32" else 2)
        return self.num_groups * self.record_bytes

    @property
    def bytes(self) -> int:
        return self.num_tiles * self.tile_bytes


def tile_format(f: Format) -> Format:
    """The format in which kernels read a weight: dense element types that they do not know become f32."""
    if f.family == "dense" and f.dtype not in ("f32", "f16", "bf16"):
        return dense_format("f32")
    return f


def pack(weight: Weight) -> Array:
    """uint8 [..., tiles * tile_bytes]: the tiles of W[..., N, K]."""
    if tile_format(weight.layout) != weight.layout:
        weight = Dense(weight.to_f32(), "f32")
    if len(weight.shape) == 3:
        return np.stack([pack(weight.expert(e)) for e in range(weight.shape[0])])
    if isinstance(weight, Dense):
        return _pack_dense(weight).reshape(-1)
    layout = TileLayout(weight.layout, *weight.shape)
    out = np.zeros((layout.num_tiles, layout.num_groups, layout.record_bytes), np.uint8)
    out[..., : layout.code_bytes] = _pack_codes(_padded(weight.codes), layout)
    arrays = [weight.scale]
    if isinstance(weight, Affine) and weight.minimum is not None:
        arrays.append(weight.minimum)
    at = layout.code_bytes
    for a in arrays:
        lanes = _padded(a).reshape(layout.num_tiles, TILE, layout.num_groups).transpose(0, 2, 1)
        out[..., at : at + layout.scale_bytes] = np.ascontiguousarray(lanes).view(np.uint8)
        at += layout.scale_bytes
    return out.reshape(-1)


def unpack(data: Array, layout: TileLayout, table: Array | None = None) -> Weight:
    """Inverse of ``pack`` for a two-dimensional weight (codes keep their values, not their spare bits)."""
    f = layout.format
    if f.family == "dense":
        return Dense(_unpack_dense(data, layout), f.dtype)
    records = data.reshape(layout.num_tiles, layout.num_groups, layout.record_bytes)
    codes = _unpack_codes(records[..., : layout.code_bytes], layout)[: layout.n]
    arrays = []
    for at in range(layout.code_bytes, layout.record_bytes, layout.scale_bytes):
        raw = np.ascontiguousarray(records[..., at : at + layout.scale_bytes])
        lanes = raw.view("float16" if f.dtype == "f16" else "float32")
        arrays.append(lanes.transpose(0, 2, 1).reshape(-1, layout.num_groups)[: layout.n])
    if f.family == "codebook":
        assert table is not None
        return Codebook(f.group, codes, table, arrays[0])
    minimum = arrays[1] if layout.has_minimum else None
    return Affine(f.bits, f.group, codes, arrays[0], minimum, f.zero)


def _padded(rows: Array) -> Array:
    missing = -len(rows) % TILE
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)]) if missing else rows


def _pack_dense(weight: Dense) -> Array:
    values = _padded(weight.values)
    if weight.dtype == "bf16":
        if values.shape[1] % 2:
            values = np.concatenate([values, np.zeros((len(values), 1), values.dtype)], 1)
        pairs = values.reshape(-1, TILE, values.shape[1] // 2, 2)
        return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3)).view(np.uint8)
    tiles = values.reshape(-1, TILE, values.shape[1])
    return np.ascontiguousarray(tiles.transpose(0, 2, 1)).view(np.uint8)


def _unpack_dense(data: Array, layout: TileLayout) -> Array:
    dtype = {"f32": "float32", "f16": "float16", "bf16": "uint16"}[layout.format.dtype]
    values = np.ascontiguousarray(data).view(dtype).reshape(layout.num_tiles, -1)
    if layout.format.dtype == "bf16":
        lanes = values.reshape(layout.num_tiles, -1, TILE, 2).transpose(0, 2, 1, 3)
    else:
        lanes = values.reshape(layout.num_tiles, -1, TILE).transpose(0, 2, 1)
    full = lanes.reshape(layout.num_tiles * TILE, -1)
    return np.ascontiguousarray(full[: layout.n, : layout.k])


def _pack_codes(codes: Array, layout: TileLayout) -> Array:
    words = (layout.num_tiles, TILE, layout.num_groups, -1)
    if layout.code_bits == 8:
        split = codes.reshape(*words, 4).transpose(0, 2, 3, 1, 4)
    else:
        halves = codes.reshape(*words, 2, 4)
        nibbles = halves[..., 0, :] | (halves[..., 1, :] << 4)
        split = nibbles.transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(split).reshape(layout.num_tiles, layout.num_groups, -1)


def _unpack_codes(packed: Array, layout: TileLayout) -> Array:
    words = packed.reshape(layout.num_tiles, layout.num_groups, -1, TILE, 4).transpose(0, 3, 1, 2, 4)
    if layout.code_bits == 4:
        words = np.stack([words & 15, words >> 4], -2)
    return np.ascontiguousarray(words).reshape(layout.num_tiles * TILE, layout.k)
