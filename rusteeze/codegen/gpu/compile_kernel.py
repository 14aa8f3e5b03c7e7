"""One kernel's file → a cubin for one architecture, on a machine without a GPU.

Triton's ``ASTSource`` specialises nothing by itself: without ``tt.divisibility`` loads would be two bytes wide.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDAOptions
from triton.compiler import ASTSource

from rusteeze.artifact.cuda_contract import Param
from rusteeze.codegen.gpu.architectures import SHARED_BYTES
from rusteeze.codegen.gpu.source import Options

triton.knobs.compilation.disable_line_info = True


@functools.cache
def load_kernel(path: Path) -> Any:
    """The kernel of a generated file, imported like any module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, path.stem)


def compile_kernel(path: Path, params: Sequence[Param], options: Options, architecture: str) -> Any:
    """Triton's compiled kernel: ``asm["cubin"]``, ``metadata``. Pipeline stages that do not fit into the
    architecture's shared memory are left out; ValueError when even one does not fit."""
    for stages in range(options.num_stages, 0, -1):
        compiled = _compile(path, params, options.num_warps, stages, architecture)
        if compiled.metadata.shared <= SHARED_BYTES[architecture]:
            return compiled
    raise ValueError(f"{path.stem} needs {compiled.metadata.shared} bytes of shared memory on {architecture}")


def _compile(path: Path, params: Sequence[Param], num_warps: int, num_stages: int, architecture: str) -> Any:
    kernel = load_kernel(path)
    source = ASTSource(
        fn=kernel,
        signature={p.name: p.type for p in params},
        constexprs={},
        attrs={(i,): [["tt.divisibility", p.divisible]] for i, p in enumerate(params) if p.divisible > 1},
    )
    asked = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    known = {name: value for name, value in asked.items() if name in CUDAOptions.__dataclass_fields__}
    target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return triton.compile(source, target=target, options=known)
