"""Every test of kernels runs on each instruction set that this machine has."""

from __future__ import annotations

import platform

import pytest

from rusteeze.codegen.cpu.isa import ALL, Isa
from rusteeze.runtime.launch import cpu_flags

HOST = [isa for isa in ALL if isa.machine == platform.machine()]


@pytest.fixture(scope="session", params=HOST, ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest) -> Isa:
    found: Isa = request.param
    missing = found.requires - cpu_flags()
    if missing:
        pytest.skip(f"this processor lacks {', '.join(sorted(missing))}")
    return found


@pytest.fixture(scope="session")
def best_isa() -> Isa:
    """One instruction set, for what does not depend on it."""
    return next(isa for isa in HOST if isa.requires <= cpu_flags())
