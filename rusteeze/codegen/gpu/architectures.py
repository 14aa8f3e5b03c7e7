"""NVIDIA architectures that kernels are compiled for, and how much shared memory a program may take."""

from __future__ import annotations

SHARED_BYTES = {"sm_80": 166912, "sm_86": 101376, "sm_89": 101376, "sm_90": 232448}
