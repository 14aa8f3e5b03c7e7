"""The tensors that together are one quantised weight, checked before they are used."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from rusteeze.frontend.quantised_config import QuantConfig
from rusteeze.frontend.safetensors_file import SafetensorsModel
from rusteeze.frontend.stored_weight import SortedColumns, StoredWeight
from rusteeze.weights import Dense, Weight

Array = np.ndarray
AGAIN = "download the model again, or quantise it again"
_FLOATS = {"F16": "f16", "BF16": "bf16", "F32": "f32"}


@dataclass(frozen=True)
class Parts:
    """Tensors called ``stem`` + suffix. What does not fit is refused in the words of ``config``."""

    config: QuantConfig
    stored: SafetensorsModel
    stem: str

    def __contains__(self, suffix: str) -> bool:
        return self.stem + suffix in self.stored.home

    def dtype(self, suffix: str) -> str:
        """Element type as the file spells it."""
        self._require(suffix)
        return self.stored.home[self.stem + suffix].entries[self.stem + suffix].dtype

    def shape(self, suffix: str, rank: int | None = None) -> tuple[int, ...]:
        """The shape of a part, of ``rank`` axes, none of them empty."""
        self._require(suffix)
        shape = self.stored.home[self.stem + suffix].entries[self.stem + suffix].shape
        if (rank is not None and len(shape) != rank) or not all(shape):
            self.refuse(f"{self.stem}{suffix} has the shape {list(shape)}")
        return shape

    def read(self, suffix: str, dtypes: Collection[str], shape: tuple[int, ...] | None = None) -> Array:
        """A part of one of these element types, and of that shape if one is given."""
        found = self.shape(suffix)
        if shape is not None and found != shape:
            self.refuse(f"{self.stem}{suffix} has the shape {list(found)}, {list(shape)} would fit")
        if self.dtype(suffix) not in dtypes:
            self.refuse(f"{self.stem}{suffix} holds {self.dtype(suffix)} instead of {' or '.join(dtypes)}")
        return self.stored.home[self.stem + suffix].array(self.stem + suffix)

    def scales(self, suffix: str, shape: tuple[int, ...] | None = None) -> Array:
        """A part of finite numbers, as f16 if stored so, else as f32 (which holds bf16 exactly)."""
        values = self.read(suffix, _FLOATS, shape)
        kind = _FLOATS[self.dtype(suffix)]
        numbers = values if kind == "f16" else Dense(values, kind).to_f32()
        if not np.isfinite(numbers).all():
            self.refuse(f"{self.stem}{suffix} holds a value that is not finite")
        return numbers

    def weight(
        self, shape: tuple[int, ...], find_format: Callable[[], str], load: Callable[[], Weight],
        *suffixes: str, find_sorted: Callable[[], SortedColumns | None] = lambda: None,
    ) -> StoredWeight:  # fmt: skip
        """The weight of that shape that is made of those parts that are there."""
        used = tuple(self.stem + s for s in suffixes if s in self)
        return StoredWeight(used, shape, find_format, load, find_sorted)

    def refuse(self, what: str, instead: str = AGAIN) -> NoReturn:
        self.config.refuse(what, instead)

    def _require(self, suffix: str) -> None:
        if suffix not in self:
            self.refuse(f"{self.stem}{suffix} is missing")


def stems(stored: SafetensorsModel, suffix: str) -> list[str]:
    """What stands before that suffix in the names of tensors."""
    return [name.removesuffix(suffix) for name in stored.home if name.endswith(suffix)]


def regular_groups(parts: Parts, k: int, groups: int) -> Array:
    """The group of each of k columns: runs of the stated size; -1 is one group for all."""
    size = parts.config.table.get("group_size", parts.config.table.get("q_group_size"))
    size = k if size == -1 else size
    if type(size) is not int or size < 1 or -(-k // size) != groups:
        parts.refuse(f"{parts.stem} holds {groups} groups for {k} columns, which contradicts the stated group")
    return np.arange(k) // size
