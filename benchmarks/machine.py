"""Facts about the machine and the checkout. Linux only."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return "unknown"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def commit(checkout: Path) -> str:
    """The short hash of a checkout, marked when its package was changed after the commit."""
    git = ["git", "-C", str(checkout)]
    head = _output([*git, "rev-parse", "--short", "HEAD"])
    return head + ("+changes" if _output([*git, "status", "--porcelain", "rusteeze"]) else "")


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
