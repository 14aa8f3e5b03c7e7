"""The tests in interpreted/ run in a process of their own: Triton's interpreter is chosen at import.

More model families, by hand: TRITON_INTERPRET=1 .venv/bin/pytest tests/gpu/interpreted -m slow
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"
pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_kernels_and_plans_in_the_interpreter(file: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(FOLDER / file), "-m", "not slow"]
    done = subprocess.run(
        [*command, f"--basetemp={tmp_path / 'inner'}"], capture_output=True, text=True, check=False,
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert re.search(r"^\d+ passed", done.stdout, re.M), done.stdout[-1000:]
