"""The calls of a profile, grouped by what their kernels do and set beside the machine's limits."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from rusteeze.cli.info import role
from rusteeze.runtime.ceilings import Ceilings
from rusteeze.runtime.profile import CallProfile, Profile


@dataclass(frozen=True)
class Group:
    """All calls of kernels that differ in nothing but strides. ``ns`` includes waiting at the barriers behind them, whose share is
    ``waiting``; ``share`` is of the whole step. ``of_limit``: the time that the limit which ``bound``
    names would allow, over the time taken; above 1 where data comes from the caches."""

    kernel: str
    calls: int
    ns: float
    share: float
    waiting: float
    flops: int
    bytes: int
    arithmetic: str
    bound: str
    of_limit: float

    @property
    def bytes_per_s(self) -> float:
        return _rate(self.bytes, self.ns)

    @property
    def flops_per_s(self) -> float:
        return _rate(self.flops, self.ns)

    def facts(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel, "calls": self.calls, "us": self.ns / 1e3, "share": self.share,
            "waiting": self.waiting, "bytes": self.bytes, "flops": self.flops,
            "arithmetic": self.arithmetic, "gb_per_s": self.bytes_per_s / 1e9,
            "gflop_per_s": self.flops_per_s / 1e9, "bound": self.bound, "of_limit": self.of_limit,
        }  # fmt: skip


def grouped(profile: Profile, ceilings: Ceilings) -> list[Group]:
    """By share, largest first."""
    by_kernel: dict[str, list[CallProfile]] = defaultdict(list)
    for call in profile.calls:
        by_kernel[role(call.kernel)].append(call)
    whole = sum(call.ns for call in profile.calls)
    groups = [_group(kernel, calls, whole, ceilings) for kernel, calls in by_kernel.items()]
    return sorted(groups, key=lambda g: -g.share)


def _group(kernel: str, calls: list[CallProfile], whole: float, ceilings: Ceilings) -> Group:
    ns = sum(c.ns for c in calls)
    flops, moved = sum(c.flops for c in calls), sum(c.bytes for c in calls)
    arithmetic = calls[0].arithmetic  # part of a kernel's name
    by_reading = moved / ceilings.read * 1e9
    peak = ceilings.arithmetic.get(arithmetic)  # none measured: memory is the only limit known
    by_computing = flops / peak * 1e9 if peak else 0.0
    return Group(
        kernel, len(calls), ns, ns / whole if whole else 0.0,
        sum(c.wait_ns for c in calls) / ns if ns else 0.0, flops, moved, arithmetic,
        "memory" if by_reading >= by_computing else arithmetic,
        max(by_reading, by_computing) / ns if ns else 0.0,
    )  # fmt: skip


def _rate(amount: int, ns: float) -> float:
    return amount / ns * 1e9 if ns else 0.0
