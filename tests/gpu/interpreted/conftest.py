"""Triton decides when it is imported whether it interprets: these tests run where TRITON_INTERPRET is set, in the
process that ../test_interpreted.py starts, and nowhere else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS / "numerics"), str(TESTS / "unit/codegen")]
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
