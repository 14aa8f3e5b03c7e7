"""The launches of a step with all arguments filled in, and the same as a CUDA graph.

Launch ABI: rusteeze.artifact.cuda_contract. A parameter is a 64-bit word in host memory whose address the
driver gets; it copies what the kernel's parameter takes, so a 32-bit number is the word's lower half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rusteeze.artifact.cuda_contract import Address, Binary, Capacities, Count, CudaPlan, Launch
from rusteeze.runtime.cuda.driver import CAPTURE_MODE, CudaError, call, release
from rusteeze.runtime.cuda.kernels import LoadedKernel

THREADS_PER_WARP = 32
NUM_HIDDEN = 2
"""Parameters behind a kernel's own: global scratch and profile scratch."""
LEAST_INT32, MOST_INT32 = -(2**31), 2**31 - 1
_WORD = 2**64 - 1


class BadLaunch(ValueError):
    """An argument is not what the kernel's code relies on: a fault of the compiler or of this runtime."""


@dataclass(frozen=True)
class _Prepared:
    """All of cuLaunchKernel's arguments but the stream."""

    function: Any
    shape: tuple[int, int, int, int, int, int, int]
    """Grid, block, dynamic shared bytes."""
    parameters: int
    """Address of the array of addresses."""


class Program:
    """Launches of one choice of capacities, by the calls of the plan.

    ``address`` gives where memory lies under these capacities, ``scratch`` a kernel's global scratch.
    BadLaunch when an argument does not suit its parameter."""

    def __init__(
        self, plan: CudaPlan, kernels: Sequence[LoadedKernel], capacities: Capacities,
        address: Callable[[Address], int], scratch: int,
    ) -> None:  # fmt: skip
        self.names: list[str] = []
        """Per call: its kernels."""
        self._calls: list[list[_Prepared]] = []
        self._memory: list[np.ndarray] = []  # what the driver reads at each launch
        for call_ in plan.calls:
            launches = call_.choice(capacities).launches
            made = [
                self._prepare(kernels[launch.kernel], launch, capacities, address, scratch)
                for launch in launches
            ]
            self._calls.append([prepared for prepared in made if prepared])
            self.names.append(" + ".join(kernels[launch.kernel].kernel.name for launch in launches))

    def _prepare(
        self, kernel: LoadedKernel, launch: Launch, capacities: Capacities,
        address: Callable[[Address], int], scratch: int,
    ) -> _Prepared | None:  # fmt: skip
        """None when a dimension of the grid is 0."""
        x, y, z = (count.value(capacities) for count in launch.grid)
        if not (x and y and z):
            return None
        values = [
            arg.value(capacities) if isinstance(arg, Count) else address(arg) for arg in launch.args
        ]
        _check(kernel, launch, values)
        hidden = [scratch if kernel.binary.global_scratch_bytes else 0, 0]
        words = np.array([value & _WORD for value in [*values, *hidden]], np.uint64)
        places = np.arange(len(words), dtype=np.uint64) * np.uint64(8) + np.uint64(words.ctypes.data)
        self._memory += [words, places]
        binary = kernel.binary
        shape = (x, y, z, THREADS_PER_WARP * binary.num_warps, 1, 1, binary.shared_bytes)
        return _Prepared(kernel.function, shape, places.ctypes.data)

    def launch(self, stream: Any) -> None:
        """Queue all launches."""
        for launches in self._calls:
            self._launch(launches, stream)

    def launch_timed(self, stream: Any, events: Sequence[Any]) -> None:
        """The same with an event before every call and one behind the last."""
        call("cuEventRecord", events[0], stream)
        for launches, event in zip(self._calls, events[1:], strict=True):
            self._launch(launches, stream)
            call("cuEventRecord", event, stream)

    def capture(self, stream: Any) -> Graph:
        """All launches as a graph; nothing runs."""
        call("cuStreamBeginCapture", stream, CAPTURE_MODE)
        try:
            self.launch(stream)
        except BaseException:
            _abandon_capture(stream)
            raise
        graph = call("cuStreamEndCapture", stream)
        try:
            return Graph(call("cuGraphInstantiate", graph, 0))
        finally:
            release("cuGraphDestroy", graph)

    def _launch(self, launches: Sequence[_Prepared], stream: Any) -> None:
        for p in launches:
            call("cuLaunchKernel", p.function, *p.shape, stream, p.parameters, 0)


class Graph:
    """An instantiated graph, whose arguments were copied when it was captured."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def launch(self, stream: Any) -> None:
        call("cuGraphLaunch", self._handle, stream)

    def close(self) -> None:
        release("cuGraphExecDestroy", self._handle)


def scratch_bytes(plan: CudaPlan, binaries: Sequence[Binary], most: Capacities) -> int:
    """Global scratch that the largest launch needs; launches follow each other, so they share it.

    ``binaries``: of the plan's kernels, in order. Every choice is counted at its own largest capacity."""
    largest = 0
    for call_ in plan.calls:
        for choice in call_.choices:
            size = getattr(most, call_.by)
            bound = {call_.by: min(size, choice.up_to) if choice.up_to else size}
            capacities = Capacities(**(vars(most) | bound))
            for launch in choice.launches:
                each = binaries[launch.kernel].global_scratch_bytes
                x, y, z = (count.value(capacities) for count in launch.grid)
                largest = max(largest, x * y * z * each)
    return largest


def _abandon_capture(stream: Any) -> None:
    """End a capture that failed, so that the stream can be used again."""
    try:
        graph = call("cuStreamEndCapture", stream)
    except CudaError:
        return  # the failure spoilt the capture, which ends it too
    release("cuGraphDestroy", graph)


def _check(kernel: LoadedKernel, launch: Launch, values: Sequence[int]) -> None:
    params = kernel.kernel.params
    if len(values) != len(params):
        raise BadLaunch(f"{kernel.kernel.name}: {len(values)} arguments for {len(params)} parameters")
    for param, arg, value in zip(params, launch.args, values, strict=True):
        what = f"{kernel.kernel.name}: {param.name} = {value}"
        if param.type.startswith("*") != isinstance(arg, Address):
            raise BadLaunch(f"{what} is no {param.type}")
        if value % param.divisible:
            raise BadLaunch(f"{what} is no multiple of {param.divisible}")
        if isinstance(arg, Count) and not LEAST_INT32 <= value <= MOST_INT32:
            raise BadLaunch(f"{what} does not fit into 32 bits")
