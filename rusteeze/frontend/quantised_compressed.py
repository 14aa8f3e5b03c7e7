"""compressed-tensors: integers packed along the inputs, int8 and float8, with a scheme per group of layers.

A weight is recognised by its tensors. ``weight_packed`` int32 [N, K * bits / 32] (with ``weight_shape`` [2])
holds code = q + 2**(bits-1), its zero points int32 [N * bits / 32, G] packed along the outputs;
``weight`` int8 or e4m3 [N, K] lies open. ``weight_scale`` is [N, G], [N, 1], one number, or of blocks.
``weight_g_idx`` [K] is the group of each column in act-order. Bits and groups are those of a stated scheme
that fits the shapes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from rusteeze.frontend.bit_fields import unpack_fields, words_for
from rusteeze.frontend.float8 import Float8Weight
from rusteeze.frontend.quantised_config import QuantConfig
from rusteeze.frontend.quantised_grid import Grid
from rusteeze.frontend.quantised_parts import Parts, stems
from rusteeze.frontend.safetensors_file import SafetensorsModel
from rusteeze.frontend.stored_weight import StoredWeight
from rusteeze.weights import Weight

Array = np.ndarray
FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense")
NEAREST = "save it as pack-quantized, int-quantized or float-quantized"
WHOLE = sys.maxsize
PACKED, SCALE, ZERO, INDEX = ".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_g_idx"


def compressed_weights(stored: SafetensorsModel, config: QuantConfig) -> dict[str, StoredWeight]:
    """The compressed weights of a folder by name. CheckpointError for what is not described above."""
    _refuse_other_formats(config)
    schemes = list(config.schemes())
    weights = {}
    for stem in stems(stored, SCALE):
        parts = Parts(config, stored, stem)
        weights[f"{stem}.weight"] = _weight(parts, schemes)
    return weights


def _refuse_other_formats(config: QuantConfig) -> None:
    format = config.table.get("format", "dense")
    if format not in FORMATS:
        config.refuse(f"the format {str(format)[:40]!r} is not supported", NEAREST)
    sparsity = config.table.get("sparsity_config")
    if sparsity and (not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense"):
        config.refuse("sparse weights are not supported", "save the model without sparsity")
    transforms = config.table.get("transform_config")
    if transforms and (not isinstance(transforms, dict) or transforms.get("config_groups")):
        config.refuse("rotations of activations are not supported", "quantise without transforms")


def _weight(parts: Parts, schemes: list[Mapping[str, Any]]) -> StoredWeight:
    if PACKED in parts:
        return _IntegerWeight(parts, schemes, packed=True).stored()
    if parts.dtype(".weight") == "I8":
        return _IntegerWeight(parts, schemes, packed=False).stored()
    return _float_weight(parts, schemes).stored()


def _float_weight(parts: Parts, schemes: list[Mapping[str, Any]]) -> Float8Weight:
    """By the shape of its scales: one, one a row, one a group, or of the stated blocks."""
    n, k = parts.shape(".weight", 2)
    scale = parts.shape(SCALE)
    if scale in ((), (1,), (1, 1)):
        return Float8Weight(parts, ".weight", SCALE, WHOLE, WHOLE)
    if scale in ((n,), (n, 1)):
        return Float8Weight(parts, ".weight", SCALE, 1, WHOLE)
    blocks = [s["block_structure"] for s in schemes if s.get("block_structure")]
    blocks += [[1, s["group_size"]] for s in schemes if s.get("group_size")]
    for block in blocks:
        sound = isinstance(block, list) and len(block) == 2 and all(type(d) is int and d > 0 for d in block)
        if sound and scale == (-(-n // block[0]), -(-k // block[1])):
            return Float8Weight(parts, ".weight", SCALE, *block)
    parts.refuse(f"{parts.stem}{SCALE} has the shape {list(scale)}, which no stated scheme gives")


class _IntegerWeight:
    """Codes, packed or one a byte; ``schemes`` are what is stated of weights."""

    def __init__(self, parts: Parts, schemes: list[Mapping[str, Any]], *, packed: bool) -> None:
        self.parts, self.packed = parts, packed
        self.n, self.k, self.bits = self._packed_sizes(schemes) if packed else (*parts.shape(".weight", 2), 8)
        scale = parts.shape(SCALE)
        self.rows, self.groups = (1, 1) if scale in ((), (1,)) else (self.n, 1) if len(scale) == 1 else scale
        if self.rows not in (1, self.n) or (self.rows == 1 < self.groups):
            parts.refuse(f"{parts.stem}{SCALE} has the shape {list(scale)} for {self.n} rows")
        self.group = self._group(schemes)

    def stored(self) -> StoredWeight:
        return self.parts.weight(
            (self.n, self.k), lambda: str(self.grid().layout), self.load,
            PACKED if self.packed else ".weight", SCALE, ZERO, INDEX, ".weight_shape",
            find_sorted=lambda: self.grid().sorted_columns(self.codes),
        )  # fmt: skip

    def load(self) -> Weight:
        return self.grid().weight(self.codes())

    def codes(self) -> Array:
        if self.packed:
            return unpack_fields(self.parts.read(PACKED, ["I32"]), self.bits, self.k)
        return self.parts.read(".weight", ["I8"]).view(np.uint8) ^ np.uint8(0x80)

    def grid(self) -> Grid:
        scale = self.parts.scales(SCALE).reshape(self.rows, self.groups)
        scale = np.broadcast_to(scale, (self.n, self.groups))
        return Grid(self.bits, scale, self._zero(), self._column_group())

    def _zero(self) -> int | Array:
        middle = 1 << (self.bits - 1)
        if ZERO not in self.parts:
            return middle
        if self.packed and self.rows == self.n:
            shape = (words_for(self.n, self.bits), self.groups)
            words = self.parts.read(ZERO, ["I32"], shape)
            return unpack_fields(words.T, self.bits, self.n).T.astype(np.int32)
        zero = self.parts.read(ZERO, ["I8"], self.parts.shape(SCALE)).reshape(self.rows, self.groups)
        return np.broadcast_to(zero.astype(np.int32) + middle, (self.n, self.groups))

    def _column_group(self) -> Array:
        if INDEX not in self.parts:
            return np.arange(self.k) // self.group
        index = self.parts.read(INDEX, ["I32", "I64"], (self.k,))
        if (index == -1).all():  # written, but not used
            return np.arange(self.k) // self.group
        if index.min() < 0 or index.max() >= self.groups:
            self.parts.refuse(f"{self.parts.stem}{INDEX} names groups outside of the {self.groups} stored")
        return index

    def _packed_sizes(self, schemes: list[Mapping[str, Any]]) -> tuple[int, int, int]:
        """N, K and bits, of which the shape of the words leaves one free: those of a stated scheme."""
        n, words = self.parts.shape(PACKED, 2)
        if self.parts.dtype(PACKED) != "I32":
            self.parts.refuse(f"{self.parts.stem}{PACKED} holds {self.parts.dtype(PACKED)}", NEAREST)
        stated = self.parts.read(".weight_shape", ["I64", "I32"], (2,))
        stated_n, k = int(stated[0]), int(stated[1])
        all_bits = {s["num_bits"] for s in schemes if type(s.get("num_bits")) is int and 1 < s["num_bits"] <= 8}
        bits = [b for b in all_bits if k > 0 and words_for(k, b) == words]
        if stated_n != n or len(bits) != 1:
            self.parts.refuse(
                f"{self.parts.stem}{PACKED} {[n, words]} holds no {[stated_n, k]} codes of the stated"
                f" {' or '.join(map(str, sorted(all_bits))) or 'number of'} bits",
                "pack it with a current version of compressed-tensors",
            )
        return n, k, bits[0]

    def _group(self, schemes: list[Mapping[str, Any]]) -> int:
        """How many columns share a scale."""
        if self.groups == 1:
            return self.k
        sizes = {s["group_size"] for s in schemes if type(s.get("group_size")) is int and s["group_size"] > 0}
        fitting = [g for g in sizes if -(-self.k // g) == self.groups]
        if len(fitting) != 1:
            self.parts.refuse(f"{self.parts.stem}{SCALE} holds {self.groups} groups for {self.k} columns")
        return fitting[0]
