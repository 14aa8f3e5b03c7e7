"""How a matmul kernel walks its data, as a value: found by measurement, or the fallback.

No field changes a result: whatever the schedule, an element of the product is summed in the same order.
Example: ``choose(key, V4, tables)`` gives the schedule of the first table that knows the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Protocol

import msgspec

from rusteeze.codegen.cpu.isa import Isa

MOST_ROWS = 16
MOST_ACCUMULATORS = 24
# rows of a pass come in whole blocks of every row tile, and never fewer than these
FEWEST_ROWS = 24

Rows = Annotated[int, msgspec.Meta(ge=1, le=MOST_ROWS)]


class MatmulKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a schedule depends on: the format of W[N, K], what x is rounded to, and what is fused."""

    format: str
    activation: str
    k: Annotated[int, msgspec.Meta(ge=1)]
    n: Annotated[int, msgspec.Meta(ge=1)]
    label: str


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """ValueError when ``row_tiles`` do not fall to 1.

    ``row_tiles``: rows of the micro-kernels, largest first. ``block_tiles``: tiles of 16 columns that a
    thread finishes together, where the epilogue leaves the choice and the matrix divides. ``accumulators``:
    as many of a block's tiles are multiplied in one pass over K as fit this many registers, at least one.
    ``pass_bytes``: activations that are used again and again while weights pass. ``prefetch_bytes``: how far
    ahead weights are asked for with several rows, ``prefetch_bytes_one_row`` with one; 0: not at all.
    ``fewest_shared_blocks``: with fewer blocks of columns than this the threads share rows instead."""

    row_tiles: Annotated[tuple[Rows, ...], msgspec.Meta(min_length=1, max_length=8)]
    pass_bytes: Annotated[int, msgspec.Meta(ge=4 << 10, le=64 << 20)] = 448 << 10
    prefetch_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)] = 5760
    prefetch_bytes_one_row: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)] = 5760
    fewest_shared_blocks: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 4
    block_tiles: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1
    accumulators: Annotated[int, msgspec.Meta(ge=1, le=MOST_ACCUMULATORS)] = 1

    def __post_init__(self) -> None:
        falls = all(a > b for a, b in zip(self.row_tiles, self.row_tiles[1:], strict=False))
        if not falls or self.row_tiles[-1] != 1:
            raise ValueError(f"row_tiles {list(self.row_tiles)} do not fall to 1")

    @property
    def row_multiple(self) -> int:
        """Rows of a pass are a multiple of this."""
        common = math.lcm(*self.row_tiles)
        return -(-FEWEST_ROWS // common) * common

    def ahead(self, rows: int) -> int:
        """Bytes between a weight that is read and the one that is asked for; 0: none is."""
        return self.prefetch_bytes if rows > 1 else self.prefetch_bytes_one_row

    def together(self, rows: int, width: int) -> int:
        """How many of a block's ``width`` tiles are multiplied in one pass: a divisor of it."""
        most = max(1, self.accumulators // rows)
        return max(d for d in range(1, width + 1) if width % d == 0 and d <= most)


class Table(Protocol):
    """What is known about some kernels on one processor."""

    def find(self, key: MatmulKey, isa: str) -> Schedule | None: ...


def choose(key: MatmulKey, isa: Isa, tables: Sequence[Table]) -> Schedule:
    """The schedule of the first table that has one, else the fallback."""
    found = (table.find(key, isa.name) for table in tables)
    return next((s for s in found if s is not None), fallback(isa, key.activation, key.format))


# sums of one row wait for each other where a vector of codes is several steps of the same sum
_CODES_OF_FLOATS = ("float8", "codebook")


def fallback(isa: Isa, activation: str, format: str = "") -> Schedule:
    """What does well everywhere; the last rule."""
    if activation != "q8" and format.startswith(_CODES_OF_FLOATS):
        # four streams of tiles that begin at equal places of the first-level cache: nearer than with one
        return Schedule(isa.row_tiles, prefetch_bytes_one_row=2880, block_tiles=4, accumulators=4)
    if activation == "f32":  # bound by arithmetic on decoded weights
        return Schedule(isa.row_tiles, prefetch_bytes=0, prefetch_bytes_one_row=0)
    if activation == "bf16":  # with one row the hardware's own prefetching does as well (measured)
        return Schedule(isa.row_tiles, prefetch_bytes_one_row=0)
    return Schedule(isa.row_tiles)
