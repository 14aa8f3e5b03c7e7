"""What one executor holds of a device: context, memory, streams, events, code. All of it goes at close.

The context is the device's primary one, which others in the process (torch) share. Every thread that
calls the driver has to ``enter`` first.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from rusteeze.runtime.cuda.device import Device
from rusteeze.runtime.cuda.driver import (
    EVENT_DISABLE_TIMING,
    STREAM_NON_BLOCKING,
    CudaError,
    call,
    release,
)


class Session:
    """Makes things and remembers them. CudaError when the driver refuses; what was made stays until
    ``close``, which may be called twice."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.allocated_bytes = 0
        self._stack = ExitStack()
        handle = call("cuDeviceGet", device.ordinal)
        self._context: Any = call("cuDevicePrimaryCtxRetain", handle)
        self._stack.callback(release, "cuDevicePrimaryCtxRelease", handle)
        try:
            self.enter()
        except CudaError:
            self._stack.close()
            raise

    def enter(self) -> None:
        """Make the context that of the calling thread."""
        call("cuCtxSetCurrent", self._context)

    def free_bytes(self) -> int:
        """Device memory that nobody uses at the moment."""
        return int(call("cuMemGetInfo")[0])

    def allocate(self, count: int, purpose: str) -> int:
        """Address of so many bytes on the device, a multiple of 256; what they hold is undefined."""
        mib = count / 2**20
        address = int(call("cuMemAlloc", max(1, count), purpose=f"{mib:.1f} MiB of {purpose}"))
        self.allocated_bytes += count
        self._stack.callback(release, "cuMemFree", address)
        return address

    def pinned(self, count: int) -> np.ndarray:
        """Host memory uint8 that the device copies from and to by itself."""
        array = np.zeros(max(1, count), np.uint8)
        self.pin(array)
        return array

    def pin(self, array: np.ndarray) -> None:
        """Pin the memory of an array, which must outlive the session."""
        call("cuMemHostRegister", array.ctypes.data, array.nbytes, 0, purpose="pinned memory")
        # the array is an argument so that it lives as long as it is pinned
        self._stack.callback(_unpin, array)

    def stream(self) -> Any:
        """A queue of work that waits for no other queue."""
        made = call("cuStreamCreate", STREAM_NON_BLOCKING)
        self._stack.callback(release, "cuStreamDestroy", made)
        return made

    def event(self, timing: bool = False) -> Any:
        made = call("cuEventCreate", 0 if timing else EVENT_DISABLE_TIMING)
        self._stack.callback(release, "cuEventDestroy", made)
        return made

    def module(self, image: bytes, purpose: str) -> Any:
        """Machine code, loaded."""
        made = call("cuModuleLoadData", image, purpose=purpose)
        self._stack.callback(release, "cuModuleUnload", made)
        return made

    def at_close(self, function: Callable[[], None]) -> None:
        """Have something else given back, before what was made earlier."""
        self._stack.callback(function)

    def close(self) -> None:
        """Wait for the device, then give everything back, last made first. A device that has failed is
        not in the way."""
        if self._context is None:
            return
        release("cuCtxSetCurrent", self._context)
        release("cuCtxSynchronize")
        self._stack.close()
        self._context = None
        self.allocated_bytes = 0


def _unpin(array: np.ndarray) -> None:
    release("cuMemHostUnregister", array.ctypes.data)
