"""The CUDA driver API, every call checked. The only module that imports cuda.bindings.

    address = call("cuMemAlloc", 1 << 20)
"""

from __future__ import annotations

import logging
from typing import Any

from cuda.bindings import driver as api  # type: ignore[import-untyped]

from rusteeze.errors import UserError
from rusteeze.runtime.interface import ExecutorLost

DeviceAttribute = api.CUdevice_attribute
FunctionAttribute = api.CUfunction_attribute
CAPTURE_MODE = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
STREAM_NON_BLOCKING = 1
EVENT_DISABLE_TIMING = 2

# after these the context is broken, and with it all that lies on the device
LOST = (214, 700, 702, *range(714, 720))
"""CUDA_ERROR_ECC_UNCORRECTABLE, _ILLEGAL_ADDRESS, _LAUNCH_TIMEOUT, _HARDWARE_STACK_ERROR to _LAUNCH_FAILED."""

_SUCCESS = api.CUresult.CUDA_SUCCESS
_log = logging.getLogger(__name__)


class NoDevice(UserError):
    """There is no NVIDIA driver, or no such device."""


class CudaError(UserError):
    """A driver call failed. The message has the call, and the driver's name and text of the error."""

    def __init__(self, function: str, status: Any, purpose: str = "") -> None:
        self.function, self.status = function, int(status)
        for_what = f" for {purpose}" if purpose else ""
        super().__init__(f"CUDA: {function} failed{for_what}: {_describe(status)}")


class LostDevice(CudaError, ExecutorLost):
    """An error after which every later call fails, too."""


def start() -> None:
    """Load the driver. NoDevice when there is none or it finds no device."""
    try:
        (status,) = api.cuInit(0)
    except RuntimeError as error:  # what cuda.bindings raises when libcuda cannot be loaded
        raise NoDevice(
            "no NVIDIA driver was found (libcuda.so.1); install one, or use --device cpu"
        ) from error
    if status == api.CUresult.CUDA_ERROR_NO_DEVICE:
        raise NoDevice("the NVIDIA driver finds no GPU; use --device cpu")
    if status != _SUCCESS:
        raise CudaError("cuInit", status)


def call(function: str, *arguments: Any, purpose: str = "") -> Any:
    """What a driver function returns beside its status: nothing, one value or a tuple. CudaError."""
    status, *values = getattr(api, function)(*arguments)
    if status != _SUCCESS:
        raise (LostDevice if int(status) in LOST else CudaError)(function, status, purpose)
    return values[0] if len(values) == 1 else tuple(values) or None


def release(function: str, *arguments: Any) -> None:
    """Give something back. A failure is noted only: after a fault of the device every call fails, and
    the driver frees all with the context."""
    (status,) = getattr(api, function)(*arguments)
    if status != _SUCCESS:
        _log.debug("%s", CudaError(function, status))


def _describe(status: Any) -> str:
    """``CUDA_ERROR_OUT_OF_MEMORY (out of memory)``."""
    _, name = api.cuGetErrorName(status)
    _, text = api.cuGetErrorString(status)
    parts = [part.decode(errors="replace") if part else "" for part in (name, text)]
    return f"{parts[0] or int(status)} ({parts[1]})"
