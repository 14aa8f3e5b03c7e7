"""The data contract between compiler and runtime for NVIDIA GPUs: what ``cuda/plan.json`` says.

    NAME.rz/cuda/plan.json             this file's CudaPlan
            cuda/weights.safetensors   packed weights: U8 tensors by name, each 64-byte aligned in the file
            cuda/sm_90/KERNEL.cubin    machine code, one file a kernel and architecture

The folder lies beside ``plan.json`` and ``cpu/`` when an artifact was made for both, or alone.

A plan is a list of calls; a call is one or a few kernel launches over device memory. Whatever changes
from step to step lies in device memory, in the step inputs; grids and integer arguments depend on
*capacities* alone, which the runtime chooses. So the launches of one choice of capacities can be made
once and captured as a CUDA graph, which serves every step that fits.

Capacities (``Capacities``): for every step the runtime chooses numbers not below what the step has:

    tokens    rows T of the step: prompt tokens and decoded ones
    rows      rows R whose logits are wanted
    tiles     attention tiles (as on the CPU: ``CudaPlan.query_tokens`` tokens at most in each)
    context   longest context of a sequence, this step's tokens included
    blocks    columns of ``block_tables`` as it lies in device memory (its row stride in elements)

Kernels read the true counts from the input ``counts``; work beyond them is skipped, and nothing that lies
behind the counts is read, so input arrays need no padding. Which results a token gets does not depend on
the capacities, on the choice of launches or on what else is in the step.

Step inputs, all int32 in device memory, at addresses that never change:

    input_ids, positions, slot_mapping [T], rows [R], tiles [tiles, TILE_FIELDS],
    block_tables [sequences, blocks]     as in the CPU's plan (runtime/batch.py); block_tables with the
                                         fixed row stride ``blocks``, entries not needed may hold anything
    counts [NUM_COUNTS]                  T, R, number of tiles, number of sequences

Memory: one arena per space ("T", "R"). With capacities c, buffer b begins at
``arena[b.space] + c * b.offset`` bytes (c: ``tokens`` for "T", ``rows`` for "R"), as in the CPU's plan, and an
arena needs ``arena_row_bytes[space] * c`` bytes. One workspace of ``workspace_bytes`` serves all calls: it is
zeroed once, when it is allocated, and never touched by the runtime again. All arenas, the workspace,
weights and pages begin at multiples of 256 bytes (what cuMemAlloc gives); weights at multiples of 64.

Cache pages: ``pages[layer].key_bytes`` times the number of blocks for keys, likewise values; their inside
is the kernels' business. Pages need no initialisation: what no token of a sequence has written is not read.

Calls run in order on one stream; each may read what any earlier one wrote.

Launch ABI: the arguments in the order of ``Kernel.params``, then two pointers that Triton adds: global
scratch and profile scratch (0 unless ``Binary.global_scratch_bytes`` > 0: then scratch of that many bytes
for every program of the grid, aligned to ``global_scratch_align``). Block (32 * num_warps, 1, 1); dynamic shared
memory ``shared_bytes``, above 48 KiB to be allowed first (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import msgspec

from rusteeze.artifact.contract import Buffer, Cost, Pages, decode_versioned

CUDA_SCHEMA = 2
PLAN_FILE = "cuda/plan.json"
WEIGHTS_FILE = "cuda/weights.safetensors"

CUDA_STEP_INPUTS = (
    "input_ids", "positions", "slot_mapping", "rows", "tiles", "block_tables", "counts",
)  # fmt: skip
NUM_COUNTS = 4
"""int32 fields of ``counts``: T, R, tiles, sequences."""

Capacity = Literal["tokens", "rows", "tiles", "context", "blocks"]
ParamType = Literal["*bf16", "*fp16", "*fp32", "*i32", "*u8", "*i8", "i32"]
Memory = Literal["buffer", "weight", "input", "key_pages", "value_pages", "workspace"]


@dataclass(frozen=True)
class Capacities:
    """For how much a set of launches is made; see the module docstring."""

    tokens: int
    rows: int
    tiles: int
    context: int
    blocks: int


class Count(msgspec.Struct, frozen=True, omit_defaults=True, tag="count"):
    """A whole number that depends on a capacity: ``times * ceil(capacity / per) + plus``, at most ``most`` (0: no
    bound), 0 where the capacity is; without a capacity it is ``times``."""

    of: Capacity | None = None
    per: int = 1
    times: int = 1
    most: int = 0
    plus: int = 0

    def value(self, capacities: Capacities) -> int:
        if self.of is None:
            return self.times
        capacity = int(getattr(capacities, self.of))
        number = self.times * -(-capacity // self.per) + (self.plus if capacity else 0)
        return min(number, self.most) if self.most else number


class Address(msgspec.Struct, frozen=True, omit_defaults=True, tag="address"):
    """A pointer argument: memory and a byte offset into it (for a buffer: into its first row).

    ``which``: the buffer's number, the weight's or input's name, the layer of pages; 0 for the workspace."""

    memory: Memory
    which: int | str = 0
    offset: int = 0


