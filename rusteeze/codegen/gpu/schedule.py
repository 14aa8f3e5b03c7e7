"""How matmuls are cut into programs: values, chosen by rules from shapes alone.

``splits`` and the columns of one product decide in which order sums are made. They depend on the weight
only, never on the number of rows, so that a token's results do not depend on what else is in the step.
"""

from __future__ import annotations

from dataclasses import dataclass

PROGRAMS = 132
"""Programs that give every multiprocessor of a large device one."""
LEAST_SPLIT = 512
"""Columns of K below which it is not worth to split further."""
MOST_SPLITS = 8
SPLIT_ROWS = 256
"""Up to how many rows the splits of a product are separate programs."""


@dataclass(frozen=True)
class Tile:
    """One variant of a matmul: rows of the weight and of activations per program, columns of K per loop
    trip, warps and pipeline stages. ``up_to`` rows it is taken (0: any number)."""

    weight_rows: int
    rows: int
    depth: int
    num_warps: int
    num_stages: int
    up_to: int = 0


def tiles(exact: bool, crowded: bool) -> tuple[Tile, ...]:
    """Variants in ascending order of rows. ``exact``: products of float32; ``crowded``: the registers must
    also hold the sums of another tile, or codes and scales."""
    if exact:
        return Tile(64, 16, 32, 4, 2, 16), Tile(64, 64, 32, 4, 2)
    return (
        Tile(64, 16, 128, 4, 4, 16), Tile(64, 32, 128, 4, 3, 32), Tile(64, 64, 64, 4, 4, SPLIT_ROWS),
        Tile(64 if crowded else 128, 128, 64, 8, 3),
    )  # fmt: skip


def splits(n: int, k: int, depth: int) -> int:
    """Into how many runs of whole ``depth`` columns the sums over K are cut: a power of two."""
    count = 1
    programs = -(-n // 64)
    while programs * count < PROGRAMS and count < MOST_SPLITS:
        if k // (2 * count) < LEAST_SPLIT or k % (2 * count * depth):
            break
        count *= 2
    return count
