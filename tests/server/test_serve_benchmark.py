"""The benchmark of the server runs: it starts one, asks it, and prints a row for each figure."""

from __future__ import annotations

from pathlib import Path

from smollm2 import MARKS, python

SCRIPT = Path(__file__).parents[2] / "benchmarks/serve.py"
pytestmark = MARKS


def test_every_figure_has_a_row(smollm2: Path) -> None:
    out = python(str(SCRIPT), "rusteeze", str(smollm2), "--clients", "1", "8", "--repeats", "1")
    rows = dict(line.split("  rusteeze")[0:2] for line in out.splitlines())
    found = {what.strip().removesuffix(" rusteeze") for what in rows}
    figures = ("", ", first token, p50", ", first token, p99", ", between tokens, p50", ", between tokens, p99")
    assert {f"serve {clients}{figure}" for clients in (1, 8) for figure in figures} <= found
    assert "serve, start to ready" in found
    median = float(next(rest for what, rest in rows.items() if what.strip() == "serve 8").split()[1])
    assert median > 0
