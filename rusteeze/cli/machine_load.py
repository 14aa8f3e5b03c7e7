"""How much of the machine other processes used while something was measured. Linux."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

NOTED_SHARE = 0.05


def _busy_seconds() -> float:
    """Processor time of everybody since the machine started."""
    line = Path("/proc/stat").read_text().partition("\n")[0]
    ticks = [int(n) for n in line.split()[1:9]]
    idle, waiting = ticks[3:5]
    return (sum(ticks) - idle - waiting) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class MachineLoad:
    """Since it was made."""

    busy: float = field(default_factory=_busy_seconds)
    own: float = field(default_factory=time.process_time)
    start: float = field(default_factory=time.perf_counter)

    def foreign(self) -> float:
        """The share of all cores' time that others had."""
        others = (_busy_seconds() - self.busy) - (time.process_time() - self.own)
        seconds = (time.perf_counter() - self.start) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, others / seconds))


def warning(foreign: float) -> str:
    """What to tell a person, if anything."""
    if foreign <= NOTED_SHARE:
        return ""
    return f"other processes had {100 * foreign:.0f} % of the machine meanwhile: do not trust the times"
