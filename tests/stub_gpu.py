"""A GPU that is not there: tests/cuda_stub/libcuda.c, compiled when a test first wants it.

It is loaded under the name libcuda.so.1 before cuda.bindings looks for that, so it serves the whole process.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

SOURCE = Path(__file__).parent / "cuda_stub/libcuda.c"
MIB = 1 << 20
KINDS = ("memory", "pinned", "streams", "events", "modules", "graphs", "executables", "contexts")
OUT_OF_MEMORY, ILLEGAL_ADDRESS, INVALID_VALUE = 2, 700, 1

Grid = tuple[int, int, int]
Kernel = Callable[[Grid, list[int]], None]
"""A kernel as Python: grid, and parameters (addresses; int32 as the lower half of a word)."""

_HOOK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_uint64)
)


class StubGpu:
    """The stub of this process. ``reset`` before use; the fixture ``gpu`` does it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._lib = library
        self._lib.stub_reset.argtypes = [ctypes.c_size_t, *[ctypes.c_int] * 3]
        self._lib.stub_fail.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
        self._lib.stub_calls.argtypes = [ctypes.c_char_p]
        self._lib.stub_room.argtypes = [ctypes.c_uint64]
        for name in ("live", "used", "unpinned", "launches", "replays", "calls", "room"):
            getattr(self._lib, f"stub_{name}").restype = ctypes.c_long
        self._hook: object = None
        self.errors: list[BaseException] = []

    def reset(
        self, total_bytes: int = 64 * MIB, devices: int = 1, architecture: tuple[int, int] = (9, 0)
    ) -> None:
        self._lib.stub_reset(total_bytes, devices, *architecture)
        self.errors.clear()

    def make(self, device: int, architecture: tuple[int, int]) -> None:
        """Make one of the devices another kind of GPU."""
        self._lib.stub_set_version(device, 10 * architecture[0] + architecture[1])

    def run_kernels(self, kernels: dict[str, Kernel]) -> None:
        """From now on kernels do what these do. One that raises is a launch error; see ``errors``."""

        def called(name: bytes, grid: object, args: object) -> int:
            try:
                kernels[name.decode()](tuple(grid[:3]), args[:48])  # type: ignore[index]
            except BaseException as error:
                self.errors.append(error)
                return ILLEGAL_ADDRESS
            return 0

        self._hook = _HOOK(called)  # kept: the stub has only its address
        self._lib.stub_set_hook(self._hook)

    def fail(self, function: str, code: int, after: int = 0) -> None:
        """Make a call fail, once, after so many that do not."""
        self._lib.stub_fail(function.encode(), after, code)

    def live(self) -> dict[str, int]:
        """What was made and not destroyed, where that is anything."""
        counts = {kind: self._lib.stub_live(number) for number, kind in enumerate(KINDS)}
        return {kind: count for kind, count in counts.items() if count}

    def calls(self, function: str) -> int:
        return int(self._lib.stub_calls(function.encode()))

    def room(self, address: int) -> int:
        """Bytes from an address to the end of its allocation; 0 where nothing is allocated."""
        return int(self._lib.stub_room(address))

    @property
    def used_bytes(self) -> int:
        return int(self._lib.stub_used())

    @property
    def unpinned_copies(self) -> int:
        """Copies between the device and host memory that is not pinned."""
        return int(self._lib.stub_unpinned())

    @property
    def launches(self) -> int:
        """Kernels launched or captured, not those that a graph launched."""
        return int(self._lib.stub_launches())

    @property
    def replays(self) -> int:
        """Graphs launched."""
        return int(self._lib.stub_replays())


def memory(address: int, count: int, kind: type = np.uint8) -> np.ndarray:
    """``count`` elements of the stub's device memory, as an array."""
    size = count * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), kind)


@functools.cache
def stub_gpu() -> StubGpu:
    """The stub, compiled. Skips the test where that is not possible."""
    pytest.importorskip("cuda.bindings", reason="needs cuda-bindings (the extra rusteeze[cuda])")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler for the stub of libcuda")
    folder = tempfile.mkdtemp(prefix="stub-libcuda-")
    target = Path(folder) / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", "-lpthread"]
    subprocess.run([compiler, "-o", str(target), str(SOURCE), *flags], check=True)
    library = ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)
    shutil.rmtree(folder)  # it is mapped; the file is needed no more
    return StubGpu(library)
