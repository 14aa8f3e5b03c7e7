"""How much of the machine other processes used while something was measured. Linux."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from rusteeze.peers.watch import busy_seconds

NOTED_SHARE = 0.05


@dataclass(frozen=True)
class MachineLoad:
    """Since it was made."""

    busy: float = field(default_factory=busy_seconds)
    own: float = field(default_factory=time.process_time)
    start: float = field(default_factory=time.perf_counter)

    def foreign(self) -> float:
        """The share of all cores' time that others had."""
        others = (busy_seconds() - self.busy) - (time.process_time() - self.own)
        seconds = (time.perf_counter() - self.start) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, others / seconds))


def warning(foreign: float) -> str:
    """What to tell a person, if anything."""
    if foreign <= NOTED_SHARE:
        return ""
    return f"other processes had {100 * foreign:.0f} % of the machine meanwhile: do not trust the times"
