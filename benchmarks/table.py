"""Rows of results.csv: one a measurement, never changed afterwards."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from rusteeze.peers.watch import Measured

PERCENTILES = (20, 50, 80)
COLUMNS = (
    "date", "commit", "cpu", "cores", "threads", "what", "provider", "weights", "metric",
    *(f"p{p}" for p in PERCENTILES), "n", "foreign",
)  # fmt: skip


def percentile(values: Sequence[float], percent: float) -> float:
    """Between the two nearest values, by distance. ValueError when there is none."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = percent / 100 * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def row(
    facts: Mapping[str, object], what: str, provider: str, weights: str, metric: str,
    measured: Sequence[Measured],
) -> dict[str, object]:  # fmt: skip
    """One row: percentiles of the values, and the largest share that others had of the machine."""
    values = [m.value for m in measured]
    shown = {f"p{p}": f"{percentile(values, p):.5g}" for p in PERCENTILES}
    foreign = f"{max(m.foreign for m in measured):.3f}"
    own = {"what": what, "provider": provider, "weights": weights, "metric": metric, "n": len(values)}
    return {**facts, **own, **shown, "foreign": foreign}


def line(row: Mapping[str, object]) -> str:
    """A row for a person who waits."""
    middle = f"{row['p50']:>8} {row['metric']:6}"
    spread = f"[{row['p20']}, {row['p80']}] of {row['n']}, others {row['foreign']}"
    return f"{row['what']:24} {row['provider']:36} {row['weights']:33} {middle} {spread}"


def append(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows to a file, which begins with the names of the columns."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
