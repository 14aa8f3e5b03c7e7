"""The machine code of a plan, loaded for one device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rusteeze.artifact.cuda_contract import Binary, CudaPlan, Kernel
from rusteeze.errors import UserError
from rusteeze.runtime.cuda.driver import FunctionAttribute, call
from rusteeze.runtime.cuda.session import Session

DEFAULT_SHARED_BYTES = 48 * 1024
"""Dynamic shared memory that a kernel may have without asking."""


@dataclass(frozen=True)
class LoadedKernel:
    """``function``: the driver's handle."""

    kernel: Kernel
    binary: Binary
    function: Any


def load_kernels(
    session: Session, plan: CudaPlan, architecture: str, read: Callable[[str], bytes]
) -> list[LoadedKernel]:
    """In the plan's order; ``read`` gives the bytes of a file of the artifact.

    UserError when a kernel needs more shared memory than the device has, CudaError when the driver does
    not take the code."""
    return [_load(session, kernel, kernel.binary(architecture), read) for kernel in plan.kernels]


def _load(
    session: Session, kernel: Kernel, binary: Binary, read: Callable[[str], bytes]
) -> LoadedKernel:
    most = session.device.shared_bytes
    if binary.shared_bytes > most:
        raise UserError(
            f"kernel {kernel.name} needs {binary.shared_bytes} bytes of shared memory, "
            f"{session.device.name} has {most}; compile for this device"
        )
    module = session.module(read(binary.file), f"kernel {kernel.name}")
    name = kernel.entry.encode()
    function = call("cuModuleGetFunction", module, name, purpose=f"kernel {kernel.name}")
    if binary.shared_bytes > DEFAULT_SHARED_BYTES:
        attribute = FunctionAttribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        call("cuFuncSetAttribute", function, attribute, binary.shared_bytes, purpose=kernel.name)
    return LoadedKernel(kernel, binary, function)
