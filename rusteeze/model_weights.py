"""The weights that a graph asks for by name: a checkpoint's, a trace's constants, and sorted ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rusteeze.codegen.statics import plain
from rusteeze.frontend.checkpoint import Checkpoint
from rusteeze.frontend.stored_weight import SortedColumns
from rusteeze.passes.sort_columns import COLUMNS, SORTED, SortedWeight
from rusteeze.weights import Dense, Weight

PLAIN_FLOATS = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class Weights:
    """A checkpoint's weights and a trace's constants by name. Plain matrices are converted to ``dtype``
    unless that is "auto"; quantised weights stay as they are."""

    checkpoint: Checkpoint
    constants: Mapping[str, np.ndarray]
    dtype: str

    def format_of(self, name: str, rank: int) -> str:
        """The format of what ``load`` will return for a weight of that rank."""
        if name in self.constants:
            return plain(self.constants[name]).format
        stored = self.checkpoint.format_of(name)
        return self.dtype if self._converts(stored, rank) else stored

    def sorted_weights(self) -> dict[str, SortedWeight]:
        """The weights that keep their codes if their columns are sorted, by name."""
        return {name: SortedWeight(s.columns, s.format) for name, s in self._sorted.items()}

    @cached_property
    def _sorted(self) -> dict[str, SortedColumns]:
        plain = [p for p in self.checkpoint.params() if self.checkpoint.format_of(p) == "f32"]
        found = {name: self.checkpoint.sorted_columns(name) for name in plain}
        return {name: s for name, s in found.items() if s is not None}

    def load(self, name: str) -> Weight:
        """Also what SortColumns asks for under names of its own."""
        if name in self.constants:
            return plain(self.constants[name])
        if name.endswith(SORTED):
            return self._sorted[name.removesuffix(SORTED)].load()
        if name.endswith(COLUMNS):
            return plain(self._sorted[name.removesuffix(COLUMNS)].columns)
        weight = self.checkpoint.load(name)
        if isinstance(weight, Dense) and self._converts(weight.dtype, len(weight.shape)):
            return weight.converted(self.dtype)
        return weight

    def _converts(self, stored: str, rank: int) -> bool:
        return self.dtype != "auto" and rank > 1 and stored in PLAIN_FLOATS
