"""How much processor time a measurement took, and how much of the machine others had meanwhile. Linux only."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measured:
    """A value in the unit of its metric, and the share of the machine that others used meanwhile."""

    value: float
    foreign: float


def busy_seconds() -> float:
    """Processor time spent by everyone since the machine started."""
    ticks = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle, waiting = ticks[3:5]
    return (sum(ticks) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def process_seconds(pid: int) -> float:
    """Processor time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree_seconds(pid: int) -> float:
    """The same of a process and all that descend from it and live."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    own = (int(child) for file in children for child in file.read_text().split())
    return process_seconds(pid) + sum(map(tree_seconds, own))


def finished_seconds() -> float:
    """Processor time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def watched(work: Callable[[], float], own_seconds: Callable[[], float]) -> Measured:
    """Run ``work``, which gives the value; ``own_seconds`` is the processor time of those measured."""
    start, busy, own = time.perf_counter(), busy_seconds(), own_seconds()
    value = work()
    others = (busy_seconds() - busy) - (own_seconds() - own)
    share = others / ((time.perf_counter() - start) * (os.cpu_count() or 1))
    return Measured(value, max(0.0, share))
