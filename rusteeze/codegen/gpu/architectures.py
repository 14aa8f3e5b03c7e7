"""NVIDIA architectures that kernels are compiled for, and how much shared memory a program may take."""

from __future__ import annotations

LEAST_TMA = 90
SHARED_BYTES = {"sm_80": 166912, "sm_86": 101376, "sm_89": 101376, "sm_90": 232448}


def has_tma(architecture: str) -> bool:
    """Whether the hardware copies whole tiles between global and shared memory."""
    return int(architecture.removeprefix("sm_")) >= LEAST_TMA
