"""What this processor can do at most, measured with the threads and instructions that run the model."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rusteeze.runtime.executor import CpuExecutor, aligned_bytes

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
    """Bytes and operations a second, of all threads together."""

    read: float
    arithmetic: dict[str, float]


def measure_ceilings(executor: CpuExecutor, threads: int) -> Ceilings:
    """The best of a few rounds each. LaunchError when the artifact's library cannot measure them."""
    out = aligned_bytes(4 * LANES * threads)
    memory = aligned_bytes(READ_BYTES)
    memory[:] = 1
    arguments = [memory.ctypes.data, out.ctypes.data]
    read = READ_BYTES / _best_seconds(executor, "rz_ceiling_read", arguments, READ_BYTES // KIB)
    return Ceilings(
        read,
        {
            kind: DOTS * threads * operations / _best_seconds(executor, f"rz_ceiling_{kind}", arguments, DOTS)
            for kind, operations in OPERATIONS.items()
        },
    )


def _best_seconds(
    executor: CpuExecutor, kernel: str, arguments: list[int], number: int
) -> float:  # fmt: skip
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        executor.run_alone(kernel, arguments, number)
        found.append(time.perf_counter() - start)
    return min(found)
