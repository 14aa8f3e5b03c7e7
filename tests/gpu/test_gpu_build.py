"""Building kernels: files in the artifact, the cache of single kernels, and what goes wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from smollm2 import python

from rusteeze.artifact.cuda_contract import Param
from rusteeze.artifact.store import read_manifest
from rusteeze.autotune.open_artifact import OpenArtifact
from rusteeze.codegen.gpu.build import GpuBuildError, build_kernels
from rusteeze.codegen.gpu.source import Source
from rusteeze.errors import UserError

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


@pytest.mark.slow
def test_gpus_alone_need_no_compiler_for_processors(tmp_path: Path) -> None:
    """Compiled where TVM is not installed; then measured schedules are asked for, in vain."""
    script = """
import sys
sys.modules["tvm"] = None
from pathlib import Path
from made_models import save_model
from rusteeze.compiler import compile_model
from rusteeze.config import CompileOptions
folder = Path(sys.argv[1])
compile_model(save_model("llama3.2", folder), folder / "out.rz", CompileOptions("cuda:sm_90"), lambda *_: None)
"""
    paths = [str(Path(__file__).parents[1] / p) for p in ("numerics", "unit/codegen", "")]
    env = {"RUSTEEZE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(paths)}
    python("-c", script, str(tmp_path), env=env)
    assert read_manifest(tmp_path / "out.rz").facts["targets"] == ["cuda/sm_90"]
    with pytest.raises(UserError, match=r"out\.rz was compiled for GPUs only"):
        OpenArtifact(tmp_path / "out.rz")
