"""Kernels compiled for architectures that are not here: the instructions that they must hold, nothing spilled,
shared memory within the limits. Shapes are those of a Llama-3-8B layer."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rusteeze.codegen.gpu.architectures import SHARED_BYTES, has_tma
from rusteeze.codegen.gpu.lower import GpuOptions, lower_for_gpu
from rusteeze.codegen.gpu.source import Source
from rusteeze.ir import parse
from rusteeze.passes.pipeline import fusing, run_passes

triton = pytest.importorskip("triton")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted"),
]
TEXT = """graph @main(%input_ids: i32[T], %positions: i32[T], %rows: i32[R]) {
  @x : f32[64,4096] = "f32"
  @o : f32[4096,4096] = "FORMAT"
  @g : f32[4096] = "f32"
  @kv : f32[64,1024] = "f32"
  %0 = embedding(%input_ids, @x) : f32[T,4096]
  %1 = quantize(%0) {to='bf16'} : f32[T,4096]
  %y = linear(%1, @o, _) : f32[T,4096]
  %r = add(%0, %y) : f32[T,4096]
  %n = rms_norm(%r, @g) {eps=1e-05} : f32[T,4096]
  %b = quantize(%n) {to='bf16'} : f32[T,4096]
  %2 = linear(%b, @o, _) : f32[T,4096]
  %3 = reshape(%2) {shape=['T',32,128]} : f32[T,32,128]
  %4 = embedding(%positions, @kv) : f32[T,1024]
  %5 = reshape(%4) {shape=['T',8,128]} : f32[T,8,128]
  %6 = attention(%3, %5, %5, _) {layer=0, scale=0.0883} : f32[T,32,128]
  %7 = gather_rows(%6, %rows) : f32[R,32,128]
  %8 = reshape(%7) {shape=['R',4096]} : f32[R,4096]
  return %8
}"""


@pytest.fixture(autouse=True)
def _triton_cache(tmp_path: Path) -> Iterator[None]:
    before = triton.knobs.cache.dir
    triton.knobs.cache.dir = str(tmp_path / "triton")
    yield
    triton.knobs.cache.dir = before


def source(format: str, begins: str, ends: str = "") -> Source:
    graph = parse(TEXT.replace("FORMAT", format))
    run_passes(graph, fusing())
    kernels = lower_for_gpu(graph, GpuOptions("bf16", 8192)).kernels
    (name,) = (n for n in kernels if n.startswith(begins) and n.rpartition("_")[0].endswith(ends))
    return kernels[name]


def compiled(kernel: Source, architecture: str, folder: Path) -> Any:
    from rusteeze.codegen.gpu.compile_kernel import (
        compile_kernel,  # decided by TRITON_INTERPRET at import
    )

    path = folder / f"{kernel.name}.py"
    path.write_text(kernel.text(has_tma(architecture)), encoding="utf-8")
    return compile_kernel(path, kernel.params, kernel.options, architecture)


def count(sass: str, instruction: str) -> int:
    return len(re.findall(rf"\b{re.escape(instruction)}\b", sass))


@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_90"])
@pytest.mark.parametrize(
    ("format", "begins", "ends"),
    [
        ("bf16", "linear_add", "m16"), ("affine4g128s-f16", "linear_add", "m16"), ("bf16", "linear_norm", "m16"),
        ("affine4g128s-f16", "linear_norm", "m16"), ("bf16", "attention", "parts"),
    ],
)
def test_instructions(architecture: str, format: str, begins: str, ends: str, tmp_path: Path) -> None:
    kernel = compiled(source(format, begins, ends), architecture, tmp_path)
    sass = kernel.asm["sass"]
    assert kernel.metadata.shared <= SHARED_BYTES[architecture]
    assert count(sass, "LDL") == count(sass, "STL") == 0, "registers are spilled"
    # 16 bytes a load: through shared memory, or into registers
    assert count(sass, "LDGSTS.E.BYPASS.128") + count(sass, "LDG.E.128") > 0
    shapes = set(re.findall(r"HGMMA\.(\d+)x\d+x\d+", sass))
    if architecture == "sm_90":
        assert shapes == {"64"}, "weights fill the 64 rows of wgmma"
    else:
        assert count(sass, "HMMA") or "HMMA." in sass


def test_loads_are_wide_because_alignment_is_promised(tmp_path: Path) -> None:
    """Without its promises the same kernel loads two bytes at a time: the test above can fail."""
    kernel = source("bf16", "linear_add", "m16")
    kernel.params = [type(p)(p.name, p.type) for p in kernel.params]
    sass = compiled(kernel, "sm_90", tmp_path).asm["sass"]
    assert count(sass, "LDGSTS.E.BYPASS.128") == 0


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("begins", ["linear_add", "linear_store"])
def test_prompts_have_their_tiles_copied_by_hardware(begins: str, architecture: str, tmp_path: Path) -> None:
    """Where there is such hardware; descriptors take scratch memory that the launch must bring."""
    kernel = compiled(source("bf16", begins, "m128"), architecture, tmp_path)
    sass, here = kernel.asm["sass"], architecture == "sm_90"
    assert (count(sass, "UTMALDG.2D") > 0) == here
    assert (kernel.metadata.global_scratch_size > 0) == here
    assert bool(re.search(r"LDGSTS\S*\.128", sass)) == (not here)
    assert count(sass, "LDL") == count(sass, "STL") == 0, "registers are spilled"
