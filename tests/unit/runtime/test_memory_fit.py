from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rusteeze.artifact import contract
from rusteeze.runtime.memory_plan import (
    DEFAULT_CACHE_BYTES,
    PROCESS_BYTES,
    DoesNotFit,
    MemoryPlan,
    available_memory,
    group_memory,
    plan_memory,
)

MIB = 2**20
BLOCK = 2 * MIB
# 1 MiB of scratch for each of 64 tokens, 100 MiB of weights, at most 1600 tokens = 100 blocks = 200 MiB
PLAN = contract.Plan(
    contract.SCHEMA, (), 100, 1600, 16, {"T": MIB}, (), (contract.Pages(0, MIB, MIB),), (), 0, (0, 0)
)
FIXED = 164 * MIB + PROCESS_BYTES


def planned(available: int, memory: int | None = None, utilization: float = 1.0) -> MemoryPlan:
    values: dict[str, Any] = {"utilization": utilization, "memory_bytes": memory}
    return plan_memory(
        PLAN, 100 * MIB, max_batched_tokens=64, available_bytes=available, **values
    )  # fmt: skip


def test_the_parts_add_up() -> None:
    plan = planned(2 << 30, memory=1 << 30)
    assert plan.num_blocks == ((1 << 30) - FIXED) // BLOCK
    assert plan.total_bytes == FIXED + plan.cache_bytes
    assert plan.budget_bytes - BLOCK < plan.total_bytes <= plan.budget_bytes
    assert sum(count for name, count, _ in plan.rows() if name != "budget") == plan.total_bytes


def test_unasked_the_cache_stays_modest_and_within_the_share() -> None:
    assert planned(64 << 30).cache_bytes == DEFAULT_CACHE_BYTES
    assert planned(2 << 30, utilization=0.5).total_bytes <= 1 << 30


def test_unasked_the_length_shrinks() -> None:
    plan = planned(FIXED + 40 * BLOCK)
    assert (plan.num_blocks, plan.max_model_len, plan.asked_model_len) == (40, 640, 1600)


def test_what_is_asked_for_and_does_not_fit_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(DoesNotFit, match="--memory asks for 2048 MiB, but 1024 MiB are available"):
        planned(1 << 30, memory=2 << 30)
    text = (
        r"weights 100 MiB \+ scratch 64 MiB \+ process 128 MiB \+ cache of one sequence of 1600 tokens "
        r"200 MiB = 492 MiB, more than the budget of 372 MiB"
    )
    with pytest.raises(DoesNotFit, match=text):
        planned(2 << 30, memory=FIXED + 40 * BLOCK)
    with pytest.raises(DoesNotFit, match="one sequence of 512 tokens"):
        planned(100 * MIB)


def test_the_machine_has_memory() -> None:
    assert 64 * MIB < available_memory() < 1 << 50


def group(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(text)
    return folder


def test_pages_of_files_are_not_used_up(tmp_path: Path) -> None:
    """The weights that were just read fill the page cache of a container."""
    stat = "anon 5\ninactive_file 200\nactive_file 100\nslab_unreclaimable 7\n"
    assert group_memory(group(tmp_path, max="1000\n", current="400\n", stat=stat)) == 900
    assert group_memory(group(tmp_path, stat="")) == 600
    assert group_memory(group(tmp_path, max="max\n")) is None
    assert group_memory(tmp_path / "none") is None


def test_a_budget_of_nothing_is_a_budget() -> None:
    with pytest.raises(DoesNotFit, match="more than the budget of 0 MiB"):
        planned(2 << 30, memory=0)


def test_the_cap_is_explained_where_it_binds() -> None:
    def lever(plan: MemoryPlan) -> str:
        return next(text for name, _, text in plan.rows() if name.startswith("cache"))

    assert lever(planned(64 << 30)) == "4 GiB, or one longest sequence, is the most unasked; --memory takes more"
    assert "unasked" not in lever(planned(2 << 30))
    assert "unasked" not in lever(planned(64 << 30, memory=32 << 30))
