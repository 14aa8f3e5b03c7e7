"""What a device can do at most, measured; for a processor with the threads and instructions that run the
model (a GPU: rusteeze.runtime.cuda.ceilings)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

READ_BYTES = 256 << 20
KIB = 1024
ROUNDS = 20
# A multiple of all tile heights; a few ms.
DOTS = 48 * 200_000
# operations of one dot product: 16 lanes, multiplied and added
OPERATIONS = {"int8": 128, "bf16": 64, "f32": 32}
LANES = 16


@dataclass(frozen=True)
class Ceilings:
    """Bytes and operations a second, of all threads together; kinds of arithmetic that were not measured
    are left out. ``moving``: what was done to memory, reading or copying (which counts both ways)."""

    read: float
    arithmetic: dict[str, float]
    moving: str = "reading"


RunAlone = Callable[[str, Sequence[int], int], None]
"""Run a kernel of the library on addresses, with a number of rounds."""


def measure_ceilings(
    run_alone: RunAlone, allocate: Callable[[int], np.ndarray], threads: int
) -> Ceilings:
    """The best of a few rounds each; ``allocate`` gives aligned bytes. LaunchError when the artifact's
    library cannot measure them."""
    out = allocate(4 * LANES * threads)
    memory = allocate(READ_BYTES)
    memory[:] = 1
    arguments = [memory.ctypes.data, out.ctypes.data]
    read = READ_BYTES / _best_seconds(run_alone, "rz_ceiling_read", arguments, READ_BYTES // KIB)
    return Ceilings(
        read,
        {
            kind: DOTS * threads * operations / _best_seconds(run_alone, f"rz_ceiling_{kind}", arguments, DOTS)
            for kind, operations in OPERATIONS.items()
        },
    )


def _best_seconds(
    run_alone: RunAlone, kernel: str, arguments: list[int], number: int
) -> float:  # fmt: skip
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run_alone(kernel, arguments, number)
        found.append(time.perf_counter() - start)
    return min(found)
