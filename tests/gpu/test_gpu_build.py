"""Building kernels: files in the artifact, the cache of single kernels, and what goes wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rusteeze.artifact.cuda_contract import Param
from rusteeze.codegen.gpu.build import GpuBuildError, build_kernels
from rusteeze.codegen.gpu.source import Source

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted"
)


def kernel(line: str = "tl.store(y + tl.arange(0, 32), 1.0)") -> Source:
    k = Source("fill", params=[Param("y", "*fp32", 16)])
    k.line(line)
    return k


def test_kernels_are_built_once_and_found_again(tmp_path: Path) -> None:
    k = kernel()
    done: list[float] = []
    for run in ("first", "second"):
        folder = tmp_path / run
        folder.mkdir()
        found = build_kernels({k.name: k}, ["sm_80", "sm_90"], folder, tmp_path / "cache", 1, done.append)
        assert [b.architecture for b in found[k.name]] == ["sm_80", "sm_90"]
        for binary in found[k.name]:
            assert (folder / binary.file).read_bytes().startswith(b"\x7fELF")
            assert binary.num_warps == k.options.num_warps
    assert done == [0.5, 1.0], "the second run compiles nothing"
    next((tmp_path / "cache").glob("*.cubin")).write_bytes(b"broken")
    build_kernels({k.name: k}, ["sm_80", "sm_90"], tmp_path / "second", tmp_path / "cache", 1, done.append)
    assert done == [0.5, 1.0, 1.0], "what is broken is compiled again"


def test_a_kernel_that_fails_is_named(tmp_path: Path) -> None:
    k = kernel("tl.store(y + tl.arange(0, 33), 1.0)")
    with pytest.raises(GpuBuildError, match=k.name):
        build_kernels({k.name: k}, ["sm_90"], tmp_path, tmp_path / "cache", 1, lambda _: None)


def test_names_follow_the_text() -> None:
    assert kernel().name == kernel().name
    assert kernel().name != kernel("tl.store(y + tl.arange(0, 32), 2.0)").name
