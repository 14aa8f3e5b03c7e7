"""A weight of a model folder, whatever tensors it is stored as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rusteeze.weights import Weight


@dataclass(frozen=True, eq=False)
class SortedColumns:
    """A weight that keeps its codes if its columns are in another order: column j is the weight's column
    ``columns[j]`` (int32 [K]). ``format`` is that of what ``load`` returns."""

    columns: np.ndarray
    format: str
    load: Callable[[], Weight]


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """``tensors`` are the names under which its parts lie in the files; ``shape`` is the weight's own.

    Nothing is read before ``format`` (what ``load`` will return; reads scales at most) or ``load``.
    ``find_sorted``: the same weight with its columns sorted, where only that keeps codes."""

    tensors: tuple[str, ...]
    shape: tuple[int, ...]
    find_format: Callable[[], str]
    load: Callable[[], Weight]
    find_sorted: Callable[[], SortedColumns | None] = lambda: None

    @cached_property
    def format(self) -> str:
        return self.find_format()
