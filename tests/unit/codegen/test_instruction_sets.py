"""Machine code: every instruction set uses its special instructions and nothing that it lacks."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drawn_weights import draw_weight
from graph_runner import GraphRunner, dense

from rusteeze.codegen.cpu.build import build_module
from rusteeze.codegen.cpu.isa import ALL, NEON, V3, V4, Isa
from rusteeze.codegen.cpu.lower import Lowered, LoweringOptions, lower
from rusteeze.ir import Graph, Value
from rusteeze.ir.ops.elementwise import UNARY
from rusteeze.ir.types import ROWS, TOKENS, DType, TensorType
from rusteeze.weights import Weight

VOCABULARY, WIDTH = 33, 64
ELF_MACHINE = {"x86_64": 62, "aarch64": 183}
# What a library may ask for: libc's and libm's functions
ALLOWED = {
    "syscall", "clock_gettime", "memcpy", "memset", "memmove", "logf", "powf", "sinf", "cosf", "fmodf",
}  # fmt: skip


def typical_graph() -> tuple[Graph, dict[str, Weight]]:
    """One layer with everything in it: int8 and bf16 products, norms, rope, attention, libm functions."""
    graph, weights, rng = Graph(), dict[str, Weight](), np.random.default_rng(0)
    ids, positions = (graph.input(n, TensorType(DType.i32, (TOKENS,))) for n in ("input_ids", "positions"))
    rows = graph.input("rows", TensorType(DType.i32, (ROWS,)))

    def static(format: str, *shape: int) -> Value:
        name = f"w{len(weights)}"
        weights[name] = draw_weight(format, shape, rng)
        return graph.weight(name, TensorType(DType.f32, shape), format)

    def product(x: Value, format: str, kind: str = "") -> Value:
        x = graph.add("quantize", x, to=kind) if kind else x
        return graph.add("linear", x, static(format, WIDTH, WIDTH), None)

    x = graph.add("embedding", ids, static("f16", VOCABULARY, WIDTH))
    h = graph.add("rms_norm", x, static("f32", WIDTH), eps=1e-5)
    weights["angles"] = dense(np.ones((90, 16)))
    table = graph.add("embedding", positions, graph.weight("angles", TensorType(DType.f32, (90, 16)), "f32"))
    heads = [
        graph.add("reshape", product(h, *how), shape=(TOKENS, 2, WIDTH // 2))
        for how in (("affine4g32m-f16", "int8"), ("bf16", "bf16"), ("affine8g16s-f16",))
    ]
    q, k = (graph.add("rope", x, table, table, width=32) for x in heads[:2])
    a = graph.add("attention", q, k, heads[2], None, layer=0, scale=0.2, softcap=5.0, cache="bf16")
    one = graph.add("slice", k, axis=1, start=0, stop=1)
    latent = graph.add("attention", a, one, None, None, layer=1, scale=0.2, value_width=32, cache="bf16")
    blocks = graph.add("reshape", latent, shape=(TOKENS, WIDTH))
    blocks = graph.add("block_linear", blocks, static("bf16", 2, WIDTH // 2, WIDTH // 2))
    a = graph.add("add", a, graph.add("reshape", blocks, shape=(TOKENS, 2, WIDTH // 2)))
    x = graph.add("add", x, product(graph.add("reshape", a, shape=(TOKENS, WIDTH)), "codebook4g32-f16"))
    for how in (("float8g64-f32", "bf16"), ("codebook4g32i-f16", "int8"), ("affine3g16m-f32", "int8")):
        x = graph.add("add", x, product(h, *how))
    for op in UNARY:
        x = graph.add(op, graph.add("layer_norm", x, None, None, eps=1e-5))
    x = graph.add("gather_rows", graph.add("remainder", x, static("f32", WIDTH)), rows)
    graph.outputs = [graph.add("linear", x, static("f16", VOCABULARY, WIDTH), None)]
    return graph, weights


@pytest.fixture(scope="module")
def lowered() -> Lowered:
    graph, _ = typical_graph()
    return lower(graph, LoweringOptions(64))


@pytest.fixture(scope="module", params=ALL, ids=lambda isa: isa.name)
def compiled(request: pytest.FixtureRequest, lowered: Lowered) -> tuple[Isa, object]:
    """Any machine can compile for all of them."""
    found: Isa = request.param
    return found, build_module(lowered.kernels.values(), found)


def instructions(module) -> set[str]:
    """All mnemonics of the module's assembly."""
    lines = module.inspect_source("asm").splitlines()
    return {m[1] for line in lines if (m := re.match(r"\t([a-z][a-z0-9.]*)(?:\s|$)", line))}


