"""Load compiled kernels and run plans on a pool of threads.

A step is one native call: the calling thread and the helpers run the same table of kernel calls, each
its share, and meet at the barriers that the plan asks for. Layout of the shared words and of a record:
rusteeze.codegen.cpu.step_loop.
"""

from __future__ import annotations

import ctypes
import itertools
import platform
import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from rusteeze import env
from rusteeze.artifact import contract
from rusteeze.errors import UserError

SHARED_WORDS = 64
PROGRAM, COUNT, STEP, THREADS, STOP, STEP_SPINS, BARRIER_SPINS, MOST_BARRIER_SPINS = range(24, 32)
STAMPS, STAMPS_PER_CALL = 32, 3
PROGRAM_STRIDE = 33
BARRIER_FLAG, REPEAT_FLAG = 1, 2
# pauses (some 15 ns each) before a thread sleeps: between steps, and at a barrier within a step
SPINS_BETWEEN_STEPS = 20_000
SPINS_AT_BARRIER = 20_000


class LaunchError(UserError):
    """No library of the artifact runs on this processor, or one lacks a kernel."""


def cpu_flags() -> frozenset[str]:
    """Feature flags of the first processor, as Linux names them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def runs_here(machine: str, requires: Iterable[str]) -> bool:
    """Whether this is such a machine and its processor has these features."""
    return machine == platform.machine() and cpu_flags().issuperset(requires)


def choose_library(folder: Path, libraries: Sequence[contract.Library]) -> Path:
    """The first library in an artifact's ``cpu`` folder that runs here; RUSTEEZE_ISA forces one by name
    (for measuring). LaunchError if none does."""
    forced = env.ISA.get()
    for library in libraries:
        wanted = library.name == forced if forced else True
        if wanted and runs_here(library.machine, library.requires):
            return folder / f"{library.name}.so"
    have = ", ".join(library.name for library in libraries) or "none"
    if forced:
        raise LaunchError(f"RUSTEEZE_ISA={forced}: no kernels for this processor of that name; the artifact has {have}")
    raise LaunchError(f"no kernels for this processor: the artifact has {have}; compile it here")


class Library:
    """A loaded kernel library."""

    def __init__(self, path: Path) -> None:
        self._lib = ctypes.CDLL(str(path))
        self.step_once = self._lib.rz_step_once
        self.step_once.argtypes = [ctypes.c_void_p]
        self.step_once.restype = None
        self.worker = self._lib.rz_worker
        self.worker.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        self.worker.restype = None

    def address(self, kernel: str) -> int:
        """Address of a kernel. LaunchError when the library lacks it."""
        try:
            function = getattr(self._lib, kernel)
        except AttributeError:
            raise LaunchError(f"the artifact's library has no kernel {kernel}") from None
        return ctypes.cast(function, ctypes.c_void_p).value or 0


MachineCall = tuple[int, int, Sequence[int]]


class Program:
    """A table of kernel calls with all addresses filled in.

    ``calls``: (kernel address, flags, argument addresses) in order. ``others``: the same calls with the
    addresses for thread 1, 2, …, where each thread has its own."""

    def __init__(self, calls: Sequence[MachineCall], others: Sequence[Sequence[MachineCall]] = ()) -> None:
        words: list[int] = []
        starts: list[int] = []
        for kernel, flags, args in itertools.chain(calls, *others):
            starts.append(len(words))
            words += [kernel, flags, *args]
        self._words = np.array(words, np.uint64)
        base = self._words.ctypes.data
        self._records = np.array([base + 8 * s for s in starts], np.uint64)
        self.count = len(calls)
        self.stride = 8 * self.count if others else 0

    @property
    def address(self) -> int:
        return self._records.ctypes.data


class ThreadPool:
    """``num_threads - 1`` helpers plus the caller. ``run`` is one parallel region.

    Helpers hold the shared words and the library themselves, so neither goes away under them; they stop
    when the pool is closed or no longer referred to."""

    def __init__(self, library: Library, num_threads: int) -> None:
        if num_threads < 1:
            raise ValueError("at least one thread")
        memory = np.zeros(SHARED_WORDS + 8, np.int64)
        skip = (-memory.ctypes.data % 64) // 8
        self._shared = memory[skip : skip + SHARED_WORDS]
        self._shared[THREADS] = num_threads
        self._shared[STEP_SPINS] = SPINS_BETWEEN_STEPS
        self._shared[BARRIER_SPINS] = self._shared[MOST_BARRIER_SPINS] = SPINS_AT_BARRIER
        self._library = library
        self._address = self._shared.ctypes.data
        self._helpers = [
            threading.Thread(target=_help, args=(library, self._shared, tid), daemon=True)
            for tid in range(1, num_threads)
        ]
        for t in self._helpers:
            t.start()
        self._stop = weakref.finalize(self, _stop, library, self._shared)

    @property
    def num_threads(self) -> int:
        return len(self._helpers) + 1

    def run(self, program: Program, step: np.ndarray) -> None:
        """Run a program with the numbers of a step (int64); returns when all threads are done.

        RuntimeError after ``close``."""
        if not self._stop.alive:
            raise RuntimeError("the thread pool is closed")
        self._shared[PROGRAM] = program.address
        self._shared[COUNT] = program.count
        self._shared[PROGRAM_STRIDE] = program.stride
        self._shared[STEP] = step.ctypes.data
        self._library.step_once(self._address)

    def run_timed(self, program: Program, step: np.ndarray) -> np.ndarray:
        """As ``run``; nanoseconds int64 [threads, calls, 3] of each call: begin, end, end of waiting."""
        stamps = np.zeros((self.num_threads, program.count, STAMPS_PER_CALL), np.int64)
        self._shared[STAMPS] = stamps.ctypes.data
        try:
            self.run(program, step)
        finally:
            self._shared[STAMPS] = 0
        return stamps

    def close(self) -> None:
        """Stop the helpers and wait for them."""
        self._stop()
        for t in self._helpers:
            t.join()


def _help(library: Library, shared: np.ndarray, tid: int) -> None:
    # ctypes releases the interpreter lock, so this runs beside Python
    library.worker(shared.ctypes.data, tid)


def _stop(library: Library, shared: np.ndarray) -> None:
    shared[STOP] = 1
    shared[COUNT] = 0
    library.step_once(shared.ctypes.data)
