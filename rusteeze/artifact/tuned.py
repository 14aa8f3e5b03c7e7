"""Where measured schedules lie, and what of them decides an artifact's key.

Knows the files, not what they say: that is the business of code generation. ``NAME.rz/tuning.json`` holds
the schedules that an artifact's kernels were compiled with.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from rusteeze.artifact.cache import cache_dir

TUNING = "tuning.json"
CPUINFO = Path("/proc/cpuinfo")
HEAD_BYTES = 1 << 14


def user_table() -> Path:
    """The table of schedules measured on this account's machines. It need not exist."""
    return cache_dir() / TUNING


def processor(cpuinfo: Path = CPUINFO) -> str:
    """The processor's model, such as "AMD EPYC family 26 model 2"; of the first one, where they differ."""
    facts: dict[str, str] = {}
    try:
        with cpuinfo.open("rb") as file:
            head = file.read(HEAD_BYTES).decode(errors="replace")
    except OSError:
        head = ""
    for line in head.splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    # names alone do not tell generations apart under virtualisation
    parts = [facts.get("model name") or platform.machine()]
    for label, name in (("family", "cpu family"), ("model", "model"), ("part", "CPU part")):
        if name in facts:
            parts.append(f"{label} {facts[name]}")
    return " ".join(parts)


def fingerprint() -> str:
    """What two compilations of a model with equal schedules have in common: 16 hex digits of the processor
    and of the user's table. The tables of the package are part of the compiler's version."""
    digest = hashlib.sha256(processor().encode() + b"\0")
    path = user_table()
    if path.exists():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
