"""An artifact opened for one device, before its memory is taken.

First ``open_backend``; then somebody decides how many cache blocks there shall be, knowing what is free
and what the plan needs; then ``executor`` takes that memory.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rusteeze.artifact.contract import Cost, Plan, decode_plan
from rusteeze.artifact.cuda_contract import PLAN_FILE, CudaPlan
from rusteeze.artifact.store import Manifest, member
from rusteeze.config import ARCHITECTURES
from rusteeze.errors import UserError
from rusteeze.runtime.batch import Batch
from rusteeze.runtime.ceilings import Ceilings
from rusteeze.runtime.executor import CpuExecutor
from rusteeze.runtime.interface import Executor
from rusteeze.runtime.launch import choose_library
from rusteeze.runtime.memory_plan import DEFAULT_CACHE_BYTES, PROCESS_BYTES, available_memory
from rusteeze.runtime.weights import WeightFile

CPU_PLAN = "plan.json"

_log = logging.getLogger(__name__)


class DeviceExecutor(Executor, Protocol):
    """An executor of a plan: what measuring it needs beside running it."""

    max_sequences: int

    @property
    def where(self) -> str:
        """What runs the model, for people."""
        ...

    def execute_timed(self, batch: Batch) -> np.ndarray:
        """Nanoseconds int64 [threads, calls, 3]: begin, end, end of waiting."""
        ...

    def calls(self, batch: Batch) -> list[tuple[str, str, Cost]]:
        """Kernel, origin and cost of each call of a step."""
        ...

    def fill_cache(self, byte: int) -> None:
        """Overwrite all pages."""
        ...

    def ceilings(self) -> Ceilings:
        """What the device can do at most, measured now."""
        ...

    @property
    def device_bytes(self) -> int | None:
        """Memory of the device that is taken for good; None where it is backed as it is used."""
        ...

    def close(self) -> None:
        """Give back threads and memory."""
        ...


class Backend(Protocol):
    """``process_bytes``: an allowance for what is not the model's; ``most_unasked_bytes``: a bound of the
    cache where the user named no budget (None: no bound)."""

    process_bytes: int
    most_unasked_bytes: int | None

    @property
    def plan(self) -> Plan | CudaPlan: ...
    @property
    def device(self) -> str:
        """As metrics name it: cpu, cuda:0."""
        ...

    @property
    def weight_bytes(self) -> int: ...
    def available_bytes(self) -> int: ...

    def fixed_bytes(self, max_batched_tokens: int, max_sequences: int) -> int:
        """Memory beside weights, arenas and pages."""
        ...

    def written_by(self) -> list[str]:
        """Hashes of the files that decide how cache pages look."""
        ...

    def executor(
        self, num_blocks: int, max_batched_tokens: int, max_sequences: int
    ) -> DeviceExecutor: ...
    def close(self) -> None:
        """Give back what is open, unless an executor has taken it over."""
        ...


class CpuBackend:
    """The CPU's plan and library of an artifact, ``threads`` at work."""

    device = "cpu"
    process_bytes = PROCESS_BYTES
    most_unasked_bytes: int | None = DEFAULT_CACHE_BYTES

    def __init__(self, artifact: Path, manifest: Manifest, threads: int | None) -> None:
        if CPU_PLAN not in manifest.files and PLAN_FILE in manifest.files:
            raise UserError(f"{artifact.name} was compiled for GPUs only; use --device cuda")
        self.plan = decode_plan(member(artifact, manifest, CPU_PLAN).read_bytes())
        self._weights = WeightFile(member(artifact, manifest, "weights.safetensors"))
        self._library = choose_library(artifact / "cpu", self.plan.libraries)
        self._manifest, self._threads = manifest, threads or available_cores()

    @property
    def weight_bytes(self) -> int:
        return self._weights.total_bytes

    def available_bytes(self) -> int:
        """Main memory that this process may still take."""
        return available_memory()

    def fixed_bytes(self, max_batched_tokens: int, max_sequences: int) -> int:
        return 0

    def written_by(self) -> list[str]:
        return [self._manifest.files[n].sha256 for n in (CPU_PLAN, f"cpu/{self._library.name}")]

    def executor(self, num_blocks: int, max_batched_tokens: int, max_sequences: int) -> CpuExecutor:
        return CpuExecutor(
            self.plan, self._weights, self._library, num_threads=self._threads, num_blocks=num_blocks,
            max_batched_tokens=max_batched_tokens, max_sequences=max_sequences,
        )  # fmt: skip

    def close(self) -> None:
        """Nothing is open but the mapped file."""


def open_backend(artifact: Path, manifest: Manifest, device: str, threads: int | None) -> Backend:
    """``device``: cpu, cuda, cuda:auto, cuda:N, or auto: a GPU that the artifact has code for, else the CPU.

    UserError when the device is not there or the artifact is not for it."""
    if device == "cpu":
        return CpuBackend(artifact, manifest, threads)
    if device != "auto":
        return _cuda_backend(artifact, manifest, device)
    if PLAN_FILE in manifest.files:
        try:
            return _cuda_backend(artifact, manifest, "cuda")
        except UserError as error:
            if CPU_PLAN not in manifest.files:
                raise
            _log.info("running on the CPU: %s", error)
    return CpuBackend(artifact, manifest, threads)


def gpu_architecture(device: str) -> str | None:
    """For which architecture ("sm_90") a model is compiled to run on the GPU that ``device`` means; None
    where that is the CPU. UserError when a GPU is asked for by name and is not there, or is none of those
    that kernels are compiled for."""
    if device == "cpu":
        return None
    try:
        devices = _cuda_module("device")
        found = devices.choose_device("cuda" if device == "auto" else device, ARCHITECTURES)
        architecture: str = devices.choose_architecture(found, ARCHITECTURES)
    except UserError as error:
        if device != "auto":
            raise
        _log.info("running on the CPU: %s", error)
        return None
    return architecture


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _cuda_backend(artifact: Path, manifest: Manifest, device: str) -> Backend:
    made: Backend = _cuda_module("backend").CudaBackend(artifact, manifest, device)
    return made


def _cuda_module(name: str) -> Any:
    """A module of rusteeze.runtime.cuda; imported here, since a CPU needs none of what it imports."""
    try:
        return import_module(f"rusteeze.runtime.cuda.{name}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("cuda"):
            raise
        raise UserError(
            "running on a GPU needs the package cuda-bindings; run: pip install 'rusteeze[cuda]'"
        ) from error
