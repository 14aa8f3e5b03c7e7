"""Times one kernel as a step runs it, but alone: on the model's weights, on all threads.

Each call reads other weights than the one before, and all of them together are more than the last-level
cache holds, so that weights come from memory as they do in a step. Activations stay in the cache.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rusteeze.artifact.contract import Arg, Call, Plan
from rusteeze.runtime.executor import ARENA_SLACK, aligned_bytes
from rusteeze.runtime.launch import BARRIER_FLAG, Library, Program, ThreadPool
from rusteeze.runtime.weights import WeightFile

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
USUAL_CACHE_BYTES = 32 << 20
MOST_CACHE_BYTES = 256 << 20
# weights in memory, in caches
BEYOND = 1.5
# one run takes about this long, or one call; the faster of two counts: what disturbs one adds to it
RUN_SECONDS = 0.005
RUNS = 2
# As int8 60, as float32 0.0115: ordinary numbers.
ANY_BYTE = 0x3C
SMALL_WEIGHT_BYTES = 1 << 14


class KernelTimer:
    """``library``: any of the artifact's that runs here; its threads call the kernels of all others."""

    def __init__(self, plan: Plan, weights: WeightFile, library: Path, num_threads: int) -> None:
        self._plan, self._weights = plan, weights
        self._pool = ThreadPool(Library(library), num_threads)

    @property
    def num_threads(self) -> int:
        return self._pool.num_threads

    def work(self, calls: Sequence[Call], most_rows: int) -> Work:
        """What the calls of one kernel work on, with up to so many rows."""
        return Work(self._plan, self._weights, calls, most_rows)

    def seconds(self, kernel: int, work: Work, rows: int) -> float:
        """Of one call on average; ``kernel``: its address."""
        if rows not in work.lengths:
            self._run(kernel, work, rows, work.num_calls)
            work.fit(rows, self._run(kernel, work, rows, work.num_calls))
        return min(self._run(kernel, work, rows, work.lengths[rows]) for _ in range(RUNS))

    def _run(self, kernel: int, work: Work, rows: int, calls: int) -> float:
        program = work.program(kernel, calls)
        step = np.full(8, rows, np.int64)
        start = time.perf_counter()
        self._pool.run(program, step)
        return (time.perf_counter() - start) / program.count

    def close(self) -> None:
        self._pool.close()


class Work:
    """Arguments of a run of calls that differ in their weights. Lives as long as its programs run.

    ``lengths``: how many calls a run has, by the number of rows, once that is known."""

    def __init__(self, plan: Plan, weights: WeightFile, calls: Sequence[Call], most_rows: int) -> None:
        self._plan, self._weights, self._most_rows = plan, weights, most_rows
        self._memory: list[np.ndarray] = []
        self._scratch: dict[Arg, int] = {}
        self._arguments = [[self._address(arg) for arg in call.args] for call in calls]
        wanted = int(BEYOND * last_level_bytes())
        each = max(1, self._weight_bytes(calls[0]))
        while len(self._arguments) * each < wanted:
            source = calls[len(self._arguments) % len(calls)]
            self._arguments.append([self._copied(arg) for arg in source.args])
        self.lengths: dict[int, int] = {}
        self._programs: dict[tuple[int, int], Program] = {}

    @property
    def num_calls(self) -> int:
        return len(self._arguments)

    def program(self, kernel: int, calls: int) -> Program:
        """The first ``calls`` calls, of any kernel with these arguments."""
        if (kernel, calls) not in self._programs:
            chosen = self._arguments[:calls]
            self._programs[kernel, calls] = Program([(kernel, BARRIER_FLAG, args) for args in chosen])
        return self._programs[kernel, calls]

    def fit(self, rows: int, seconds: float) -> None:
        """Make a run as long as a measurement needs, given the seconds of one call."""
        self.lengths[rows] = min(self.num_calls, max(1, math.ceil(RUN_SECONDS / seconds)))

    def _weight_bytes(self, call: Call) -> int:
        return sum(self._weights.nbytes(str(a.which)) for a in call.args if a.kind == "weight")

    def _address(self, arg: Arg) -> int:
        if arg.kind == "weight":
            return self._weights.address(str(arg.which)) + arg.offset
        key = Arg(arg.kind, arg.which)
        if key not in self._scratch:
            row_bytes = 4
            if arg.kind == "buffer":
                row_bytes = self._plan.buffers[int(arg.which)].row_bytes
            self._scratch[key] = self._new(row_bytes * self._most_rows + ARENA_SLACK)
        return self._scratch[key] + arg.offset

    def _copied(self, arg: Arg) -> int:
        """The same argument with weights elsewhere."""
        address = self._address(arg)
        if arg.kind != "weight" or self._weights.nbytes(str(arg.which)) < SMALL_WEIGHT_BYTES:
            return address
        size = self._weights.nbytes(str(arg.which))
        copy = self._new(size)
        self._memory[-1][:size] = self._weights.data(str(arg.which))
        return copy + arg.offset

    def _new(self, size: int) -> int:
        memory = aligned_bytes(size)
        memory[:] = ANY_BYTE
        self._memory.append(memory)
        return memory.ctypes.data


def last_level_bytes(caches: Path = CACHES) -> int:
    """Size of the largest cache, within reason; a usual one where Linux does not say."""
    found = [USUAL_CACHE_BYTES // 1024]
    sizes = [path.read_text().strip() for path in caches.glob("index*/size")]
    kib = [int(size.removesuffix("K")) for size in sizes if size.removesuffix("K").isdigit()]
    return min(MOST_CACHE_BYTES, 1024 * max(kib or found))
