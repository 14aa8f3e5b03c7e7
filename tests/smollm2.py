"""Where the small real model lies, and the command line as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = Path(os.environ.get("RUSTEEZE_TEST_MODEL") or Path.home() / ".cache/rusteeze/models" / NAME)

MARKS = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_file(), reason="run tools/fetch_model.py first"),
]


def rusteeze(
    *arguments: str | Path, stdin: str = "", env: Mapping[str, str] | None = None
) -> str:  # fmt: skip
    """What a command that must succeed prints."""
    return python("-m", "rusteeze", *map(str, arguments), stdin=stdin, env=env)


def python(*arguments: str, stdin: str = "", env: Mapping[str, str] | None = None) -> str:
    """The same for any Python program. ``env`` is added to this process's environment."""
    done = subprocess.run(
        [sys.executable, *arguments], input=stdin, capture_output=True, text=True,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def compiled(folder: Path, activations: str, kv_dtype: str = "auto") -> Path:
    """The model's artifact, in a cache below ``folder`` that several workers may share."""
    options: Sequence[str | Path] = ["compile", MODEL, "--activations", activations, "--kv-dtype", kv_dtype]
    return Path(rusteeze(*options, env={"RUSTEEZE_CACHE": str(folder / "cache")}).strip())
