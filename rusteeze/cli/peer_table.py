"""The part of ``rusteeze benchmark`` that runs other engines beside ours, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rusteeze.errors import UserError
from rusteeze.peers.engines import ours, peers_in
from rusteeze.peers.provider import Provider
from rusteeze.peers.rates import decode_rate, prefill_rate
from rusteeze.peers.turns import Effort, in_turns
from rusteeze.peers.watch import Measured, watched
from rusteeze.source import Source

REPEATS = 3
PERCENTILES = (20, 50, 80)
COLUMNS = ("what", "engine", "tok/s", "p20 … p80", "of ours", "runs", "others' share %")


def engines(source: Source, artifact: Path, pythons: Sequence[str], threads: int) -> list[Provider]:
    """Ours and every engine of the interpreters that reads the model as it lies. UserError when none does."""
    if source.kind == "artifact":
        raise UserError(f"other engines read no artifacts: give the model that {source.path.name} was made from")
    kind = "gguf" if source.kind == "gguf" else "folder"
    others = [p for python in pythons for p in peers_in(python, kind, source.path, source.name, threads)]
    if not others:
        raise UserError(f"no engine of {', '.join(pythons)} reads a {kind} as it is")
    return [ours(artifact, threads), *others]


def compared(
    found: Sequence[Provider], batch: Sequence[int], prefill: Sequence[int], budget_s: float
) -> Iterator[dict[str, Any]]:
    """A row for every measurement and engine. The budget is each engine's; a measurement that is begun is
    finished, and everybody has one of each."""
    works: list[tuple[str, Callable[[str, int, Provider, int], float], int]] = [
        *((f"decode {n}", decode_rate, n) for n in batch), *((f"prefill {n}", prefill_rate, n) for n in prefill),
    ]  # fmt: skip
    effort = Effort(REPEATS, limit_s=budget_s / len(works))
    for what, rate, size in works:

        def work(engine: Provider, seed: int, what: str = what, rate: Any = rate, size: int = size) -> Measured:
            return watched(lambda: rate(what, size, engine, seed), engine.used_seconds)

        # two engines may have one name, such as the same package in two interpreters
        values = in_turns({str(i): partial(work, engine) for i, engine in enumerate(found)}, effort)
        base = float(np.median([m.value for m in values["0"]]))
        for i, engine in enumerate(found):
            yield _facts(what, engine.name, values[str(i)], base)


def _facts(what: str, engine: str, values: Sequence[Measured], base: float) -> dict[str, Any]:
    low, middle, high = (float(v) for v in np.percentile([m.value for m in values], PERCENTILES))
    return {
        "what": what, "engine": engine, "tokens_per_s": middle, "p20": low, "p80": high, "of_ours": middle / base,
        "runs": len(values), "foreign": max(m.foreign for m in values),
    }  # fmt: skip


def row(facts: dict[str, Any]) -> tuple[object, ...]:
    spread = f"{facts['p20']:.0f} … {facts['p80']:.0f}"
    return (
        facts["what"], facts["engine"], f"{facts['tokens_per_s']:.1f}", spread, f"{facts['of_ours']:.2f}",
        facts["runs"], f"{100 * facts['foreign']:.0f}",
    )  # fmt: skip
