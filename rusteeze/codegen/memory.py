"""Plan scratch memory: buffers whose lifetimes do not overlap share addresses.

Sizes are per row, so one plan serves every number of tokens: a buffer of an arena with capacity for n
rows begins at n * offset. Greedy by size, largest first, each at the lowest offset that is free during
its lifetime (Pisarchyk & Lee 2020, "Efficient memory management for deep neural net inference").
"""

from __future__ import annotations

from dataclasses import dataclass

from rusteeze.codegen.views import Storage


@dataclass(frozen=True)
class Lifetime:
    storage: Storage
    first: int  # index of the call that writes it
    last: int  # index of the last call that uses it


def assign_offsets(lifetimes: list[Lifetime]) -> tuple[dict[Storage, int], dict[str, int]]:
    """(offset per storage, arena size per space), both in bytes per row."""
    offsets: dict[Storage, int] = {}
    sizes = {"T": 0, "R": 0}
    placed: list[Lifetime] = []
    for life in sorted(lifetimes, key=lambda x: (-x.storage.row_bytes, x.first)):
        space = life.storage.space
        neighbours = sorted(
            (offsets[p.storage], p.storage.row_bytes)
            for p in placed
            if p.storage.space == space and p.first <= life.last and life.first <= p.last
        )
        at = 0
        for offset, size in neighbours:
            if at + life.storage.row_bytes <= offset:
                break
            at = max(at, offset + size)
        offsets[life.storage] = at
        sizes[space] = max(sizes[space], at + life.storage.row_bytes)
        placed.append(life)
    return offsets, sizes
