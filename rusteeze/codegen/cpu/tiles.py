"""How weight matrices lie in memory for the kernels: tiles of 16 outputs, in the order of reading.

A matrix W[N, K] becomes ceil(N/16) tiles; missing rows are zeros. A tile of codes is *records*, one for each
group of inputs: the codes, then 16 scales, then (if any) 16 minima. Codes keep their width (code_planes.py);
where a plane of one bit would not fill a vector with a group of 16, a record is two groups: the codes of
both, then scales and minima of the first, then those of the second. Groups that fit neither way have codes
widened as far as needed, which changes no value. float8 codes lie as their kernel unpacks them
(float8_tiles.py). Dense tiles hold element (k, n) at 16k + n; bf16 goes in pairs of inputs (k, k+1) per lane,
so that a dot product of pairs reads whole words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rusteeze.codegen.cpu.code_planes import fewest_inputs, pack_planes, unpack_planes
from rusteeze.codegen.cpu.float8_tiles import pack_float8, unpack_float8
from rusteeze.weights.families import Affine, Codebook, Dense, Float8, Weight
from rusteeze.weights.formats import Format, dense_format

Array = np.ndarray
TILE = 16
TILES_AT_ONCE = 64  # packing takes memory beside its result for these only


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
        """Bits of a stored code: its own, unless groups are too small for its planes."""
        return next(b for b in range(self.format.bits, 9) if self._groups_that_fit(b))

    def _groups_that_fit(self, bits: int) -> int:
        """Groups in a record of codes of that width; 0 if neither one nor two fill whole vectors."""
        group, fewest = self.format.group, fewest_inputs(bits)
        if group % fewest == 0 or bits == 8:
            return 1
        return 2 if 2 * group == fewest and self.k % fewest == 0 else 0

    @property
    def record_groups(self) -> int:
        return self._groups_that_fit(self.code_bits)

    @property
    def num_groups(self) -> int:
        return self.k // self.format.group

    @property
    def num_records(self) -> int:
        return self.num_groups // self.record_groups

    @property
    def record_inputs(self) -> int:
        return self.format.group * self.record_groups

    @property
    def code_bytes(self) -> int:
        return TILE * self.record_inputs * self.code_bits // 8

    @property
    def scale_bytes(self) -> int:
        return TILE * (2 if self.format.dtype == "f16" else 4)

    @property
    def has_minimum(self) -> bool:
        return self.format.family == "affine" and not self.format.symmetric

    @property
    def group_bytes(self) -> int:
        """Scales and minima of a group."""
        return self.scale_bytes * (2 if self.has_minimum else 1)

    @property
    def record_bytes(self) -> int:
        return self.code_bytes + self.group_bytes * self.record_groups

    @property
    def tile_bytes(self) -> int:
        if self.format.family == "dense":
            k = self.k + self.k % 2 if self.format.dtype == "bf16" else self.k
            return k * TILE * (4 if self.format.dtype == "f32" else 2)
        return self.num_records * self.record_bytes

    @property
    def bytes(self) -> int:
        return self.num_tiles * self.tile_bytes


def tile_format(f: Format) -> Format:
    """The format in which kernels read a weight: dense element types that they do not know become f32, and
    so do codes in groups across rows."""
    if f.transposed or (f.family == "dense" and f.dtype not in ("f32", "f16", "bf16")):
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
    out = np.zeros((layout.num_tiles, layout.num_records, layout.record_bytes), np.uint8)
    for first in range(0, layout.num_tiles, TILES_AT_ONCE):
        tiles = slice(first, first + TILES_AT_ONCE)
        _fill(out[tiles], weight.rows(slice(TILE * tiles.start, TILE * tiles.stop)), layout)
    return out.reshape(-1)


def _fill(out: Array, weight: Affine | Codebook | Float8, layout: TileLayout) -> None:
    """Records [tile, record, byte] of some rows."""
    shape = out.shape[:2]
    out[..., : layout.code_bytes] = _pack_codes(_padded(weight.codes), layout)
    arrays = [weight.scale]
    if isinstance(weight, Affine) and weight.minimum is not None:
        arrays.append(weight.minimum)
    lanes = [_padded(a).reshape(shape[0], TILE, shape[1], -1).transpose(0, 2, 3, 1) for a in arrays]
    scales = np.ascontiguousarray(np.stack(lanes, -2))  # [tile, record, group, scale or minimum, lane]
    out[..., layout.code_bytes :] = scales.view(np.uint8).reshape(*shape, -1)


def unpack(data: Array, layout: TileLayout, table: Array | None = None) -> Weight:
    """Inverse of ``pack`` for a two-dimensional weight (codes keep their values, not their spare bits)."""
    f = layout.format
    if f.family == "dense":
        return Dense(_unpack_dense(data, layout), f.dtype)
    records = data.reshape(layout.num_tiles, layout.num_records, layout.record_bytes)
    codes = _unpack_codes(records[..., : layout.code_bytes], layout)[: layout.n]
    raw = np.ascontiguousarray(records[..., layout.code_bytes :])
    scales = raw.view("float16" if f.dtype == "f16" else "float32")
    lanes = scales.reshape(*records.shape[:2], layout.record_groups, -1, TILE).transpose(3, 0, 4, 1, 2)
    arrays = [np.ascontiguousarray(a.reshape(-1, layout.num_groups)[: layout.n]) for a in lanes]
    if f.family == "codebook":
        assert table is not None
        return Codebook(f.group, codes, table, arrays[0])
    if f.family == "float8":
        return Float8(f.group, codes, arrays[0])
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
    records = codes.reshape(-1, TILE, layout.num_records, layout.record_inputs).swapaxes(1, 2)
    if layout.format.family == "float8":
        return pack_float8(records)
    return pack_planes(records, layout.code_bits)


def _unpack_codes(packed: Array, layout: TileLayout) -> Array:
    if layout.format.family == "float8":
        records = unpack_float8(packed)
    else:
        records = unpack_planes(packed, layout.code_bits, layout.record_inputs)
    return np.ascontiguousarray(records.swapaxes(1, 2)).reshape(layout.num_tiles * TILE, layout.k)
