"""How much memory a model takes when it is served, and how much of it is left for the cache.

Computed from the plan before anything is allocated. What the user has not fixed fits itself to the
machine; what is asked for and does not fit is refused with the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rusteeze.artifact.contract import BLOCK_SIZE, Plan
from rusteeze.artifact.cuda_contract import CudaPlan
from rusteeze.errors import UserError

PROCESS_BYTES = 128 * 2**20
"""Interpreter, libraries, tokenizer and what requests take outside the cache."""
DEFAULT_CACHE_BYTES = 4 * 2**30
"""Most cache memory that is taken unasked."""
LEAST_BLOCKS = 32
"""A cache for fewer tokens than these blocks hold is of no use to anybody."""
_MIB = 2**20
_GROUP = Path("/sys/fs/cgroup")


class DoesNotFit(UserError):
    """The model, or what was asked for, needs more memory than there is."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose. ``budget_bytes`` is what may be used in all."""

    budget_bytes: int
    weight_bytes: int
    scratch_bytes: int
    block_bytes: int
    num_blocks: int
    max_model_len: int
    asked_model_len: int
    capped: bool = False
    """The cache could be larger, had a budget been named."""
    process_bytes: int = PROCESS_BYTES

    @property
    def cache_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.scratch_bytes + self.process_bytes + self.cache_bytes

    def rows(self) -> Iterator[tuple[str, int, str]]:
        """Purpose, bytes and what changes them, for people."""
        tokens = self.num_blocks * BLOCK_SIZE
        yield "weights", self.weight_bytes, "the model and its quantisation"
        yield "scratch", self.scratch_bytes, "--max-num-batched-tokens"
        if self.process_bytes:
            yield "process", self.process_bytes, "an allowance"
        most = f"{DEFAULT_CACHE_BYTES >> 30} GiB, or one longest sequence, is the most unasked"
        cap = f"{most}; --memory takes more"
        cache = cap if self.capped else "--memory, --gpu-memory-utilization"
        yield f"cache, {tokens} tokens", self.cache_bytes, cache
        yield "budget", self.budget_bytes, "--memory, --gpu-memory-utilization"


def plan_memory(
    plan: Plan | CudaPlan, weight_bytes: int, *, max_batched_tokens: int, available_bytes: int,
    utilization: float, memory_bytes: int | None, fixed_bytes: int = 0,
    process_bytes: int = PROCESS_BYTES, most_unasked_bytes: int | None = DEFAULT_CACHE_BYTES,
) -> MemoryPlan:  # fmt: skip
    """``memory_bytes`` is the budget if given, else ``utilization`` of what is available.

    ``fixed_bytes`` is scratch that does not grow with tokens; ``most_unasked_bytes`` bounds the cache
    where no budget is given (None: no bound), though one longest sequence is always allowed.

    When nothing was asked for, the longest length shrinks to what the cache can hold. DoesNotFit when the
    budget is more than there is, or what was asked for cannot hold one sequence of the longest length."""
    if memory_bytes is not None and memory_bytes > available_bytes:
        raise DoesNotFit(
            f"--memory asks for {_mib(memory_bytes)}, but {_mib(available_bytes)} are available"
        )
    asked = memory_bytes is not None
    budget = int(available_bytes * utilization) if memory_bytes is None else memory_bytes
    scratch = sum(plan.arena_row_bytes.values()) * max_batched_tokens + fixed_bytes
    fixed = weight_bytes + scratch + process_bytes
    block = max(1, plan.kv_bytes_per_block())
    longest = -(-plan.max_model_len // BLOCK_SIZE)
    unbounded = asked or most_unasked_bytes is None
    most = budget - fixed if unbounded else max(most_unasked_bytes or 0, longest * block)
    num_blocks = max(0, min(budget - fixed, most)) // block
    least = longest if asked else min(longest, LEAST_BLOCKS)
    if num_blocks < least:
        raise DoesNotFit(
            f"weights {_mib(weight_bytes)} + scratch {_mib(scratch)} + process {_mib(process_bytes)} + "
            f"cache of one sequence of {least * BLOCK_SIZE} tokens {_mib(least * block)} = "
            f"{_mib(fixed + least * block)}, more than the budget of {_mib(budget)} "
            "(raise --memory, or compile with a smaller --max-model-len)"
        )
    length = min(plan.max_model_len, num_blocks * BLOCK_SIZE)
    return MemoryPlan(
        budget, weight_bytes, scratch, block, num_blocks, length, plan.max_model_len,
        capped=most < budget - fixed, process_bytes=process_bytes,
    )  # fmt: skip


def available_memory() -> int:
    """Bytes that this process may still take: the machine's free memory, or its control group's."""
    free = _meminfo("MemAvailable")
    group = group_memory(_GROUP)
    return free if group is None else min(free, group)


def group_memory(folder: Path) -> int | None:
    """Bytes that a control group may still take; None when it has no limit.

    File pages in the cache, such as weights that were just read, are counted as used but are given back
    when they are needed."""
    limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
    if limit is None or used is None:
        return None
    return max(0, limit - used + min(used, _file_pages(folder / "memory.stat")))


def _file_pages(path: Path) -> int:
    try:
        pairs = (line.split() for line in path.read_text().splitlines())
        counts = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
    except (OSError, ValueError):
        return 0
    return counts.get("inactive_file", 0) + counts.get("active_file", 0)


def _meminfo(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise DoesNotFit("/proc/meminfo does not say how much memory is free; give --memory")


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _mib(count: int) -> str:
    return f"{count / _MIB:.0f} MiB"
