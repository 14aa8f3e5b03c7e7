"""Triton decides when it is imported whether it interprets: these tests run where TRITON_INTERPRET is set, in the
process that ../test_interpreted.py starts, and nowhere else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]
collect_ignore_glob = ["test_*.py"]
if os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore_glob = []
    sys.path[:0] = [str(TESTS / "numerics"), str(TESTS / "unit/codegen")]
