"""The benchmark of the server runs: it starts one, asks it, and prints a row for each figure."""

from __future__ import annotations

from pathlib import Path

from smollm2 import MARKS, python

SCRIPT = Path(__file__).parents[2] / "benchmarks/serve.py"
pytestmark = MARKS


def test_every_figure_has_a_row(smollm2: Path) -> None:
    out = python(str(SCRIPT), "rusteeze", str(smollm2), "--clients", "1", "8", "--repeats", "1")
    rows = {what.strip(): rest for what, _, rest in (line.partition(" rusteeze") for line in out.splitlines())}
    figures = ("", ", first token, p50", ", first token, p99", ", between tokens, p50", ", between tokens, p99")
    assert {f"serve {clients}{figure}" for clients in (1, 8) for figure in figures} <= set(rows)
    assert "serve, start to ready" in rows
    assert float(rows["serve 8"].split()[1]) > 0
