"""Limits of an engine: what the user chose, and what results once the executor is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class EngineConfig:
    """What the user may choose. None means: whatever the executor allows.

    ``max_num_seqs`` sequences run at once; ``max_batched_tokens`` tokens are computed in one step,
    so it bounds how long a step takes; ``max_model_len`` bounds prompt plus output of one request.
    ``prefix_caching``: prompts that begin alike are computed once. ``max_queue`` requests may wait
    beside as many as run at once; None: any number.
    """

    max_num_seqs: int = 256
    max_batched_tokens: int | None = None
    max_model_len: int | None = None
    prefix_caching: bool = True
    max_queue: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_batched_tokens", "max_model_len"):
            _check_positive(name, getattr(self, name))
        if self.max_queue is not None and self.max_queue < 0:
            raise ValueError(f"max_queue must be at least 0, not {self.max_queue}")


@dataclass(frozen=True)
class SchedulerLimits:
    """The numbers the scheduler works with; all counts, ``block_size`` in tokens."""

    num_blocks: int
    block_size: int
    max_batched_tokens: int
    max_num_seqs: int
    max_model_len: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _check_positive(name, value)

    @property
    def max_sequence_len(self) -> int:
        """Most tokens, prompt and output, that one sequence may reach.

        At that length it fits the pool alone, which is why the scheduler cannot deadlock.
        """
        return min(self.max_model_len, self.num_blocks * self.block_size)


class Capacity(Protocol):
    """What an executor (rusteeze.runtime.interface.Executor) can do."""

    @property
    def num_blocks(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def max_batched_tokens(self) -> int: ...
    @property
    def max_model_len(self) -> int: ...


def limits_of(executor: Capacity, config: EngineConfig) -> SchedulerLimits:
    """The tighter of what the user chose and what the executor can do."""
    tokens, length = executor.max_batched_tokens, executor.max_model_len
    return SchedulerLimits(
        executor.num_blocks, executor.block_size,
        min(tokens, config.max_batched_tokens or tokens),
        config.max_num_seqs,
        min(length, config.max_model_len or length),
    )  # fmt: skip


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
