"""Which schedules are worth measuring for a kernel, in the order in which they promise most.

A step of the search changes one thing about the best schedule so far. ``rows``: the numbers of rows for
which that can matter; None: all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from rusteeze.codegen.cpu.isa import Isa
from rusteeze.codegen.cpu.schedule import FEWEST_ROWS, MatmulKey, Schedule
from rusteeze.codegen.cpu.tiles import TILE

# ranges of rows: for which each kind of change matters
ONE, SEVERAL, MANY = range(1, 2), range(2, 1 << 30), range(FEWEST_ROWS + 1, 1 << 30)
SMALL_BLOCKS = 64
AHEAD = (0, 1440, 2880, 5760, 11520)
PASSES = (192 << 10, 448 << 10, 896 << 10)
# row tiles beside those of the instruction set, for 32 and for 16 vector registers
WIDE_TILES = ((14, 8, 4, 1), (12, 8, 4, 2, 1), (8, 4, 1), (6, 4, 1))
NARROW_TILES = ((4, 2, 1), (6, 4, 1), (3, 1), (2, 1))
# (block_tiles, accumulators): tiles of a block, and how many sums of them are held at once
TOGETHER = ((1, 2), (1, 4), (1, 8), (2, 2), (4, 4), (2, 8), (4, 8))
# a grid of 6 rows x 4 tiles keeps bf16 products busy: fewer loads for each dot product
GRIDS = (((6, 4, 1), 4, 24), ((8, 4, 1), 2, 16), ((4, 1), 4, 16))


@dataclass(frozen=True)
class Change:
    """Fields of a schedule with the values to try together."""

    fields: dict[str, Any]
    rows: range | None = None

    def apply(self, best: Schedule) -> Schedule:
        return replace(best, **self.fields)


def changes(key: MatmulKey, isa: Isa) -> Iterator[Change]:
    """All of them for a kernel; some may leave a schedule as it is."""
    if key.activation != "f32":
        for block_tiles, accumulators in TOGETHER:
            yield Change({"block_tiles": block_tiles, "accumulators": accumulators})
        for ahead in AHEAD:
            yield Change({"prefetch_bytes_one_row": ahead}, ONE)
    wide = isa.row_tiles[0] > NARROW_TILES[0][0]
    if key.activation == "bf16" and wide:
        for row_tiles, block_tiles, accumulators in GRIDS:
            yield Change(
                {"row_tiles": row_tiles, "block_tiles": block_tiles, "accumulators": accumulators}
            )
    for row_tiles in WIDE_TILES if wide else NARROW_TILES:
        yield Change({"row_tiles": row_tiles}, SEVERAL)
    if key.activation != "f32":
        for ahead in AHEAD:
            yield Change({"prefetch_bytes": ahead}, SEVERAL)
    for pass_bytes in PASSES:
        yield Change({"pass_bytes": pass_bytes}, MANY)
    if key.n <= SMALL_BLOCKS * TILE:
        for blocks in (1, 16):
            yield Change({"fewest_shared_blocks": blocks})
