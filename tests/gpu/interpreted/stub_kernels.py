"""Kernels that run when the stub of libcuda (tests/stub_gpu.py) is asked to: Triton's interpreter on their source.

A launch's parameters arrive as the driver got them, addresses and words. Every element that a kernel touches must
lie in a live allocation, and every pointer be as aligned as its parameter promises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton.runtime.interpreter as interpreter
from interpreter import DTYPES  # and with it what the interpreter gets wrong is mended
from stub_gpu import Grid, StubGpu, memory

from rusteeze.artifact.cuda_contract import CudaPlan, Kernel
from rusteeze.codegen.gpu.compile_kernel import load_kernel

SIGN, WRAP = 1 << 31, 1 << 32


class InterpretedKernels:
    """``sources``: a folder with a file NAME.py a kernel, as RUSTEEZE_DUMP writes them. ``seen``: names of those
    that ran, in order."""

    def __init__(self, gpu: StubGpu, plan: CudaPlan, sources: Path) -> None:
        self.seen: list[str] = []
        self._gpu, self._sources = gpu, sources
        gpu.run_kernels({kernel.entry: self._runs(kernel) for kernel in plan.kernels})

    def _runs(self, kernel: Kernel) -> Any:
        def run(grid: Grid, words: list[int]) -> None:
            self.seen.append(kernel.name)
            args = [self._argument(p, word) for p, word in zip(kernel.params, words, strict=False)]
            with _inside(self._gpu):
                load_kernel(self._sources / f"{kernel.name}.py")[grid](*args)

        return run

    def _argument(self, param: Any, word: int) -> Any:
        assert word % param.divisible == 0, param
        if not param.type.startswith("*"):
            return word - WRAP if word >= SIGN else word
        dtype = DTYPES[param.type]
        room = self._gpu.room(word)
        assert room, f"{param.name} points to nothing"
        size = torch.empty((), dtype=dtype).element_size()
        return torch.from_numpy(memory(word, room // size * size)).view(dtype)


@contextmanager
def _inside(gpu: StubGpu) -> Iterator[None]:
    """Meanwhile, loads and stores outside of every allocation are errors."""
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def check(ptrs: Any, mask: Any) -> None:
        touched = np.unique(ptrs.data[mask.data] if mask.data.shape == ptrs.data.shape else ptrs.data)
        while len(touched):  # whole allocations at a time
            room = gpu.room(int(touched[0]))
            assert room, f"an access at {int(touched[0]):#x} lies in no allocation"
            touched = touched[np.searchsorted(touched, touched[0] + np.uint64(room)) :]

    def checked_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        check(ptrs, mask)
        return load(self, ptrs, mask, *rest)

    def checked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check(ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
    try:
        yield
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
