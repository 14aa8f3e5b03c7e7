"""The part of ``rusteeze benchmark`` that runs other engines beside ours, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import nan
from typing import Any

import numpy as np

from rusteeze.errors import UserError
from rusteeze.peers.engines import peers_in
from rusteeze.peers.provider import EngineEnded, Provider
from rusteeze.peers.rates import PROMPT_TOKENS, TOKEN_IDS, decode_rate, prefill_rate
from rusteeze.peers.turns import Effort, in_turns
from rusteeze.peers.watch import Measured, watched
from rusteeze.source import Source

Rate = Callable[[str, int, Provider, int], float]

REPEATS = 3
PERCENTILES = (20, 50, 80)
COLUMNS = ("what", "engine", "tok/s", "p20 … p80", "of ours", "runs", "others' share %")


def others(source: Source, pythons: Sequence[str], threads: int) -> list[Provider]:
    """Every engine of the interpreters that reads the model as it lies. UserError when none does."""
    if source.kind == "artifact":
        raise UserError(f"other engines read no artifacts: give the model that {source.path.name} was made from")
    kind = "gguf" if source.kind == "gguf" else "folder"
    found = [p for python in pythons for p in peers_in(python, kind, source.path, source.name, threads)]
    if not found:
        raise UserError(f"no engine of {', '.join(pythons)} reads a {kind} as it is")
    return found


def check_sizes(facts: Mapping[str, Any], batch: Sequence[int], prefill: Sequence[int], new: int) -> None:
    """UserError when a model with these facts (of its artifact's manifest) cannot be asked for that."""
    longest = max([PROMPT_TOKENS + new if batch else 0, *(n + 1 for n in prefill)])
    if longest > facts["max_model_len"]:
        raise UserError(f"{longest} tokens are more than the model's {facts['max_model_len']}")
    if facts["vocab_size"] < TOKEN_IDS.stop:
        raise UserError(f"prompts are drawn from {TOKEN_IDS.stop:,} tokens, and the model has {facts['vocab_size']:,}")


def compared(
    engines: Sequence[Provider], batch: Sequence[int], prefill: Sequence[int], new: int, budget_s: float
) -> Iterator[dict[str, Any]]:
    """A row for every measurement and engine, ours first. The budget is each engine's; a measurement that is
    begun is finished, and everybody has one of each. An engine that ends has a row that says so, and takes no
    further part."""
    works: list[tuple[str, Rate, int]] = [
        *((f"decode {n}", partial(decode_rate, new=new), n) for n in batch),
        *((f"prefill {n}", prefill_rate, n) for n in prefill),
    ]  # fmt: skip
    effort = Effort(REPEATS, limit_s=budget_s / len(works))
    left = list(engines)
    for what, rate, size in works:
        ended: dict[int, EngineEnded] = {}

        def work(i: int, engine: Provider, seed: int, what: str = what, rate: Rate = rate, size: int = size,
                 ended: dict[int, EngineEnded] = ended) -> Measured:  # fmt: skip
            if i in ended:
                return Measured(nan, 0.0)
            try:
                return watched(lambda: rate(what, size, engine, seed), engine.used_seconds)
            except EngineEnded as error:
                ended[i] = error
                return Measured(nan, 0.0)

        # two engines may have one name, such as the same package in two interpreters
        values = in_turns({str(i): partial(work, i, engine) for i, engine in enumerate(left)}, effort)
        if 0 in ended:
            raise ended[0]
        base = float(np.median([m.value for m in values["0"]]))
        for i, engine in enumerate(left):
            if i in ended:
                yield {"what": what, "engine": engine.name, "runs": 0, "error": str(ended[i])}
            else:
                yield _facts(what, engine.name, values[str(i)], base)
        left = [engine for i, engine in enumerate(left) if i not in ended]


def _facts(what: str, engine: str, values: Sequence[Measured], base: float) -> dict[str, Any]:
    low, middle, high = (float(v) for v in np.percentile([m.value for m in values], PERCENTILES))
    return {
        "what": what, "engine": engine, "tokens_per_s": middle, "p20": low, "p80": high, "of_ours": middle / base,
        "runs": len(values), "foreign": max(m.foreign for m in values),
    }  # fmt: skip


def row(facts: dict[str, Any]) -> tuple[object, ...]:
    if not facts["runs"]:
        return (facts["what"], facts["engine"], "ended", "", "", 0, "")
    spread = f"{facts['p20']:.0f} … {facts['p80']:.0f}"
    return (
        facts["what"], facts["engine"], f"{facts['tokens_per_s']:.1f}", spread, f"{facts['of_ours']:.2f}",
        facts["runs"], f"{100 * facts['foreign']:.0f}",
    )  # fmt: skip
