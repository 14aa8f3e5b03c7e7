"""Values that are known at compile time: their format, name and data.

A weight goes from its checkpoint into the artifact in one of these layouts: *tiles* for matmuls (packed,
in its own format; *halves*: its two halves of rows packed one after the other), *rows* (plain float32
or int32, row-major) for everything else, and the *table* of a codebook. Both are produced
one weight at a time, so that compiling holds no second copy of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rusteeze.codegen.cpu.tiles import TileLayout, pack, tile_format
from rusteeze.ir import Value, evaluate
from rusteeze.ir.storage import shared_format, stored_format
from rusteeze.weights.families import Codebook, Dense, Weight, concat_rows, with_leading_axes
from rusteeze.weights.formats import Format, parse_format

Load = Callable[[str], Weight]
Layout = Literal["tiles", "halves", "rows", "table"]
PADDING = 64
CODEBOOK_VALUES = 16


def format_of(value: Value) -> Format:
    """The format a static value keeps without loss: its weights', where only rows are joined, picked or cut."""
    return parse_format(stored_format(value))


def load_static(value: Value, load: Load) -> Weight:
    """The data of a static value, in ``format_of(value)``."""
    if value.is_weight:
        return load(value.name)
    node = value.node
    assert node is not None
    if shared_format(node) is not None:
        parts = [load_static(v, load) for v in node.inputs()]
        if node.op.name == "concat":
            return concat_rows(parts)  # type: ignore[type-var]
        if node.op.name == "gather_rows":
            part, index = parts
            return part.rows(as_array(index))
        (part,) = parts
        if node.op.name == "slice":
            index = slice(node.attrs["start"], node.attrs["stop"])
            leads = node.attrs["axis"] == 0 and len(part.shape) > 2
            return part.expert(index) if leads else part.rows(index)
        if node.op.name == "reshape":
            return with_leading_axes(part, [int(d) for d in node.result.type.shape[:-1]])
        if isinstance(part, Codebook):
            return part.transpose()
        assert isinstance(part, Dense)
        perm: tuple[int, ...] = node.attrs["perm"]  # type: ignore[assignment]
        return Dense(np.transpose(part.values, perm), part.dtype)
    operands = [as_array(load_static(v, load)) if v is not None else None for v in node.operands]
    return plain(evaluate(node, operands)[value.index])


def as_array(weight: Weight) -> np.ndarray:
    """For the interpreter: integers as they are, everything else as float32."""
    if isinstance(weight, Dense) and weight.dtype == "i32":
        return weight.values
    return weight.to_f32()


def plain(array: np.ndarray) -> Dense:
    if array.dtype.kind in "iub":
        return Dense(np.ascontiguousarray(array, np.int32), "i32")
    return Dense(np.ascontiguousarray(array, np.float32), "f32")


def leaf_names(value: Value) -> list[str]:
    if value.is_weight:
        return [value.name]
    assert value.node is not None
    return [name for v in value.node.inputs() for name in leaf_names(v)]


@dataclass
class Statics:
    """The weights a plan refers to, by name, in order of first use."""

    entries: dict[str, tuple[Value, Layout]] = field(default_factory=dict)
    _names: dict[tuple[Value, Layout], str] = field(default_factory=dict)

    def name(self, value: Value, layout: Layout) -> str:
        key = (value, layout)
        if key not in self._names:
            base = "+".join(leaf_names(value)) or "static"
            name = f"{base[:160]}.{layout}"
            if name in self.entries:
                name = f"{base[:160]}.{len(self.entries)}.{layout}"
            self.entries[name] = key
            self._names[key] = name
        return self._names[key]

    def nbytes(self, name: str) -> int:
        """Size of an entry's data, known without loading it."""
        value, layout = self.entries[name]
        shape = [int(d) for d in value.type.shape]
        f = tile_format(format_of(value))
        if layout == "tiles":
            size = TileLayout(f, *shape[-2:]).bytes * math.prod(shape[:-2])
        elif layout == "halves":
            size = 2 * TileLayout(f, shape[0] // 2, shape[1]).bytes
        elif layout == "table":
            size = 4 * CODEBOOK_VALUES
        else:
            size = 4 * math.prod(shape)
        return -(-size // PADDING) * PADDING

    def data(self, name: str, load: Load) -> np.ndarray:
        """Bytes of an entry: uint8 [nbytes(name)]."""
        value, layout = self.entries[name]
        weight = load_static(value, load)
        if layout == "tiles":
            raw = pack(weight).reshape(-1)
        elif layout == "halves":
            middle = weight.shape[0] // 2
            raw = np.concatenate([pack(weight.rows(slice(0, middle))), pack(weight.rows(slice(middle, None)))])
        elif layout == "table":
            assert isinstance(weight, Codebook)
            raw = np.ascontiguousarray(weight.table, np.float32).view(np.uint8)
        else:
            raw = np.ascontiguousarray(as_array(weight)).reshape(-1).view(np.uint8)
        missing = -raw.nbytes % PADDING
        return np.concatenate([raw, np.zeros(missing, np.uint8)]) if missing else raw