EXPECTED = {
    V4: {"vpdpbusd", "vdpbf16ps", "vcvtneps2bf16", "vcvtph2ps", "vfmadd231ps", "vpshufb", "vpermps"},
    V3: {"vpmaddubsw", "vcvtph2ps", "vfmadd231ps", "vpshufb"},
    NEON: {"sdot", "fcvtl", "fmla", "tbl"},
}
# AMD's own: XOP, FMA4, TBM, SSE4a, 3DNow, and clzero
AMD_ONLY = re.compile(
    r"vpcomu?[bwdq]|vprot[bwdq]|vpsh[al][bwdq]|vpmac\w+|vpmadcs\w+|vphaddu\w+|vphadd(?:bd|bw|bq|dq|wd|wq)"
    r"|vphsub(?:bw|dq|wd)|vpperm|vpcmov|vfrcz\w+|vfn?m(?:add|sub)[ps][sd]|blc\w+|blsfill|blsic|tzmsk|t1mskc"
    r"|extrq|insertq|movnts[sd]|pf\w+|femms|clzero|lwp\w+|llwpcb|slwpcb"
)


def test_the_special_instructions_are_used(compiled):
    isa, module = compiled
    assert EXPECTED[isa] <= instructions(module)


def test_nothing_is_used_that_the_processor_may_lack(compiled):
    isa, module = compiled
    found, text = instructions(module), module.inspect_source("asm")
    if isa is V3:
        assert not re.search(r"%zmm|%k[0-7]\b|\{%k", text)
        assert not {i for i in found if i.startswith(("vpdp", "vdp", "vcvtneps", "vpermi2", "vpternlog"))}
    if isa.machine == "x86_64":
        assert {i for i in found if AMD_ONLY.fullmatch(i)} == set()
        assert not {i for i in found if i.startswith(("tdp", "tile", "vpmadd52"))}
    else:
        assert not re.search(r"\bz[0-9]+\.[bhsd]\b|\bp[0-9]+/[mz]\b", text)  # no SVE
        assert not {i for i in found if i in ("bfdot", "bfmmla", "smmla", "usdot", "usmmla", "ummla")}


def test_the_pattern_of_foreign_instructions_can_fail():
    for name in ("vpcomb", "vprotd", "vpshab", "vpmacsdd", "vfmaddps", "vpperm", "blsfill", "extrq", "pfadd"):
        assert AMD_ONLY.fullmatch(name)
    for name in ("vprold", "vprolvd", "vpcompressd", "vfmadd231ps", "vphaddd", "vpshufb", "blsr", "vpshldd"):
        assert not AMD_ONLY.fullmatch(name), name


def test_objects_are_for_their_machine(compiled, tmp_path):
    isa, module = compiled
    module.write_to_file(str(tmp_path / "kernels.o"), "o")
    head = (tmp_path / "kernels.o").read_bytes()[:20]
    assert head[:5] == b"\x7fELF\x02"  # 64 bits
    kind, machine = struct.unpack("<HH", head[16:20])
    assert (kind, machine) == (1, ELF_MACHINE[isa.machine])


def test_floating_point_is_not_relaxed(compiled):
    """Results must not depend on what an optimiser may reassociate."""
    _, module = compiled
    text = module.inspect_source("ll")
    assert not re.search(r"= f(?:add|mul|sub|div) (?:fast|reassoc|nnan|ninf|nsz|arcp|contract|afn)", text)


# ---- libraries -------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def runner(best_isa: Isa, tmp_path_factory: pytest.TempPathFactory) -> GraphRunner:
    return GraphRunner(*typical_graph(), best_isa, tmp_path_factory.mktemp("library"), cache="bf16")


def listed_by(tool: str, *args: str | Path) -> list[str]:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([tool, *map(str, args)], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_library_needs_libc_and_libm_only(runner):
    lines = listed_by("nm", "-D", "--undefined-only", runner.library)
    names = {line.split()[-1].partition("@")[0] for line in lines}
    assert names <= ALLOWED
    assert "syscall" in names


def test_a_library_exports_its_kernels_and_the_step_loop(runner):
    lines = listed_by("nm", "-D", "--defined-only", runner.library)
    names = {line.split()[-1] for line in lines}
    assert {*runner.lowered.kernels, "rz_step_once", "rz_worker"} <= names
    assert not any("tvm" in n.lower() for n in names), names


def test_a_library_has_no_executable_stack_and_no_dependencies(runner):
    segments = listed_by("readelf", "-lW", runner.library)
    assert not any("GNU_STACK" in line and "RWE" in line for line in segments)
    assert not any("NEEDED" in line for line in listed_by("readelf", "-dW", runner.library))


def test_a_library_loads_in_a_bare_process(runner):
    """All symbols bound at once, without the compiler and without numpy."""
    script = "import ctypes, os, sys; ctypes.CDLL(sys.argv[1], os.RTLD_NOW).rz_step_once"
    done = subprocess.run([sys.executable, "-c", script, runner.library], check=False)
    assert done.returncode == 0


def test_equal_inputs_give_equal_libraries(runner, best_isa, tmp_path):
    """Artifacts can be compared and cached by content."""
    again = GraphRunner(*typical_graph(), best_isa, tmp_path, cache="bf16")
    assert again.library.read_bytes() == runner.library.read_bytes()
    again.executor.close()
