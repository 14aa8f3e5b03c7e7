"""A weight of a model folder, whatever tensors it is stored as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from rusteeze.weights import Weight


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """``tensors`` are the names under which its parts lie in the files; ``shape`` is the weight's own.

    Nothing is read before ``format`` (what ``load`` will return; reads scales at most) or ``load``."""

    tensors: tuple[str, ...]
    shape: tuple[int, ...]
    find_format: Callable[[], str]
    load: Callable[[], Weight]

    @cached_property
    def format(self) -> str:
        return self.find_format()
