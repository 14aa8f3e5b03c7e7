"""bitsandbytes: codes of 4 bits into a table (nf4, fp4), and int8 with a scale per row.

Four bits: ``weight`` uint8 [N * K / 2, 1] holds the flattened matrix, high nibble first, in blocks whose
largest magnitudes are ``absmax``; blocks run on over the ends of rows. ``quant_map`` is the table. Doubly
quantised absmax are bytes: nested_quant_map[byte] * nested_absmax + nested_offset. Shape and block sizes
are JSON in a tensor. Eight bits: ``weight`` int8 [N, K], ``SCB`` f32 [N]; w = SCB / 127 * code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from rusteeze.frontend.quantised_config import QuantConfig
from rusteeze.frontend.quantised_grid import Grid, longest_run
from rusteeze.frontend.quantised_parts import Parts, stems
from rusteeze.frontend.safetensors_file import SafetensorsModel, parse_json_object
from rusteeze.frontend.stored_weight import StoredWeight
from rusteeze.weights import Codebook, Dense, Format, Weight
from rusteeze.weights.families import is_integral

Array = np.ndarray
STATE = ".quant_state.bitsandbytes__"
KINDS = ("nf4", "fp4")
INT8_STEP = np.float32(7.874015718698502e-3)  # 1/127 as bitsandbytes rounds it
_MAX_STATE_BYTES = 1 << 14
_ROW_MAJOR = 0


def bitsandbytes_weights(stored: SafetensorsModel, config: QuantConfig) -> dict[str, StoredWeight]:
    """The bitsandbytes weights of a folder by name. CheckpointError for what is not described above."""
    weights = {f"{s}.weight": _int8_weight(Parts(config, stored, s)) for s in stems(stored, ".SCB")}
    tables: dict[str, bytes] = {}
    for kind in KINDS:
        for stem in stems(stored, STATE + kind):
            weight = _FourBitWeight(Parts(config, stored, stem), kind)
            tables[stem] = weight.table.tobytes()
            weights[stem] = weight.stored()
    if len(set(tables.values())) > 1:
        config.refuse("weights have different tables of values", "quantise all with the same 4-bit type")
    return weights


class _FourBitWeight:
    def __init__(self, parts: Parts, kind: str) -> None:
        self.parts, self.kind = parts, kind
        self.state = self._state()
        stated = self.state.get("shape")
        if not isinstance(stated, list) or not all(map(_is_size, stated)):
            self._refuse_state("shape")
        self.shape = tuple(stated)
        self.count = math.prod(self.shape)
        if len(self.shape) != 2 or math.prod(parts.shape("")) != -(-self.count // 2):
            parts.refuse(f"{parts.stem} holds {list(parts.shape(''))} bytes for {list(self.shape)} codes")
        self.block = self._size("blocksize")
        self.table = np.ascontiguousarray(parts.scales(".quant_map", (16,)), np.float32)
        self.run = longest_run(np.arange(self.shape[1]) // math.gcd(self.shape[1], self.block))

    def stored(self) -> StoredWeight:
        layout = Format("codebook", "f32", 4, self.run, integral=is_integral(self.table))
        format = str(layout) if self.run else "f32"
        return self.parts.weight(
            self.shape, lambda: format, self.load, "", ".absmax", ".quant_map", ".nested_absmax",
            ".nested_quant_map", STATE + self.kind,
        )  # fmt: skip

    def load(self) -> Weight:
        data = self.parts.read("", ["U8"]).reshape(-1)
        codes = np.stack([data >> 4, data & 15], -1).reshape(-1)[: self.count].reshape(self.shape)
        step = self.run or 1
        of_run = self.absmax()[np.arange(0, self.count, step) // self.block]
        if self.run:
            scale = of_run.reshape(self.shape[0], -1)
            return Codebook(self.run, codes, self.table, scale)
        return Dense(self.table[codes] * of_run.reshape(self.shape), "f32")

    def absmax(self) -> Array:
        """The scale of each block, float32."""
        blocks = (-(-self.count // self.block),)
        if self.parts.dtype(".absmax") != "U8":
            return np.ascontiguousarray(self.parts.scales(".absmax", blocks), np.float32)
        block = self._size("nested_blocksize")
        offset = self.state.get("nested_offset")
        if not isinstance(offset, float) or not math.isfinite(offset):
            self._refuse_state("nested_offset")
        table = self.parts.scales(".nested_quant_map", (256,)).astype(np.float32)
        outer = self.parts.scales(".nested_absmax", (-(-blocks[0] // block),)).astype(np.float32)
        inner = table[self.parts.read(".absmax", ["U8"], blocks)]
        return inner * outer[np.arange(blocks[0]) // block] + np.float32(offset)

    def _state(self) -> Mapping[str, Any]:
        suffix = STATE + self.kind
        text = self.parts.read(suffix, ["U8"])
        if text.size > _MAX_STATE_BYTES:
            self.parts.refuse(f"{self.parts.stem}{suffix} is too long")
        return parse_json_object(text.tobytes(), self.parts.stored.home[self.parts.stem + suffix].path)

    def _size(self, key: str) -> int:
        """A positive number of the state."""
        value: Any = self.state.get(key)
        if not _is_size(value):
            self._refuse_state(key)
        return int(value)

    def _refuse_state(self, key: str) -> NoReturn:
        self.parts.refuse(f"{self.parts.stem}{STATE}{self.kind} states {key} {str(self.state.get(key))[:40]}")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 40


def _int8_weight(parts: Parts) -> StoredWeight:
    n, k = parts.shape(".weight", 2)
    form = ".weight_format"
    if form in parts and parts.read(form, ["U8", "I8", "I32", "I64"]).reshape(-1)[0] != _ROW_MAJOR:
        parts.refuse(f"{parts.stem}.weight is stored for one kind of GPU", "save it row by row")

    def grid() -> Grid:
        scale = parts.scales(".SCB", (n,)).astype(np.float32) * INT8_STEP
        return Grid(8, scale[:, None], 128, np.zeros(k, np.int64))

    def load() -> Weight:
        return grid().weight(parts.read(".weight", ["I8"]).view(np.uint8) ^ np.uint8(0x80))

    return parts.weight((n, k), lambda: str(grid().layout), load, ".weight", ".SCB", form)
