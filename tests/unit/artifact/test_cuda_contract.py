"""The CUDA plan: counts of capacities, choices by size, and a round trip through its file."""

from __future__ import annotations

import pytest

from rusteeze.artifact.contract import Buffer, Pages
from rusteeze.artifact.cuda_contract import (
    CUDA_SCHEMA,
    Address,
    Binary,
    Capacities,
    Choice,
    Count,
    CudaCall,
    CudaPlan,
    Kernel,
    Launch,
    Param,
    decode_cuda_plan,
    encode_cuda_plan,
)
from rusteeze.errors import BrokenArtifact

ONE = Count()


def launch(kernel: int, x: Count) -> Launch:
    return Launch(kernel, (Address("buffer", 0, 64), Count("blocks")), (x, ONE, ONE))


def plan() -> CudaPlan:
    params = (Param("x", "*fp32", 16), Param("stride", "i32"))
    kernels = tuple(
        Kernel(n, n, params, (Binary("sm_90", f"cuda/sm_90/{n}.cubin", 4),)) for n in ("narrow", "wide")
    )
    narrow = Choice((launch(0, Count("tokens", per=16)),), up_to=32)
    wide = Choice((launch(1, Count("tokens", per=128, times=3)), launch(0, Count("context", most=2))))
    return CudaPlan(
        CUDA_SCHEMA, ("sm_90",), 100, 512, 16, (1, 16, 32), {"T": 64, "R": 448}, 0,
        (Buffer("T", 64, 0), Buffer("R", 448, 0)), (Pages(0, 1024, 512),), kernels,
        (CudaCall((narrow, wide)),), 1, (0, 1), 1,
    )  # fmt: skip


def capacities(tokens: int, context: int = 1) -> Capacities:
    return Capacities(tokens, 1, 1, context, 32)


def test_choices_and_grids_follow_the_capacity() -> None:
    found = plan().launches(capacities(32))
    assert [(one.kernel, grid) for one, grid in found] == [(0, (2, 1, 1))]
    found = plan().launches(capacities(129, context=9))
    assert [(one.kernel, grid) for one, grid in found] == [(1, (6, 1, 1)), (0, (2, 1, 1))]


def test_empty_grids_are_not_launched() -> None:
    assert plan().launches(capacities(0)) == []


def test_round_trip() -> None:
    assert decode_cuda_plan(encode_cuda_plan(plan())) == plan()
    assert plan().kv_bytes_per_block() == 1536


def test_a_binary_is_found_by_architecture() -> None:
    kernel = plan().kernels[0]
    assert kernel.binary("sm_90").num_warps == 4
    with pytest.raises(KeyError):
        kernel.binary("sm_80")


@pytest.mark.parametrize("data", [b"{}", b'{"schema": 99}', b"\xff", b'{"schema": 1}'])
def test_what_is_no_plan_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenArtifact, match=r"cuda/plan\.json"):
        decode_cuda_plan(data)