Argument = Address | Count


class Param(msgspec.Struct, frozen=True, omit_defaults=True):
    """A kernel parameter. ``divisible``: the value (address or number) is a multiple of this; the code
    relies on it, so the runtime checks it before it launches."""

    name: str
    type: ParamType
    divisible: int = 1


class Binary(msgspec.Struct, frozen=True, omit_defaults=True):
    """A kernel compiled for one architecture.

    ``file``: path inside the artifact; ``num_warps``: of a launch (what the compiler made, which may be
    more than it was asked for)."""

    architecture: str
    file: str
    num_warps: int
    shared_bytes: int = 0
    global_scratch_bytes: int = 0
    global_scratch_align: int = 1


class Kernel(msgspec.Struct, frozen=True):
    """``entry``: the symbol in every binary. One binary for each of the plan's architectures."""

    name: str
    entry: str
    params: tuple[Param, ...]
    binaries: tuple[Binary, ...]

    def binary(self, architecture: str) -> Binary:
        """The code for "sm_XY". KeyError when the artifact has none."""
        for binary in self.binaries:
            if binary.architecture == architecture:
                return binary
        raise KeyError(architecture)


class Launch(msgspec.Struct, frozen=True):
    """One kernel launch: the kernel's number, an argument per parameter, the grid (x, y, z).

    Nothing is launched when a dimension of the grid is 0."""

    kernel: int
    args: tuple[Argument, ...]
    grid: tuple[Count, Count, Count]


class Choice(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a call launches, in order, while the capacity that the call goes by is at most ``up_to`` (0: no
    bound)."""

    launches: tuple[Launch, ...]
    up_to: int = 0


class CudaCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call. ``choices`` in ascending order of ``up_to``, the last one without bound; the first that
    fits the capacity ``by`` is taken. All choices add up in the same order."""

    choices: tuple[Choice, ...]
    by: Capacity = "tokens"
    origin: str = ""
    cost: Cost = Cost()

    def choice(self, capacities: Capacities) -> Choice:
        size = getattr(capacities, self.by)
        return next(c for c in self.choices if not c.up_to or size <= c.up_to)


class CudaPlan(msgspec.Struct, frozen=True):
    schema: int
    architectures: tuple[str, ...]
    """As "sm_90". A device runs the newest that is not above its own of the same major number."""
    vocab_size: int
    max_model_len: int
    query_tokens: int
    """Most tokens in one attention tile."""
    buckets: tuple[int, ...]
    """Ascending numbers of tokens at which grids change: capacities worth a captured graph. A step above
    the last one takes any capacity."""
    arena_row_bytes: dict[str, int]
    workspace_bytes: int
    buffers: tuple[Buffer, ...]
    pages: tuple[Pages, ...]
    kernels: tuple[Kernel, ...]
    calls: tuple[CudaCall, ...]
    logits: int
    """The buffer that holds float32 [R, vocab_size] after a step; rows are ``row_bytes`` apart."""
    best: tuple[int, int]
    """The buffers that hold the largest logit of each part of a row, float32 [R, best_parts], infinity where the
    part has a NaN, and its token, int32: the first of equals. Parts are in order."""
    best_parts: int

    def kv_bytes_per_block(self) -> int:
        return sum(p.key_bytes + p.value_bytes for p in self.pages)

    def launches(self, capacities: Capacities) -> list[tuple[Launch, tuple[int, int, int]]]:
        """All launches of a step with these capacities in order, with their grids."""
        found = []
        for call in self.calls:
            for launch in call.choice(capacities).launches:
                x, y, z = (count.value(capacities) for count in launch.grid)
                if math.prod((x, y, z)):
                    found.append((launch, (x, y, z)))
        return found


def encode_cuda_plan(plan: CudaPlan) -> bytes:
    return msgspec.json.format(msgspec.json.encode(plan), indent=1)


def decode_cuda_plan(data: bytes) -> CudaPlan:
    """BrokenArtifact when the data is no plan of this schema."""
    return decode_versioned(data, CudaPlan, CUDA_SCHEMA, PLAN_FILE)
